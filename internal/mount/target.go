package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const targetPerm = 0o755

// place is a directory entry on which something is mounted: its parent is held
// open, so that nothing can put another directory in between.
type place struct {
	parent *os.File // O_PATH
	name   string   // "." for the root directory
	path   string   // absolute, without symbolic links
}

// openPlace resolves the parent of path.
func openPlace(path string) (*place, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: %q is not absolute", ErrTarget, path)
	}
	path = filepath.Clean(path)
	parent, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	dir, err := os.Readlink(fdPath(int(parent.Fd())))
	if err != nil {
		_ = parent.Close()
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	if path == "/" {
		return &place{parent, ".", "/"}, nil
	}
	name := filepath.Base(path)
	return &place{parent, name, filepath.Join(dir, name)}, nil
}

func (p *place) close() { _ = p.parent.Close() }

// open opens the directory itself, as it is visible now: never through a symbolic
// link. The caller closes it.
func (p *place) open() (*os.File, error) {
	fd, err := unix.Openat(int(p.parent.Fd()), p.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %q is not a directory: %w", ErrTarget, p.path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: open %q: %w", ErrTarget, p.path, err)
	}
	return os.NewFile(uintptr(fd), p.path), nil
}

// make makes the directory if it is missing, and makes sure that it is one.
func (p *place) make() (made bool, err error) {
	err = unix.Mkdirat(int(p.parent.Fd()), p.name, targetPerm)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("%w: make %q: %w", ErrTarget, p.path, err)
	}
	made = err == nil
	dir, err := p.open()
	if err != nil {
		return made, err
	}
	defer func() { _ = dir.Close() }()
	if !made {
		return false, nil
	}
	if err := os.Chmod(fdPath(int(dir.Fd())), targetPerm); err != nil { // whatever the umask
		p.remove()
		return false, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	return true, nil
}

// remove removes the directory if it is empty: it was made for nothing.
func (p *place) remove() {
	_ = unix.Unlinkat(int(p.parent.Fd()), p.name, unix.AT_REMOVEDIR)
}

// mountID returns the ID of the mount whose root is visible here; ok is false when
// this is not the root of a mount.
func (p *place) mountID() (id uint64, ok bool, err error) {
	var st unix.Statx_t
	err = unix.Statx(int(p.parent.Fd()), p.name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look at %q: %w", p.path, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return 0, false, fmt.Errorf("look at %q: the kernel does not name mounts (Linux 5.10 does): %w", p.path, unix.ENOSYS)
	}
	return st.Mnt_id, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// unmount takes the mount off its place. It returns a [*BusyError] when the mount
// is in use; one that is on top of it, or in its stead, is not touched. Ended tells
// that the file system is gone with it; false, that somebody else has it too, or
// that the kernel could not be asked.
func (e *entry) unmount(flags int) (ended bool, err error) {
	p, err := openPlace(e.point)
	if err != nil {
		return false, err
	}
	defer p.close()
	id, ok, err := p.mountID()
	if err != nil {
		return false, err
	}
	if !ok || id != e.id {
		return false, &BusyError{Target: e.point, Holders: holders(e)}
	}
	// The parent cannot change any more; an open descriptor of the mount itself
	// would keep it busy.
	path := filepath.Join(fdPath(int(p.parent.Fd())), p.name)
	end, watched := watchEnd(path)
	if watched {
		defer end.close()
	}
	err = unix.Unmount(path, flags|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return false, &BusyError{Target: e.point, Holders: holders(e)}
	}
	if err != nil {
		return false, fmt.Errorf("unmount %q: %w", e.point, err)
	}
	return watched && end.seen(), nil
}

// fdPath is a path to an open descriptor, good in this process as long as it is
// open.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
