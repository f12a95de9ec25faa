package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrLocked reports a lock that another holder has.
var ErrLocked = errors.New("locked by another process")

// Mode says how a lock is held.
type Mode uint8

// Modes of a lock.
const (
	Shared    Mode = iota // many at once
	Exclusive             // alone
)

// Lock is a held flock(2). The kernel releases it when the process ends, however
// it ends. Two Locks of one file exclude each other within a process too.
type Lock struct{ f *os.File }

// pollMax bounds how long a waiter sleeps between two attempts: flock cannot be
// waited for and cancelled at once.
const pollMax = 20 * time.Millisecond

// Acquire opens or creates the file at path and waits for its lock. It returns
// the cause of ctx when that ends first.
func Acquire(ctx context.Context, path string, mode Mode) (*Lock, error) {
	wait := time.Millisecond
	for {
		lock, err := TryAcquire(path, mode)
		if !errors.Is(err, ErrLocked) {
			return lock, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
		case <-timer.C:
		}
		wait = min(2*wait, pollMax)
	}
}

// File returns the locked file, for its holder to read and write.
func (l *Lock) File() *os.File { return l.f }

// Release gives the lock up. The file stays.
func (l *Lock) Release() error { return l.f.Close() }
