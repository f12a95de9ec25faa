package pull

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"dray/internal/oci"
	"dray/internal/store"
)

// job is a layer that a pull wants and the store does not have.
type job struct {
	diffID oci.DiffID
	blob   oci.Descriptor
	source *sharedSource
}

// flight is one layer on its way. Everyone in this process who wants it waits
// for the same flight; it runs until it ends or nobody has waited for it for
// [Options.Linger]. Between processes the store's flight lock does the same.
type flight struct {
	job
	fetched atomic.Int64 // compressed bytes so far
	state   atomic.Value // State

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

// join waits for the layer of j, in a flight that is under way or a new one.
// It tells whether the flight was there before.
func (e *Engine) join(ctx context.Context, j job, w *watcher) (f *flight, shared bool, err error) {
	e.mu.Lock()
	f, shared = e.flights[j.diffID]
	if !shared {
		f = e.takeOff(ctx, j)
	}
	if f.lingering != nil {
		f.lingering.Stop()
		f.lingering = nil
	}
	f.waiters[w] = struct{}{}
	e.mu.Unlock()

	select {
	case <-f.done:
		e.leave(f, w)
		return f, shared, f.err
	case <-ctx.Done():
		e.leave(f, w)
		return f, shared, context.Cause(ctx)
	}
}

// takeOff starts a flight. e.mu is held.
func (e *Engine) takeOff(ctx context.Context, j job) *flight {
	flying, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight{job: j, cancel: cancel, done: make(chan struct{}), waiters: map[*watcher]struct{}{}, engine: e}
	f.state.Store(Waiting)
	e.flights[j.diffID] = f
	j.source.retain()
	e.flying.Go(func() { e.fly(flying, f) })
	return f
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

// fly brings one layer into the store.
func (e *Engine) fly(ctx context.Context, f *flight) {
	defer f.job.source.release()
	defer f.cancel(nil)
	select {
	case e.slots <- struct{}{}:
		f.layer, f.found, f.how, f.err = e.fetch(ctx, f)
		<-e.slots
	case <-ctx.Done():
		f.err = context.Cause(ctx)
	}
	if f.err != nil {
		f.err = fmt.Errorf("pull layer %s: %w", f.blob.Digest, f.err)
		f.state.Store(Failed)
	} else {
		f.state.Store(Done)
	}
	f.report()
	e.mu.Lock()
	if e.flights[f.diffID] == f {
		delete(e.flights, f.diffID)
	}
	if f.lingering != nil {
		f.lingering.Stop()
	}
	e.mu.Unlock()
	close(f.done)
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
