package stream

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Budget is a number of bytes that everything which buffers shares. Whoever
// wants a buffer acquires its size first and releases it afterwards. It is safe
// for concurrent use.
type Budget struct {
	total int64
	sem   *semaphore.Weighted

	mu    sync.Mutex // guards the fields below
	inUse int64
	peak  int64
}

// NewBudget returns a budget of total bytes.
func NewBudget(total int64) *Budget {
	return &Budget{total: total, sem: semaphore.NewWeighted(total)}
}

// Acquire waits until n bytes are free and takes them. More than the total is an
// error at once: it would never be free.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	if n > b.total {
		return fmt.Errorf("acquire memory: %d bytes needed, the budget is %d: raise --memory: %w", n, b.total, ErrTooLarge)
	}
	if err := b.sem.Acquire(ctx, n); err != nil {
		return fmt.Errorf("acquire memory: %w", context.Cause(ctx))
	}
	b.count(n)
	return nil
}

// TryAcquire takes n bytes if they are free now.
func (b *Budget) TryAcquire(n int64) bool {
	if !b.sem.TryAcquire(n) {
		return false
	}
	b.count(n)
	return true
}

// Release gives n bytes back.
func (b *Budget) Release(n int64) {
	b.count(-n)
	b.sem.Release(n)
}

func (b *Budget) count(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inUse += n
	b.peak = max(b.peak, b.inUse)
}

// Total returns the size of the budget in bytes.
func (b *Budget) Total() int64 { return b.total }

// InUse returns how many bytes are taken now: 0 when nothing is under way.
func (b *Budget) InUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inUse
}

// Peak returns the most that was ever taken at once.
func (b *Budget) Peak() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peak
}
