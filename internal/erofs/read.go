package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"golang.org/x/sys/unix"
)

// ErrDamaged reports an image that is not one that [Index.WriteTo] writes for a tar.
var ErrDamaged = errors.New("index is damaged")

// windowBytes of an image are read at once, in each of three places of it.
const windowBytes = 64 << 10

// reader reads an image that [Index.WriteTo] has written for one tar, and no other:
// 64-byte inodes, contents in the tar, nothing that this package does not write. It
// believes nothing: whatever is not so is an [ErrDamaged].
type reader struct {
	file      io.ReaderAt
	blocks    uint64 // of the image
	sharedAt  uint64 // of the shared attributes, in bytes; 0 if there are none
	root      uint64 // its number
	tarBlocks uint64

	// Inodes stand in the order in which the tree is walked, and so do contents of
	// directories and of links.
	inodes, contents, shared window
}

// window is a part of the image in memory.
type window struct {
	at   uint64
	data []byte
	buf  []byte
}

// readInode is an inode as it stands in an image. Its data is a block of the tar, or
// a device number.
type readInode struct {
	inode
	number uint64
	block  uint64 // of directories and links: where contents that are not inline begin
	inline bool   // the end of the content stands behind the attributes
	behind uint64 // the attributes, in bytes from the image's beginning
	attrs  int    // their size
}

// open makes r read another image, with the memory that it has.
func (r *reader) open(file io.ReaderAt) error {
	const least = superOffset + blockBytes
	*r = reader{
		file: file, blocks: blocksOf(least),
		inodes: window{buf: r.inodes.buf}, contents: window{buf: r.contents.buf}, shared: window{buf: r.shared.buf},
	}
	s, err := r.bytes(&r.inodes, superOffset, blockBytes)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	sum := le.Uint32(s[4:])
	// The checksum is that of the block with 0 in its own place.
	hash := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, _ = hash.Write(s[:4])
	_, _ = hash.Write(make([]byte, 4))
	_, _ = hash.Write(s[8:])
	incompatible, devices := le.Uint32(s[80:]), le.Uint16(s[86:])
	switch {
	case le.Uint32(s) != magic, s[12] != blockBits, ^hash.Sum32() != sum:
		return fmt.Errorf("superblock: %w", ErrDamaged)
	case devices == 0 && incompatible == 0:
	case devices == 1 && incompatible == incompatDeviceTable && le.Uint16(s[88:]) == (superOffset+superBytes)/slotBytes:
		r.tarBlocks = uint64(le.Uint32(s[superBytes+64:]))
	default:
		return fmt.Errorf("superblock: not the index of one tar: %w", ErrDamaged)
	}
	r.blocks = uint64(le.Uint32(s[36:]))
	r.sharedAt = uint64(le.Uint32(s[44:])) * blockBytes
	r.root = uint64(le.Uint16(s[14:]))
	return nil
}

// bytes returns a part of the image, valid until the next call for this window.
func (r *reader) bytes(w *window, at uint64, size int) ([]byte, error) {
	if end := r.blocks * blockBytes; at > end || uint64(size) > end-at {
		return nil, fmt.Errorf("%d bytes at %d, beyond the end: %w", size, at, ErrDamaged)
	}
	if at < w.at || at+uint64(size) > w.at+uint64(len(w.data)) {
		if err := r.fill(w, at, size); err != nil {
			return nil, err
		}
	}
	return w.data[at-w.at:][:size], nil
}

// fill moves a window to at.
func (r *reader) fill(w *window, at uint64, size int) error {
	if wanted := max(windowBytes, size+blockBytes); len(w.buf) < wanted {
		w.buf = make([]byte, wanted) // at most the attributes of one inode
	}
	w.at, w.data = at&^(blockBytes-1), nil
	n, err := r.file.ReadAt(w.buf, int64(w.at))
	w.data = w.buf[:n]
	switch {
	case uint64(n) >= at-w.at+uint64(size):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return fmt.Errorf("ends after %d bytes: %w", w.at+uint64(n), ErrDamaged)
	}
	return err
}

// inode reads the inode of a number.
func (r *reader) inode(number uint64) (*readInode, error) {
	at := number * nodeUnit
	b, err := r.bytes(&r.inodes, at, inodeBytes)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := &readInode{number: number, behind: at + inodeBytes}
	n.mode, n.nlink = le.Uint16(b[4:]), le.Uint32(b[44:])
	n.size, n.mtime, n.nsec = int64(le.Uint64(b[8:])), int64(le.Uint64(b[32:])), le.Uint32(b[40:])
	n.uid, n.gid = le.Uint32(b[24:]), le.Uint32(b[28:])
	if count := int(le.Uint16(b[2:])); count > 0 {
		n.attrs = (count-1)*4 + xattrHeader
	}
	switch le.Uint16(b) {
	case extended | flatPlain:
	case extended | flatInline:
		n.inline = true
	default:
		return nil, n.damaged("format")
	}
	return n, r.locate(n, uint64(le.Uint32(b[16:])))
}

