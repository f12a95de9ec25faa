package durable

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TryAcquire is [Acquire] without waiting: [ErrLocked] when another has it.
//
// The file may be unlinked by a holder that is done with it (the object it
// guarded is gone): a lock on a file that no longer has its name guards nothing,
// so it is opened again.
func TryAcquire(path string, mode Mode) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the caller's path
		if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) {
			// A lock can be taken on what cannot be written, if it is there.
			if readable, readErr := os.Open(path); readErr == nil { //nolint:gosec // as above
				f, err = readable, nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		how := unix.LOCK_SH
		if mode == Exclusive {
			how = unix.LOCK_EX
		}
		err = flock(int(f.Fd()), how|unix.LOCK_NB)
		if err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if sameFile(f, path) {
			return &Lock{f}, nil
		}
		_ = f.Close()
	}
}

func flock(fd, how int) error {
	for {
		err := unix.Flock(fd, how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path) //nolint:gosec // compared, not followed
	return err == nil && os.SameFile(held, named)
}
