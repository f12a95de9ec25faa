package layer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"dray/internal/inflate"
)

// Compression says how a layer is stored.
type Compression uint8

// The compressions that [Decompress] knows.
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
)

// String returns the name that media types use, or "tar" for none.
func (c Compression) String() string {
	switch c {
	case Uncompressed:
		return "tar"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("Compression(%d)", uint8(c))
}

// Options of [Decompress]. The zero value is the default.
type Options struct {
	// MaxBytes limits the output; 0 is [DefaultMaxBytes].
	MaxBytes int64

	// MaxWindowBytes limits the window that a zstd frame may ask for; 0 is
	// [DefaultMaxWindowBytes], what zstd --long writes. The format's own advice
	// is 8 MiB, which all that is written without --long or --ultra keeps to.
	// The decoder holds the largest window that a frame of this layer has asked
	// for, from the frame's start, and less than 1 MiB besides.
	MaxWindowBytes int64

	// Turn is waited for before a zstd layer is read; nil: nothing is.
	Turn *Turn

	// Cores lends cores, and the memory that goes with each, for gzip to be inflated
	// on several; nil: it is inflated by whoever reads.
	Cores inflate.Cores

	// MaxHelpers is how many of them are taken at most; 0: all but one.
	MaxHelpers int

	// LargeStretches is [inflate.ParallelOptions.Large].
	LargeStretches bool
}

// inputBytes is the size of the buffer between the source and the decoder. Large
// reads of a layer that is not compressed go around it.
const inputBytes = 32 << 10

// Decompressor reads the tar of a layer. Not safe for concurrent use.
type Decompressor struct {
	src         *source
	in          *bufio.Reader // over src
	codec       io.ReadCloser
	compression Compression
	maxBytes    int64
	count       int64
	err         error
}

// source keeps apart the errors of the input from those of the decoder, and
// remembers that the input has ended.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.err = err
	return n, err
}

// failed returns the error of the input, if that is what ended it.
func (s *source) failed() error {
	if errors.Is(s.err, io.EOF) {
		return nil
	}
	return s.err
}

// Decompress looks at the first bytes of src and returns a reader of the tar in
// it. The caller closes it; src stays open and the caller's.
func Decompress(src io.Reader, o Options) (*Decompressor, error) {
	orDefault(&o.MaxBytes, DefaultMaxBytes)
	orDefault(&o.MaxWindowBytes, DefaultMaxWindowBytes)
	d := &Decompressor{src: &source{r: src}, maxBytes: o.MaxBytes}
	in := bufio.NewReaderSize(d.src, inputBytes)
	d.in = in
	head, err := in.Peek(blockBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	d.compression, err = sniff(head)
	if err != nil {
		return nil, err
	}
	switch d.compression {
	case Gzip:
		d.codec = newGzip(in, &o)
	case Zstd:
		d.codec, err = newZstd(in, o.MaxWindowBytes, o.Turn)
	case Uncompressed:
		d.codec = io.NopCloser(in)
	}
	if err != nil {
		return nil, d.explain(err)
	}
	return d, nil
}

// sniff tells the compression by a layer's first bytes.
func sniff(head []byte) (Compression, error) {
	switch {
	case len(head) == 0:
		return Uncompressed, nil
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip, nil
	case len(head) >= 4 && isZstd(binary.LittleEndian.Uint32(head)):
		return Zstd, nil
	case len(head) == blockBytes:
		block := (*block)(head)
		if block.isZero() || block.checksumOK() {
			return Uncompressed, nil
		}
	}
	return 0, fmt.Errorf("read layer: found %s instead of tar, gzip or zstd: %w", describe(head), ErrFormat)
}

// describe names what people store by mistake, or shows the first bytes.
func describe(head []byte) string {
	const shownBytes = 16
	known := []struct{ magic, name string }{
		{"\xfd7zXZ\x00", "xz"},
		{"BZh", "bzip2"},
		{"\x04\x22\x4d\x18", "lz4"},
		{"PK\x03\x04", "zip"},
		{"\x7fELF", "an ELF file"},
		{"{", "JSON"},
		{"<", "HTML or XML"},
	}
	for _, k := range known {
		if bytes.HasPrefix(head, []byte(k.magic)) {
			return k.name
		}
	}
	return fmt.Sprintf("%q", head[:min(len(head), shownBytes)])
}

// Compression tells how the layer is stored.
func (d *Decompressor) Compression() Compression { return d.compression }

// Inflated says on how many cores gzip was inflated so far, and why not on more; ""
// for other layers.
func (d *Decompressor) Inflated() string {
	if g, ok := d.codec.(*gzipReader); ok {
		return g.inflated()
	}
	return ""
}

// Read implements [io.Reader]. It returns io.EOF only after src has, so that
// whatever verifies src has then spoken. Errors: those of src, [ErrFormat], a
// [*LimitError] beyond [Options.MaxBytes], io.ErrUnexpectedEOF.
func (d *Decompressor) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.codec.Read(p)
	d.count += int64(n)
	if d.count > d.maxBytes {
		d.err = &LimitError{What: "uncompressed bytes", Limit: d.maxBytes, Got: d.count}
		return 0, d.err
	}
	d.err = d.explain(err)
	return n, d.err
}

// explain sorts the decoder's error: the source's own, the end, or bad input.
func (d *Decompressor) explain(err error) error {
	var limit *LimitError
	switch failed := d.src.failed(); {
	case err == nil:
		return nil
	case failed != nil:
		return failed
	case err == io.EOF: //nolint:errorlint // a decoder's own EOF is never wrapped
		return io.EOF
	case errors.As(err, &limit), errors.Is(err, ErrFormat):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("decompress %s: %w", d.compression, io.ErrUnexpectedEOF)
	default:
		return fmt.Errorf("decompress %s: %w: %w", d.compression, ErrFormat, err)
	}
}

// Close gives the decoder's memory back. It is idempotent and returns nil.
func (d *Decompressor) Close() error {
	if d.codec != nil {
		_ = d.codec.Close() // decoders have nothing to report that Read has not
	}
	d.codec = nil
	if d.err == nil {
		d.err = io.ErrClosedPipe
	}
	return nil
}
