package stream

import (
	"context"
	"errors"
	"io"
	"sync"
)

var (
	_ Blocks    = (*Ahead)(nil)
	_ io.Reader = (*Ahead)(nil)
)

// Ahead reads a source in its own goroutine, up to a fixed number of buffers
// ahead of its consumer. Buffers go round in a ring and are never grown.
//
// [Ahead.Next] and [Ahead.Read] may be mixed, by one goroutine. Close stops the
// goroutine and waits for it; a Read of the source that is under way is waited
// for, so cancel what the source waits for first.
type Ahead struct {
	free    chan []byte   // empty buffers, capacity = ring size
	filled  chan filled   // full ones in order, and the end of the context; closed by who sends
	stop    chan struct{} // closed by Close
	stopped sync.Once
	done    sync.WaitGroup

	// owned by the consumer
	lent []byte // what Next returned last, to be recycled
	left []byte // the part of lent that Read has not given out
	err  error
}

type filled struct {
	block []byte
	err   error
}

// NewAhead starts reading src into count buffers of blockBytes each.
func NewAhead(ctx context.Context, src io.Reader, count, blockBytes int) *Ahead {
	a := newAhead(count, blockBytes)
	a.done.Go(func() { a.run(ctx, src, a.filled) })
	return a
}

// NewVerifiedAhead is [NewAhead] with what comes verified by v, which has no source, in one more
// goroutine: hashing takes long enough to be the whole turn of a core. Blocks come
// when they are hashed, and the end, or [ErrMismatch], as from v itself. [Verifier.Count]
// may be asked for once the end was seen or after Close.
func NewVerifiedAhead(ctx context.Context, src io.Reader, v *Verifier, count, blockBytes int) *Ahead {
	a := newAhead(count, blockBytes)
	unverified := make(chan filled, cap(a.filled))
	a.done.Go(func() { a.run(ctx, src, unverified) })
	a.done.Go(func() {
		defer close(a.filled)
		for f := range unverified {
			if !a.pass(v, f) {
				return
			}
		}
	})
	return a
}

func newAhead(count, blockBytes int) *Ahead {
	a := &Ahead{
		free:   make(chan []byte, count),
		filled: make(chan filled, count+1), // room for every buffer and an error without one
		stop:   make(chan struct{}),
	}
	for range count {
		a.free <- make([]byte, blockBytes)
	}
	return a
}

// pass verifies what was read, and tells whether more is to come.
func (a *Ahead) pass(v *Verifier, f filled) bool {
	v.take(f.block, f.err)
	if v.err != nil && !errors.Is(v.err, io.EOF) {
		f.block = nil // the last word, so that nobody misses the buffer
	}
	a.filled <- filled{f.block, v.err} // never blocks, like run
	return v.err == nil
}

// run reads src and closes out, which has room for every buffer and an error.
func (a *Ahead) run(ctx context.Context, src io.Reader, out chan<- filled) {
	defer close(out)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		case <-ctx.Done():
			out <- filled{err: context.Cause(ctx)} // never blocks: it is the last
			return
		}
		n, err := fill(src, buf[:cap(buf)])
		out <- filled{buf[:n], err} // never blocks: at most count buffers exist
		if err != nil {
			return
		}
	}
}

// Next implements [Blocks].
func (a *Ahead) Next() ([]byte, error) {
	if len(a.left) > 0 {
		block := a.left
		a.left = nil
		return block, nil
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.lent != nil {
		a.free <- a.lent // never blocks: at most count buffers exist
		a.lent = nil
	}
	f, ok := <-a.filled
	if !ok {
		f.err = io.ErrClosedPipe
	}
	a.err = f.err
	if len(f.block) == 0 {
		return nil, a.err
	}
	a.lent = f.block
	return f.block, nil
}

// Read implements [io.Reader].
func (a *Ahead) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	block, err := a.Next()
	if err != nil {
		return 0, err
	}
	n := copy(p, block)
	a.left = block[n:]
	return n, nil
}

// Close stops reading and waits until the source is no longer used. It is
// idempotent and returns nil.
func (a *Ahead) Close() error {
	a.stopped.Do(func() { close(a.stop) })
	a.done.Wait()
	return nil
}
