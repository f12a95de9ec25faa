package stream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestBudget(t *testing.T) {
	t.Parallel()
	b := NewBudget(100)
	if err := b.Acquire(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	if b.TryAcquire(41) || !b.TryAcquire(40) || b.TryAcquire(1) {
		t.Error("TryAcquire gives what is not there, or not what is")
	}
	if b.InUse() != 100 || b.Total() != 100 {
		t.Errorf("%d of %d in use", b.InUse(), b.Total())
	}
	b.Release(100)
	if b.InUse() != 0 || b.Peak() != 100 {
		t.Errorf("%d in use, peak %d", b.InUse(), b.Peak())
	}
	if err := b.Acquire(t.Context(), 101); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more than there ever is: %v", err)
	}
	if b.InUse() != 0 {
		t.Errorf("%d in use after a refusal", b.InUse())
	}
}

func TestBudgetWaits(t *testing.T) {
	t.Parallel()
	errStop := errors.New("enough")
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(10)
		if err := b.Acquire(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		var waiters sync.WaitGroup
		waiters.Go(func() {
			if err := b.Acquire(ctx, 1); !errors.Is(err, errStop) {
				t.Errorf("cancelled: %v", err)
			}
		})
		synctest.Wait()
		cancel(errStop)
		waiters.Wait()
		got := make(chan error, 1)
		waiters.Go(func() { got <- b.Acquire(t.Context(), 5) })
		synctest.Wait()
		select {
		case err := <-got:
			t.Errorf("did not wait: %v", err)
		default:
		}
		b.Release(10)
		if err := <-got; err != nil {
			t.Error(err)
		}
		waiters.Wait()
		b.Release(5)
		if b.InUse() != 0 || b.Peak() != 10 {
			t.Errorf("%d in use, peak %d", b.InUse(), b.Peak())
		}
	})
}
