package erofs

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// BlockBytes is the size of a block, of the images of this package and of tars.
const BlockBytes = blockBytes

// Sizes of the image's structures.
const (
	blockBits  = 9
	blockBytes = 1 << blockBits // of the image, and of a tar

	superOffset = 1024
	superBytes  = 128
	slotBytes   = 128            // of a device in the table behind the superblock
	inodesAt    = 3 * blockBytes // at least

	inodeBytes  = 64
	nodeUnit    = 32 // of inode numbers
	direntBytes = 12
)

// layout says where everything is in the image: superblock and devices, inodes
// with their attributes and short contents, blocks of directories and long link
// targets, shared attributes.
type layout struct {
	inodes      uint64
	blocksAt    uint64 // first block of directories
	sharedAt    uint64 // first block of the shared attributes
	sharedBytes uint64
	blocks      uint64 // of all
}

// arrange sorts the tree and gives everything its place. The tree must not be
// changed any more.
func (x *Index) arrange() error {
	if err := x.prepare(root, &packer{x: x}); err != nil {
		return err
	}
	x.layout.sharedBytes = x.xattrs.share()
	end, blocks := x.headBytes(), uint64(0)
	if end/nodeUnit > math.MaxUint16 { // the superblock has 16 bits for the root's
		return &InexpressibleError{Reason: fmt.Sprintf("contents in %d tars", len(x.devices))}
	}
	err := x.visit(root, func(ino uint32) error {
		n := x.inodes.at(ino)
		at, inline := x.place(n, end)
		n.slot = uint32(at / nodeUnit)
		end = at + inodeBytes + uint64(x.xattrs.sizeBytes(n.xattrs))
		if inline {
			end += uint64(tail(n))
		}
		blocks += fullBlocks(n, inline)
		if end/nodeUnit > math.MaxUint32 {
			return errTooLarge
		}
		return nil
	})
	if err != nil {
		return err
	}
	l := &x.layout
	l.blocksAt = blocksOf(end)
	l.sharedAt = l.blocksAt + blocks
	l.blocks = l.sharedAt + blocksOf(l.sharedBytes)
	if x.origin+l.blocks+x.tarBlocks >= math.MaxUint32 {
		return errTooLarge
	}
	x.result.Inodes = int64(l.inodes)
	return nil
}

// headBytes returns where the inodes begin: behind the superblock and the devices.
func (x *Index) headBytes() uint64 {
	return max(inodesAt, blocksOf(superOffset+superBytes+slotBytes*uint64(len(x.devices)))*blockBytes)
}

// errTooLarge means that block numbers of 32 bits do not suffice.
var errTooLarge = &InexpressibleError{Reason: "more than 2 TiB"}

func blocksOf(sizeBytes uint64) uint64 { return (sizeBytes + blockBytes - 1) / blockBytes }

// prepare sorts the directories from dir on, counts links and uses of attributes,
// and sets the sizes of directories. The depth is limited by that of a path.
func (x *Index) prepare(dir uint32, p *packer) error {
	if err := x.sort(dir); err != nil {
		return err
	}
	if err := x.use(dir); err != nil {
		return err
	}
	links := uint32(2)
	for d := range x.entries(dir) {
		n := x.inodes.at(d.ino)
		switch {
		case n.isDir():
			links++
			if err := x.prepare(d.ino, p); err != nil {
				return err
			}
		case n.nlink == 0:
			if err := x.use(d.ino); err != nil {
				return err
			}
			fallthrough
		default:
			x.inodes.at(d.ino).nlink++
		}
	}
	n := x.inodes.at(dir)
	n.nlink = links
	err := p.pack(dir, nil)
	n.size = p.size
	return err
}

// use counts an inode and its attributes.
func (x *Index) use(ino uint32) error {
	x.layout.inodes++
	x.memory.step()
	n := x.inodes.at(ino)
	for _, mark := range []struct {
		wanted      bool
		name, value string
	}{{n.opaque, overlayOpaque, "y"}, {n.hiding, overlayOrigin, ""}} {
		if !mark.wanted {
			continue
		}
		set, err := x.xattrs.withMark(n.xattrs, mark.name, mark.value)
		if err != nil {
			return err
		}
		n.xattrs = set
	}
	size := xattrHeader
	for id := range x.xattrs.each(n.xattrs) {
		x.xattrs.list.at(id).uses++
		size += x.xattrs.paddedBytes(id)
	}
	if (size-xattrHeader)/4+1 > math.MaxUint16 {
		return &InexpressibleError{Reason: "extended attributes of more than 256 KiB on one file"}
	}
	return nil
}

// visit calls each with the inodes of the tree, each once, in the order in which
// they stand in the image: parents before children, by name.
func (x *Index) visit(dir uint32, each func(ino uint32) error) error {
	return x.walkTree(dir, func(n *inode) bool { return n.slot == 0 }, each)
}

