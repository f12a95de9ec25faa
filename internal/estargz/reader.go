package estargz

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"dray/internal/inflate"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

const (
	// leastTailBytes and mostTailBytes bound what [Open] reads of a blob's end
	// when nothing says where the TOC is.
	leastTailBytes = 64 << 10
	mostTailBytes  = 1 << 20
	// tailShare is the part of a blob that its TOC takes with small files.
	tailShare = 64

	readBufBytes = 64 << 10
)

// OpenOptions of [Open]. The zero value is the default.
type OpenOptions struct {
	// Hints is what the manifest says. A TOC that is not the one it names is
	// refused; without a digest in it, nothing is known of the TOC but its form.
	Hints Hints
	// ExternalTOC is the blob with the TOC of an [EStargzExternal] layer: a tar,
	// compressed with gzip, with [TOCName] as its entry. It is read to its end.
	ExternalTOC io.Reader
	Limits      Limits
}

// Reader reads a seekable layer. It holds the TOC and no part of the blob.
type Reader struct {
	src    io.ReaderAt
	size   int64
	footer Footer
	doc    *document
	table  *table
	limits Limits

	mu       sync.Mutex // guards the fields below
	decoders []*chunkDecoder
}

// Open reads the TOC of a blob of size bytes. It asks src once if o.Hints has the
// TOC's position or if the TOC is small, and twice else. Errors: [ErrNoTOC],
// [ErrFormat], [stream.ErrMismatch], those of src.
func Open(src io.ReaderAt, size int64, o OpenOptions) (*Reader, error) {
	r := &Reader{src: src, size: size, limits: o.Limits.withDefaults()}
	toc, err := r.find(o)
	if err != nil {
		return nil, err
	}
	if r.doc, err = r.readTOC(toc, o.Hints); err != nil {
		return nil, err
	}
	r.table = r.doc.table
	return r, nil
}

// find sets the footer and returns the TOC, compressed.
func (r *Reader) find(o OpenOptions) (io.Reader, error) {
	tail, at, err := r.locate(o)
	if err != nil {
		return nil, err
	}
	toc := io.Reader(bufio.NewReaderSize(io.NewSectionReader(r.src, r.footer.TOC.Offset, r.footer.TOC.Size), mostTailBytes))
	if from := r.footer.TOC.Offset - at; tail != nil && from >= 0 {
		toc = bytes.NewReader(tail[from:][:r.footer.TOC.Size])
	}
	if r.footer.Format == EStargzExternal {
		if toc = o.ExternalTOC; toc == nil {
			return nil, fmt.Errorf("open layer: its TOC is in another blob, which was not given: %w", ErrNoTOC)
		}
	}
	return toc, nil
}

// locate sets the footer and returns the blob's bytes from an offset on, if it
// has read any.
func (r *Reader) locate(o OpenOptions) (tail []byte, at int64, err error) {
	if o.Hints.TOC.Size > 0 {
		r.footer = Footer{Format: o.Hints.Format, TOC: o.Hints.TOC, TarSplit: o.Hints.TarSplit}
		r.footer.PayloadSize = r.footer.TOC.Offset - skippableBytes
		for _, s := range []Span{r.footer.TOC, r.footer.TarSplit} {
			if s.Offset > r.size || s.Size > r.size-s.Offset || r.footer.PayloadSize < 0 {
				return nil, 0, malformed("annotation points to %d bytes at %d of a blob of %d", s.Size, s.Offset, r.size)
			}
		}
		return nil, 0, nil
	}
	at = max(0, r.size-min(max(r.size/tailShare, leastTailBytes), mostTailBytes))
	tail = make([]byte, r.size-at)
	if n, err := r.src.ReadAt(tail, at); n < len(tail) {
		return nil, 0, fmt.Errorf("read end of layer: %w", noEOF(err))
	}
	r.footer, err = ParseFooter(tail, r.size)
	return tail, at, err
}

