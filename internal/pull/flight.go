package pull

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"dray/internal/apply"
	"dray/internal/oci"
	"dray/internal/store"
)

// job is a layer that a pull wants and the store does not have.
type job struct {
	diffID oci.DiffID
	blob   oci.Descriptor
	layout string
	source *sharedSource
	cache  *apply.PageCache // its share of that of the pull which wanted it first

	rewrite bool // the store has it in another layout
	offline bool // only seeds may be asked

	kin []oci.DiffID // layers of the store that may have files of this one
}

// flight is one layer on its way. Everyone in this process who wants it waits
// for the same flight; it runs until it ends or nobody has waited for it for
// [Options.Linger]. Between processes the store's flight lock does the same.
type flight struct {
	job
	fetched atomic.Int64 // compressed bytes so far
	state   atomic.Value // State

	began  time.Time       // when it began to fetch; of its own goroutine
	ctx    context.Context //nolint:containedctx // the flight's own life, not a caller's
	cancel context.CancelCauseFunc
	done   chan struct{} // closed by fly, after the fields below are set
	layer  *store.Layer
	found  bool // it had come into the store meanwhile
	how    layerNotes
	err    error

	waiters   map[*watcher]struct{} // guarded by Engine.mu
	lingering *time.Timer           // guarded by Engine.mu; set while nobody waits
	engine    *Engine
}

// watcher is one pull's interest in a flight.
type watcher struct {
	report func(State, int64)
}

// errAbandoned is the cause of a flight's end when nobody waits any more.
var errAbandoned = errors.New("nobody waits for this layer any more")

// board puts w on the flight of j's layer, one that is under way or a new one, and
// tells whether it was there before. Flights that need a slot get it in the order
// in which they were made.
func (e *Engine) board(ctx context.Context, j job, w *watcher) (f *flight, shared bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, shared = e.flights[j.diffID]
	if !shared {
		f = e.takeOff(ctx, j)
	}
	if f.lingering != nil {
		f.lingering.Stop()
		f.lingering = nil
	}
	f.waiters[w] = struct{}{}
	return f, shared
}

// wait returns when the flight has ended, or ctx has.
func (e *Engine) wait(ctx context.Context, f *flight, w *watcher) error {
	defer e.leave(f, w)
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// takeOff makes a flight and starts it when it is its turn. e.mu is held.
func (e *Engine) takeOff(ctx context.Context, j job) *flight {
	flying, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight{job: j, ctx: flying, cancel: cancel, done: make(chan struct{}), waiters: map[*watcher]struct{}{}, engine: e}
	f.state.Store(Waiting)
	e.flights[j.diffID] = f
	j.source.retain()
	e.queue = append(e.queue, f)
	e.start()
	return f
}

// start gives free slots to the flights that have waited longest. e.mu is held.
func (e *Engine) start() {
	for e.busy < e.options.Workers && len(e.queue) > 0 {
		f := e.queue[0]
		e.queue = e.queue[1:]
		e.busy++
		e.flying.Go(func() { e.fly(f) })
	}
}

// leave takes w off f. When w was the last, the flight ends now or, with
// [Options.Linger], when nobody has come back by then.
func (e *Engine) leave(f *flight, w *watcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(f.waiters, w)
	if len(f.waiters) > 0 || e.flights[f.diffID] != f {
		return
	}
	if e.options.Linger <= 0 || e.closed {
		e.abandon(f)
		return
	}
	f.lingering = time.AfterFunc(e.options.Linger, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(f.waiters) == 0 && e.flights[f.diffID] == f {
			e.abandon(f)
		}
	})
}

// abandon ends a flight early. e.mu is held. Whoever comes next starts anew and
// waits at the store until this one has cleaned up.
func (e *Engine) abandon(f *flight) {
	delete(e.flights, f.diffID)
	f.cancel(errAbandoned)
}

// fly brings one layer into the store and gives its slot to the next.
func (e *Engine) fly(f *flight) {
	if f.err = context.Cause(f.ctx); f.err == nil { // not abandoned in the queue
		f.layer, f.found, f.how, f.err = e.fetch(f.ctx, f)
	}
	f.cancel(nil)
	f.source.release()
	if f.err != nil {
		f.err = fmt.Errorf("layer %s: %w", f.blob.Digest, f.err)
		f.enter(Failed)
	} else {
		f.enter(Done)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flights[f.diffID] == f {
		delete(e.flights, f.diffID)
	}
	if f.lingering != nil {
		f.lingering.Stop()
	}
	close(f.done)
	e.busy--
	e.start()
}

// enter sets the flight's state and tells everyone who waits.
func (f *flight) enter(s State) {
	f.state.Store(s)
	f.report()
}

// report tells everyone who waits how far the flight is.
func (f *flight) report() {
	f.engine.mu.Lock()
	watchers := make([]*watcher, 0, len(f.waiters))
	for w := range f.waiters {
		watchers = append(watchers, w)
	}
	f.engine.mu.Unlock()
	state, _ := f.state.Load().(State)
	for _, w := range watchers {
		w.report(state, f.fetched.Load())
	}
}
