package layer

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"dray/internal/inflate"
)

// gzipReader reads all members of a gzip stream, and the padding behind them.
type gzipReader struct {
	src      *bufio.Reader // inflate takes no byte behind the last member from it
	z        io.ReadCloser
	parallel *inflate.Parallel // z, if it is one: it may have taken some, and gives them back
}

func newGzip(src *bufio.Reader, o *Options) *gzipReader {
	if o.Cores == nil {
		return &gzipReader{src: src, z: inflate.NewReader(src)}
	}
	p := inflate.NewParallel(src, inflate.ParallelOptions{Helpers: o.MaxHelpers, Cores: o.Cores, Large: o.LargeStretches})
	return &gzipReader{src: src, z: p, parallel: p}
}

// Read implements [io.Reader].
func (g *gzipReader) Read(p []byte) (int, error) {
	n, err := g.z.Read(p)
	if n == 0 && errors.Is(err, inflate.ErrTrailing) {
		behind := g.src
		if g.parallel != nil {
			behind = bufio.NewReader(g.parallel.Behind())
		}
		err = skipPadding(behind)
	}
	return n, err
}

// inflated says on how many cores.
func (g *gzipReader) inflated() string {
	if g.parallel == nil {
		return "on one core"
	}
	return g.parallel.Stats().String()
}

// skipPadding returns io.EOF if there is nothing but NUL bytes.
func skipPadding(src *bufio.Reader) error {
	for {
		c, err := src.ReadByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return fmt.Errorf("decompress gzip: byte %#02x after the last member: %w", c, ErrFormat)
		}
	}
}

// Close implements [io.Closer].
func (g *gzipReader) Close() error { return g.z.Close() }

// noEOF turns io.EOF into io.ErrUnexpectedEOF, for ends where none may be.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // a reader's own EOF is never wrapped
		return io.ErrUnexpectedEOF
	}
	return err
}
