package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// namesAtOnce is how many names of a directory are read at a time.
	namesAtOnce = 1024

	// maxOpenDepth bounds how many directories a remover holds open: what lies deeper
	// is moved up first, so that no tree is too deep.
	maxOpenDepth = 128
)

// removeTree deletes the tree at path: every step by file descriptor, no symbolic
// link followed, no mount entered (that is an error, and nothing below is touched),
// directories that their modes lock up included. A missing tree is not an error,
// nor is another remover at work in it.
func removeTree(path string) error {
	err := unix.Unlink(path)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	parent, err := os.Open(filepath.Dir(path)) //nolint:gosec // in the store; what is below is opened by descriptor
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	defer func() { _ = parent.Close() }()
	r := remover{top: int(parent.Fd())}
	if err := r.removeDir(r.top, filepath.Base(path), 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// remover deletes a tree.
type remover struct {
	top  int // directory that holds the tree
	root int // the tree's own directory, to which deep ones are moved
}

// removeDir removes the directory name of parent.
func (r *remover) removeDir(parent int, name string, depth int) error {
	dir, err := openDir(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if depth == 0 {
		r.root = int(dir.Fd())
	}
	for {
		if err := r.empty(dir, depth); err != nil {
			return err
		}
		err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%q: %w", name, err)
		}
		// Reading may skip names while others are deleted, and deep directories were
		// moved to the root: read again.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// empty removes everything in dir that one reading of it shows.
func (r *remover) empty(dir *os.File, depth int) error {
	fd := int(dir.Fd())
	for {
		names, err := dir.Readdirnames(namesAtOnce)
		for _, name := range names {
			if err := r.remove(fd, name, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // the end, or removed by another
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EACCES) {
		// The directory may lock its owner out; then it is ours to open.
		if err = unix.Fchmod(dir, dirPerm); err == nil {
			err = unix.Unlinkat(dir, name, 0)
		}
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return fmt.Errorf("%q: %w", name, err)
	case depth < maxOpenDepth:
		return r.removeDir(dir, name, depth+1)
	}
	err = unix.Renameat(dir, name, r.root, "deep-"+randomName())
	if errors.Is(err, unix.EACCES) { // a directory that moves has to be writable itself
		var child *os.File
		if child, err = openDir(dir, name); err == nil {
			_ = child.Chmod(dirPerm)
			_ = child.Close()
			err = unix.Renameat(dir, name, r.root, "deep-"+randomName())
		}
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}

// openDir opens the directory name of parent to empty it, and nothing else: no
// link, no mount.
func openDir(parent int, name string) (*os.File, error) {
	how := inTree()
	fd, err := openat2(parent, name, &how)
	if errors.Is(err, unix.EACCES) {
		fd, err = openLocked(parent, name, how)
	}
	if errors.Is(err, unix.EXDEV) {
		return nil, fmt.Errorf("%q is a mount point: %w", name, unix.EBUSY)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// inTree is how a directory is opened by its name in another: without leaving the
// tree through a link or a mount.
func inTree() unix.OpenHow {
	return unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
}

// openLocked opens a directory whose mode denies it to its owner.
func openLocked(parent int, name string, how unix.OpenHow) (int, error) {
	handle := how
	handle.Flags |= unix.O_PATH
	fd, err := openat2(parent, name, &handle)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fd) }()
	// fchmod refuses O_PATH descriptors; the link in /proc leads to this very inode.
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), dirPerm); err != nil {
		return -1, err
	}
	return openat2(parent, name, &how)
}

func openat2(parent int, name string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(parent, name, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}
