package stream

import (
	"context"
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
	filled  chan filled   // full ones in order, and the end of the context; closed by run
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
	a := &Ahead{
		free:   make(chan []byte, count),
		filled: make(chan filled, count+1), // room for every buffer and an error without one
		stop:   make(chan struct{}),
	}
	for range count {
		a.free <- make([]byte, blockBytes)
	}
	a.done.Go(func() { a.run(ctx, src) })
	return a
}

func (a *Ahead) run(ctx context.Context, src io.Reader) {
	defer close(a.filled)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		case <-ctx.Done():
			a.filled <- filled{err: context.Cause(ctx)} // never blocks: it is the last
			return
		}
		n, err := fill(src, buf[:cap(buf)])
		a.filled <- filled{buf[:n], err} // never blocks: at most count buffers exist
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
