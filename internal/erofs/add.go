package erofs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// Names of whiteouts (image-spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// Limits of the kernel's device numbers.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// add puts one entry into the tree. block is where in the tar its body begins.
func (x *Index) add(e *layer.Entry, block uint32) error {
	name := cleanName(e.Name)
	if strings.Contains(name, whiteoutPrefix) {
		if done, err := x.whiteout(e, name); done || err != nil {
			return err
		}
	}
	if name == "" {
		if e.Type != layer.Dir {
			return fmt.Errorf("the root must be a directory: %w", layer.ErrFormat)
		}
		return x.attributes(root, e)
	}
	above, base := split(name)
	dir, err := x.parent(above)
	if err != nil {
		return err
	}
	old, err := x.lookup(dir, base)
	if err != nil {
		return err
	}
	switch e.Type {
	case layer.Dir:
		return x.directory(dir, base, old, e)
	case layer.HardLink:
		return x.hardLink(dir, base, old, e)
	default:
		return x.file(dir, base, old, e, block)
	}
}

// newInode returns an inode with what all types have in common.
func (x *Index) newInode(e *layer.Entry) (inode, error) {
	set, err := x.xattrsOf(e)
	return inode{
		mtime: e.MTimeSec, nsec: e.MTimeNsec, uid: e.UID, gid: e.GID, xattrs: set,
		mode: uint16(fileType(e.Type) | e.Mode&0o7777),
	}, err
}

func fileType(t layer.EntryType) uint32 {
	switch t {
	case layer.Dir:
		return unix.S_IFDIR
	case layer.Symlink:
		return unix.S_IFLNK
	case layer.Char:
		return unix.S_IFCHR
	case layer.Block:
		return unix.S_IFBLK
	case layer.FIFO:
		return unix.S_IFIFO
	case layer.Reg, layer.HardLink:
	}
	return unix.S_IFREG
}

// replaced counts an inode whose name another takes.
func (x *Index) replaced(old uint32) {
	if old != none && !x.inodes.at(old).isWhiteout() {
		x.result.Replaced++
	}
}

// file makes a file, a link, a device or a FIFO.
func (x *Index) file(dir uint32, base string, old uint32, e *layer.Entry, block uint32) error {
	n, err := x.newInode(e)
	if err != nil {
		return err
	}
	switch e.Type {
	case layer.Reg:
		if n.size = e.Size; n.size > 0 {
			n.data = block
		}
	case layer.Symlink:
		if err := x.symlink(&n, e); err != nil {
			return err
		}
	case layer.Char, layer.Block:
		if e.Major > maxMajor || e.Minor > maxMinor {
			return fmt.Errorf("device %d:%d: %w", e.Major, e.Minor, layer.ErrFormat)
		}
		n.data = e.Minor&0xff | e.Major<<8 | e.Minor&^0xff<<12
	default: // a FIFO has no more
	}
	x.replaced(old)
	if n.isWhiteout() {
		x.result.Whiteouts++ // overlayfs takes it for one
		x.inodes.at(dir).hiding = true
	}
	ino, err := x.inodes.add(n)
	if err != nil {
		return err
	}
	return x.set(dir, base, ino)
}

func (x *Index) symlink(n *inode, e *layer.Entry) error {
	switch {
	case e.Linkname == "":
		return fmt.Errorf("no target: %w", layer.ErrFormat)
	case len(e.Linkname) > maxPathBytes:
		return unix.ENAMETOOLONG
	}
	n.mode |= 0o777 // symbolic links have no mode
	n.size = int64(len(e.Linkname))
	var err error
	n.data, err = x.texts.addString(e.Linkname)
	return err
}

// directory makes a directory, or gives one that is there new attributes.
func (x *Index) directory(dir uint32, base string, old uint32, e *layer.Entry) error {
	if old != none && x.inodes.at(old).isDir() {
		return x.attributes(old, e)
	}
	n, err := x.newInode(e)
	if err != nil {
		return err
	}
	x.replaced(old)
	n.data = none
	ino, err := x.inodes.add(n)
	if err != nil {
		return err
	}
	if err := x.set(dir, base, ino); err != nil {
		return err
	}
	if old != none {
		x.markOpaque(ino) // what it replaced hid the lower layers
	}
	return nil
}

// attributes gives a directory those of an entry.
func (x *Index) attributes(dir uint32, e *layer.Entry) error {
	n, err := x.newInode(e)
	if err != nil {
		return err
	}
	d := x.inodes.at(dir)
	d.mtime, d.nsec, d.uid, d.gid, d.mode, d.xattrs = n.mtime, n.nsec, n.uid, n.gid, n.mode, n.xattrs
	return nil
}