// locate checks where an inode has its content.
func (r *reader) locate(n *readInode, content uint64) error {
	kind := n.mode & unix.S_IFMT
	if n.size < 0 || n.nlink == 0 || n.inline && kind != unix.S_IFDIR && kind != unix.S_IFLNK {
		return n.damaged("size, links or format")
	}
	switch kind {
	case unix.S_IFREG:
		if n.size == 0 {
			return nil
		}
		if content < r.blocks || content-r.blocks+blocksOf(uint64(n.size)) > r.tarBlocks {
			return n.damaged("content outside of the tar")
		}
		n.data = uint32(content - r.blocks)
	case unix.S_IFDIR, unix.S_IFLNK:
		n.block = content
		if n.size == 0 || kind == unix.S_IFLNK && n.size > maxPathBytes || uint64(n.size) > r.blocks*blockBytes {
			return n.damaged("size")
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		n.data = uint32(content)
	case unix.S_IFIFO:
	default:
		return n.damaged("type")
	}
	return nil
}

func (n *readInode) damaged(what string) error {
	return fmt.Errorf("%s of inode %d: %w", what, n.number, ErrDamaged)
}

// content returns block i of a directory's or a link's content, what there is of it.
func (r *reader) content(n *readInode, i uint64) ([]byte, error) {
	size := min(blockBytes, n.size-int64(i*blockBytes))
	if n.inline && size == n.size-int64(i*blockBytes) {
		return r.bytes(&r.inodes, n.behind+uint64(n.attrs), int(size))
	}
	return r.bytes(&r.contents, (n.block+i)*blockBytes, int(size))
}

// target reads where a symbolic link leads.
func (r *reader) target(n *readInode) (string, error) {
	var text []byte
	for i := range blocksOf(uint64(n.size)) {
		part, err := r.content(n, i)
		if err != nil {
			return "", err
		}
		text = append(text, part...)
	}
	return string(text), nil
}

// names calls each with the names in a directory but "." and "..", in their order.
func (r *reader) names(n *readInode, each func(name string, number uint64) error) error {
	le := binary.LittleEndian
	previous := ""
	for i := range blocksOf(uint64(n.size)) {
		b, err := r.content(n, i)
		if err != nil {
			return err
		}
		var copied [blockBytes]byte // each may read
		block := copied[:copy(copied[:], b)]
		if len(block) < direntBytes {
			return n.damaged("entries")
		}
		count := int(le.Uint16(block[8:])) / direntBytes
		for k := range count {
			name, ok := direntName(block, k, count)
			if !ok || name <= previous {
				return n.damaged("entries")
			}
			if previous = name; name == "." || name == ".." {
				continue
			}
			if err := each(name, le.Uint64(block[k*direntBytes:])); err != nil {
				return err
			}
		}
	}
	return nil
}

// direntName returns the name of entry k of count in a block.
func direntName(block []byte, k, count int) (string, bool) {
	le := binary.LittleEndian
	if count*direntBytes > len(block) {
		return "", false
	}
	from, to := int(le.Uint16(block[k*direntBytes+8:])), len(block)
	if k+1 < count {
		to = int(le.Uint16(block[(k+1)*direntBytes+8:]))
	}
	if from < count*direntBytes || from >= to || to > len(block) {
		return "", false
	}
	name := block[from:to]
	if k+1 == count { // zeros may follow
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
	}
	for _, c := range name {
		if c == 0 || c == '/' {
			return "", false
		}
	}
	return string(name), len(name) > 0 && len(name) <= maxNameBytes
}

// attributes calls each with the attributes of an inode, as an image has them: the
// header of an entry, the name behind its prefix, the value.
func (r *reader) attributes(n *readInode, each func(text []byte) error) error {
	if n.attrs == 0 {
		return nil
	}
	area, err := r.bytes(&r.inodes, n.behind, n.attrs)
	if err != nil {
		return err
	}
	shared := int(area[4])
	if xattrHeader+4*shared > len(area) {
		return n.damaged("attributes")
	}
	for i := range shared {
		at := r.sharedAt + 4*uint64(binary.LittleEndian.Uint32(area[xattrHeader+4*i:]))
		head, err := r.bytes(&r.shared, at, entryHeader)
		if err != nil {
			return err
		}
		text, err := r.bytes(&r.shared, at, textBytesOf(head))
		if err != nil {
			return err
		}
		if err := each(text); err != nil {
			return err
		}
	}
	for rest := area[xattrHeader+4*shared:]; len(rest) > 0; {
		if len(rest) < entryHeader || textBytesOf(rest) > len(rest) {
			return n.damaged("attributes")
		}
		size := textBytesOf(rest)
		if err := each(rest[:size]); err != nil {
			return err
		}
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	return nil
}

// textBytesOf returns the size of an attribute by its header, without padding.
func textBytesOf(head []byte) int {
	return entryHeader + int(head[0]) + int(binary.LittleEndian.Uint16(head[2:]))
}
