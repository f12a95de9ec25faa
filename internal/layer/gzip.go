package layer

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

// gzipReader reads all members of a gzip stream, and the padding behind them.
type gzipReader struct {
	src *bufio.Reader // read member by member: a gzip.Reader takes no byte too many from it
	z   *gzip.Reader
}

func newGzip(src *bufio.Reader) (*gzipReader, error) {
	z, err := gzip.NewReader(src)
	if err != nil {
		return nil, noEOF(err)
	}
	z.Multistream(false)
	return &gzipReader{src: src, z: z}, nil
}

// Read implements [io.Reader].
func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		n, err := g.z.Read(p)
		if err != io.EOF { //nolint:errorlint // the decoder's own EOF is never wrapped
			return n, err
		}
		err = g.nextMember()
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// nextMember returns io.EOF if there is none.
func (g *gzipReader) nextMember() error {
	c, err := g.src.ReadByte()
	if err != nil {
		return err
	}
	if c == 0 {
		return skipPadding(g.src)
	}
	if err := g.src.UnreadByte(); err != nil {
		return err
	}
	if err := g.z.Reset(g.src); err != nil {
		if errors.Is(err, gzip.ErrHeader) {
			return fmt.Errorf("decompress gzip: garbage after the last member: %w", ErrFormat)
		}
		return noEOF(err)
	}
	g.z.Multistream(false)
	return nil
}

// skipPadding returns io.EOF if there is nothing but NUL bytes.
func skipPadding(src *bufio.Reader) error {
	for {
		c, err := src.ReadByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return fmt.Errorf("decompress gzip: byte %#02x in the padding after the last member: %w", c, ErrFormat)
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
