package erofs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// Shift writes an index, of one tar that begins its device, as the index of the same
// tar at an offset of a larger one, a multiple of 512: what [Copy] makes with
// [Options.DeviceOffset], without reading the tar. The index is read once, from its
// beginning. What is wrong with it is an [ErrDamaged] if it was seen: of its tree
// nothing is checked, and what is written is as good as what is read.
func Shift(w io.Writer, index io.ReaderAt, sizeBytes, offset int64) error {
	var r reader
	if err := r.open(index); err != nil {
		return fmt.Errorf("shift index: %w", err)
	}
	s := &shifter{
		in: bufio.NewReaderSize(io.NewSectionReader(index, 0, sizeBytes), writerBytes), out: bufio.NewWriterSize(w, writerBytes),
		blocks: r.blocks, by: uint64(offset) / blockBytes,
	}
	if offset%blockBytes != 0 || r.blocks+r.tarBlocks+s.by > math.MaxUint32 {
		return fmt.Errorf("shift index to offset %d: %w", offset, errTooLarge)
	}
	err := s.head(r.root * nodeUnit)
	for err == nil && s.inodes > 0 {
		err = s.inode()
	}
	if err == nil {
		_, err = io.Copy(s.out, s.in)
	}
	if err == nil {
		err = s.out.Flush()
	}
	if err != nil {
		return fmt.Errorf("shift index: %w", err)
	}
	return nil
}

// shifter is one run of [Shift].
type shifter struct {
	in     *bufio.Reader
	out    *bufio.Writer
	blocks uint64 // of the image
	by     uint64
	inodes uint64 // still to come
	at     uint64
	buf    []byte
}

// next returns the next bytes, to be changed and put.
func (s *shifter) next(size int) ([]byte, error) {
	if cap(s.buf) < size {
		s.buf = make([]byte, size)
	}
	_, err := io.ReadFull(s.in, s.buf[:size])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("ends within %d bytes after %d: %w", size, s.at, ErrDamaged)
	}
	s.at += uint64(size)
	return s.buf[:size], err
}

func (s *shifter) put(b []byte) error {
	_, err := s.out.Write(b)
	return err
}

// head shifts what stands before the first inode: superblock and device.
func (s *shifter) head(end uint64) error {
	if end < superOffset+blockBytes || end > s.blocks*blockBytes {
		return fmt.Errorf("root at %d: %w", end, ErrDamaged)
	}
	b, err := s.next(int(end))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	super := b[superOffset:]
	s.inodes = le.Uint64(super[16:])
	if device := super[superBytes+64:]; le.Uint16(super[86:]) > 0 {
		le.PutUint32(device, le.Uint32(device)+uint32(s.by))
	}
	sum(super)
	return s.put(b)
}

// inode shifts the next inode, with what stands behind it, or the gap before it.
func (s *shifter) inode() error {
	b, err := s.next(nodeUnit)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	format := le.Uint16(b)
	if format == 0 { // inodes are extended ones: it is a gap, or the rest of what is before
		return s.put(b)
	}
	s.inodes--
	mode, size, content := le.Uint16(b[4:]), le.Uint64(b[8:]), le.Uint32(b[16:])
	if mode&unix.S_IFMT == unix.S_IFREG && size > 0 {
		if uint64(content) < s.blocks || uint64(content)+s.by > math.MaxUint32 {
			return fmt.Errorf("content of the inode at %d: %w", s.at-nodeUnit, ErrDamaged)
		}
		le.PutUint32(b[16:], content+uint32(s.by))
	}
	behind := inodeBytes - nodeUnit
	if count := int(le.Uint16(b[2:])); count > 0 {
		behind += (count-1)*4 + xattrHeader
	}
	if format == extended|flatInline {
		behind += int((size-1)%blockBytes) + 1
	}
	if err := s.put(b); err != nil {
		return err
	}
	if b, err = s.next((behind + nodeUnit - 1) &^ (nodeUnit - 1)); err != nil {
		return err
	}
	return s.put(b)
}
