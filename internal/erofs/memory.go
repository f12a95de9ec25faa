package erofs

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chunkBytes is by how much the file grows that holds what exceeds the limit.
const chunkBytes = 8 << 20

// memory hands out the memory of an index: of the heap up to a limit, then of a
// mapped file.
type memory struct {
	limit int64
	dir   string // for the file
	used  int64  // of the heap

	file   *os.File
	chunks [][]byte // mapped
	spare  []byte   // of the last chunk
	steps  int
}

// take counts bytes of the heap, and tells whether the limit allows them.
func (m *memory) take(size int64) bool {
	if m.file != nil || m.used+size > m.limit {
		return false
	}
	m.used += size
	return true
}

// mapped returns size zero bytes of the file, aligned for every type.
func (m *memory) mapped(size int) ([]byte, error) {
	const align = 8
	size = (size + align - 1) &^ (align - 1)
	if size > len(m.spare) {
		if err := m.grow(max(size, chunkBytes)); err != nil {
			return nil, fmt.Errorf("put index on disk: %w", err)
		}
	}
	b := m.spare[:size:size]
	m.spare = m.spare[size:]
	return b, nil
}

// grow maps more of the file. Its blocks are allocated first, since a mapping has
// no way to report a full disk.
func (m *memory) grow(size int) error {
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	if m.file == nil {
		dir := m.dir
		if dir == "" {
			dir = os.TempDir()
		}
		f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600) //nolint:gosec // a directory of the caller's
		if err != nil {
			return err
		}
		m.file = f
	}
	var offset int64
	for _, c := range m.chunks {
		offset += int64(len(c))
	}
	for {
		err := unix.Fallocate(int(m.file.Fd()), 0, offset, int64(size))
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fallocate", err)
		}
	}
	chunk, err := unix.Mmap(int(m.file.Fd()), offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	m.chunks = append(m.chunks, chunk)
	m.spare = chunk
	return nil
}

// stepsToTrim is after how many steps the file's pages are let go of: few enough that
// what they touch is small beside the limit.
const stepsToTrim = 1 << 10

// step is called for each entry or inode that something is done with. From time to
// time it lets the kernel take back the pages of the file. Nothing is lost: they
// are read again when they are touched.
func (m *memory) step() {
	if m.steps++; m.steps%stepsToTrim != 0 {
		return
	}
	for _, c := range m.chunks {
		_ = unix.Madvise(c, unix.MADV_DONTNEED) // for a shared mapping, only this process's view of it
	}
}

func (m *memory) close() error {
	var err error
	for _, c := range m.chunks {
		err = errors.Join(err, unix.Munmap(c))
	}
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
	}
	m.chunks, m.spare, m.file = nil, nil, nil
	return err
}

// allocate returns count zero values of a type without pointers.
func allocate[T any](m *memory, count int) ([]T, error) {
	var zero T
	size := int64(unsafe.Sizeof(zero)) * int64(count)
	if m.take(size) {
		return make([]T, count), nil
	}
	b, err := m.mapped(int(size))
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), count), nil //nolint:gosec // aligned, large enough, and T has no pointers
}

const (
	partBits = 13
	partLen  = 1 << partBits
)

// list is an array that grows without being copied, but for its first part.
type list[T any] struct {
	mem   *memory
	parts [][]T
	count uint32
}

// at returns element i, valid until the next add.
func (l *list[T]) at(i uint32) *T { return &l.parts[i>>partBits][i&(partLen-1)] }

// add appends v and returns its number.
func (l *list[T]) add(v T) (uint32, error) {
	const firstLen = 64
	at := int(l.count & (partLen - 1))
	switch {
	case l.count == 0:
		part, err := allocate[T](l.mem, firstLen)
		if err != nil {
			return 0, err
		}
		l.parts = append(l.parts, part)
	case at == 0:
		part, err := allocate[T](l.mem, partLen)
		if err != nil {
			return 0, err
		}
		l.parts = append(l.parts, part)
	case l.count < partLen && at == len(l.parts[0]):
		part, err := allocate[T](l.mem, 2*at)
		if err != nil {
			return 0, err
		}
		copy(part, l.parts[0])
		l.mem.free(int64(at) * int64(unsafe.Sizeof(v)))
		l.parts[0] = part
	}
	l.parts[len(l.parts)-1][at] = v
	l.count++
	return l.count - 1, nil
}

