package inflate

import (
	"bufio"
	"io"
)

const (
	// inputBytes is the size of the buffer between the source and the decoder:
	// small enough to stay in the L2 cache beside the window, large enough
	// that the careful code at its end does not count.
	inputBytes = 32 << 10

	// maxEmptyReads is how often in a row a source may return nothing.
	maxEmptyReads = 100
)

// source is the compressed side. It shows the decoder the bytes on hand, and
// reads more only when asked to.
type source struct {
	r    io.Reader
	peek *bufio.Reader     // r, if it is one: its buffer is used in place
	own  *[inputBytes]byte // the buffer for any other source
	feed *feed             // where input comes from while it is set
	buf  []byte            // bytes on hand: part of own, of the buffer of peek, or of a segment
	pos  int               // consumed of buf
	base int64             // offset of buf[0] in the input
	err  error             // what r returned along with the bytes on hand
}

func (s *source) reset(r io.Reader) {
	*s = source{r: r, own: s.own}
	s.peek, _ = r.(*bufio.Reader)
}

// offset returns the number of bytes consumed.
func (s *source) offset() int64 {
	return s.base + int64(s.pos)
}

// fill puts at least one byte on hand. It must be called with none left, and
// returns [io.EOF] only if r is at its end.
func (s *source) fill() error {
	s.release()
	if s.feed != nil {
		var err error
		s.buf, err = s.feed.at(s.base)
		if err != errDrained { //nolint:errorlint // our own, never wrapped
			return err
		}
		s.feed = nil
	}
	if s.peek != nil {
		if _, err := s.peek.Peek(1); err != nil {
			return err
		}
		var err error
		s.buf, err = s.peek.Peek(s.peek.Buffered())
		return err
	}
	for range maxEmptyReads {
		if s.err != nil {
			return s.err
		}
		n, err := s.r.Read(s.own[:])
		s.err = err
		if n > 0 {
			s.buf = s.own[:n]
			return nil
		}
	}
	return io.ErrNoProgress
}

// release gives what was consumed back to the source's accounting, and what
// was not consumed of a [bufio.Reader]'s buffer back to it, so that the next
// reader of it starts right after our last byte.
func (s *source) release() {
	s.base += int64(s.pos)
	if s.peek != nil && s.feed == nil {
		// Cannot fail: pos bytes are buffered.
		_, _ = s.peek.Discard(s.pos)
		s.buf, s.pos = nil, 0
		return
	}
	s.buf, s.pos = s.buf[s.pos:], 0
}

// seek goes to the offset, which must be in the feed.
func (s *source) seek(offset int64) {
	s.base, s.buf, s.pos = offset, nil, 0
}

// readByte consumes one byte. At the end of the source it returns [io.EOF].
func (s *source) readByte() (byte, error) {
	if s.pos == len(s.buf) {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	b := s.buf[s.pos]
	s.pos++
	return b, nil
}

// noEOF turns [io.EOF] into [io.ErrUnexpectedEOF], for ends where none may be.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // a reader's own EOF is never wrapped
		return io.ErrUnexpectedEOF
	}
	return err
}
