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
	steps  int      // until the faults are looked at
	looked int64    // faults of this process at the last look
	faults int64    // and when the pages were last let go of
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
	// Without read-ahead the page cache takes single pages, not folios of 2 MiB, of
	// which a fault would map each whole.
	if err := unix.Madvise(chunk, unix.MADV_RANDOM); err != nil {
		return errors.Join(os.NewSyscallError("madvise", err), unix.Munmap(chunk))
	}
	m.chunks = append(m.chunks, chunk)
	m.spare = chunk
	return nil
}

// When the file's pages are let go of. A fault maps 64 KiB at most (the kernel's
// fault_around_bytes), and a step has a few of them, so that about 4 MiB are mapped.
const (
	fewestSteps  = 8 // between two looks at the faults, where there are many
	mostSteps    = 32
	faultsToTrim = 48
)

// step is called for each entry or inode that something is done with. It lets the
// kernel take back the pages of the file when many were touched. Nothing is lost:
// they are read again when they are touched. That is measured in faults, which
// are few when what is touched lies together, and not in steps, of which each may
// touch pages far apart.
func (m *memory) step() {
	if m.steps--; m.steps >= 0 || m.file == nil {
		return
	}
	m.look()
}

func (m *memory) look() {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return // it has no way to fail
	}
	faults := usage.Minflt + usage.Majflt
	if m.steps = fewestSteps; faults-m.looked < fewestSteps {
		m.steps = mostSteps
	}
	m.looked = faults
	if faults-m.faults < faultsToTrim {
		return
	}
	m.faults = faults
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
	at, err := l.extend(1)
	if err == nil {
		*l.at(at) = v
	}
	return at, err
}

// extend appends count zero values and returns the number of the first.
func (l *list[T]) extend(count uint32) (first uint32, err error) {
	first = l.count
	if uint64(first)+uint64(count) > none {
		return 0, errMany
	}
	for count > 0 {
		if l.count&(partLen-1) == 0 || l.count < partLen && int(l.count) == len(l.parts[0]) {
			if err := l.addRoom(); err != nil {
				return 0, err
			}
		}
		part := l.parts[l.count>>partBits]
		n := min(count, uint32(len(part))-l.count&(partLen-1))
		l.count, count = l.count+n, count-n
	}
	return first, nil
}

// addRoom appends a part, of which the first is a small one that grows.
func (l *list[T]) addRoom() error {
	const firstLen = 64
	size := partLen
	switch {
	case l.count == 0:
		size = firstLen
	case l.count < partLen:
		size = 2 * len(l.parts[0])
	}
	part, err := allocate[T](l.mem, size)
	if err != nil {
		return err
	}
	if l.count == 0 || l.count >= partLen {
		l.parts = append(l.parts, part)
		return nil
	}
	copy(part, l.parts[0])
	var zero T
	l.mem.free(int64(len(l.parts[0])) * int64(unsafe.Sizeof(zero)))
	l.parts[0] = part
	return nil
}

// errMany means that numbers of 32 bits do not suffice.
var errMany = &InexpressibleError{Reason: "more than 4 billion entries, names or attributes"}

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

// slot of a table: a number, and the hash of what it stands for.
type slot struct {
	hash   uint32
	number uint32 // plus one; 0 is a free slot
}

// table finds numbers by the hashes of what they stand for. Its slots lie together,
// in a list that many tables share.
type table struct {
	first uint32 // slot
	count uint32 // of numbers
	bits  uint8  // there are 1<<bits slots; 0 is none
}

// find returns the number for which same is true, which is asked for few others.
func (t *table) find(slots *list[slot], hash uint32, same func(uint32) bool) (uint32, bool) {
	if t.bits == 0 {
		return 0, false
	}
	mask := uint32(1)<<t.bits - 1
	for i := hash & mask; ; i = (i + 1) & mask {
		s := slots.at(t.first + i)
		if s.number == 0 {
			return 0, false
		}
		if s.hash == hash && same(s.number-1) {
			return s.number - 1, true
		}
	}
}

// add adds a number that is not there.
func (t *table) add(slots *list[slot], hash, number uint32) error {
	const firstBits = 5
	if t.bits == 0 || 4*uint64(t.count) >= 3<<t.bits {
		grown := table{count: t.count, bits: max(firstBits, t.bits+1)}
		var err error
		if grown.first, err = slots.extend(1 << grown.bits); err != nil {
			return err
		}
		if t.bits > 0 {
			for i := range uint32(1) << t.bits {
				slots.mem.step()
				if s := *slots.at(t.first + i); s.number != 0 {
					grown.put(slots, s)
				}
			}
		}
		*t = grown
	}
	t.put(slots, slot{hash: hash, number: number + 1})
	t.count++
	return nil
}

func (t *table) put(slots *list[slot], s slot) {
	mask := uint32(1)<<t.bits - 1
	i := s.hash & mask
	for slots.at(t.first+i).number != 0 {
		i = (i + 1) & mask
	}
	*slots.at(t.first + i) = s
}
