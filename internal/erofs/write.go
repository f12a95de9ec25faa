package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"golang.org/x/sys/unix"
)

// Constants of the format.
const (
	magic = 0xE0F5E1E2

	compatChecksum      = 1 << 0
	compatMTime         = 1 << 1
	incompatDeviceTable = 1 << 3

	extended    = 1      // in an inode's format: 64 bytes
	flatPlain   = 0 << 1 // contents in whole blocks
	flatInline  = 2 << 1 // the last, incomplete one behind the inode
	uuidBytes   = 16
	writerBytes = 64 << 10
)

// WriteTo writes the image, with the UUID that was given to [Copy], and returns
// its size. It may be called again.
func (x *Index) WriteTo(w io.Writer) (n int64, err error) {
	defer onFault(&err)()
	o := x.output(w)
	err = o.write()
	if err == nil {
		err = o.w.Flush()
	}
	if err != nil {
		return int64(o.at), fmt.Errorf("write index: %w", err)
	}
	return int64(o.at), nil
}

func (x *Index) output(w io.Writer) *output {
	return &output{x: x, w: bufio.NewWriterSize(w, writerBytes), packer: packer{x: x}}
}

// output is an image being written.
type output struct {
	x      *Index
	w      *bufio.Writer
	at     uint64
	block  uint64 // the next one of directories
	packer packer
	buf    []byte
	zeros  [blockBytes]byte
}

func (o *output) put(b []byte) error {
	n, err := o.w.Write(b)
	o.at += uint64(n)
	return err
}

// padTo writes zeros up to an offset.
func (o *output) padTo(at uint64) error {
	for o.at < at {
		if err := o.put(o.zeros[:min(at-o.at, blockBytes)]); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) write() error {
	x, l := o.x, &o.x.layout
	if err := o.put(o.head()); err != nil {
		return err
	}
	o.block = l.blocksAt
	// An inode that is further back was written under another of its names.
	err := x.walkTree(root, func(n *inode) bool { return uint64(n.slot)*nodeUnit >= o.at }, o.inode)
	if err == nil {
		err = o.padTo(l.blocksAt * blockBytes)
	}
	if err != nil {
		return err
	}
	next := uint32(0)
	err = x.walkTree(root, func(n *inode) bool { return n.slot > next }, func(ino uint32) error {
		n := x.inodes.at(ino)
		next = n.slot
		return o.blocks(ino, n)
	})
	if err == nil {
		err = o.padTo(l.sharedAt * blockBytes)
	}
	for id := range x.xattrs.list.count {
		if err == nil && x.xattrs.list.at(id).uses > 1 {
			o.buf = x.xattrs.appendPadded(o.buf[:0], id)
			err = o.put(o.buf)
		}
	}
	if err == nil {
		err = o.padTo(l.blocks * blockBytes)
	}
	return err
}

// head returns the blocks before the inodes: the superblock and the devices, which
// are the tars, one behind the other and all behind the image.
func (o *output) head() []byte {
	le := binary.LittleEndian
	x, l := o.x, &o.x.layout
	b := make([]byte, x.headBytes())
	s := b[superOffset:]
	le.PutUint32(s, magic)
	le.PutUint32(s[8:], compatChecksum|compatMTime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(x.inodes.at(root).slot))
	le.PutUint64(s[16:], l.inodes)
	le.PutUint32(s[36:], uint32(x.origin+l.blocks))
	le.PutUint32(s[40:], uint32(x.origin))
	if l.sharedBytes > 0 {
		le.PutUint32(s[44:], uint32(x.origin+l.sharedAt))
	}
	copy(s[48:48+uuidBytes], x.uuid[:])
	devices := x.devices
	if devices == nil && x.tarBlocks > 0 {
		devices = []uint32{uint32(x.tarBlocks)}
	}
	if len(devices) > 0 {
		le.PutUint32(s[80:], incompatDeviceTable)
		le.PutUint16(s[86:], uint16(len(devices)))
		le.PutUint16(s[88:], (superOffset+superBytes)/slotBytes)
	}
	if x.whole {
		copy(s[labelFieldAt:], Label)
		le.PutUint64(s[locatorAt+copy(s[locatorAt:], locator):], ImageHeadBytes)
	}
	at := uint32(l.blocks)
	for i, blocks := range devices {
		device := s[superBytes+i*slotBytes:]
		le.PutUint32(device[64:], blocks)
		le.PutUint32(device[68:], at)
		at += blocks
	}
	sum(s)
	return b
}

// sum puts the checksum into a superblock. The kernel's crc32c is not inverted at its
// end, and covers one block with 0 in its own place.
func sum(super []byte) {
	binary.LittleEndian.PutUint32(super[4:], 0)
	binary.LittleEndian.PutUint32(super[4:], ^crc32.Checksum(super[:blockBytes], crc32.MakeTable(crc32.Castagnoli)))
}

// inode writes an inode with what stands behind it.
func (o *output) inode(ino uint32) error {
	le := binary.LittleEndian
	x := o.x
	n := x.inodes.at(ino)
	if err := o.padTo(uint64(n.slot) * nodeUnit); err != nil {
		return err
	}
	inline := x.inline(n)
	format, content := uint16(extended|flatPlain), n.data
	if inline {
		format = extended | flatInline
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG:
		if n.size > 0 && !x.whole {
			content += uint32(x.layout.blocks) // where the tar is thought to follow the image
		}
	case unix.S_IFDIR, unix.S_IFLNK:
		content = uint32(x.origin + o.block)
		o.block += fullBlocks(n, inline)
	}
	xattrs := x.xattrs.sizeBytes(n.xattrs)
	o.buf = append(o.buf[:0], o.zeros[:inodeBytes]...)
	b := o.buf
	le.PutUint16(b, format)
	if xattrs > 0 {
		le.PutUint16(b[2:], uint16((xattrs-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], n.mode)
	le.PutUint64(b[8:], uint64(n.size))
	le.PutUint32(b[16:], content)
	le.PutUint32(b[20:], n.slot) // not read by the kernel, which takes the place
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], max(n.nlink, n.names))
	o.buf = x.xattrs.encode(o.buf, n.xattrs)
	if err := o.put(o.buf); err != nil || !inline {
		return err
	}
	if n.isLink() {
		return o.put(x.texts.at(n.data, int(n.size)))
	}
	var last []byte
	if err := o.packer.pack(ino, func(block []byte) error { last = block; return nil }); err != nil {
		return err
	}
	return o.put(last)
}

// blocks writes the whole blocks of a directory or a link's target.
func (o *output) blocks(ino uint32, n *inode) error {
	left := fullBlocks(n, o.x.inline(n))
	switch {
	case left == 0:
		return nil
	case n.isLink():
		if err := o.put(o.x.texts.at(n.data, int(n.size))); err != nil {
			return err
		}
		return o.padTo(blocksOf(o.at) * blockBytes)
	}
	return o.packer.pack(ino, func(block []byte) error {
		if left == 0 {
			return nil
		}
		left--
		if err := o.put(block); err != nil {
			return err
		}
		return o.padTo(blocksOf(o.at) * blockBytes)
	})
}
