package estargz

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"dray/internal/layer"
	"dray/internal/oci"
)

// tocEntry is an entry as it is written. Names follow [jsonEntry].
type tocEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size,omitempty"`
	ModTime     string            `json:"modtime,omitempty"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        uint32            `json:"mode,omitempty"`
	UID         uint32            `json:"uid,omitempty"`
	GID         uint32            `json:"gid,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	InnerOffset int64             `json:"innerOffset,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
	DevMajor    uint32            `json:"devMajor,omitempty"`
	DevMinor    uint32            `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      oci.Digest        `json:"digest,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkDigest oci.Digest        `json:"chunkDigest,omitempty"`

	clean string
}

func newTOCEntry(e *layer.Entry) *tocEntry {
	clean, _ := cleanName(e.Name) // checked before
	t := &tocEntry{
		Name: e.Name, Size: e.Size, LinkName: e.Linkname, Mode: e.Mode, UID: e.UID, GID: e.GID,
		DevMajor: e.Major, DevMinor: e.Minor, Type: typeName(e.Type), clean: clean,
	}
	if e.Type != layer.Symlink && e.Type != layer.HardLink {
		t.LinkName = ""
	}
	// Seconds are what containerd keeps; a second time with a fraction would differ.
	if at := time.Unix(e.MTimeSec, int64(e.MTimeNsec)).UTC().Round(time.Second); at.Unix() != 0 && at.Year() >= 0 && at.Year() < 10000 {
		t.ModTime = at.Format(time.RFC3339)
	}
	if len(e.Xattrs) > 0 {
		t.Xattrs = map[string][]byte{}
		for _, x := range e.Xattrs {
			t.Xattrs[x.Name] = bytes.Clone(x.Value)
		}
	}
	return t
}

func typeName(t layer.EntryType) string {
	switch t {
	case layer.Reg:
		return "reg"
	case layer.Dir:
		return "dir"
	case layer.Symlink:
		return "symlink"
	case layer.HardLink:
		return "hardlink"
	case layer.Char:
		return "char"
	case layer.Block:
		return "block"
	case layer.FIFO:
		return "fifo"
	}
	panic("estargz: internal error: unknown type")
}

// encoder compresses members one by one; each is the same whatever was before.
type encoder struct {
	gzip *gzip.Writer
	zstd *zstd.Encoder
}

func newEncoder(o *Options) (*encoder, error) {
	if o.Format.zstd() {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(o.Level)))
		return &encoder{zstd: z}, err
	}
	z, err := gzip.NewWriterLevel(nil, o.Level)
	return &encoder{gzip: z}, err
}

// appendTo implements io.Writer.
type appendTo struct{ b []byte }

func (a *appendTo) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

// append appends member, compressed, to out.
func (e *encoder) append(out, member []byte) ([]byte, error) {
	if e.zstd != nil {
		return e.zstd.EncodeAll(member, out), nil
	}
	a := &appendTo{out}
	e.gzip.Reset(a)
	if _, err := e.gzip.Write(member); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := e.gzip.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return a.b, nil
}

// stream returns what produce writes, compressed as one member.
func (e *encoder) stream(produce func(io.Writer) error) ([]byte, error) {
	out := &appendTo{}
	var w io.WriteCloser
	if e.zstd != nil {
		e.zstd.Reset(out)
		w = e.zstd
	} else {
		e.gzip.Reset(out)
		w = e.gzip
	}
	if err := errors.Join(produce(w), w.Close()); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return out.b, nil
}

func (e *encoder) close() {
	if e.zstd != nil {
		_ = e.zstd.Close() // it writes to nothing
	}
}

// compressUnits is a worker.
func compressUnits(work <-chan *unitOf, o *Options) error {
	e, err := newEncoder(o)
	if err != nil {
		return err
	}
	defer e.close()
	for u := range work {
		for i := range u.items {
			if it := &u.items[i]; it.to > it.from {
				it.digest = sha256.Sum256(u.data[it.from:it.to])
			}
		}
		from := 0
		for _, end := range u.ends {
			if u.out, err = e.append(u.out, u.data[from:end]); err != nil {
				return err
			}
			u.outEnds = append(u.outEnds, len(u.out))
			from = end
		}
		u.done <- struct{}{} // never blocks: it is awaited before the unit is used again
	}
	return nil
}

// collector puts what the workers made together. It belongs to one goroutine.
type collector struct {
	o      *Options
	dst    io.Writer
	blob   hash.Hash
	diffID hash.Hash
	size   int64 // of the blob
	raw    int64 // of the tar

	lines   spool   // the TOC's entries, each a line behind a separator
	ends    []int64 // of entries with their chunks, in lines
	byName  map[nameKey]int32
	dropped map[int32]bool // entries whose name came again

	pending  []tocEntry // of the file that has not ended
	clean    string     // its name
	fileHash hash.Hash

	split *tarSplit // nil but for ZstdChunked
}

// nameKey stands for a name: a part of its SHA-256, so that a layer of many files
// does not have all of their names in memory.
type nameKey [16]byte

