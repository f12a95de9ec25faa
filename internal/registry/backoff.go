package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// wait sleeps for d or until ctx ends, whose cause it returns.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// backoff returns how long to wait before repetition number attempt, from 0:
// anything up to Base × 2^attempt, capped ("full jitter", so that clients that
// failed together do not return together), and no less than the server asked for.
func (r Retry) backoff(attempt int, err error) time.Duration {
	longest := r.Max
	if attempt < 30 {
		longest = min(longest, r.Base<<attempt)
	}
	d := time.Duration(rand.Int64N(int64(longest) + 1)) //nolint:gosec // jitter, not a secret
	if e, ok := errors.AsType[*Error](err); ok {
		d = max(d, min(e.retryAfter, r.AfterMax))
	}
	return d
}

// repeat calls try until it succeeds, fails for good, or count repetitions are
// used up.
func (e *endpoint) repeat(ctx context.Context, count int, try func() error) error {
	for attempt := 0; ; attempt++ {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if attempt >= count || !temporary(err, e.reached()) {
			return tried(err, attempt+1)
		}
		if err := e.pause(ctx, attempt, err); err != nil {
			return err
		}
	}
}

// tried says of an error that it is the last of several.
func tried(err error, count int) error {
	if count < 2 {
		return err
	}
	return fmt.Errorf("%w (tried %d times)", err, count)
}

// pause waits before the repetition of what failed with err.
func (e *endpoint) pause(ctx context.Context, attempt int, err error) error {
	delay := e.client.options.Retry.backoff(attempt, err)
	e.client.stats.retries.Add(1)
	e.client.options.Log.LogAttrs(ctx, slog.LevelDebug, "request repeated",
		slog.String("host", e.host), slog.Int("attempt", attempt+1), slog.Duration("delay", delay), slog.String("reason", err.Error()))
	return wait(ctx, delay)
}

// parseRetryAfter reads a Retry-After header (RFC 9110, 10.2.3): seconds or a
// date; 0 for nonsense and for the past.
func parseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}
