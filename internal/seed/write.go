package seed

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Form is what a seed is written as.
type Form uint8

// Forms of a seed.
const (
	AsDir   Form = iota
	AsTar        // one tar file of the directory, for initrds and root file systems
	AsEROFS      // a file system of the directory, in a file or on a device
)

const (
	tarBlockBytes = 512
	endBytes      = 2 * tarBlockBytes // of a tar
	pageBytes     = 4 << 10           // what the size of a file for a device is a multiple of
)

// WriteDir writes the seed into an empty directory. Files of layers are moved there
// where they can be, trees always, so that the store that they are in is of no use
// afterwards.
func (c *Content) WriteDir(ctx context.Context, dir string) error {
	entries, err := c.entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := c.putFile(filepath.Join(dir, e.name), e); err != nil {
			return err
		}
	}
	// Times last, and of what is inside first: each new name changes its directory's.
	for _, e := range slices.Backward(append([]entry{{name: ".", dir: true}}, entries...)) {
		if e.tree {
			continue // its attributes are the layer's
		}
		at := filepath.Join(dir, e.name)
		perm := os.FileMode(filePerm)
		if e.dir {
			perm = dirPerm
		}
		if err := errors.Join(os.Chmod(at, perm), os.Chtimes(at, c.stamp(), c.stamp())); err != nil {
			return err
		}
	}
	return nil
}

func (c *Content) stamp() time.Time { return c.Created.UTC().Truncate(time.Second) }

func (c *Content) putFile(at string, e entry) error {
	switch {
	case e.tree:
		return os.Rename(e.path, at)
	case e.dir:
		return os.Mkdir(at, dirPerm)
	case e.path == "":
		return os.WriteFile(at, e.content, filePerm)
	}
	if err := os.Rename(e.path, at); err == nil {
		return nil
	}
	from, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, filePerm) //nolint:gosec // made to be shared
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from) // by the kernel, where it can
	return errors.Join(err, to.Close())
}

func fileSize(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
