package multibuf

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"hash"
)

// The form in which crypto/sha256 saves its state, which lasts since programs keep it: a
// mark, the eight words big-endian, the bytes of a block that is not whole, the bytes in all.
const (
	mark       = "sha\x03"
	wordsAt    = len(mark)
	countAt    = wordsAt + sha256.Size + sha256.BlockSize
	stateBytes = countAt + 8
)

var errNotSHA256 = errors.New("not the state of a SHA-256")

// state is a SHA-256 as crypto/sha256 saves it.
type state [stateBytes]byte

// save takes the state of h, or returns an error if it is no SHA-256.
func (s *state) save(h hash.Hash) error {
	saver, ok := h.(encoding.BinaryAppender)
	if !ok {
		return errNotSHA256
	}
	raw, err := saver.AppendBinary(s[:0])
	if err != nil || len(raw) != stateBytes || !bytes.HasPrefix(raw, []byte(mark)) {
		return errNotSHA256
	}
	return nil
}

// restore gives h the state.
func (s *state) restore(h hash.Hash) error {
	loader, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		return errNotSHA256
	}
	return loader.UnmarshalBinary(s[:])
}

// words returns the eight words.
func (s *state) words() (h [8]uint32) {
	for i := range h {
		h[i] = binary.BigEndian.Uint32(s[wordsAt+4*i:])
	}
	return h
}

// set is the state with other words, n bytes later.
func (s *state) set(h *[8]uint32, n int) {
	for i, w := range h {
		binary.BigEndian.PutUint32(s[wordsAt+4*i:], w)
	}
	binary.BigEndian.PutUint64(s[countAt:], binary.BigEndian.Uint64(s[countAt:])+uint64(n))
}

// write2 writes p to d and q to e, both SHA-256 that end with a whole block, as many whole
// blocks of each.
func write2(d, e *Digest, p, q []byte) {
	err := errors.Join(d.state.save(d.hash), e.state.save(e.hash))
	v, w := d.state.words(), e.state.words()
	compress2(&v, &w, &p[0], &q[0], len(p)/sha256.BlockSize)
	d.state.set(&v, len(p))
	e.state.set(&w, len(q))
	if err = errors.Join(err, d.state.restore(d.hash), e.state.restore(e.hash)); err != nil {
		panic("multibuf: internal error: " + err.Error())
	}
}
