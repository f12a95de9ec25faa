package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Compare reads an image and returns how it differs from the one that
// [Index.WriteTo] writes; "" if it does not. The error is r's.
func (x *Index) Compare(r io.Reader) (difference string, err error) {
	c := &comparer{r: r, buf: make([]byte, writerBytes)}
	if _, err := x.WriteTo(c); err != nil && !errors.Is(err, errDiffers) {
		return "", err
	}
	if c.difference == "" {
		n, err := io.ReadFull(r, c.buf[:1])
		if n > 0 {
			return fmt.Sprintf("more than %d bytes", c.at), nil
		}
		if !errors.Is(err, io.EOF) {
			return "", err
		}
	}
	return c.difference, nil
}

var errDiffers = errors.New("image differs")

// comparer compares what is written to it with what it reads.
type comparer struct {
	r          io.Reader
	buf        []byte
	at         int64
	difference string
}

// Write implements [io.Writer].
func (c *comparer) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		want := p[done:min(len(p), done+len(c.buf))]
		got := c.buf[:len(want)]
		n, err := io.ReadFull(c.r, got)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			c.difference = fmt.Sprintf("ends after %d bytes", c.at+int64(n))
			return done, errDiffers
		case err != nil:
			return done, err
		case !bytes.Equal(got, want):
			c.difference = fmt.Sprintf("differs in the %d bytes from %d", len(want), c.at)
			return done, errDiffers
		}
		c.at += int64(len(want))
		done += len(want)
	}
	return len(p), nil
}
