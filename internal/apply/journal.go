package apply

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"

	"dray/internal/layer"
)

// Checksums of [Options.ContentHash].
const (
	CRC32C = "crc32c" // Castagnoli's polynomial, 4 bytes, little-endian: finds damage, not malice
	SHA256 = "sha256"
)

// JournalMagic begins a journal. The rest of its first line is the name of the
// checksum, and the bytes behind the line are one zstd frame of records, in the
// order in which they were applied: the last word on a path holds.
//
// A record is a byte that tells its kind, a path and what the kind demands.
// Numbers are varints (encoding/binary), signed ones zigzag; texts are a length
// and bytes. A path is the number of bytes that it shares with the path before
// it and the text of the others; it is relative to the root, without links on
// its way, and empty for the root.
//
//	f  attributes, size, map, checksum of what is stored    file
//	d  attributes                                           directory
//	l  attributes, target                                   symbolic link
//	c  attributes, major, minor                             character device
//	b  attributes, major, minor                             block device
//	p  attributes                                           FIFO
//	h  path of the file, as a text                          hard link
//	w                                                       whiteout
//	o                                                       the directory is opaque
//	r                                                       the path was removed
//	.  number of records before it                          end; its path is empty
//
// Attributes are mode, owner, group, the signed number of seconds since the time
// of the record with attributes before it (of the first, since 1970), nanoseconds,
// the number of xattrs, and for each its name and the checksum of its value. The map of a
// file is 0, or for a sparse file 1 + the number of extents and for each the gap
// before it and its size. A record of anything but a directory, an opaque mark
// or the end removes what its path had, and all below; so does a directory where
// there was none.
const JournalMagic = "dray-journal 1 "

// Kinds of records.
const (
	kindFile     = 'f'
	kindDir      = 'd'
	kindSymlink  = 'l'
	kindChar     = 'c'
	kindBlock    = 'b'
	kindFIFO     = 'p'
	kindHardLink = 'h'
	kindWhiteout = 'w'
	kindOpaque   = 'o'
	kindRemoved  = 'r'
	kindEnd      = '.'
)

// newHash returns the checksum with the name, which "" stands for [CRC32C] in.
func newHash(name string) (hash.Hash, string, error) {
	switch name {
	case "", CRC32C:
		return castagnoli{crc32.New(crc32.MakeTable(crc32.Castagnoli))}, CRC32C, nil
	case SHA256:
		return sha256.New(), SHA256, nil
	}
	return nil, "", fmt.Errorf("checksum %q is neither %s nor %s: %w", name, CRC32C, SHA256, errors.ErrUnsupported)
}

// castagnoli sums in the byte order of the journal.
type castagnoli struct{ hash.Hash32 }

// Sum implements [hash.Hash].
func (c castagnoli) Sum(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, c.Sum32()) }

// journal writes what is applied. The methods of nil do nothing.
type journal struct {
	w     *zstd.Encoder
	buf   []byte // records that w has not got
	path  []byte // of the record at hand
	prev  []byte // of the one before it
	count uint64
	sec   int64 // time of the last record that has one

	sum   hash.Hash // of the file at hand
	value hash.Hash // of an xattr
}

// journalBufBytes is how much is handed to the encoder at once.
const journalBufBytes = 32 << 10

func newJournal(w io.Writer, checksum string) (*journal, error) {
	content, name, err := newHash(checksum)
	if err != nil {
		return nil, fmt.Errorf("write journal: %w", err)
	}
	value, _, err := newHash(checksum)
	if err != nil {
		return nil, fmt.Errorf("write journal: %w", err)
	}
	if _, err := io.WriteString(w, JournalMagic+name+"\n"); err != nil {
		return nil, fmt.Errorf("write journal: %w", err)
	}
	const windowBytes = 64 << 10
	encoder, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(windowBytes), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("write journal: %w", err)
	}
	return &journal{w: encoder, sum: content, value: value}, nil
}

