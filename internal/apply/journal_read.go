package apply

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"dray/internal/layer"
)

// ErrJournal reports a journal that is cut, damaged or of another version.
var ErrJournal = errors.New("invalid journal")

// Limits of what is read of a journal.
const (
	maxTextBytes     = 64 << 10
	maxJournalXattrs = layer.DefaultMaxXattrs
	maxJournalMap    = 1 << 20
	maxJournalWindow = 8 << 20
)

// inode is what a record says about a file of any kind. Hard links share it.
type inode struct {
	kind byte
	mode uint32
	uid  uint32
	gid  uint32
	time fileTime

	size         int64
	sparse       []layer.Extent // nil if the file is not sparse
	sum          []byte
	target       string
	major, minor uint32
	xattrs       []xattrSum

	dev, ino uint64 // where the first of its names was found; ino 0 is nowhere
}

type xattrSum struct {
	name string
	sum  []byte
}

// record is the last word on a path.
type record struct {
	*inode
	seq     int64 // its number
	cleared int64 // number of the record that removed all that was below
	opaque  bool
	seen    bool // in the tree
}

// records is a journal that was read.
type records struct {
	byPath map[string]*record
	sum    hash.Hash
}

// journalReader reads the records of a journal.
type journalReader struct {
	r    *bufio.Reader
	sum  int // bytes of a checksum
	path []byte
	sec  int64 // time of the last record that has one
	err  error // the first; the zero values after it are not used
}

// readJournal reads all of src.
func readJournal(src io.Reader) (*records, error) {
	const maxLineBytes = 64
	in := bufio.NewReaderSize(src, maxLineBytes)
	line, err := in.ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	name, ok := strings.CutPrefix(string(bytes.TrimSuffix(line, []byte("\n"))), JournalMagic)
	if !ok {
		return nil, fmt.Errorf("read journal: first line %q: %w", line, ErrJournal)
	}
	sum, _, err := newHash(name)
	if err != nil || name == "" {
		return nil, fmt.Errorf("read journal: %w: %w", ErrJournal, errors.Join(err))
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxJournalWindow))
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer z.Close()
	all := &records{byPath: map[string]*record{}, sum: sum}
	r := newJournalReader(z, sum.Size())
	for seq := int64(1); ; seq++ {
		done, err := r.next(all, seq)
		if err != nil {
			return nil, fmt.Errorf("read journal, record %d: %w: %w", seq, ErrJournal, err)
		}
		if done {
			return all, nil
		}
	}
}

func newJournalReader(src io.Reader, sumBytes int) *journalReader {
	return &journalReader{r: bufio.NewReader(src), sum: sumBytes}
}

// next reads one record into all, and tells whether it was the end.
func (r *journalReader) next(all *records, seq int64) (bool, error) {
	kind := r.byte()
	shared := r.number(maxTextBytes)
	if int(shared) > len(r.path) {
		return false, errors.New("path shares more than there is")
	}
	r.path = append(r.path[:shared], r.bytes(maxTextBytes-int(shared))...)
	n := &inode{kind: kind}
	switch kind {
	case kindEnd:
		count := r.number(1 << 62)
		if r.err == nil && count != seq-1 {
			return false, fmt.Errorf("%d records instead of %d", seq-1, count)
		}
		if r.err == nil {
			if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
				return false, errors.Join(errors.New("data after the end"), err)
			}
		}
		return true, r.err
	case kindFile:
		r.attributes(n)
		r.file(n)
	case kindDir, kindFIFO:
		r.attributes(n)
	case kindSymlink:
		r.attributes(n)
		n.target = string(r.bytes(maxTextBytes))
	case kindChar, kindBlock:
		r.attributes(n)
		n.major, n.minor = uint32(r.number(maxMajor)), uint32(r.number(maxMinor))
	case kindHardLink:
		n.target = string(r.bytes(maxTextBytes))
	case kindWhiteout, kindOpaque, kindRemoved:
	default:
		if r.err == nil {
			return false, fmt.Errorf("unknown kind %q", kind)
		}
	}
	if r.err != nil {
		return false, r.err
	}
	return false, all.take(string(r.path), n, seq)
}

// take makes n the last word on path.
func (a *records) take(path string, n *inode, seq int64) error {
	old := a.byPath[path]
	if old != nil && !a.holds(path, old) {
		old = nil
	}
	switch n.kind {
	case kindOpaque:
		if old == nil || old.kind != kindDir {
			return fmt.Errorf("opaque mark on %q, which is no directory", path)
		}
		old.opaque = true
		return nil
	case kindDir:
		if old != nil && old.kind == kindDir {
			old.inode, old.seq = n, seq
			return nil
		}
	case kindHardLink:
		target := a.byPath[n.target]
		if target == nil || !a.holds(n.target, target) || target.kind == kindDir || target.kind == kindRemoved {
			return fmt.Errorf("hard link to %q, which is no file", n.target)
		}
		n = target.inode
	}
	a.byPath[path] = &record{inode: n, seq: seq, cleared: seq}
	return nil
}

// holds tells whether r, the record at path, was not removed with a directory
// above it.
func (a *records) holds(path string, r *record) bool {
	for path != "" {
		path, _ = split(path)
		if above := a.byPath[path]; above != nil && above.cleared > r.seq {
			return false
		}
	}
	return true
}

func (r *journalReader) fail(err error) {
	if r.err == nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		r.err = err
	}
}

func (r *journalReader) byte() byte {
	c, err := r.r.ReadByte()
	if err != nil {
		r.fail(err)
	}
	return c
}

// number reads a number of at most limit.
func (r *journalReader) number(limit int64) int64 {
	n, err := binary.ReadUvarint(r.r)
	if err != nil {
		r.fail(err)
		return 0
	}
	if n > uint64(limit) {
		r.fail(fmt.Errorf("number %d exceeds %d", n, limit))
		return 0
	}
	return int64(n)
}

func (r *journalReader) bytes(limit int) []byte { return r.take(int(r.number(int64(limit)))) }

func (r *journalReader) take(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.fail(err)
	}
	return b
}

func (r *journalReader) attributes(n *inode) {
	const maxID = 1<<32 - 1
	n.mode = uint32(r.number(0o7777))
	n.uid, n.gid = uint32(r.number(maxID)), uint32(r.number(maxID))
	sec, err := binary.ReadVarint(r.r)
	if err != nil {
		r.fail(err)
	}
	r.sec += sec
	n.time = fileTime{r.sec, uint32(r.number(999_999_999))}
	for range r.number(maxJournalXattrs) {
		n.xattrs = append(n.xattrs, xattrSum{string(r.bytes(maxTextBytes)), r.take(r.sum)})
		if r.err != nil {
			return
		}
	}
}

func (r *journalReader) file(n *inode) {
	const maxInt64 = 1<<63 - 1
	n.size = r.number(maxInt64)
	if count := r.number(maxJournalMap); count > 0 {
		n.sparse = []layer.Extent{}
		end := int64(0)
		for range count - 1 {
			gap := r.number(n.size - end)
			size := r.number(n.size - end - gap)
			n.sparse = append(n.sparse, layer.Extent{Offset: end + gap, Size: size})
			end += gap + size
			if r.err != nil {
				return
			}
		}
	}
	n.sum = r.take(r.sum)
}
