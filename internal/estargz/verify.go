package estargz

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

// ErrDisagree reports a layer whose TOC is not what its tar unpacks to.
// [*DisagreeError] has the details.
var ErrDisagree = errors.New("TOC and tar disagree")

// DisagreeError tells the first difference.
type DisagreeError struct {
	Name string
	What string // "mode", "content": what differs; "entry" if one of the two has none
}

// Error implements error.
func (e *DisagreeError) Error() string {
	return fmt.Sprintf("verify TOC: %q: its %s is not the same in the tar: %v", clip(e.Name), e.What, ErrDisagree)
}

// Is makes every difference match [ErrDisagree].
func (e *DisagreeError) Is(target error) bool { return target == ErrDisagree }

// VerifyResult is what [Reader.Verify] has found.
type VerifyResult struct {
	DiffID  oci.DiffID // of all that the blob unpacks to
	Size    int64      // of it, uncompressed
	Entries int        // names that were compared
	Chunks  int        // chunks that were read at their own offset
}

// Verify reads the whole blob twice: once each chunk at its offset, against its
// digest, and once as the stream that an eager pull unpacks, of which every
// entry must be what the TOC says. Times are compared in whole seconds, which is
// all that eStargz keeps. Of a file whose chunks have no digests, as in
// [LegacyStargz], the digest of the whole is held against what is at their offsets;
// without any it does not pass. Errors:
// [ErrDisagree], [stream.ErrMismatch], [ErrUnverified], [layer.ErrFormat] and
// those of the source. It ends early with ctx.
func (r *Reader) Verify(ctx context.Context) (VerifyResult, error) {
	var result VerifyResult
	if err := r.verifyChunks(ctx, &result); err != nil {
		return result, err
	}
	z, err := layer.Decompress(io.NewSectionReader(r.src, 0, r.size), layer.Options{})
	if err != nil {
		return result, err
	}
	defer func() { _ = z.Close() }()
	diffID := sha256.New()
	blocks := stream.NewSlicer(io.TeeReader(z, diffID), readBufBytes)
	v := &verifier{r: r, tar: layer.NewTar(blocks, r.limits.Layer), seen: make([]bool, len(r.table.nodes)), wrong: map[string]error{}}
	if err := v.run(ctx, &result); err != nil {
		return result, err
	}
	_, err = v.tar.Drain()
	result.DiffID = oci.DiffID(oci.DigestOf(oci.SHA256, diffID))
	result.Size = v.tar.Offset()
	return result, err
}

// verifyChunks reads every chunk at its offset.
func (r *Reader) verifyChunks(ctx context.Context, result *VerifyResult) error {
	var buf []byte
	for e := range r.Entries() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		var whole hash.Hash // of a file whose chunks have no digests
		if e.Digest != "" && r.lacksChunkDigests(e) {
			whole = sha256.New()
		}
		for c := range r.Chunks(e) {
			if c.Size > r.limits.MaxChunkBytes {
				return malformed("%q has a chunk of %d bytes", clip(e.Name), c.Size)
			}
			buf = slices.Grow(buf[:0], int(c.Size))[:c.Size]
			read := r.ReadChunk
			if whole != nil {
				read = r.fill
			}
			if err := read(c, buf); err != nil {
				return fmt.Errorf("verify %q: %w", clip(e.Name), err)
			}
			if whole != nil {
				_, _ = whole.Write(buf) // hashes never fail
			}
			result.Chunks++
		}
		if whole != nil && !sumIs(whole, e.Digest) {
			return fmt.Errorf("verify %q: %w", clip(e.Name), &stream.MismatchError{
				What: "file", Want: e.Digest, Got: oci.DigestOf(oci.SHA256, whole), WantSize: e.Size, GotSize: e.Size,
			})
		}
	}
	return nil
}

// lacksChunkDigests tells whether one of a file's chunks has no digest.
func (r *Reader) lacksChunkDigests(e Entry) bool {
	for i := range uint32(e.ChunkCount) {
		if row := r.table.nodes[e.node].first + i; r.table.chunks[row].flags&chunkVerified == 0 {
			return true
		}
	}
	return false
}

// verifier compares a tar with a TOC.
type verifier struct {
	r    *Reader
	tar  *layer.Tar
	seen []bool // nodes whose name was in the tar, and the same the last time

	// wrong has the names that differed, until they come again: the last holds.
	wrong map[string]error
}

// maxWrong bounds verifier.wrong: beyond, the first difference is final.
const maxWrong = 1 << 16