// readTOC decodes and checks a TOC.
func (r *Reader) readTOC(src io.Reader, h Hints) (*document, error) {
	var verifier *stream.Verifier
	if r.footer.Format.zstd() && h.ManifestChecksum != "" {
		verifier = stream.NewVerifier(src, "compressed TOC", h.ManifestChecksum, r.footer.TOC.Size)
		src = verifier
	}
	text, closer, err := r.openTOC(src)
	if err != nil {
		return nil, fmt.Errorf("read TOC: %w", err)
	}
	defer closer()
	doc, err := decodeTOC(text, r.footer.PayloadSize, r.limits)
	// Of a TOC that was exchanged, say so rather than what is wrong in it.
	if verifier != nil {
		if _, drained := stream.Drain(stream.NewSlicer(verifier, readBufBytes)); drained != nil {
			return nil, drained
		}
	}
	if err != nil {
		return nil, err
	}
	if h.TOCDigest != "" && doc.digest != h.TOCDigest {
		return nil, &stream.MismatchError{What: "TOC", Want: h.TOCDigest, Got: doc.digest, WantSize: stream.AnySize}
	}
	return doc, nil
}

// openTOC returns the text of a TOC.
func (r *Reader) openTOC(src io.Reader) (text io.Reader, closer func(), err error) {
	if r.footer.Format.zstd() {
		z, err := newZstd(src)
		if err != nil {
			return nil, nil, err
		}
		return formatReader{z}, z.Close, nil
	}
	z := inflate.NewReader(bufio.NewReader(src))
	closer = func() { _ = z.Close() }
	t := tar.NewReader(z)
	header, err := t.Next()
	switch {
	case err != nil:
		err = malformed("%w", noEOF(err))
	case header.Name != TOCName || header.Typeflag != tar.TypeReg:
		err = malformed("found %q instead of %s", clip(header.Name), TOCName)
	}
	if err != nil {
		closer()
		return nil, nil, err
	}
	return formatReader{t}, closer, nil
}

// formatReader makes the errors of a decoder wrap [ErrFormat].
type formatReader struct{ r io.Reader }

func (f formatReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read TOC: %w: %w", ErrFormat, err)
	}
	return n, err
}

func newZstd(src io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(src,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(layer.DefaultMaxWindowBytes))
}

// noEOF turns io.EOF into io.ErrUnexpectedEOF.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Format returns how the blob is made.
func (r *Reader) Format() Format { return r.footer.Format }

// Footer returns where things are.
func (r *Reader) Footer() Footer { return r.footer }

// TOCDigest returns the digest of the uncompressed TOC.
func (r *Reader) TOCDigest() oci.Digest { return r.doc.digest }

// Entry is an entry of a TOC.
type Entry struct {
	Name       string // cleaned: no leading or trailing slash; "" is the root
	Linkname   string // of a Symlink as it is, of a HardLink cleaned
	Type       layer.EntryType
	Mode       uint32
	UID, GID   uint32
	Size       int64 // of a Reg
	MTimeSec   int64
	MTimeNsec  uint32
	Major      uint32 // of a Char or Block
	Minor      uint32
	Xattrs     []layer.Xattr // not to be changed
	Digest     oci.Digest    // of a Reg's content; "" if the TOC has none
	ChunkCount int

	node uint32
}

// Chunk is a part of a file that is read and verified as one.
type Chunk struct {
	Offset      int64 // in the blob, where its member starts
	EndOffset   int64 // in the blob: what is needed ends before it
	InnerOffset int64 // in what the members from Offset on hold
	FileOffset  int64 // in the file
	Size        int64 // uncompressed
	Digest      oci.Digest
	Zeros       bool // nothing but zeros; nothing need be read
}

// Len returns the number of names in the TOC, repeated ones counted once.
func (r *Reader) Len() int { return len(r.table.byName) }

// Entries returns all entries in the order of the TOC, each name once.
func (r *Reader) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range r.table.nodes {
			if r.holds(uint32(i)) && !yield(r.entry(uint32(i))) {
				return
			}
		}
	}
}

// holds tells whether no later node has the same name.
func (r *Reader) holds(i uint32) bool {
	last, _ := r.table.find(r.table.name(&r.table.nodes[i]))
	return last == i
}

