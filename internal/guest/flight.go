package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// goneError reports that a caller left before its pull had ended.
type goneError struct{ cause error }

// Error says why the caller left.
func (e *goneError) Error() string {
	if errors.Is(e.cause, context.DeadlineExceeded) {
		return "pull image: the time limit of the request has passed"
	}
	return "pull image: the client has gone"
}

// Unwrap returns the cause of the caller's context.
func (e *goneError) Unwrap() error { return e.cause }

// flights runs pulls, one at a time for each bundle.
type flights struct {
	images  Images
	log     *slog.Logger
	running sync.WaitGroup // one for each flight that has not ended

	mu     sync.Mutex           // guards the maps and the callers of each flight; held across no I/O
	newest map[string]*flight   // by bundle: the flight that came last and has not ended
	all    map[*flight]struct{} // those that have not ended
}

func newFlights(images Images, log *slog.Logger) *flights {
	return &flights{images: images, log: log, newest: map[string]*flight{}, all: map[*flight]struct{}{}}
}

// flight is one call of [Images].PullInto and those who wait for it.
type flight struct {
	image   string
	callers int                     // guarded by flights.mu; 0 once all have gone
	cancel  context.CancelCauseFunc // ends the call
	done    chan struct{}           // closed when the fields below are set
	reply   Reply
	err     error
}

// pull runs the pull of image into bundle, or joins the one that is last in the
// bundle's queue if it is the same. It returns when the pull has ended or, with
// a [*goneError], when ctx has.
//
// Joining an earlier one would be wrong: of requests for A, B and A the bundle
// must hold A in the end.
func (f *flights) pull(ctx context.Context, image, bundle string) (reply Reply, joined bool, err error) {
	f.mu.Lock()
	last := f.newest[bundle]
	joined = last != nil && last.image == image && last.callers > 0
	if !joined {
		last = f.start(ctx, image, bundle, last)
	}
	last.callers++
	f.mu.Unlock()
	select {
	case <-last.done:
		return last.reply, joined, last.err
	case <-ctx.Done():
	}
	gone := &goneError{context.Cause(ctx)}
	f.mu.Lock()
	defer f.mu.Unlock()
	last.callers--
	if last.callers == 0 {
		last.cancel(gone)
	}
	return Reply{}, joined, gone
}

// start begins a flight behind before, which may be nil. mu is held.
func (f *flights) start(ctx context.Context, image, bundle string, before *flight) *flight {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	last := &flight{image: image, cancel: cancel, done: make(chan struct{})}
	f.newest[bundle] = last
	f.all[last] = struct{}{}
	f.running.Go(func() {
		defer cancel(nil)
		if before != nil {
			<-before.done // even when all callers have gone: who comes next waits for us only
		}
		last.reply, last.err = f.call(ctx, image, bundle)
		f.mu.Lock()
		delete(f.all, last)
		if f.newest[bundle] == last {
			delete(f.newest, bundle)
		}
		f.mu.Unlock()
		close(last.done)
	})
	return last
}

// call asks the engine, unless all callers have gone meanwhile.
func (f *flights) call(ctx context.Context, image, bundle string) (reply Reply, err error) {
	defer catch(ctx, f.log, &err)
	if ctx.Err() != nil {
		return Reply{}, context.Cause(ctx)
	}
	reply, err = f.images.PullInto(ctx, image, bundle)
	if err != nil && errors.Is(context.Cause(ctx), errStopping) {
		return Reply{}, fmt.Errorf("pull image: %w", errStopping)
	}
	return reply, err
}

// cancel ends all flights, those that still wait for their turn too.
func (f *flights) cancel(cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for last := range f.all {
		last.cancel(cause)
	}
}

// count returns how many flights have not ended.
func (f *flights) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all)
}