func (v *verifier) run(ctx context.Context, result *VerifyResult) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		te, err := v.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, err := cleanName(te.Name)
		if err != nil {
			return err
		}
		if name == TOCName && v.r.footer.Format != EStargzExternal && !v.r.footer.Format.zstd() {
			continue
		}
		same, err := v.compare(name, te)
		switch {
		case err != nil && !same:
			return err
		case err == nil:
			delete(v.wrong, name)
			result.Entries++
		case len(v.wrong) == maxWrong:
			return err
		default:
			v.wrong[name] = err
		}
	}
	var names []string
	for name := range v.wrong {
		names = append(names, name)
	}
	if len(names) > 0 {
		return v.wrong[slices.Min(names)]
	}
	for _, i := range v.r.table.byName {
		if !v.seen[i] {
			return &DisagreeError{Name: string(v.r.table.name(&v.r.table.nodes[i])), What: "entry"}
		}
	}
	return nil
}

// compare compares an entry of the tar. Its error is a difference if goOn, which
// a later entry of the same name may settle, else one of reading.
func (v *verifier) compare(name string, te *layer.Entry) (goOn bool, err error) {
	i, ok := v.r.table.find([]byte(name))
	if !ok {
		if name == "" {
			return true, nil // the root needs no entry
		}
		return true, &DisagreeError{Name: name, What: "entry"}
	}
	e := v.r.entry(i)
	v.seen[i] = true
	if what := differs(&e, te); what != "" {
		return true, &DisagreeError{Name: name, What: what}
	}
	if te.Type != layer.Reg {
		return true, nil
	}
	same, err := v.sameContent(e)
	if err != nil {
		return false, err
	}
	if !same {
		return true, &DisagreeError{Name: name, What: "content"}
	}
	return true, nil
}

// differs names the attribute in which the two differ, or returns "".
func differs(e *Entry, te *layer.Entry) string {
	target := te.Linkname
	if te.Type == layer.HardLink {
		target, _ = cleanName(te.Linkname)
	} else if te.Type != layer.Symlink {
		target = ""
	}
	xattrs := func(a, b layer.Xattr) bool { return a.Name == b.Name && string(a.Value) == string(b.Value) }
	switch {
	case e.Type != te.Type:
		return "type"
	case e.Size != te.Size:
		return "size"
	case e.Mode != te.Mode:
		return "mode"
	case e.UID != te.UID || e.GID != te.GID:
		return "owner"
	case !sameTime(e, te):
		return "time"
	case e.Linkname != target:
		return "target"
	case (te.Type == layer.Char || te.Type == layer.Block) && (e.Major != te.Major || e.Minor != te.Minor):
		return "device number"
	case !slices.EqualFunc(e.Xattrs, te.Xattrs, xattrs):
		return "xattrs"
	case te.Sparse != nil:
		return "sparse content"
	}
	return ""
}

// sameTime compares times as far as the TOC has them. Writers cut or round them
// to seconds; 1970 and no time at all are the same to them.
func sameTime(e *Entry, te *layer.Entry) bool {
	if e.MTimeNsec != 0 {
		return e.MTimeSec == te.MTimeSec && e.MTimeNsec == te.MTimeNsec
	}
	rounded := te.MTimeSec
	if te.MTimeNsec >= 500_000_000 {
		rounded++
	}
	return e.MTimeSec == te.MTimeSec || e.MTimeSec == rounded
}

// sameContent compares the body of the tar's entry with the digests of e.
func (v *verifier) sameContent(e Entry) (bool, error) {
	file, chunk := sha256.New(), sha256.New()
	same, i, left := true, 0, int64(0)
	var want oci.Digest
	for {
		part, err := v.tar.Body()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return false, err
		}
		_, _ = file.Write(part) // hashes never fail
		for len(part) > 0 && same {
			if left == 0 {
				c := v.r.chunk(e, i) // the sizes are the same: there is one
				want, left, i = c.Digest, c.Size, i+1
				chunk.Reset()
			}
			n := min(int64(len(part)), left)
			_, _ = chunk.Write(part[:n])
			part, left = part[n:], left-n
			same = left > 0 || want == "" || sumIs(chunk, want) // "": the file's digest tells
		}
	}
	return same && (e.Digest == "" || e.Size == 0 && e.Digest == oci.DigestBytes(nil) || sumIs(file, e.Digest)), nil
}

func sumIs(h hash.Hash, want oci.Digest) bool {
	return cmp.Compare(oci.DigestOf(oci.SHA256, h), want) == 0
}
