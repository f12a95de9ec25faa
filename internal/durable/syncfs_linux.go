package durable

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SyncFS writes everything of the file system that holds path to the disk: one
// call for a directory tree of any size.
func SyncFS(path string) error {
	d, err := os.Open(path) //nolint:gosec // the caller's path, only synced
	if err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", path, err)
	}
	return nil
}
