package retar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// Names of whiteouts (image-spec, layer.md, "Whiteouts"), and of the attributes
// that overlayfs has for them.
const (
	whiteoutPrefix  = ".wh."
	opaqueName      = ".wh..wh..opq"
	overlayPrefix   = "overlay."
	overlayOpaque   = "overlay.opaque"
	overlayWhiteout = "overlay.whiteout"
)

const (
	maxPathBytes = 4096 // PATH_MAX
	namesAtOnce  = 1024
	copyBufBytes = 128 << 10
	textBytes    = 64 << 10 // XATTR_SIZE_MAX and XATTR_LIST_MAX
)

// Options of [Find] and [Open]. The zero value is for layers with overlayfs's
// trusted attributes.
type Options struct {
	UserXattrs bool  // whiteouts and opaque directories are marked by user.overlay.* attributes
	MaxEntries int64 // 0: [layer.DefaultMaxEntries]
	MaxBytes   int64 // of the tar; 0: [layer.DefaultMaxBytes]
}

// write writes the tree below root as a tar of form f. It reads whatever it finds
// below root and nothing else. Root stays open.
// It tells whether there are directories that a lean form leaves out.
func (f Form) write(ctx context.Context, root *os.File, out io.Writer, o Options) (implicit bool, err error) {
	w := &walker{ctx: ctx, form: f, out: out, o: o, links: map[inode]string{}, overlay: "trusted."}
	if o.UserXattrs {
		w.overlay = "user."
	}
	if o.MaxEntries <= 0 {
		w.o.MaxEntries = layer.DefaultMaxEntries
	}
	if o.MaxBytes <= 0 {
		w.o.MaxBytes = layer.DefaultMaxBytes
	}
	if err := w.tree(int(root.Fd())); err != nil {
		return false, fmt.Errorf("make tar of %s: %w", root.Name(), err)
	}
	return w.implicit > 0, nil
}

// walker is one run of [Form.write].
type walker struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call
	form    Form
	out     io.Writer
	o       Options
	overlay string // "trusted." or "user."

	links    map[inode]string // the first path of files that have several
	entries  int64
	implicit int64 // directories that may have had no entry
	bytes    int64
	buf      []byte
	text     []byte // attributes and targets
}

type inode struct{ dev, ino uint64 }

func (w *walker) tree(root int) error {
	w.buf, w.text = make([]byte, copyBufBytes), make([]byte, textBytes)
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if w.form.root != noRoot {
		if err := w.entry(root, ".", "", &st); err != nil {
			return err
		}
	} else if err := w.opaque(root, ".", "", &st); err != nil {
		return err
	}
	if err := w.below(root, ""); err != nil {
		return err
	}
	end := 2*blockBytes + w.bytes
	if rest := end % int64(w.form.ends); rest != 0 {
		end += int64(w.form.ends) - rest
	}
	return w.zeros(end - w.bytes)
}

// step is what is to be done with a name of a directory.
type step struct {
	name string
	key  string // by which steps are ordered
	down bool   // write what is below the directory, not its entry
}

