package estargz

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc64"
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

	lines   bytes.Buffer // the TOC's entries, a line each
	ends    []int64      // of entries with their chunks, in lines
	byName  map[string]int
	dropped map[int]bool // entries whose name came again

	pending  []tocEntry // of the file that has not ended
	clean    string     // its name
	fileHash hash.Hash

	split *tarSplit // nil but for ZstdChunked
}

func newCollector(dst io.Writer, o *Options) *collector {
	c := &collector{o: o, dst: dst, blob: sha256.New(), diffID: sha256.New(), fileHash: sha256.New(), byName: map[string]int{}, dropped: map[int]bool{}}
	if o.Format == ZstdChunked {
		c.split = &tarSplit{table: crc64.MakeTable(crc64.ISO)}
	}
	return c
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
}

// flush appends the pending lines to the TOC.
func (c *collector) flush() error {
	name := c.clean
	if i, ok := c.byName[name]; ok {
		c.dropped[i] = true
	}
	c.byName[name] = len(c.ends)
	for i := range c.pending {
		line, err := json.Marshal(&c.pending[i])
		if err != nil {
			return fmt.Errorf("write TOC: %w", err)
		}
		c.lines.Write(line)
		c.lines.WriteByte('\n')
	}
	c.ends = append(c.ends, int64(c.lines.Len()))
	return nil
}

func (c *collector) write(p []byte) error {
	_, _ = c.blob.Write(p)
	c.size += int64(len(p))
	_, err := c.dst.Write(p)
	return err
}

// tocText returns the TOC. Of a name that came again only the last entry is in it.
func (c *collector) tocText(tarSplitDigest oci.Digest, prioritized []string) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(`{"version":1,"entries":[` + "\n")
	all, from, first := c.lines.Bytes(), int64(0), true
	for i, end := range c.ends {
		if !c.dropped[i] {
			if !first {
				out.WriteString(",\n")
			}
			first = false
			out.Write(bytes.ReplaceAll(all[from:end-1], []byte{'\n'}, []byte(",\n")))
		}
		from = end
	}
	out.WriteString("\n]")
	if tarSplitDigest != "" {
		fmt.Fprintf(&out, ",\n\"tarSplitDigest\":%q", tarSplitDigest)
	}
	if c.o.Lossless && prioritized != nil {
		names, err := json.Marshal(prioritized)
		if err != nil {
			return nil, fmt.Errorf("write TOC: %w", err)
		}
		fmt.Fprintf(&out, ",\n\"prioritized\":%s", names)
	}
	out.WriteString("}\n")
	return out.Bytes(), nil
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
		if split, err = e.append(nil, c.split.finish()); err != nil {
			return nil, err
		}
		splitDigest = oci.DigestBytes(split)
	}
	toc, err := c.tocText(splitDigest, p.matched)
	if err != nil {
		return nil, err
	}
	r := &Result{TOCDigest: oci.DigestBytes(toc), Entries: len(c.ends) - len(c.dropped), Matched: p.matched, Missed: p.missed}
	var checksum oci.Digest
	switch c.o.Format {
	case EStargz, EStargzExternal:
		err = c.finishGzip(e, toc, r)
	case ZstdChunked, ZstdChunkedContainerd:
		checksum, err = c.finishZstd(e, toc, split, &f)
	case LegacyStargz:
		panic("estargz: internal error: format was checked")
	}
	if err != nil {
		return nil, err
	}
	r.Digest, r.Size = oci.DigestOf(oci.SHA256, c.blob), c.size
	r.DiffID, r.UncompressedSize = oci.DiffID(oci.DigestOf(oci.SHA256, c.diffID)), c.raw
	r.annotate(f, checksum)
	return r, nil
}

func (c *collector) finishGzip(e *encoder, toc []byte, r *Result) error {
	text, err := synthesize(&layer.Entry{Name: TOCName, Size: int64(len(toc)), Mode: 0o644})
	if err != nil {
		return err
	}
	text = append(text, toc...)
	text = append(text, make([]byte, -len(toc)&(tarBlockBytes-1)+2*tarBlockBytes)...)
	member, err := e.append(nil, text)
	if err != nil {
		return err
	}
	if c.o.Format == EStargzExternal {
		r.ExternalTOC = oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Digest: oci.DigestBytes(member), Size: int64(len(member))}
		if _, err := c.o.TOC.Write(member); err != nil {
			return err
		}
		return c.write(appendExternalFooter(nil))
	}
	at := c.size
	_, _ = c.diffID.Write(text)
	c.raw += int64(len(text))
	return c.write(appendEStargzFooter(member, at))
}

func (c *collector) finishZstd(e *encoder, toc, split []byte, f *Footer) (oci.Digest, error) {
	compressed, err := e.append(nil, toc)
	if err != nil {
		return "", err
	}
	f.TOC = Span{Offset: c.size + skippableBytes, Size: int64(len(compressed)), RawSize: int64(len(toc))}
	out := append(appendSkippable(nil, len(compressed)), compressed...)
	if c.split != nil {
		f.TarSplit = Span{Offset: f.TOC.Offset + f.TOC.Size + skippableBytes, Size: int64(len(split)), RawSize: int64(c.split.out.Len())}
		out = append(appendSkippable(out, len(split)), split...)
	}
	return oci.DigestBytes(compressed), c.write(appendZstdFooter(out, *f))
}

// tarSplit is what containers/storage rebuilds a tar from: all bytes of it but
// the files', as lines of JSON.
type tarSplit struct {
	table    *crc64.Table
	out      bytes.Buffer
	pending  []byte // of the segment that has not ended
	crc      uint64
	position int
}

// tarSplitLine is a line. Type 1 is a file, of which the payload is the sum, type
// 2 is bytes of the tar.
type tarSplitLine struct {
	Type     int    `json:"type"`
	Name     string `json:"name,omitempty"`
	Size     int64  `json:"size,omitempty"`
	Payload  []byte `json:"payload"`
	Position int    `json:"position"`
}

// segment takes bytes of the tar that are no file's.
func (t *tarSplit) segment(p []byte) {
	if t.pending = append(t.pending, p...); len(t.pending) > unitBytes {
		t.endSegment()
	}
}

func (t *tarSplit) body(p []byte) { t.crc = crc64.Update(t.crc, t.table, p) }

// file ends an entry, which any entry of the tar is.
func (t *tarSplit) file(name string, size int64) {
	t.endSegment()
	line := tarSplitLine{Type: 1, Name: name, Size: size}
	if size > 0 {
		line.Payload = binary.BigEndian.AppendUint64(nil, t.crc)
	}
	t.crc = 0
	t.line(line)
}

func (t *tarSplit) endSegment() {
	if len(t.pending) > 0 {
		t.line(tarSplitLine{Type: 2, Payload: t.pending})
		t.pending = t.pending[:0]
	}
}

func (t *tarSplit) line(l tarSplitLine) {
	l.Position = t.position
	t.position++
	text, err := json.Marshal(l)
	if err != nil {
		panic("estargz: internal error: " + err.Error())
	}
	t.out.Write(text)
	t.out.WriteByte('\n')
}

func (t *tarSplit) finish() []byte {
	t.endSegment()
	return t.out.Bytes()
}
