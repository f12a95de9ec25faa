package stream

import (
	"errors"
	"fmt"
	"io"
)

// ErrTooLarge reports input beyond the limit that its reader was given.
var ErrTooLarge = errors.New("input too large")

// Blocks is a stream that lends its buffers.
type Blocks interface {
	// Next returns the following bytes, at least one, valid until the next call,
	// or an error: io.EOF after the last byte, only if all is well. The caller
	// must not write to the slice. Not safe for concurrent use.
	Next() ([]byte, error)
}

// ReadAll returns all of r, or [ErrTooLarge] when there is more than limit bytes.
func ReadAll(r io.Reader, limit int64) ([]byte, error) {
	const firstBytes = 4 << 10
	buf := make([]byte, 0, min(limit+1, firstBytes))
	for {
		if int64(len(buf)) > limit {
			return nil, fmt.Errorf("read: more than %d bytes: %w", limit, ErrTooLarge)
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(int64(2*cap(buf)), limit+1))
			copy(grown, buf)
			buf = grown
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) && int64(len(buf)) <= limit {
			return buf, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return buf, err
		}
	}
}

// Drain reads the rest of b and returns how many bytes there were; io.EOF is
// not an error.
func Drain(b Blocks) (int64, error) {
	var sizeBytes int64
	for {
		block, err := b.Next()
		sizeBytes += int64(len(block))
		if errors.Is(err, io.EOF) {
			return sizeBytes, nil
		}
		if err != nil {
			return sizeBytes, err
		}
	}
}

// Reader reads Blocks as an [io.Reader].
type Reader struct {
	src  Blocks
	left []byte
}

// NewReader returns a Reader over src.
func NewReader(src Blocks) *Reader { return &Reader{src: src} }

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.left) == 0 {
		block, err := r.src.Next()
		if err != nil {
			return 0, err
		}
		r.left = block
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

var _ Blocks = (*Slicer)(nil)

// Slicer cuts an [io.Reader] into blocks, in the caller's goroutine.
type Slicer struct {
	src io.Reader
	buf []byte
	err error
}

// NewSlicer returns a Slicer that reads src into a buffer of blockBytes.
func NewSlicer(src io.Reader, blockBytes int) *Slicer {
	return &Slicer{src: src, buf: make([]byte, blockBytes)}
}

// Next implements [Blocks].
func (s *Slicer) Next() ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	var n int
	n, s.err = fill(s.src, s.buf)
	if n == 0 {
		return nil, s.err
	}
	return s.buf[:n], nil
}

// fill reads until buf is full or src ends. Unlike io.ReadFull it keeps src's
// own error.
func fill(src io.Reader, buf []byte) (int, error) {
	const maxEmptyReads = 100
	n, empty := 0, 0
	for n < len(buf) {
		m, err := src.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
		if m > 0 {
			empty = 0
		} else if empty++; empty == maxEmptyReads {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}
