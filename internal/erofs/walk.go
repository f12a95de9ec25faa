package erofs

import (
	"context"
	"fmt"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// Walk reads the index of one tar, as [Index.WriteTo] has written it, and calls each
// with everything in the tree, parents before children and by name, the root first:
// names without a slash at either end, the root's is "". Whiteouts are what overlayfs
// takes for one, and attributes those that are on the file, overlayfs's among them.
// offset is where in the tar a file's contents are. An entry is valid during the call.
//
// What is wrong with the index is an [ErrDamaged]; the error may also be each's.
func Walk(ctx context.Context, index io.ReaderAt, each func(e *layer.Entry, offset int64) error) error {
	w := &walker{ctx: ctx, each: each, linked: map[uint64]string{}}
	if err := w.read.open(index); err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	n, err := w.read.inode(w.read.root)
	if err == nil && !n.isDir() {
		err = n.damaged("type")
	}
	if err == nil {
		w.last = n.number
		err = w.visit("", n)
	}
	return err
}

// walker is one run of [Walk].
type walker struct {
	ctx    context.Context //nolint:containedctx // does not outlive Walk
	each   func(*layer.Entry, int64) error
	read   reader
	last   uint64            // the highest number seen
	linked map[uint64]string // the first name of inodes that have several
	depth  int
}

func (w *walker) visit(name string, n *readInode) error {
	e, err := w.entry(name, n)
	if err == nil {
		err = w.each(e, int64(n.data)*blockBytes)
	}
	if err != nil || !n.isDir() {
		return err
	}
	const maxDepth = maxPathBytes/2 + 1
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	if w.depth++; w.depth > maxDepth {
		return n.damaged("depth")
	}
	defer func() { w.depth-- }()
	return w.read.names(n, func(base string, number uint64) error { return w.child(path.Join(name, base), number) })
}

func (w *walker) child(name string, number uint64) error {
	if number <= w.last {
		first, ok := w.linked[number]
		if !ok {
			return fmt.Errorf("inode %d has a name too many: %w", number, ErrDamaged)
		}
		return w.each(&layer.Entry{Name: name, Type: layer.HardLink, Linkname: first}, 0)
	}
	w.last = number
	n, err := w.read.inode(number)
	if err != nil {
		return err
	}
	if !n.isDir() && n.nlink > 1 {
		w.linked[number] = name
	}
	return w.visit(name, n)
}

// entry returns what an inode is.
func (w *walker) entry(name string, n *readInode) (*layer.Entry, error) {
	e := &layer.Entry{Name: name, Mode: uint32(n.mode) & 0o7777, UID: n.uid, GID: n.gid, MTimeSec: n.mtime, MTimeNsec: n.nsec}
	err := w.read.attributes(n, func(text []byte) error {
		attribute, ok := attributeOf(text)
		if !ok {
			return n.damaged("attributes")
		}
		e.Xattrs = append(e.Xattrs, attribute)
		return nil
	})
	if err != nil {
		return nil, err
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = layer.Dir
	case unix.S_IFLNK:
		e.Type = layer.Symlink
		e.Linkname, err = w.read.target(n)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type = layer.Char
		if n.mode&unix.S_IFMT == unix.S_IFBLK {
			e.Type = layer.Block
		}
		e.Major, e.Minor = n.data>>8&maxMajor, n.data&0xff|n.data>>12&^0xff
	case unix.S_IFIFO:
		e.Type = layer.FIFO
	default:
		e.Type, e.Size, e.StoredSize = layer.Reg, n.size, n.size
	}
	return e, err
}

// attributeOf returns an attribute by the text that an image has of it.
func attributeOf(text []byte) (layer.Xattr, bool) {
	for _, p := range prefixes {
		if p.index == text[1] {
			nameEnd := entryHeader + int(text[0])
			return layer.Xattr{Name: p.text + string(text[entryHeader:nameEnd]), Value: append([]byte(nil), text[nameEnd:]...)}, true
		}
	}
	return layer.Xattr{}, false
}
