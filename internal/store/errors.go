package store

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Errors of the store.
var (
	ErrNotFound = errors.New("not in the store")
	ErrBusy     = errors.New("store is busy")
	ErrCorrupt  = errors.New("store is corrupt")
	ErrNoSpace  = errors.New("no space left in the store") // details in a [*SpaceError]
	ErrVersion  = errors.New("store has a newer format")
	ErrReadOnly = errors.New("store is read-only")
	ErrInUse    = errors.New("in use")
)

// SpaceError says how much room was missing. It is an [ErrNoSpace].
type SpaceError struct {
	Root       string
	NeedBytes  int64 // 0 where nobody knew beforehand
	FreeBytes  int64
	FreeInodes int64 // [Unlimited] where the file system does not count them
	Cause      error // the system's error, nil when the check came first
}

// Error implements error.
func (e *SpaceError) Error() string {
	text := "store " + e.Root + ": no space left: "
	if e.NeedBytes > 0 {
		text += bothUnits(e.NeedBytes) + " needed, "
	}
	text += bothUnits(e.FreeBytes) + " free"
	if e.FreeInodes != Unlimited {
		text += fmt.Sprintf(", %d inodes free", e.FreeInodes)
	}
	return text
}

// Is makes every SpaceError an [ErrNoSpace].
func (e *SpaceError) Is(target error) bool { return target == ErrNoSpace }

// Unwrap returns the system's error.
func (e *SpaceError) Unwrap() error { return e.Cause }

func bothUnits(sizeBytes int64) string {
	return fmt.Sprintf("%d B (%.1f MiB)", sizeBytes, float64(sizeBytes)/(1<<20))
}

// Explain turns what the system says of a full or read-only disk into
// [ErrNoSpace], with figures, or [ErrReadOnly]. Other errors, and nil, are
// returned as they are. Whoever writes below a transaction's directory passes
// errors through it.
func (s *Store) Explain(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrNoSpace), errors.Is(err, ErrReadOnly):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		full := &SpaceError{Root: s.root, FreeInodes: Unlimited, Cause: err}
		if space, statErr := s.Space(); statErr == nil {
			full.FreeBytes, full.FreeInodes = space.FreeBytes, space.FreeInodes
		}
		return full
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}

// errStale is the state of an object that a power loss may have damaged, or that lay in
// a seed. It is an ErrNotFound for everyone outside.
var errStale = fmt.Errorf("written before the machine stopped and never synced: %w", ErrNotFound)

// waitError makes a deadline that passed while a lock was waited for an ErrBusy.
func waitError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}
