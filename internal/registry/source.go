package registry

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
)

// source is one place that may have a blob.
type source struct {
	*endpoint

	call call

	mu      sync.Mutex // guards located
	located *url.URL   // where the endpoint redirected last; nil: ask the endpoint
}

// fetch sends k to where the endpoint redirected the last request of this blob,
// or to the endpoint when that is not known or no longer holds.
func (s *source) fetch(ctx context.Context, k call) (*http.Response, error) {
	s.mu.Lock()
	located := s.located
	s.mu.Unlock()
	if located != nil {
		there := k
		there.url = located
		resp, err := s.follow(ctx, there, "")
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		s.locate(nil)
		if e, ok := errors.AsType[*Error](err); !ok || e.Status == 0 || temporaryStatus(e.Status) {
			return nil, err
		}
	}
	resp, err := s.send(ctx, k)
	if err != nil {
		return nil, err
	}
	if final := resp.Request.URL; final.Host != s.host {
		s.locate(final)
	}
	return resp, nil
}

func (s *source) locate(u *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.located = u
}

// distrust remembers that the host does not serve ranges as it should.
func (e *endpoint) distrust(ctx context.Context, why error) {
	if e.health.noRanges.Swap(true) {
		return
	}
	e.client.stats.fallbacks.Add(1)
	e.client.options.Log.LogAttrs(ctx, slog.LevelWarn, "host does not serve ranges, using plain requests",
		slog.String("host", e.host), slog.String("reason", why.Error()))
}