// walkTree is visit with a test for inodes that were not visited yet, of which
// only those with several names are asked for.
func (x *Index) walkTree(dir uint32, fresh func(*inode) bool, each func(ino uint32) error) error {
	if err := each(dir); err != nil {
		return err
	}
	for d := range x.entries(dir) {
		x.memory.step()
		n := x.inodes.at(d.ino)
		var err error
		switch {
		case n.isDir():
			err = x.walkTree(d.ino, fresh, each)
		case n.nlink == 1 || fresh(n):
			err = each(d.ino)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place returns where the next inode is put, and whether the end of its content
// stands behind it. That must lie in one block with the inode, for the kernel
// reads the targets of links so.
func (x *Index) place(n *inode, end uint64) (at uint64, inline bool) {
	const (
		mostWaste = blockBytes / 2
		align     = inodeBytes
	)
	at = (end + align - 1) &^ (align - 1)
	size := uint64(inodeBytes + x.xattrs.sizeBytes(n.xattrs))
	t := uint64(tail(n))
	if t == 0 || size+t > blockBytes {
		return at, false
	}
	size += t
	room := blockBytes - at%blockBytes
	if size <= room {
		return at, true
	}
	if room <= mostWaste {
		return at + room, true
	}
	return at, false
}

// inline tells whether place put the end of the content behind the inode.
func (x *Index) inline(n *inode) bool {
	t := tail(n)
	size := inodeBytes + x.xattrs.sizeBytes(n.xattrs)
	return t > 0 && int(uint64(n.slot)*nodeUnit%blockBytes)+size+t <= blockBytes
}

// tail returns how much of an inode's content may stand behind it: what the last
// block of a directory needs, or a link's target that fits a block.
func tail(n *inode) int {
	switch {
	case n.isDir():
		return int((n.size-1)%blockBytes) + 1
	case n.isLink() && n.size <= blockBytes:
		return int(n.size)
	}
	return 0
}

// fullBlocks returns how many blocks of its own an inode's content takes in the
// image.
func fullBlocks(n *inode, inline bool) uint64 {
	switch {
	case !n.isDir() && !n.isLink():
		return 0
	case inline:
		return uint64(n.size-int64(tail(n))) / blockBytes
	}
	return blocksOf(uint64(n.size))
}

// packer packs directories into blocks: entries, then their names, as many as fit.
type packer struct {
	x     *Index
	block [blockBytes]byte
	inos  [blockBytes / direntBytes]uint32
	names [blockBytes / direntBytes][]byte
	count int
	used  int
	size  int64 // of the directory: whole blocks and what the last one needs
}

// pack calls emit with each block, of which the last has only as many bytes as it
// needs, and sets p.size. emit is nil where only that is wanted.
func (p *packer) pack(dir uint32, emit func([]byte) error) error {
	p.size, p.count, p.used = 0, 0, 0
	dots := [...]struct {
		name string
		ino  uint32
	}{{".", dir}, {"..", p.x.above(dir)}}
	next := 0
	for d := range p.x.entries(dir) {
		p.x.memory.step()
		name := p.x.name(d)
		for next < len(dots) && string(name) > dots[next].name {
			if err := p.add([]byte(dots[next].name), dots[next].ino, emit); err != nil {
				return err
			}
			next++
		}
		if err := p.add(name, d.ino, emit); err != nil {
			return err
		}
	}
	for ; next < len(dots); next++ {
		if err := p.add([]byte(dots[next].name), dots[next].ino, emit); err != nil {
			return err
		}
	}
	size := p.used
	p.size += int64(size)
	return p.flush(size, emit)
}

func (p *packer) add(name []byte, ino uint32, emit func([]byte) error) error {
	need := direntBytes + len(name)
	if p.used+need > blockBytes {
		if err := p.flush(blockBytes, emit); err != nil {
			return err
		}
		p.size += blockBytes
	}
	p.names[p.count], p.inos[p.count] = name, ino
	p.count++
	p.used += need
	return nil
}

// flush hands out what was added as a block of size bytes.
func (p *packer) flush(size int, emit func([]byte) error) error {
	count := p.count
	p.count, p.used = 0, 0
	if emit == nil {
		return nil
	}
	b := p.block[:size]
	at := direntBytes * count
	for i := range count {
		p.x.memory.step()
		n := p.x.inodes.at(p.inos[i])
		e := b[direntBytes*i:]
		binary.LittleEndian.PutUint64(e, uint64(n.slot))
		binary.LittleEndian.PutUint16(e[8:], uint16(at))
		e[10], e[11] = direntType(n.mode), 0
		at += copy(b[at:], p.names[i])
	}
	clear(b[at:])
	return emit(b)
}

// direntType returns the kernel's FT_* for a mode.
func direntType(mode uint16) byte {
	const (
		file = iota + 1
		dir
		char
		block
		fifo
		_ // socket
		link
	)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return dir
	case unix.S_IFCHR:
		return char
	case unix.S_IFBLK:
		return block
	case unix.S_IFIFO:
		return fifo
	case unix.S_IFLNK:
		return link
	}
	return file
}
