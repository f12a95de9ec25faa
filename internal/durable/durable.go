// Package durable is the sequence of system calls that makes a file or a rename
// survive the loss of power, and the locks that processes share.
//
// A file becomes visible in one step and complete: written under another name in
// the same directory, synced, renamed, and the directory synced. Readers see the
// old content or the new, never a part. After WriteFile returns nil the new
// content is on the disk; after an error the old one is still there.
package durable

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// tempPrefix marks files that a writer left when it was killed; whoever owns the
// directory may remove them while no writer is about.
const tempPrefix = ".tmp-"

// IsTemp tells whether name is one that [WriteFile] uses while it writes.
func IsTemp(name string) bool {
	return len(name) > len(tempPrefix) && name[:len(tempPrefix)] == tempPrefix
}

// WriteFile replaces path by data in one durable step: write, fsync, rename,
// fsync of the directory.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return WriteFrom(path, bytes.NewReader(data), perm)
}

// WriteFrom is [WriteFile] of what from writes.
func WriteFrom(path string, from io.WriterTo, perm fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, tempPrefix+rand.Text())
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm) //nolint:gosec // the caller's path, O_EXCL
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", path, err), ignoreMissing(os.Remove(temp)))
		}
	}()
	_, err = from.WriteTo(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp, path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// Rename renames a file or directory and makes the rename durable in both
// directories. What is renamed must have been synced before.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	return SyncDir(filepath.Dir(from))
}

// Remove removes a file durably. A missing file is not an error.
func Remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the entries of a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path) //nolint:gosec // the caller's path, only synced
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