// Lookup returns the entry of that name, "/" or "" being the root. Directories
// that the TOC only implies have none.
func (r *Reader) Lookup(name string) (Entry, bool) {
	name, err := cleanName(name)
	if err != nil {
		return Entry{}, false
	}
	i, ok := r.table.find([]byte(name))
	if !ok {
		return Entry{}, false
	}
	return r.entry(i), true
}

// Resolve follows hard links to what they name.
func (r *Reader) Resolve(e Entry) Entry {
	for e.Type == layer.HardLink {
		i, _ := r.table.find([]byte(e.Linkname)) // there, and without cycles: [table.checkTree]
		e = r.entry(i)
	}
	return e
}

func (r *Reader) entry(i uint32) Entry {
	t := r.table
	n := &t.nodes[i]
	e := Entry{
		Name: string(t.name(n)), Type: n.typ, Mode: uint32(n.mode), UID: n.uid, GID: n.gid,
		Size: n.size, MTimeSec: n.mtime, MTimeNsec: n.nsec, node: i,
	}
	switch n.typ {
	case layer.Reg:
		e.ChunkCount = int(n.count)
		if n.count == 1 {
			e.Digest = t.digest(n.first)
		}
	case layer.Symlink, layer.HardLink:
		e.Linkname = string(t.target(n))
	case layer.Char, layer.Block:
		e.Major, e.Minor = n.first, n.count
	case layer.Dir, layer.FIFO:
	}
	if n.extra > 0 {
		x := &t.extras[n.extra-1]
		e.Xattrs = x.xattrs
		if x.has {
			e.Digest = digestOf(x.digest)
		}
	}
	return e
}

func (t *table) digest(row uint32) oci.Digest {
	c := &t.chunks[row]
	if c.flags&chunkVerified == 0 {
		return ""
	}
	return digestOf(c.digest)
}

func digestOf(s sum) oci.Digest {
	return oci.Digest(oci.SHA256 + ":" + hex.EncodeToString(s[:]))
}

// Chunks returns the chunks of a file in order; they cover it.
func (r *Reader) Chunks(e Entry) iter.Seq[Chunk] {
	return func(yield func(Chunk) bool) {
		for i := range e.ChunkCount {
			if !yield(r.chunk(e, i)) {
				return
			}
		}
	}
}

// chunk returns chunk i of a file.
func (r *Reader) chunk(e Entry, i int) Chunk {
	t := r.table
	n := &t.nodes[e.node]
	row := n.first + uint32(i)
	c := &t.chunks[row]
	return Chunk{
		Offset:      c.offset,
		EndOffset:   t.memberEnd(c.offset),
		InnerOffset: int64(c.inner),
		FileOffset:  c.fileOffset,
		Size:        t.rowSize(n, row),
		Digest:      t.digest(row),
		Zeros:       c.flags&chunkZeros != 0,
	}
}

// PrefetchSize returns how much of the blob, from its start, its maker wants to
// be fetched first: 0 and true if nothing, false if the layer does not say.
func (r *Reader) PrefetchSize() (int64, bool) {
	if e, ok := r.Lookup(PrefetchLandmark); ok && e.ChunkCount > 0 {
		return r.chunk(e, 0).Offset, true
	}
	_, none := r.Lookup(NoPrefetchLandmark)
	return 0, none
}

// Prioritized returns the names to be fetched first, in order: those before the
// landmark, directories left out, or those that a lossless layer's TOC lists.
func (r *Reader) Prioritized() []string {
	if r.doc.prioritized != nil {
		return r.doc.prioritized
	}
	if e, ok := r.Lookup(PrefetchLandmark); !ok || e.Type != layer.Reg {
		return nil
	}
	var names []string
	for e := range r.Entries() {
		if e.Name == PrefetchLandmark {
			break
		}
		if e.Type != layer.Dir {
			names = append(names, e.Name)
		}
	}
	return names
}

// IsMeta tells whether name is one that the formats add to a tree.
func IsMeta(name string) bool {
	switch strings.TrimPrefix(name, "/") {
	case TOCName, PrefetchLandmark, NoPrefetchLandmark:
		return true
	}
	return false
}

// sumOf returns the digest of b.
func sumOf(b []byte) sum { return sha256.Sum256(b) }
