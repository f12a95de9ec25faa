package apply

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

const (
	// maxOpenDirs bounds the descriptors that an Apply holds: enough for the
	// directories between which a tar goes back and forth.
	maxOpenDirs = 64

	// maxLinks is how many symbolic links that lead nowhere may follow each
	// other, as in the kernel.
	maxLinks = 40

	implicitMode = 0o755

	defaultACL = "system.posix_acl_default"
	accessACL  = "system.posix_acl_access"
)

// openedDir is a directory that takes entries.
type openedDir struct {
	path string // from the root, along real directories only; "" is the root
	fd   int
	gid  uint32 // new entries may inherit it
	sgid bool   // new directories inherit it
	time fileTime
	used uint64 // when, by dirs.clock

	changed bool   // time must be set again
	acl     []byte // its default ACL, withheld while it is open; nil for none
}

// dirs holds the directories that were used last, by their real path.
type dirs struct {
	names
	root     *openedDir // always open
	rootPath string     // as the kernel names it, to tell a directory's real path
	others   []*openedDir
	last     *openedDir
	clock    uint64
	hasACLs  bool // some directory has a default ACL
}

// openRoot prepares root, as if it were a parent without an entry.
func (a *applier) openRoot(root *os.File) error {
	// A descriptor of our own, with the access that we need.
	fd, err := openDir(int(root.Fd()), "", inRoot)
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return fmt.Errorf("open root: %w: %w", ErrKernel, err)
	case err != nil:
		return fmt.Errorf("open root: %w", err)
	}
	a.root = &openedDir{fd: fd, gid: a.gid, changed: true}
	a.last = a.root
	if a.rootPath, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	for _, acl := range []string{defaultACL, accessACL} {
		err := unix.Fremovexattr(fd, acl)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("remove acl of root: %w", err)
		}
	}
	if err := unix.Fchown(fd, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("change owner of root: %w", err)
	}
	if err := unix.Fchmod(fd, implicitMode); err != nil {
		return fmt.Errorf("change mode of root: %w", err)
	}
	return a.journal.dirEntry("", &layer.Entry{Type: layer.Dir, Mode: implicitMode, UID: a.uid, GID: a.gid})
}

// dir returns the directory at path, made if it is missing. It stays open while
// one more directory is asked for, and no longer.
func (a *applier) dir(path string) (*openedDir, error) {
	if d := a.opened(path); d != nil {
		return d, nil
	}
	return a.openOrMake(path, 0)
}

func (a *applier) openOrMake(path string, links int) (*openedDir, error) {
	d, err := a.existing(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return a.makeParent(path, links)
	}
	return d, err
}

// opened returns the directory at path if it is open.
func (a *dirs) opened(path string) *openedDir {
	d := a.last
	if d.path != path {
		if path == "" {
			return a.root
		}
		d = nil
		for _, other := range a.others {
			if other.path == path {
				d = other
				break
			}
		}
		if d == nil {
			return nil
		}
		a.last = d
	}
	a.clock++
	d.used = a.clock
	return d
}

