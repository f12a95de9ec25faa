package seed

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// directory is a seed whose files are files.
type directory string

// beneath is how everything in a seed is opened: below its root, through no link
// and no mount, whatever stands there.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openAt opens a name below the directory. It never waits, as for a FIFO.
func (d directory) openAt(name string, flags uint64) (*os.File, error) {
	root, err := unix.Open(string(d), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: string(d), Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	path := filepath.Join(string(d), name)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC | flags, Resolve: beneath}
	for {
		fd, err := unix.Openat2(root, name, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
			return nil, problem("%s: a link or a mount on the way", path)
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// open implements [files].
func (d directory) open(name string) (*part, error) {
	f, err := d.openAt(name, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = problem("%s: %s where a file should be", f.Name(), kindOf(info.Mode()))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &part{File: f, size: info.Size(), alone: true}, nil
}

// names implements [files].
func (d directory) names(dir string) ([]string, error) {
	f, err := d.openAt(dir, unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(maxNames + 1)
	if len(names) > maxNames {
		return nil, problem("%s: more than %d names", f.Name(), maxNames)
	}
	slices.Sort(names)
	return names, err
}

// tree implements [files].
func (d directory) tree(name string) (*os.File, error) { return d.openAt(name, unix.O_DIRECTORY) }

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	}
	return "a device or something of the kind"
}
