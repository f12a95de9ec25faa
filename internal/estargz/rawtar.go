package estargz

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"dray/internal/layer"
	"dray/internal/stream"
)

const (
	tarBlockBytes = 512
	tapBlockBytes = 256 << 10
	// maxRawBytes limits what an archive may have between two bodies.
	maxRawBytes = 16 << 20
)

// tap keeps the bytes between two offsets of the stream that it passes on.
type tap struct {
	src   stream.Blocks
	block []byte
	base  int64 // offset of block
	from  int64 // offset of the first byte to keep
	kept  []byte
	end   error
}

// Next implements [stream.Blocks].
func (t *tap) Next() ([]byte, error) {
	if t.end != nil {
		return nil, t.end
	}
	if err := t.keep(t.base + int64(len(t.block))); err != nil {
		return nil, err
	}
	t.base += int64(len(t.block))
	t.block, t.end = t.src.Next()
	if t.end != nil {
		t.block = nil
	}
	return t.block, t.end
}

// keep keeps what the current block has before offset to.
func (t *tap) keep(to int64) error {
	from := t.from - t.base
	if from >= int64(len(t.block)) || to <= t.from {
		return nil
	}
	t.kept = append(t.kept, t.block[from:to-t.base]...)
	t.from = to
	if len(t.kept) > maxRawBytes {
		return &layer.LimitError{What: "bytes of headers", Limit: maxRawBytes, Got: int64(len(t.kept))}
	}
	return nil
}

// rawTar reads a tar and keeps the bytes of its headers.
type rawTar struct {
	tap     *tap
	tar     *layer.Tar
	padding bool // keep what follows bodies, to copy the archive as it is
	global  bool // a global header was seen
}

func newRawTar(src io.Reader, l layer.Limits, padding bool) *rawTar {
	t := &tap{src: stream.NewSlicer(src, tapBlockBytes)}
	return &rawTar{tap: t, tar: layer.NewTar(t, l), padding: padding}
}

// next returns the next entry and the bytes of its header, valid until the next
// call of any method. The body of the last one must have been read or skipped.
func (r *rawTar) next() (*layer.Entry, []byte, error) {
	r.tap.kept = r.tap.kept[:0]
	e, err := r.tar.Next()
	if err != nil {
		return nil, nil, err
	}
	start := r.tar.Offset()
	if err := r.tap.keep(start); err != nil {
		return nil, nil, err
	}
	r.tap.from = start + e.StoredSize
	if !r.padding {
		r.tap.from += -e.StoredSize & (tarBlockBytes - 1)
	}
	header := r.tap.kept
	if r.padding {
		return e, header, nil
	}
	if r.global = r.global || hasGlobal(header); r.global || e.Sparse != nil {
		header, err = synthesize(e)
	}
	return e, header, err
}

// rest calls take with what follows the last entry, after next has returned io.EOF.
func (r *rawTar) rest(take func([]byte) error) error {
	if err := r.tap.keep(r.tap.base + int64(len(r.tap.block))); err != nil {
		return err
	}
	if err := take(r.tap.kept); err != nil {
		return err
	}
	for {
		block, err := r.tap.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.tap.from = r.tap.base + int64(len(block))
		if err := take(block); err != nil {
			return err
		}
	}
}

// hasGlobal tells whether raw, headers that were parsed, has a PAX global header.
func hasGlobal(raw []byte) bool {
	for len(raw) >= tarBlockBytes {
		flag := raw[156]
		if flag == 'g' {
			return true
		}
		size := 0
		if flag == 'x' || flag == 'L' || flag == 'K' || flag == 'V' {
			for _, c := range bytes.Trim(raw[124:136], " \x00") {
				size = size<<3 | int(c-'0')&7
			}
		}
		skip := tarBlockBytes + (size+tarBlockBytes-1)&^(tarBlockBytes-1)
		if skip <= 0 || skip > len(raw) {
			return false
		}
		raw = raw[skip:]
	}
	return false
}

// synthesize makes a header that says what e does and needs nothing before it.
// Sparse files become full ones.
func synthesize(e *layer.Entry) ([]byte, error) {
	h := &tar.Header{
		Name: e.Name, Linkname: e.Linkname, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), Size: e.Size,
		Devmajor: int64(e.Major), Devminor: int64(e.Minor), ModTime: time.Unix(e.MTimeSec, int64(e.MTimeNsec)),
		Typeflag: typeflag(e.Type), Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	for _, x := range e.Xattrs {
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("write header of %q: %w", clip(e.Name), err)
	}
	return buf.Bytes(), nil
}

func typeflag(t layer.EntryType) byte {
	switch t {
	case layer.Reg:
		return tar.TypeReg
	case layer.Dir:
		return tar.TypeDir
	case layer.Symlink:
		return tar.TypeSymlink
	case layer.HardLink:
		return tar.TypeLink
	case layer.Char:
		return tar.TypeChar
	case layer.Block:
		return tar.TypeBlock
	case layer.FIFO:
		return tar.TypeFifo
	}
	panic("estargz: internal error: unknown type")
}

// body calls take with the parts of the current file, holes filled.
func (r *rawTar) body(e *layer.Entry, take func([]byte) error) error {
	f := filler{extents: e.Sparse, take: take}
	for {
		part, err := r.tar.Body()
		if errors.Is(err, io.EOF) {
			return f.zeros(e.Size)
		}
		if err != nil {
			return err
		}
		if e.Sparse == nil {
			f.at += int64(len(part))
			err = take(part)
		} else {
			err = f.stored(part)
		}
		if err != nil {
			return err
		}
	}
}

// filler makes a full file of a sparse one.
type filler struct {
	extents []layer.Extent // that have not ended
	at      int64          // how much has been taken
	take    func([]byte) error
}

// stored takes what the archive holds.
func (f *filler) stored(part []byte) error {
	for len(part) > 0 {
		for len(f.extents) > 0 && f.at >= f.extents[0].Offset+f.extents[0].Size {
			f.extents = f.extents[1:]
		}
		if len(f.extents) == 0 {
			return malformed("sparse file has more data than its map")
		}
		x := f.extents[0]
		if err := f.zeros(x.Offset); err != nil {
			return err
		}
		n := min(int64(len(part)), x.Offset+x.Size-f.at)
		if err := f.take(part[:n]); err != nil {
			return err
		}
		f.at += n
		part = part[n:]
	}
	return nil
}

// zeros fills up to an offset.
func (f *filler) zeros(to int64) error {
	var hole [4096]byte
	for f.at < to {
		n := min(to-f.at, int64(len(hole)))
		if err := f.take(hole[:n]); err != nil {
			return err
		}
		f.at += n
	}
	return nil
}