// below writes everything below the directory whose descriptor is dir.
func (w *walker) below(dir int, above string) error {
	steps, err := w.steps(dir)
	if err != nil {
		return fmt.Errorf("list %q: %w", above, err)
	}
	for _, s := range steps {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		where := path.Join(above, s.name)
		if s.down {
			err = w.descend(dir, s.name, where)
		} else {
			err = w.name(dir, s.name, where)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// steps lists a directory in the form's order.
func (w *walker) steps(dir int) ([]step, error) {
	f, err := openat(dir, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	var steps []step
	for more := true; more && err == nil; {
		var entries []os.DirEntry
		entries, err = f.ReadDir(namesAtOnce)
		more = err == nil
		for _, e := range entries {
			steps = append(steps, step{name: e.Name(), key: e.Name()})
			if !e.IsDir() {
				continue
			}
			key := e.Name() + "\x00" // right behind its entry
			if w.form.order == byPath {
				key = e.Name() + "/" // before what is below it, behind "NAME-x"
			}
			steps = append(steps, step{e.Name(), key, true})
		}
		if limit := w.o.MaxEntries; w.entries+int64(len(steps)) > 2*limit { // a directory has two steps
			err = fmt.Errorf("more than %d entries: %w", limit, ErrTree)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	sort.Slice(steps, func(i, j int) bool { return steps[i].key < steps[j].key })
	return steps, nil
}

func (w *walker) descend(dir int, name, where string) error {
	f, err := openat(dir, name, unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("open %q: %w", where, err)
	}
	return errors.Join(w.below(int(f.Fd()), where), f.Close())
}

func (w *walker) name(dir int, name, where string) error {
	if len(where) > maxPathBytes {
		return fmt.Errorf("%.100q…: path has more than %d bytes: %w", where, maxPathBytes, ErrTree)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: %w", where, gone(err))
	}
	return w.entry(dir, name, where, &st)
}

// entry writes the entry of what st is the status of.
func (w *walker) entry(dir int, name, where string, st *unix.Stat_t) error {
	if w.entries++; w.entries > w.o.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", w.o.MaxEntries, ErrTree)
	}
	kind, err := w.kind(dir, name, st)
	if err != nil {
		return fmt.Errorf("%q: %w", where, err)
	}
	n := &node{
		path: where, kind: kind, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid,
		sec: st.Mtim.Sec, nsec: uint32(st.Mtim.Nsec),
	}
	if kind == whiteout {
		above, base := path.Split(where)
		n.path, n.kind, n.whiteout = above+whiteoutPrefix+base, typeReg, true
		return w.header(n)
	}
	if kind != typeDir && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := w.links[id]; ok {
			n.kind, n.link = typeLink, first
			return w.header(n)
		}
		w.links[id] = where
	}
	if n.xattrs, err = w.xattrs(dir, name); err != nil {
		return fmt.Errorf("attributes of %q: %w", where, err)
	}
	switch kind {
	case typeReg:
		return w.file(dir, name, n)
	case typeSymlink:
		if n.link, err = w.readlink(dir, name); err != nil {
			return fmt.Errorf("%q: %w", where, err)
		}
	case typeChar, typeBlock:
		n.major, n.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case typeDir:
		if n.implicit() {
			w.implicit++
		}
		if !n.implicit() || !w.form.lean {
			if err := w.header(n); err != nil {
				return err
			}
		}
		return w.opaque(dir, name, where, st)
	}
	return w.header(n)
}

// whiteout is the kind of what hides a name of lower layers.
const whiteout = 0xff

func (w *walker) kind(dir int, name string, st *unix.Stat_t) (byte, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Size == 0 && w.o.UserXattrs {
			if value, err := w.getxattr(dir, name, w.overlay+overlayWhiteout); err == nil && value == "y" {
				return whiteout, nil
			}
		}
		return typeReg, nil
	case unix.S_IFDIR:
		return typeDir, nil
	case unix.S_IFLNK:
		return typeSymlink, nil
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return whiteout, nil
		}
		return typeChar, nil
	case unix.S_IFBLK:
		return typeBlock, nil
	case unix.S_IFIFO:
		return typeFIFO, nil
	}
	return 0, fmt.Errorf("it is a socket: %w", ErrTree)
}

// opaque writes the mark of a directory that hides those of lower layers.
func (w *walker) opaque(dir int, name, where string, st *unix.Stat_t) error {
	value, err := w.getxattr(dir, name, w.overlay+overlayOpaque)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || err == nil && value != "y" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opaque mark of %q: %w", where, err)
	}
	return w.header(&node{
		path: path.Join(where, opaqueName), kind: typeReg, opaque: true, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid,
		sec: st.Mtim.Sec, nsec: uint32(st.Mtim.Nsec),
	})
}

// header writes what precedes an entry's content, if that is not too much: a file of
// nothing but holes has any size.
func (w *walker) header(n *node) error {
	raw, err := w.form.header(n)
	if err != nil {
		return err
	}
	if err := w.room(n.stored()); err != nil {
		return fmt.Errorf("%q: %w", n.path, err)
	}
	return w.write(raw)
}

// room tells whether so many bytes more are not too many.
func (w *walker) room(size int64) error {
	if size > w.o.MaxBytes-w.bytes {
		return fmt.Errorf("the tar has more than %d bytes: %w", w.o.MaxBytes, ErrTree)
	}
	return nil
}

func (w *walker) write(p []byte) error {
	if err := w.room(int64(len(p))); err != nil {
		return err
	}
	w.bytes += int64(len(p))
	_, err := w.out.Write(p)
	return err
}

func (w *walker) zeros(count int64) error {
	clear(w.buf)
	for count > 0 {
		part := min(count, int64(len(w.buf)))
		if err := w.write(w.buf[:part]); err != nil {
			return err
		}
		count -= part
	}
	return nil
}
