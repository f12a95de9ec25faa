package stream

import (
	"context"
	"io"
	"sync"
	"sync/atomic"

	"dray/internal/multibuf"
)

var (
	_ Blocks    = (*Ahead)(nil)
	_ io.Reader = (*Ahead)(nil)
)

// Ahead reads a source in its own goroutine, up to a fixed number of buffers
// ahead of its consumer. Buffers are used again, and never grown.
//
// [Ahead.Next] and [Ahead.Read] may be mixed, by one goroutine. Close stops the
// goroutine and waits for it; a Read of the source that is under way is waited
// for, so cancel what the source waits for first.
type Ahead struct {
	free    *pile         // empty buffers
	filled  chan filled   // full ones in order, and the end of the context; closed by who sends
	stop    chan struct{} // closed by Close
	stopped sync.Once
	done    sync.WaitGroup
	check   *check // nil without a verifier

	// owned by the consumer
	lent *buffer // what Next returned last, to be recycled
	left []byte  // the part of lent that Read has not given out
	err  error
}

// buffer is one of the ring's.
type buffer struct {
	bytes []byte       // all of it
	block []byte       // what was read
	users atomic.Int32 // the consumer, and the digest until it was hashed
	pile  *pile
}

// release recycles the buffer when its last user has no more use for it.
func (b *buffer) release() {
	if b.users.Add(-1) == 0 {
		b.pile.put(b)
	}
}

// pile holds the buffers that are empty. The one used last is taken first: it is in the
// processor's cache, where not all of them have room. Others are made when they are needed.
type pile struct {
	turns      chan struct{} // one for each buffer that may be taken, capacity = ring size
	blockBytes int

	mu      sync.Mutex // guards the fields below
	buffers []*buffer
}

func newPile(count, blockBytes int) *pile {
	p := &pile{turns: make(chan struct{}, count), blockBytes: blockBytes}
	for range count {
		p.turns <- struct{}{}
	}
	return p
}

// put lays a buffer on the pile, and never blocks.
func (p *pile) put(b *buffer) {
	p.mu.Lock()
	p.buffers = append(p.buffers, b)
	p.mu.Unlock()
	p.turns <- struct{}{}
}

// take returns a buffer for the turn that was received.
func (p *pile) take() *buffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	top := len(p.buffers) - 1
	if top < 0 {
		return &buffer{bytes: make([]byte, p.blockBytes), pile: p}
	}
	b := p.buffers[top]
	p.buffers = p.buffers[:top]
	return b
}

type filled struct {
	buffer *buffer // nil without a block
	err    error
}

// Hashing tells who hashes what comes through an [Ahead].
type Hashing int

const (
	// HashByReader is for a source that waits more than it computes.
	HashByReader Hashing = iota
	// HashByConsumer is for a consumer that takes less time than the source.
	HashByConsumer
	// HashAside has one more goroutine, for where both are busy.
	HashAside
)

// check is what an [Ahead] has for verifying.
type check struct {
	verifier *Verifier
	digest   *multibuf.Digest
	hashing  Hashing
	waiting  int // how many blocks may wait for another stream's, fewer than there are
}

// NewAhead starts reading src into count buffers of blockBytes each.
func NewAhead(ctx context.Context, src io.Reader, count, blockBytes int) *Ahead {
	a := newAhead(count, blockBytes)
	a.done.Go(func() { a.run(ctx, src, a.filled) })
	return a
}

// NewVerifiedAhead is [NewAhead] with what comes verified by v, which has no source. Blocks
// come before they are hashed, which is done along with those of other streams in lanes.
// The end, or [ErrMismatch], comes as from v itself, when all is hashed. [Verifier.Count] may
// be asked for once the end was seen or after Close.
func NewVerifiedAhead(ctx context.Context, src io.Reader, v *Verifier, by Hashing, lanes *multibuf.Lanes, count, blockBytes int) *Ahead {
	a := newAhead(count, blockBytes)
	a.check = &check{v, lanes.Digest(v.hash), by, (count - 1) / 2}
	if by != HashAside {
		a.done.Go(func() { a.run(ctx, src, a.filled) })
		return a
	}
	unverified := make(chan filled, cap(a.filled))
	a.done.Go(func() { a.run(ctx, src, unverified) })
	a.done.Go(func() {
		defer close(a.filled)
		for f := range unverified {
			if !a.check.pass(f, a.filled) {
				return
			}
		}
	})
	return a
}

func newAhead(count, blockBytes int) *Ahead {
	return &Ahead{
		free:   newPile(count, blockBytes),
		filled: make(chan filled, count+1), // room for every buffer and an error without one
		stop:   make(chan struct{}),
	}
}

// run reads src and closes out, which has room for every buffer and an error.
func (a *Ahead) run(ctx context.Context, src io.Reader, out chan<- filled) {
	defer close(out)
	for {
		select {
		case <-a.free.turns:
		case <-a.stop:
			return
		case <-ctx.Done():
			out <- filled{err: context.Cause(ctx)} // never blocks: it is the last
			return
		}
		b := a.free.take()
		n, err := fill(src, b.bytes)
		b.block = b.bytes[:n]
		b.users.Store(1)
		f := filled{b, err}
		if n == 0 {
			f.buffer = nil
		}
		if a.check != nil && a.check.hashing == HashByReader {
			if !a.check.pass(f, out) {
				return
			}
			continue
		}
		out <- f // never blocks: at most count buffers exist
		if err != nil {
			return
		}
	}
}

// pass hands a block on and then sees that it is hashed, and tells whether more is to come.
func (c *check) pass(f filled, out chan<- filled) bool {
	if c.admit(&f) {
		out <- filled{buffer: f.buffer} // never blocks, like run
		c.digest.Settle(c.waiting)
	}
	err := c.verdict(f.err)
	if err != nil {
		out <- filled{err: err}
	}
	return err == nil
}

// admit gives a block to the digest unless it is more than was promised.
func (c *check) admit(f *filled) bool {
	if f.buffer == nil || !c.verifier.admit(len(f.buffer.block)) {
		f.buffer = nil
		return false
	}
	f.buffer.users.Add(1)
	c.digest.Add(f.buffer.block, f.buffer.release)
	return true
}

// verdict returns nil as long as more is to come, given the source's error.
func (c *check) verdict(err error) error {
	if err != nil {
		c.digest.Settle(0)
		c.verifier.end(err)
	}
	return c.verifier.err
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
		a.lent.release()
		a.lent = nil
	}
	f, ok := <-a.filled
	switch {
	case !ok:
		a.err = io.ErrClosedPipe
	case a.check != nil && a.check.hashing == HashByConsumer:
		if a.check.admit(&f) {
			a.check.digest.Settle(a.check.waiting)
		}
		a.err = a.check.verdict(f.err)
	default:
		a.err = f.err
	}
	if f.buffer == nil {
		return nil, a.err
	}
	a.lent = f.buffer
	return a.lent.block, nil
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
	if a.check != nil {
		a.check.digest.Drop()
	}
	return nil
}
