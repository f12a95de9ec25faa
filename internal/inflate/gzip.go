package inflate

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	gzipMagic      = "\x1f\x8b\x08" // the method included
	headerMinBytes = 10

	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4

	// maxHeaderString is the longest name or comment, its NUL included, that
	// compress/gzip accepts.
	maxHeaderString = 512
)

// errMagic means that a header does not start as one.
var errMagic = fmt.Errorf("%w: not gzip", ErrHeader)

// header reads a gzip header, RFC 1952 section 2.3. It returns [io.EOF] only
// if there is not one more byte.
func (s *source) header() error {
	if s.pos == len(s.buf) {
		if err := s.fill(); err != nil {
			return err
		}
	}
	if rest := s.buf[s.pos:]; len(rest) >= headerMinBytes && string(rest[:len(gzipMagic)]) == gzipMagic && rest[len(gzipMagic)] == 0 {
		s.pos += headerMinBytes // as most are
		return nil
	}
	h := headerReader{s: s}
	var fixed [headerMinBytes]byte
	for i := range fixed {
		b, err := h.byte()
		if err != nil {
			if i > 0 {
				err = noEOF(err)
			}
			return err
		}
		fixed[i] = b
		if i < len(gzipMagic) && b != gzipMagic[i] {
			return errMagic
		}
	}
	if fixed[3]&flagHeaderCRC != 0 {
		h.summed, h.sum = true, crc32.ChecksumIEEE(fixed[:])
	}
	return noEOF(h.optional(fixed[3]))
}

// checkMagic returns errMagic if the source is a feed or a [bufio.Reader] that does
// not go on with a gzip header, without taking a byte.
func (s *source) checkMagic() error {
	if s.peek == nil && s.feed == nil {
		return nil
	}
	s.release()
	var b []byte // what is missing, header finds out
	if s.feed != nil {
		b = s.feed.peek(s.base, len(gzipMagic))
		s.buf = nil // it is asked for again
	} else {
		b, _ = s.peek.Peek(len(gzipMagic))
	}
	if string(b) != gzipMagic[:len(b)] {
		return errMagic
	}
	return nil
}

// headerReader reads the bytes of a header, and sums them.
type headerReader struct {
	s      *source
	summed bool // the header has a checksum
	sum    uint32
}

func (h *headerReader) byte() (byte, error) {
	b, err := h.s.readByte()
	if h.summed {
		h.sum = ^(crc32.IEEETable[byte(^h.sum)^b] ^ ^h.sum>>8)
	}
	return b, err
}

func (h *headerReader) uint16() (uint16, error) {
	low, err := h.byte()
	if err != nil {
		return 0, err
	}
	high, err := h.byte()
	return uint16(low) | uint16(high)<<8, err
}

// optional reads the fields that the flags announce.
func (h *headerReader) optional(flags byte) error {
	if flags&flagExtra != 0 {
		size, err := h.uint16()
		if err != nil {
			return err
		}
		for range size {
			if _, err := h.byte(); err != nil {
				return err
			}
		}
	}
	if flags&flagName != 0 {
		if err := h.skipString(); err != nil {
			return err
		}
	}
	if flags&flagComment != 0 {
		if err := h.skipString(); err != nil {
			return err
		}
	}
	if flags&flagHeaderCRC != 0 {
		want := uint16(h.sum)
		got, err := h.uint16()
		if err != nil {
			return err
		}
		if got != want {
			return ErrHeader
		}
	}
	return nil
}

func (h *headerReader) skipString() error {
	for range maxHeaderString {
		b, err := h.byte()
		if err != nil {
			return err
		}
		if b == 0 {
			return nil
		}
	}
	return ErrHeader
}

// trailer reads a member's trailer and compares it with what was decoded.
func (s *source) trailer(sum, size uint32) error {
	var t [8]byte
	if rest := s.buf[s.pos:]; len(rest) >= len(t) {
		s.pos += copy(t[:], rest)
	} else {
		for i := range t {
			b, err := s.readByte()
			if err != nil {
				return noEOF(err)
			}
			t[i] = b
		}
	}
	if binary.LittleEndian.Uint32(t[:4]) != sum || binary.LittleEndian.Uint32(t[4:]) != size {
		return ErrChecksum
	}
	return nil
}
