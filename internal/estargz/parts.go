package estargz

import (
	"errors"
	"fmt"
	"io"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

// Part is the beginning of a file, or all of it, that has members of its own: they
// hold nothing else. Who has the file need not fetch them.
type Part struct {
	Name     string // cleaned
	FileSize int64
	Digest   oci.Digest // of the whole file

	Size              int64 // how much of the file it is
	Offset, EndOffset int64 // in the blob
}

// Stored returns how many bytes of the blob hold it.
func (p *Part) Stored() int64 { return p.EndOffset - p.Offset }

const (
	// maxParts and maxPartNames bound what [ReadParts] holds: the first ones, and how
	// many bytes of names.
	maxParts     = 2048
	maxPartNames = 512 << 10

	// maxPartRatio bounds what is made of a byte: to fetch what is compressed
	// further costs less than to look for it.
	maxPartRatio = 64
)

// ReadParts reads a TOC to its end, toc being what its members hold, and returns the
// parts that take least bytes of the blob or more, in the order of the blob, and the
// digest of the TOC. It holds the parts and no other entry. Nothing of a part is
// verified but that parts lie in the blob and do not overlap.
//
// A member of eStargz ends where the next file begins, so that the last chunk of a
// file is in one with headers: of eStargz and containerd's zstd:chunked there are
// parts of files of several chunks only. Errors wrap [ErrFormat] also when a TOC is
// good, but not in the order of its blob.
func ReadParts(toc io.Reader, f Footer, least int64, l Limits) ([]Part, oci.Digest, error) {
	l = l.withDefaults()
	if !f.Format.zstd() {
		var err error
		if toc, err = tocEntryOf(toc, l.Layer); err != nil {
			return nil, "", err
		}
	}
	s := &partScan{payload: f.PayloadSize, least: least}
	d := &document{add: s.add}
	if err := d.read(toc, l, s.end); err != nil {
		return nil, "", err
	}
	return s.parts, d.digest, nil
}

// HintedFooter returns the footer of a blob of size bytes of which the manifest says
// where the TOC is.
func HintedFooter(h Hints, size int64) (Footer, error) {
	r := Reader{size: size}
	_, _, err := r.locate(OpenOptions{Hints: h})
	return r.footer, err
}

// TarEnd returns where in a blob of size bytes the members end that hold the tar: what
// follows is the TOC and the footer, which are skipped when the blob is unpacked.
func (f Footer) TarEnd(size int64) int64 {
	if f.Format.zstd() {
		return f.PayloadSize
	}
	return size
}

// tocEntryOf returns the text of a TOC that is an entry of a tar.
func tocEntryOf(tar io.Reader, l layer.Limits) (io.Reader, error) {
	t := layer.NewTar(stream.NewSlicer(tar, readBufBytes), l)
	e, err := t.Next()
	switch {
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case err == nil && (e.Name != TOCName || e.Type != layer.Reg || e.Sparse != nil):
		err = malformed("found %q instead of %s", clip(e.Name), TOCName)
	}
	if err != nil {
		return nil, fmt.Errorf("read TOC: %w", err)
	}
	return stream.NewReader(bodyOf{t}), nil
}

// bodyOf is the content of a tar's entry.
type bodyOf struct{ *layer.Tar }

// Next implements [stream.Blocks].
func (b bodyOf) Next() ([]byte, error) { return b.Body() }

// partScan looks for parts in the entries of a TOC.
type partScan struct {
	payload int64
	least   int64
	parts   []Part
	names   int   // their bytes
	at      int64 // of the last chunk's member

	// The file that has not ended, if open.
	file  Part
	open  bool
	alone bool  // every chunk so far begins a member, and has it for itself but for the last one
	next  int64 // where in the file the next chunk begins
	ended int64 // where in the blob its last chunk ends; 0 if the TOC does not say
}

func (s *partScan) add(e *jsonEntry) error {
	chunk := e.Type == typeChunk
	if !chunk {
		if err := s.endFile(); err != nil {
			return err
		}
		if e.Type != "reg" || e.Size == 0 {
			return nil
		}
	}
	if chunk && !s.open {
		return malformed("chunk of %q does not follow its file", clip(e.Name))
	}
	if !chunk {
		if err := s.begin(e); err != nil {
			return err
		}
	}
	switch {
	case e.ChunkOffset != s.next:
		return malformed("chunk of %q is at %d instead of %d", clip(e.Name), e.ChunkOffset, s.next)
	case e.Offset < s.at || e.Offset >= s.payload:
		return malformed("%q is at %d, not behind what is before it in the TOC", clip(e.Name), e.Offset)
	case chunk && e.Offset == s.at, e.InnerOffset != 0:
		s.alone = false
	}
	if chunk && s.alone {
		s.file.EndOffset, s.file.Size = e.Offset, s.next
	}
	size := e.ChunkSize
	if size == 0 {
		size = s.file.FileSize - s.next
	}
	if size <= 0 || size > s.file.FileSize-s.next {
		return malformed("chunk of %q at %d has the size %d", clip(e.Name), s.next, size)
	}
	s.at = e.Offset
	s.next += size
	return nil
}

// begin takes the first entry of a file.
func (s *partScan) begin(e *jsonEntry) error {
	name, err := cleanName(e.Name)
	if err != nil {
		return err
	}
	if e.Size < 0 {
		return malformed("%q has the size %d", clip(e.Name), e.Size)
	}
	_, has, err := parseSum(e.Digest)
	if err != nil {
		return err
	}
	s.open, s.alone, s.next, s.ended = true, has, 0, e.EndOffset
	s.file = Part{Name: name, FileSize: e.Size, Digest: oci.Digest(e.Digest), Offset: e.Offset, EndOffset: e.Offset}
	return nil
}

// endFile takes the part of the file that has ended, if it is worth it.
func (s *partScan) endFile() error {
	if !s.open {
		return nil
	}
	s.open = false
	p := s.file
	if s.next != p.FileSize {
		return malformed("%q has %d bytes in chunks instead of %d", clip(p.Name), s.next, p.FileSize)
	}
	if s.ended != 0 {
		if s.ended <= s.at || s.ended > s.payload {
			return malformed("%q ends at %d of a blob of %d", clip(p.Name), s.ended, s.payload)
		}
		if s.alone {
			p.EndOffset, p.Size = s.ended, p.FileSize
		}
		s.at = s.ended // the next one may begin here
	}
	stored := p.Stored()
	if s.alone && stored >= max(s.least, 1) && p.Size/maxPartRatio <= stored && len(s.parts) < maxParts && s.names+len(p.Name) <= maxPartNames {
		s.names += len(p.Name)
		s.parts = append(s.parts, p)
	}
	return nil
}

func (s *partScan) end() error { return s.endFile() }