// close writes the end. After a failure there is none, and nothing to close:
// the encoder holds nothing but memory.
func (j *journal) close() error {
	j.start(kindEnd, "", "")
	j.count-- // the end does not count
	j.buf = binary.AppendUvarint(j.buf, j.count)
	if err := j.flush(); err != nil {
		return err
	}
	if err := j.w.Close(); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func (j *journal) flush() error {
	_, err := j.w.Write(j.buf)
	j.buf = j.buf[:0]
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// start begins a record of base in dir; of dir itself if base is empty.
func (j *journal) start(kind byte, dir, base string) {
	j.prev, j.path = j.path, append(j.prev[:0], dir...)
	if dir != "" && base != "" {
		j.path = append(j.path, '/')
	}
	j.path = append(j.path, base...)
	shared := 0
	for shared < len(j.path) && shared < len(j.prev) && j.path[shared] == j.prev[shared] {
		shared++
	}
	j.count++
	j.buf = append(j.buf, kind)
	j.buf = binary.AppendUvarint(j.buf, uint64(shared))
	j.buf = binary.AppendUvarint(j.buf, uint64(len(j.path)-shared))
	j.buf = append(j.buf, j.path[shared:]...)
}

// end hands the record on when enough has come together.
func (j *journal) end() error {
	if len(j.buf) < journalBufBytes {
		return nil
	}
	return j.flush()
}

func (j *journal) text(s string) {
	j.buf = binary.AppendUvarint(j.buf, uint64(len(s)))
	j.buf = append(j.buf, s...)
}

func (j *journal) attributes(e *layer.Entry) {
	j.buf = binary.AppendUvarint(j.buf, uint64(e.Mode))
	j.buf = binary.AppendUvarint(j.buf, uint64(e.UID))
	j.buf = binary.AppendUvarint(j.buf, uint64(e.GID))
	j.buf = binary.AppendVarint(j.buf, e.MTimeSec-j.sec) // may wrap around, and back
	j.sec = e.MTimeSec
	j.buf = binary.AppendUvarint(j.buf, uint64(e.MTimeNsec))
	j.buf = binary.AppendUvarint(j.buf, uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		j.text(x.Name)
		j.value.Reset()
		_, _ = j.value.Write(x.Value) // hash.Hash never fails
		j.buf = j.value.Sum(j.buf)
	}
}

// beginContent starts the checksum of a file.
func (j *journal) beginContent() {
	if j != nil {
		j.sum.Reset()
	}
}

// content adds what is stored of the file.
func (j *journal) content(part []byte) {
	if j != nil {
		_, _ = j.sum.Write(part) // hash.Hash never fails
	}
}

func (j *journal) file(dir, base string, e *layer.Entry) error {
	if j == nil {
		return nil
	}
	j.start(kindFile, dir, base)
	j.attributes(e)
	j.buf = binary.AppendUvarint(j.buf, uint64(e.Size))
	if e.Sparse == nil {
		j.buf = append(j.buf, 0)
	} else {
		j.buf = binary.AppendUvarint(j.buf, uint64(1+len(e.Sparse)))
		end := int64(0)
		for _, x := range e.Sparse {
			j.buf = binary.AppendUvarint(j.buf, uint64(x.Offset-end))
			j.buf = binary.AppendUvarint(j.buf, uint64(x.Size))
			end = x.Offset + x.Size
		}
	}
	j.buf = j.sum.Sum(j.buf)
	return j.end()
}

func (j *journal) dirEntry(path string, e *layer.Entry) error {
	if j == nil {
		return nil
	}
	j.start(kindDir, path, "")
	j.attributes(e)
	return j.end()
}

func (j *journal) symlink(dir, base string, e *layer.Entry) error {
	if j == nil {
		return nil
	}
	j.start(kindSymlink, dir, base)
	j.attributes(e)
	j.text(e.Linkname)
	return j.end()
}

func (j *journal) node(dir, base string, e *layer.Entry) error {
	if j == nil {
		return nil
	}
	kind := byte(kindFIFO)
	switch e.Type {
	case layer.Char:
		kind = kindChar
	case layer.Block:
		kind = kindBlock
	default:
	}
	j.start(kind, dir, base)
	j.attributes(e)
	if kind != kindFIFO {
		j.buf = binary.AppendUvarint(j.buf, uint64(e.Major))
		j.buf = binary.AppendUvarint(j.buf, uint64(e.Minor))
	}
	return j.end()
}

func (j *journal) hardLink(dir, base, targetDir, targetBase string) error {
	if j == nil {
		return nil
	}
	j.start(kindHardLink, dir, base)
	j.text(join(targetDir, targetBase))
	return j.end()
}

func (j *journal) whiteout(dir, base string) error { return j.mark(kindWhiteout, dir, base) }
func (j *journal) opaque(dir string) error         { return j.mark(kindOpaque, dir, "") }
func (j *journal) removed(dir, base string) error  { return j.mark(kindRemoved, dir, base) }

func (j *journal) mark(kind byte, dir, base string) error {
	if j == nil {
		return nil
	}
	j.start(kind, dir, base)
	return j.end()
}