// existing opens the directory at path, links followed within the root.
func (a *applier) existing(path string) (*openedDir, error) {
	if d := a.opened(path); d != nil {
		return d, nil
	}
	fd, err := openDir(a.root.fd, path, realDirs)
	if errors.Is(err, unix.ELOOP) {
		if fd, err = openDir(a.root.fd, path, inRoot); err != nil {
			return nil, err
		}
		if path, err = a.realPath(fd); err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
		if d := a.opened(path); d != nil {
			_ = unix.Close(fd)
			return d, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return a.keep(fd, path)
}

// realPath returns where fd is below the root.
func (a *dirs) realPath(fd int) (string, error) {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	if path == a.rootPath {
		return "", nil
	}
	inside, ok := strings.CutPrefix(path, strings.TrimSuffix(a.rootPath, "/")+"/")
	if !ok {
		return "", fmt.Errorf("directory %q is not below the root: %w", path, unix.EXDEV)
	}
	return inside, nil
}

// keep adds fd, which existed before, to the open directories.
func (a *applier) keep(fd int, path string) (*openedDir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	d := &openedDir{
		path: strings.Clone(path), fd: fd, gid: st.Gid, sgid: st.Mode&unix.S_ISGID != 0,
		time: fileTime{st.Mtim.Sec, uint32(st.Mtim.Nsec)},
	}
	if a.hasACLs {
		if err := d.withholdACL(); err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
	}
	return d, a.add(d)
}

// withholdACL takes the default ACL off the directory until it is closed.
func (d *openedDir) withholdACL() error {
	const maxBytes = 64 << 10 // XATTR_SIZE_MAX
	buf := make([]byte, maxBytes)
	n, err := unix.Fgetxattr(d.fd, defaultACL, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read default acl of %q: %w", d.path, err)
	}
	d.acl = buf[:n:n]
	return unix.Fremovexattr(d.fd, defaultACL)
}

// add puts d among the open directories, and closes the one unused for longest
// if there are too many. After an error d is closed.
func (a *dirs) add(d *openedDir) error {
	a.clock++
	d.used = a.clock
	a.last = d
	if len(a.others) < maxOpenDirs {
		a.others = append(a.others, d)
		return nil
	}
	oldest := 0
	for i, other := range a.others {
		if other.used < a.others[oldest].used {
			oldest = i
		}
	}
	victim := a.others[oldest]
	a.others[oldest] = d
	return victim.close()
}

// close sets what was put off and closes the directory.
func (d *openedDir) close() error {
	var err error
	if d.acl != nil {
		if err = unix.Fsetxattr(d.fd, defaultACL, d.acl, 0); err != nil {
			err = fmt.Errorf("set default acl of %q: %w", d.path, err)
		}
	}
	if d.changed {
		if timeErr := futimes(d.fd, d.time); timeErr != nil {
			err = errors.Join(err, fmt.Errorf("set times of %q: %w", d.path, timeErr))
		}
	}
	_ = unix.Close(d.fd) // nothing was written through it
	return err
}

// closeOthers closes all but the root: before directories are removed, whose
// paths may come back.
func (a *dirs) closeOthers() error {
	var err error
	for _, d := range a.others {
		err = errors.Join(err, d.close())
	}
	clear(a.others)
	a.others = a.others[:0]
	a.last = a.root
	return err
}

// closeAll ends the run.
func (a *dirs) closeAll() error {
	if a.root == nil {
		return nil
	}
	return errors.Join(a.closeOthers(), a.root.close())
}

// makeParent makes a directory without an entry at path, and its parents.
func (a *applier) makeParent(path string, links int) (*openedDir, error) {
	above, base := split(path)
	parent, err := a.openOrMake(above, links)
	if err != nil {
		return nil, err
	}
	opaque := false
	err = a.mkdirat(parent.fd, base, implicitMode)
	if errors.Is(err, unix.EEXIST) {
		st, statErr := lstat(parent.fd, base)
		if statErr != nil {
			return nil, statErr
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			return a.followNowhere(parent, base, links)
		case !a.isWhiteout(parent.fd, base, &st):
			return nil, fmt.Errorf("%q is not a directory: %w", join(parent.path, base), layer.ErrFormat)
		}
		opaque = true
		if err = unix.Unlinkat(parent.fd, base, 0); err == nil {
			err = a.mkdirat(parent.fd, base, implicitMode)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make parent directory %q: %w", join(parent.path, base), err)
	}
	parent.changed = true
	a.result.ImplicitDirs++
	a.result.DiskBytes += BlockBytes
	d, err := a.openNew(parent, base)
	if err != nil {
		return nil, err
	}
	e := layer.Entry{Type: layer.Dir, Mode: implicitMode, UID: a.uid, GID: a.gid}
	if err := a.entryAttributes(parent, d, &e); err != nil {
		return nil, err
	}
	if err := a.journal.dirEntry(d.path, &e); err != nil {
		return nil, err
	}
	if opaque {
		return d, a.markOpaque(d)
	}
	return d, nil
}

// followNowhere makes the directory that a dangling link leads to.
func (a *applier) followNowhere(parent *openedDir, base string, links int) (*openedDir, error) {
	if links == maxLinks {
		return nil, unix.ELOOP
	}
	target, err := readlinkat(parent.fd, base)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(target, "/") {
		target = join(parent.path, target)
	}
	return a.openOrMake(cleanPath(target), links+1)
}

func readlinkat(dir int, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// openNew opens a directory that was made just now.
func (a *applier) openNew(parent *openedDir, base string) (*openedDir, error) {
	fd, err := a.openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", join(parent.path, base), err)
	}
	d := &openedDir{path: join(parent.path, base), fd: fd, gid: a.gid, changed: true}
	return d, a.add(d)
}