// free gives back bytes of the heap that the collector will find.
func (m *memory) free(size int64) {
	if m.file == nil {
		m.used -= size
	}
}

// texts holds byte strings, none of which is larger than a part.
type texts struct {
	mem   *memory
	parts [][]byte // each of textBytes but a single first one, which is smaller
	end   uint64   // offset behind the last string
}

const (
	textBits  = 18
	textBytes = 1 << textBits
)

// errTexts means that offsets of 32 bits do not suffice.
var errTexts = &InexpressibleError{Reason: "names and attributes of more than 4 GiB"}

// add stores size bytes and returns their offset and where to put them, which is
// valid until the next add.
func (t *texts) add(size int) (uint32, []byte, error) {
	const firstBytes = 4 << 10
	at := int(t.end & (textBytes - 1))
	if t.end > 0 && (at == 0 || at+size > textBytes) { // none spans two parts
		t.end = (t.end + textBytes - 1) &^ (textBytes - 1)
		at = 0
	}
	if t.end+uint64(size) > 1<<32 {
		return 0, nil, errTexts
	}
	switch part := int(t.end >> textBits); {
	case part == len(t.parts):
		first := textBytes
		if part == 0 {
			first = max(firstBytes, size)
		}
		b, err := allocate[byte](t.mem, first)
		if err != nil {
			return 0, nil, err
		}
		t.parts = append(t.parts, b)
	case at+size > len(t.parts[part]): // the first one grows
		old := t.parts[part]
		b, err := allocate[byte](t.mem, min(textBytes, max(2*len(old), at+size)))
		if err != nil {
			return 0, nil, err
		}
		copy(b, old)
		t.mem.free(int64(len(old)))
		t.parts[part] = b
	}
	offset := uint32(t.end)
	t.end += uint64(size)
	return offset, t.at(offset, size), nil
}

func (t *texts) at(offset uint32, size int) []byte {
	if size == 0 {
		return nil
	}
	at := offset & (textBytes - 1)
	return t.parts[offset>>textBits][at : at+uint32(size)]
}

func (t *texts) addString(s string) (uint32, error) {
	offset, b, err := t.add(len(s))
	copy(b, s)
	return offset, err
}

// table finds the numbers 0, 1, 2 … by the hash of what they stand for.
type table struct {
	mem   *memory
	slots []uint32 // number+1; 0 is free
	count uint32
}

// find returns the number for which same is true.
func (t *table) find(hash uint64, same func(uint32) bool) (uint32, bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	mask := uint64(len(t.slots) - 1)
	for i := hash & mask; t.slots[i] != 0; i = (i + 1) & mask {
		if id := t.slots[i] - 1; same(id) {
			return id, true
		}
	}
	return 0, false
}

// add adds the next number. hashOf returns the hash of any number.
func (t *table) add(hashOf func(uint32) uint64) error {
	const firstSlots = 128
	if 4*int(t.count) >= 3*len(t.slots) {
		slots, err := allocate[uint32](t.mem, max(firstSlots, 2*len(t.slots)))
		if err != nil {
			return err
		}
		t.mem.free(4 * int64(len(t.slots)))
		t.slots = slots
		for id := range t.count { // in the order in which what they stand for lies in memory
			t.mem.step()
			t.put(id, hashOf(id))
		}
	}
	t.put(t.count, hashOf(t.count))
	t.count++
	return nil
}

func (t *table) put(id uint32, hash uint64) {
	mask := uint64(len(t.slots) - 1)
	i := hash & mask
	for t.slots[i] != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = id + 1
}
