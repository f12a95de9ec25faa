package erofs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
)

// Merge makes one index of those of several layers, the lowest first, which are
// read as [Index.WriteTo] has written them. The tree is the one that overlayfs
// makes of the layers, whiteouts and opaque directories applied; its files point
// into the layers' tars, which are the image's devices, in the same order.
//
// A file has as many links as its layer gives it, whether a higher layer hides some
// or not, as with overlayfs. The root directory is as the topmost layer has it that
// says something of it, and as the top layer has it if none does: see package mount.
//
// The UUID is the beginning of id. Errors: an [ErrDamaged], an [ErrInexpressible] for
// tars of more than 2 TiB together or too many of them, and those of reading. The
// index is to be closed.
func Merge(ctx context.Context, id oci.ChainID, layers []io.ReaderAt, o Options) (x *Index, err error) {
	x, err = newIndex(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("merge indexes: %w", err), x.Close())
			x = nil
		}
	}()
	defer onFault(&err)()
	_, hexID, _ := strings.Cut(string(id), ":")
	if len(hexID) < 2*uuidBytes {
		return x, fmt.Errorf("chain ID %q: %w", id, oci.ErrDigest)
	}
	if _, err = hex.Decode(x.uuid[:], []byte(hexID[:2*uuidBytes])); err != nil {
		return x, err
	}
	m := merger{ctx: ctx, x: x}
	for i, file := range layers {
		if err := m.layer(file); err != nil {
			return x, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	return x, x.arrange()
}

// merger puts layers into an index, one on top of the other.
type merger struct {
	ctx context.Context //nolint:containedctx // does not outlive Merge
	x   *Index

	// Of the layer that is being read:
	read  reader
	base  uint64 // blocks of the tars before its own
	first uint32 // its first inode in x; until its end their slots are its numbers
	last  uint64 // the highest number seen
	depth int
}

// layer puts a layer on top of what there is.
func (m *merger) layer(file io.ReaderAt) (err error) {
	x := m.x
	if err = m.read.open(file); err != nil {
		return err
	}
	m.base = x.tarBlocks
	if x.tarBlocks += m.read.tarBlocks; x.tarBlocks > math.MaxUint32 {
		return errTooLarge
	}
	if m.read.tarBlocks > 0 {
		x.devices = append(x.devices, uint32(m.read.tarBlocks))
	}
	m.first, m.last, m.depth = x.inodes.count, m.read.root, 0
	n, err := m.read.inode(m.read.root)
	if err != nil {
		return err
	}
	if !n.isDir() {
		return n.damaged("type")
	}
	if err := m.root(n); err != nil {
		return err
	}
	for ino := m.first; ino < x.inodes.count; ino++ {
		x.inodes.at(ino).slot = 0
	}
	return nil
}

// root merges the root directory.
func (m *merger) root(n *readInode) error {
	opaque, err := m.attributes(n)
	if err != nil {
		return err
	}
	if opaque {
		for d := range m.x.entries(root) {
			d.ino = none
		}
	}
	if !m.plain(&n.inode) || m.plain(m.x.inodes.at(root)) {
		m.take(root, n)
	}
	return m.directory(root, n)
}

// plain tells whether a root directory is as one of which the tar says nothing.
// Attributes of security modules are not the image's to set there.
func (m *merger) plain(n *inode) bool {
	if n.mode&0o7777 != implicitMode || n.uid != 0 || n.gid != 0 || n.mtime != 0 || n.nsec != 0 {
		return false
	}
	const security = 6
	for id := range m.x.xattrs.each(n.xattrs) {
		if m.x.xattrs.text(id)[1] != security {
			return false
		}
	}
	return true
}

// take gives a directory the attributes of another.
func (m *merger) take(dir uint32, n *readInode) {
	d := m.x.inodes.at(dir)
	d.mtime, d.nsec, d.uid, d.gid, d.mode, d.xattrs = n.mtime, n.nsec, n.uid, n.gid, n.mode, n.xattrs
}

// attributes reads those of an inode into n.xattrs, but for marks for overlayfs. It
// tells whether one of them was that of an opaque directory.
func (m *merger) attributes(n *readInode) (opaque bool, err error) {
	const trusted = 4
	overlayMark := []byte("overlay.")
	a := &m.x.xattrs
	a.number = a.number[:0]
	err = m.read.attributes(n, func(text []byte) error {
		name := text[entryHeader : entryHeader+int(text[0])]
		if text[1] == trusted && bytes.HasPrefix(name, overlayMark) {
			opaque = opaque || string(name) == overlayOpaque[len("trusted."):] && string(text[entryHeader+len(name):]) == "y"
			return nil
		}
		id, err := a.intern(text)
		a.number = append(a.number, id)
		return err
	})
	if err == nil {
		n.xattrs, err = a.set()
	}
	return opaque, err
}

// directory merges the content of a directory into dir.
func (m *merger) directory(dir uint32, n *readInode) error {
	const maxDepth = maxPathBytes/2 + 1
	if err := m.ctx.Err(); err != nil {
		return context.Cause(m.ctx)
	}
	if m.depth++; m.depth > maxDepth {
		return n.damaged("depth")
	}
	defer func() { m.depth-- }()
	return m.read.names(n, func(name string, number uint64) error { return m.entry(dir, name, number) })
}

// entry puts a name of the layer into dir.
func (m *merger) entry(dir uint32, name string, number uint64) error {
	m.x.memory.step()
	if number <= m.last { // another name of what is there
		ino, err := m.again(number)
		if err != nil {
			return err
		}
		return m.x.set(dir, name, ino)
	}
	m.last = number
	n, err := m.read.inode(number)
	if err != nil {
		return err
	}
	if n.isWhiteout() {
		if id := m.x.find(dir, name); id != none {
			m.x.dirents.at(id).ino = none
		}
		return nil
	}
	opaque, err := m.attributes(n)
	if err != nil {
		return err
	}
	if !n.isDir() {
		ino, err := m.add(n)
		if err != nil {
			return err
		}
		return m.x.set(dir, name, ino)
	}
	old, err := m.x.lookup(dir, name)
	if err != nil {
		return err
	}
	if !opaque && old != none && m.x.inodes.at(old).isDir() {
		m.take(old, n)
		return m.directory(old, n)
	}
	ino, err := m.add(n)
	if err != nil {
		return err
	}
	if err := m.x.set(dir, name, ino); err != nil {
		return err
	}
	return m.directory(ino, n)
}

// add adds an inode of the layer.
func (m *merger) add(n *readInode) (uint32, error) {
	made := n.inode
	made.slot, made.nlink = uint32(n.number), 0
	if n.number > math.MaxUint32 {
		return none, n.damaged("number")
	}
	switch {
	case n.isDir():
		made.size, made.data = 0, none
	case n.isLink():
		target, err := m.read.target(n)
		if err != nil {
			return none, err
		}
		if made.data, err = m.x.texts.addString(target); err != nil {
			return none, err
		}
	case n.mode&unix.S_IFMT == unix.S_IFREG && n.size > 0:
		made.data = uint32(m.base) + n.data
	}
	if !n.isDir() {
		made.names = n.nlink
	}
	return m.x.inodes.add(made)
}

// again returns the inode of this layer that was added with a number. They were
// added in the order of their numbers.
func (m *merger) again(number uint64) (uint32, error) {
	x := m.x
	count := int(x.inodes.count - m.first)
	i := sort.Search(count, func(i int) bool { return uint64(x.inodes.at(m.first+uint32(i)).slot) >= number })
	if ino := m.first + uint32(i); i < count && uint64(x.inodes.at(ino).slot) == number {
		if n := x.inodes.at(ino); !n.isDir() && n.names > 1 {
			return ino, nil
		}
	}
	return none, fmt.Errorf("inode %d has a name too many: %w", number, ErrDamaged)
}