func keyOf(name string) nameKey {
	sum := sha256.Sum256([]byte(name))
	return nameKey(sum[:])
}

func newCollector(dst io.Writer, o *Options) (*collector, error) {
	c := &collector{
		o: o, dst: dst, blob: sha256.New(), diffID: sha256.New(), fileHash: sha256.New(),
		byName: map[nameKey]int32{}, dropped: map[int32]bool{}, lines: spool{memory: o.SpillMemory, dir: o.TempDir},
	}
	if o.Format != ZstdChunked {
		return c, nil
	}
	var err error
	c.split, err = newTarSplit(o)
	return c, err
}

// close gives up what was spooled.
func (c *collector) close() {
	c.lines.close()
	if c.split != nil {
		_ = c.split.zstd.Close() // of what it has written nothing is wanted
	}
}

func (c *collector) run(ctx context.Context, ordered <-chan *unitOf, free chan<- *unitOf) error {
	for u := range ordered {
		select {
		case <-u.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := c.take(u); err != nil {
			return err
		}
		free <- u // never blocks: all units fit
	}
	return nil
}

// take writes a unit.
func (c *collector) take(u *unitOf) error {
	_, _ = c.diffID.Write(u.data) // hashes never fail
	c.raw += int64(len(u.data))
	at := 0
	for i := range u.items {
		it := &u.items[i]
		if c.split != nil {
			c.split.segment(u.data[at:it.from])
			at = it.to
		}
		if err := c.item(u, it); err != nil {
			return err
		}
	}
	if c.split != nil {
		c.split.segment(u.data[at:])
	}
	return c.write(u.out)
}

// item takes one entry or chunk.
func (c *collector) item(u *unitOf, it *item) error {
	body := u.data[it.from:it.to]
	if it.entry != nil {
		c.pending = append(c.pending[:0], *it.entry)
		c.clean = it.entry.clean
		c.fileHash.Reset()
	} else {
		c.pending = append(c.pending, tocEntry{Name: c.pending[0].Name, Type: typeChunk})
	}
	e := &c.pending[len(c.pending)-1]
	if len(body) > 0 {
		e.Offset, e.InnerOffset = c.size, it.inner
		end := c.size
		if it.member > 0 {
			e.Offset += int64(u.outEnds[it.member-1])
		}
		end += int64(u.outEnds[it.member])
		e.ChunkOffset, e.ChunkSize = it.fileOffset, int64(len(body))
		e.ChunkDigest = digestOf(it.digest)
		if !it.last || it.entry == nil {
			_, _ = c.fileHash.Write(body)
		}
		if c.split != nil {
			c.pending[0].EndOffset = end
			c.split.body(body)
		}
	}
	if !it.last {
		return nil
	}
	c.endFile()
	if c.split != nil {
		c.split.file(c.pending[0].Name, c.pending[0].Size)
	}
	return c.flush()
}

// endFile sets what is known when a file has ended.
func (c *collector) endFile() {
	first, last := &c.pending[0], &c.pending[len(c.pending)-1]
	podman := c.o.Format == ZstdChunked
	switch {
	case first.Type != "reg":
	case first.Size == 0:
		if !podman {
			first.Digest = oci.DigestBytes(nil)
		}
	case len(c.pending) == 1:
		first.Digest = first.ChunkDigest
		first.ChunkSize = 0
		if podman {
			first.ChunkDigest = ""
		}
	default:
		first.Digest = oci.DigestOf(oci.SHA256, c.fileHash)
		if !podman {
			last.ChunkSize = 0
		}
	}
	if c.o.Format == LegacyStargz {
		for i := range c.pending {
			c.pending[i].ChunkDigest = ""
		}
	}
}

// flush appends the pending lines to the TOC.
func (c *collector) flush() error {
	key := keyOf(c.clean)
	if i, ok := c.byName[key]; ok {
		c.dropped[i] = true
	}
	c.byName[key] = int32(len(c.ends))
	for i := range c.pending {
		line, err := json.Marshal(&c.pending[i])
		if err != nil {
			return fmt.Errorf("write TOC: %w", err)
		}
		if err := errors.Join(c.lines.write([]byte(separator)), c.lines.write(line)); err != nil {
			return err
		}
	}
	c.ends = append(c.ends, c.lines.size)
	return nil
}

func (c *collector) write(p []byte) error {
	_, _ = c.blob.Write(p)
	c.size += int64(len(p))
	_, err := c.dst.Write(p)
	return err
}

// separator is before every entry of the TOC but the first.
const separator = ",\n"

// writeTOC writes the TOC. Of a name that came again only the last entry is in it.
func (c *collector) writeTOC(w io.Writer, tarSplitDigest oci.Digest, prioritized []string) error {
	out := bufio.NewWriterSize(w, readBufBytes)
	_, _ = out.WriteString(`{"version":1,"entries":[` + "\n") // errors come back at Flush
	from, first := int64(0), true
	keep := func(to int64) error { // what is between from and to
		if first && to > from {
			from, first = from+int64(len(separator)), false
		}
		return c.lines.read(from, to-from, func(p []byte) error { _, err := out.Write(p); return err })
	}
	for i, end := range c.ends {
		if !c.dropped[int32(i)] {
			continue
		}
		start := int64(0)
		if i > 0 {
			start = c.ends[i-1]
		}
		if err := keep(start); err != nil {
			return err
		}
		from = end
	}
	if err := keep(c.lines.size); err != nil {
		return err
	}
	_, _ = out.WriteString("\n]")
	if tarSplitDigest != "" {
		_, _ = fmt.Fprintf(out, ",\n\"tarSplitDigest\":%q", tarSplitDigest)
	}
	if c.o.Lossless && prioritized != nil {
		names, err := json.Marshal(prioritized)
		if err != nil {
			return fmt.Errorf("write TOC: %w", err)
		}
		_, _ = fmt.Fprintf(out, ",\n\"prioritized\":%s", names)
	}
	_, _ = out.WriteString("}\n")
	return out.Flush()
}

// tocWriter writes a TOC, the same each time.
type tocWriter struct {
	write  func(io.Writer) error
	digest oci.Digest
	size   int64
}

// finish writes TOC and footer.
func (c *collector) finish(p *plan) (*Result, error) {
	e, err := newEncoder(c.o)
	if err != nil {
		return nil, err
	}
	defer e.close()
	f := Footer{Format: c.o.Format}
	var split []byte
	var splitDigest oci.Digest
	if c.split != nil {
		if split, err = c.split.finish(); err != nil {
			return nil, err
		}
		splitDigest = oci.DigestBytes(split)
	}
	toc := tocWriter{write: func(w io.Writer) error { return c.writeTOC(w, splitDigest, p.matched) }}
	h := sha256.New()
	counted := &counter{w: h}
	if err := toc.write(counted); err != nil {
		return nil, err
	}
	toc.digest, toc.size = oci.DigestOf(oci.SHA256, h), counted.n
	r := &Result{TOCDigest: toc.digest, Entries: len(c.ends) - len(c.dropped), Matched: p.matched, Missed: p.missed}
	var checksum oci.Digest
	switch c.o.Format {
	case EStargz, EStargzExternal, LegacyStargz:
		err = c.finishGzip(e, toc, r)
	case ZstdChunked, ZstdChunkedContainerd:
		checksum, err = c.finishZstd(e, toc, split, &f)
	}
	if err != nil {
		return nil, err
	}
	r.Digest, r.Size = oci.DigestOf(oci.SHA256, c.blob), c.size
	r.DiffID, r.UncompressedSize = oci.DiffID(oci.DigestOf(oci.SHA256, c.diffID)), c.raw
	r.annotate(f, checksum)
	return r, nil
}

// counter counts what it passes on.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

// finishGzip compresses the tar entry with the TOC: its header, itself, padding and
// the end of the archive.
func (c *collector) finishGzip(e *encoder, toc tocWriter, r *Result) error {
	header, err := synthesize(&layer.Entry{Name: TOCName, Size: toc.size, Mode: 0o644})
	if err != nil {
		return err
	}
	end := make([]byte, -toc.size&(tarBlockBytes-1)+2*tarBlockBytes)
	external := c.o.Format == EStargzExternal
	at := c.size
	text := io.Writer(c.diffID)
	if external {
		text = io.Discard
	}
	member, err := e.stream(func(w io.Writer) error {
		both := io.MultiWriter(text, w)
		if _, err := both.Write(header); err != nil {
			return err
		}
		if err := toc.write(both); err != nil {
			return err
		}
		_, err := both.Write(end)
		return err
	})
	if err != nil {
		return err
	}
	if external {
		r.ExternalTOC = oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Digest: oci.DigestBytes(member), Size: int64(len(member))}
		if _, err := c.o.TOC.Write(member); err != nil {
			return err
		}
		return c.write(appendExternalFooter(nil))
	}
	c.raw += int64(len(header)) + toc.size + int64(len(end))
	if c.o.Format == LegacyStargz {
		return c.write(appendLegacyFooter(member, at))
	}
	return c.write(appendEStargzFooter(member, at))
}

func (c *collector) finishZstd(e *encoder, toc tocWriter, split []byte, f *Footer) (oci.Digest, error) {
	compressed, err := e.stream(toc.write)
	if err != nil {
		return "", err
	}
	f.TOC = Span{Offset: c.size + skippableBytes, Size: int64(len(compressed)), RawSize: toc.size}
	parts := [][]byte{appendSkippable(nil, len(compressed)), compressed}
	if c.split != nil {
		f.TarSplit = Span{Offset: f.TOC.Offset + f.TOC.Size + skippableBytes, Size: int64(len(split)), RawSize: c.split.size}
		parts = append(parts, appendSkippable(nil, len(split)), split)
	}
	for _, part := range append(parts, appendZstdFooter(nil, *f)) {
		if err := c.write(part); err != nil {
			return "", err
		}
	}
	return oci.DigestBytes(compressed), nil
}
