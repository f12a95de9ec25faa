package guest_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dray/internal/guest"
	"dray/internal/guest/api"
	"dray/internal/oci"
)

func (g *gate) check(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.twice {
		t.Error("two pulls ran in one bundle at once")
	}
}

// noneBegins fails the test if a pull begins although it has to wait. The window
// is short: what it misses, the order that follows shows.
func (g *gate) noneBegins(t *testing.T) {
	t.Helper()
	select {
	case c := <-g.begun:
		t.Fatalf("pull of %s began out of turn", c.image)
	case <-time.After(20 * time.Millisecond):
	}
}

func (s *server) logs(text string) func() bool {
	return func() bool { return containsLine(s.log.String(), text) }
}

func containsLine(log, text string) bool {
	return slices.ContainsFunc(slices.Collect(lines(log)), func(line string) bool { return contains(line, text) })
}

func TestBundlesInParallel(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{})
	client := dial(t, s.socket) // one connection carries them all
	var results []<-chan result
	for range 3 {
		results = append(results, pullLater(client, "a", t.TempDir()))
	}
	calls := []call{g.next(t), g.next(t), g.next(t)} // all three have begun before one ends
	for _, c := range calls {
		c.end <- nil
	}
	for _, r := range results {
		if got := receive(t, r, "a reply comes"); got.err != nil {
			t.Error(got.err)
		}
	}
}

func TestSameRequestsShareOneFlight(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{})
	bundle := t.TempDir()
	first := pullLater(dial(t, s.socket), "a", bundle)
	c := g.next(t)
	second := pullLater(dial(t, s.socket), "a", bundle+"/")
	g.noneBegins(t)
	c.end <- nil
	for _, r := range []<-chan result{first, second} {
		if got := receive(t, r, "a reply comes"); got.err != nil || got.digest != oci.DigestBytes([]byte("a")).String() {
			t.Errorf("got %q, %v", got.digest, got.err)
		}
	}
	// The flight has ended: the next request asks the engine again.
	third := pullLater(dial(t, s.socket), "a", bundle)
	g.next(t).end <- errors.New("broken")
	if got := receive(t, third, "a reply comes"); status.Code(got.err) != codes.Internal {
		t.Errorf("got %v, want Internal", got.err)
	}
}

// Of requests for a, b and a the bundle holds a in the end: the last does not
// join the first.
func TestOneBundleInOrder(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{Metrics: "127.0.0.1:0"})
	bundle := t.TempDir()
	var results []<-chan result
	var first call
	for i, image := range []string{"a", "b", "a"} {
		results = append(results, pullLater(dial(t, s.socket), image, bundle))
		if i == 0 {
			first = g.next(t)
		}
		eventually(t, "the request has its place", func() bool {
			return metric(t, s, "dray_pulls_in_flight") == float64(i+1)
		})
	}
	g.noneBegins(t)
	first.end <- nil
	order := []string{first.image}
	for range 2 {
		c := g.next(t)
		order = append(order, c.image)
		g.noneBegins(t)
		c.end <- nil
	}
	if want := []string{"a", "b", "a"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	for _, r := range results {
		if got := receive(t, r, "a reply comes"); got.err != nil {
			t.Error(got.err)
		}
	}
	g.check(t)
}

func TestDisconnectCancels(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{})
	client := dial(t, s.socket)
	pullLater(client, "a", t.TempDir())
	c := g.next(t)
	_ = client.Close()
	receive(t, c.ctx.Done(), "the pull is cancelled")
	eventually(t, "the log says so", s.logs("the client has gone"))
}

func TestDisconnectOfOneLeavesTheOther(t *testing.T) {
	t.Parallel()
	for _, leaver := range []string{"first", "second"} {
		t.Run(leaver, func(t *testing.T) {
			t.Parallel()
			g := newGate()
			s := serve(t, g, guest.Options{Metrics: "127.0.0.1:0"})
			bundle := t.TempDir()
			goes, stays := dial(t, s.socket), dial(t, s.socket)
			order := []*ttrpc.Client{goes, stays}
			if leaver == "second" {
				slices.Reverse(order)
			}
			results := map[*ttrpc.Client]<-chan result{order[0]: pullLater(order[0], "a", bundle)}
			c := g.next(t)
			results[order[1]] = pullLater(order[1], "a", bundle)
			eventually(t, "both wait", func() bool { return metric(t, s, "dray_requests_in_flight") == 2 })
			_ = goes.Close()
			eventually(t, "one has gone", func() bool { return metric(t, s, "dray_requests_in_flight") == 1 })
			if c.ctx.Err() != nil {
				t.Error("the pull was cancelled although a caller waits")
			}
			c.end <- nil
			if got := receive(t, results[stays], "a reply comes"); got.err != nil {
				t.Error(got.err)
			}
		})
	}
}

// Who gives up while others are before it never reaches the engine, and does not
// let the next one begin too early.
func TestLeavingTheQueue(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{Metrics: "127.0.0.1:0"})
	bundle := t.TempDir()
	first := pullLater(dial(t, s.socket), "a", bundle)
	running := g.next(t)
	leaver := dial(t, s.socket)
	pullLater(leaver, "b", bundle)
	eventually(t, "it waits", func() bool { return metric(t, s, "dray_pulls_in_flight") == 2 })
	_ = leaver.Close()
	eventually(t, "it has gone", func() bool { return metric(t, s, "dray_requests_in_flight") == 1 })
	last := pullLater(dial(t, s.socket), "b", bundle) // must not join the one that was given up
	eventually(t, "the last waits", func() bool { return metric(t, s, "dray_pulls_in_flight") == 3 })
	g.noneBegins(t)
	running.end <- nil
	c := g.next(t)
	c.end <- nil
	if c.image != "b" {
		t.Errorf("got %s, want b", c.image)
	}
	for _, r := range []<-chan result{first, last} {
		if got := receive(t, r, "a reply comes"); got.err != nil {
			t.Error(got.err)
		}
	}
	g.check(t)
}

// The time limit is the one in the request, not that of the client's own wait.
func TestDeadline(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{})
	var limit atomic.Int64
	client := dial(t, s.socket, ttrpc.WithUnaryClientInterceptor(
		func(ctx context.Context, q *ttrpc.Request, r *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
			q.TimeoutNano = limit.Load()
			return next(ctx, q, r)
		}))
	var c call
	var reply <-chan result
	for d := 20 * time.Millisecond; c.ctx == nil; d *= 2 { // it may pass before the pull begins
		limit.Store(d.Nanoseconds())
		reply = pullLater(client, "a", t.TempDir())
		select {
		case c = <-g.begun:
		case got := <-reply:
			if status.Code(got.err) != codes.DeadlineExceeded {
				t.Fatalf("before the pull began: %v", got.err)
			}
		}
	}
	receive(t, c.ctx.Done(), "the pull is cancelled")
	got := status.Convert(receive(t, reply, "a reply comes").err)
	if got.Code() != codes.DeadlineExceeded || got.Message() != "pull image: the time limit of the request has passed" {
		t.Errorf("got %v", got)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(succeed), guest.Options{})
	client := api.NewImagePullServiceClient(dial(t, s.socket))
	bundles := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	failed := make(chan error, 200)
	for i := range cap(failed) {
		go func() {
			_, err := client.PullImage(t.Context(), &api.ImagePullRequest{ImageUrl: []string{"a", "b"}[i%2], BundlePath: bundles[i%3]})
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := receive(t, failed, "a reply comes"); err != nil {
			t.Error(err)
		}
	}
}
