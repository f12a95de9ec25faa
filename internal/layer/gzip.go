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
	src *bufio.Reader // inflate takes no byte behind the last member from it
	z   *inflate.Reader
}

func newGzip(src *bufio.Reader) *gzipReader {
	return &gzipReader{src: src, z: inflate.NewReader(src)}
}

// Read implements [io.Reader].
func (g *gzipReader) Read(p []byte) (int, error) {
	n, err := g.z.Read(p)
	if n == 0 && errors.Is(err, inflate.ErrTrailing) {
		err = skipPadding(g.src)
	}
	return n, err
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