// hardLink gives base the inode of another entry of this layer.
func (x *Index) hardLink(dir uint32, base string, old uint32, e *layer.Entry) error {
	target := cleanName(e.Linkname)
	if target == "" {
		return fmt.Errorf("target %q is the root: %w", e.Linkname, layer.ErrFormat)
	}
	above, name := split(target)
	ino, err := x.linkTarget(above, name)
	if err != nil {
		return fmt.Errorf("target %q: %w", e.Linkname, err)
	}
	if n := x.inodes.at(ino); n.isDir() || n.isWhiteout() {
		return fmt.Errorf("target %q is a directory or a whiteout: %w", e.Linkname, layer.ErrFormat)
	}
	if old == ino {
		return nil
	}
	if old != none {
		// The way to the target may lead through what is removed.
		x.dirents.at(x.find(dir, base)).ino, x.lastPath = none, ""
		if ino, err = x.linkTarget(above, name); err != nil {
			return fmt.Errorf("target %q: %w", e.Linkname, err)
		}
	}
	x.replaced(old)
	return x.set(dir, base, ino)
}

func (x *Index) linkTarget(above, name string) (uint32, error) {
	dir, err := x.walk(above)
	if err != nil {
		return none, err
	}
	ino, err := x.lookup(dir, name)
	if err == nil && ino == none {
		err = unix.ENOENT
	}
	return ino, err
}

// whiteout applies the entry if its name makes it a whiteout, and tells whether
// that was so. Types do not matter.
func (x *Index) whiteout(e *layer.Entry, name string) (bool, error) {
	above, base := split(name)
	for rest := above; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch {
		case strings.HasPrefix(part, aufsPrefix):
			return true, nil
		case strings.HasPrefix(part, whiteoutPrefix):
			return true, fmt.Errorf("entry below a whiteout: %w", layer.ErrFormat)
		}
	}
	target, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !ok:
		return false, nil
	case base != opaqueName && strings.HasPrefix(base, aufsPrefix):
		return true, nil
	case target == "", target == ".", target == "..":
		return true, fmt.Errorf("whiteout of nothing: %w", layer.ErrFormat)
	}
	dir, err := x.parent(above)
	if err != nil {
		return true, err
	}
	if base == opaqueName {
		x.markOpaque(dir)
		return true, nil
	}
	return true, x.hide(dir, target, e)
}

// hide makes a whiteout of base in dir, unless this layer has an entry there or
// dir is below an opaque directory, where nothing is left to hide.
func (x *Index) hide(dir uint32, base string, e *layer.Entry) error {
	if x.result.OpaqueDirs > 0 && x.belowOpaque(dir) {
		return nil
	}
	old, err := x.lookup(dir, base)
	if err != nil {
		return err
	}
	if old != none {
		if x.inodes.at(old).isDir() {
			x.markOpaque(old)
		}
		return nil // anything else hides the layers below by itself
	}
	ino, err := x.inodes.add(inode{mode: unix.S_IFCHR, mtime: e.MTimeSec, nsec: e.MTimeNsec})
	if err != nil {
		return err
	}
	x.result.Whiteouts++
	x.inodes.at(dir).hiding = true
	return x.set(dir, base, ino)
}

// belowOpaque tells whether a directory, or one above it, is opaque.
func (x *Index) belowOpaque(dir uint32) bool {
	for !x.inodes.at(dir).opaque {
		if dir == root {
			return false
		}
		dir = x.above(dir)
	}
	return true
}

// markOpaque makes a directory hide those of lower layers.
func (x *Index) markOpaque(dir uint32) {
	n := x.inodes.at(dir)
	if n.opaque {
		return
	}
	n.opaque = true
	x.result.OpaqueDirs++
	x.result.OpaqueRoot = x.result.OpaqueRoot || dir == root
	if x.result.Whiteouts > 0 {
		x.removeWhiteouts(dir)
	}
}

// removeWhiteouts removes the whiteouts below a directory that has become opaque.
// There are none below those that were opaque before. The depth is limited by
// that of a path.
func (x *Index) removeWhiteouts(dir uint32) {
	for d := range x.entries(dir) {
		switch n := x.inodes.at(d.ino); {
		case n.isDir():
			if !n.opaque {
				x.removeWhiteouts(d.ino)
			}
		case n.isWhiteout():
			d.ino = none
			x.result.Whiteouts--
		}
	}
}
