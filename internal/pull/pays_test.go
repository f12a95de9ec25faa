package pull_test

import (
	"strings"
	"testing"
	"time"

	"dray/internal/pull"
)

// A layer is put together only where it is clear that this is faster.
func TestReusePays(t *testing.T) {
	t.Parallel()
	const mbit = 1e6 / 8
	for name, one := range map[string]struct {
		blob, spared, copied int64
		requests             int
		bytesPerSecond       float64
		latency              time.Duration
		paid                 bool
		why                  string
	}{
		"a slow link":                          {50e6, 45e6, 130e6, 20, 100 * mbit, 20 * time.Millisecond, true, "3.60 s to fetch"},
		"half of it":                           {50e6, 25e6, 70e6, 50, 100 * mbit, 20 * time.Millisecond, true, ""},
		"a fast link":                          {50e6, 45e6, 130e6, 20, 1000 * mbit, 5 * time.Millisecond, false, "0.36 s to fetch"},
		"this machine":                         {50e6, 45e6, 130e6, 20, 1e9, time.Millisecond, false, ""},
		"a fast link, nothing compressed":      {50e6, 45e6, 45e6, 5, 1000 * mbit, 5 * time.Millisecond, true, ""},
		"a fast link, before the TOC is known": {50e6, 50e6, 50e6, 1, 1000 * mbit, 5 * time.Millisecond, true, ""},
		"this machine, before":                 {50e6, 50e6, 50e6, 1, 1e9, time.Millisecond, false, "at 1000.0 MB/s"},
		"many requests, far away":              {50e6, 25e6, 70e6, 400, 100 * mbit, 200 * time.Millisecond, false, "400 requests of 200.0 ms"},
		"little of it":                         {50e6, 12e6, 30e6, 5, 10 * mbit, time.Millisecond, false, "the store has files for 12000000 of 50000000 bytes"},
		"nothing":                              {50e6, 0, 0, 1, 10 * mbit, time.Millisecond, false, ""},
		"nothing of nothing":                   {0, 0, 0, 0, 0, 0, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			paid, why := pull.Pays(one.blob, one.spared, one.copied, one.requests, one.bytesPerSecond, one.latency)
			if paid != one.paid || !strings.Contains(why, one.why) || strings.HasPrefix(why, "fetched whole: ") == paid {
				t.Errorf("got %v, %q; want %v, %q", paid, why, one.paid, one.why)
			}
		})
	}
}
