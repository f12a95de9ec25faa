package apply

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// topDir is FS_TOPDIR_FL: what is made in this directory is not related, and each
// directory in it is best put where the disk is emptiest.
const topDir = 0x20000

// MakeRoot makes the directory of that name in dir, empty, for [Apply] to make its
// entries in, and opens it. Dir is the caller's alone.
//
// Where files have just been deleted ext4 makes new ones slowly: it steps over every
// inode that became free in the last minutes, one by one, again for each file. A
// tree is put beside its parent, so an image that is pulled after another was
// removed would land exactly there. Hence dir is marked as one whose directories
// are not related, and the tree is made under another name each time, for the
// place follows from the name. Other file systems refuse the mark, and need none.
func MakeRoot(dir, name string) (*os.File, error) {
	spread(dir)
	temp := filepath.Join(dir, name+"-"+rand.Text())
	if err := os.Mkdir(temp, implicitMode); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	path := filepath.Join(dir, name)
	if err := os.Rename(temp, path); err != nil {
		return nil, errors.Join(fmt.Errorf("make root: %w", err), os.Remove(temp))
	}
	root, err := os.Open(path) //nolint:gosec // the caller's path
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	return root, nil
}

// spread marks dir, where that is possible.
func spread(dir string) {
	f, err := os.Open(dir) //nolint:gosec // the caller's path
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}
