package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dray/internal/stream"
)

var smallRanges = Ranges{Streams: 4, PartBytes: 64 << 10, MinBytes: 512 << 10}

func always(int64, time.Duration, time.Duration) bool { return true }

func countRanged(requests []string) (ranged int) {
	for _, r := range requests {
		if strings.Contains(r, "bytes=") {
			ranged++
		}
	}
	return ranged
}

func TestBlobOverSeveralRanges(t *testing.T) {
	t.Parallel()
	budget := stream.NewBudget(1 << 20)
	f := newFake(t, nil)
	d, content := f.add(2<<20 + 12345)
	c := newClient(t, Options{Ranges: smallRanges, Budget: budget})
	c.pays = always
	r := open(t, c, f.URL)
	wantBlob(t, r, d, 0, content)
	lead, parts := 1, (len(content)-128<<10+64<<10-1)/(64<<10)
	if got := len(f.seen()); got != lead+parts || countRanged(f.seen()) != got {
		t.Errorf("got %d requests, want %d, all for ranges", got, lead+parts)
	}
	wantBlob(t, r, d, 777, content[777:])
	if budget.InUse() != 0 || budget.Peak() != 5*64<<10 {
		t.Errorf("budget has %d in use with a peak of %d, want 0 and %d", budget.InUse(), budget.Peak(), 5*64<<10)
	}
	if got := c.Stats().Fallbacks; got != 0 {
		t.Errorf("got %d fallbacks, want none", got)
	}
}

func TestRangesOnlyWhereTheyPay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		size    int
		ranges  Ranges
		pays    bool
		budget  int64
		wantMax int
	}{
		{"small blob", 511 << 10, smallRanges, true, 1 << 20, 1},
		{"fast network", 2 << 20, smallRanges, false, 1 << 20, 2},
		{"one stream", 2 << 20, Ranges{Streams: 1, PartBytes: 64 << 10, MinBytes: 512 << 10}, true, 1 << 20, 1},
		{"no memory", 2 << 20, smallRanges, true, 128 << 10, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, nil)
			d, content := f.add(tt.size)
			c := newClient(t, Options{Ranges: tt.ranges, Budget: stream.NewBudget(tt.budget)})
			c.pays = func(int64, time.Duration, time.Duration) bool { return tt.pays }
			wantBlob(t, open(t, c, f.URL), d, 0, content)
			if got := len(f.seen()); got > tt.wantMax {
				t.Errorf("got %d requests, want at most %d", got, tt.wantMax)
			}
		})
	}
}

func TestNetworkBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// A slow server and a fast consumer.
		f, r := bubbleFake(t, Options{Ranges: smallRanges}, nil)
		d, content := f.add(1 << 20)
		f.hook = func(w http.ResponseWriter, req *http.Request) bool {
			f.serve(slow{w}, req)
			return true
		}
		wantBlob(t, r, d, 0, content)
		if got := len(f.seen()); got != 1+14 {
			t.Errorf("got %d requests, want a lead and 14 parts", got)
		}
		// A fast server and a slow consumer.
		f.requests = nil
		f.hook = nil
		body, err := r.Blob(t.Context(), d, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = body.Close() }()
		buf := make([]byte, 64<<10)
		for {
			time.Sleep(10 * time.Millisecond)
			if _, err := io.ReadFull(body, buf); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if got := len(f.seen()); got != 2 {
			t.Errorf("got %d requests, want a lead and the rest", got)
		}
	})
}

// slow takes its time for each write.
type slow struct{ http.ResponseWriter }

func (s slow) Write(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond) // of the bubble's clock
	return s.ResponseWriter.Write(p)
}

// Servers that do not serve ranges, or lie about them, give the blob all the
// same, are asked for no more ranges, and it is said.
func TestRangesNotServed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		hook  func(n int64, w http.ResponseWriter, r *http.Request) bool
		first int64 // request that first misbehaves
	}{
		{"ignored at once", func(_ int64, _ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }, 1},
		{"ignored later", func(n int64, _ http.ResponseWriter, r *http.Request) bool {
			if n > 5 {
				r.Header.Del("Range")
			}
			return false
		}, 6},
		{"refused at once", func(_ int64, w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusNotImplemented)
				return true
			}
			return false
		}, 1},
		{"refused later", func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 5 && r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusBadRequest)
				return true
			}
			return false
		}, 6},
		{"other bytes at once", func(_ int64, _ http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=5-100")
			}
			return false
		}, 1},
		{"other bytes later", func(n int64, _ http.ResponseWriter, r *http.Request) bool {
			if n > 5 && r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=5-100")
			}
			return false
		}, 6},
		{"several parts in one", func(n int64, _ http.ResponseWriter, r *http.Request) bool {
			if n > 5 && r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=5-100,200-300")
			}
			return false
		}, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool { return tt.hook(n.Add(1), w, r) })
			d, content := f.add(2 << 20)
			budget := stream.NewBudget(1 << 20)
			c := newClient(t, Options{Ranges: smallRanges, Budget: budget})
			c.pays = always
			r := open(t, c, f.URL)
			wantBlob(t, r, d, 0, content)
			if got := c.Stats().Fallbacks; got != 1 {
				t.Errorf("got %d fallbacks, want 1", got)
			}
			before := c.Stats().Requests // the server may see the first read's last ones later
			wantBlob(t, r, d, 0, content)
			if got := c.Stats().Requests - before; got != 1 {
				t.Errorf("second read made %d requests, want a plain one", got)
			}
			if budget.InUse() != 0 {
				t.Errorf("%d bytes of the budget are still in use", budget.InUse())
			}
		})
	}
}

func TestRangesMend(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	f := newFake(t, nil)
	d, content := f.add(2 << 20)
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		switch n.Add(1) % 5 {
		case 2:
			w.WriteHeader(http.StatusBadGateway)
			return true
		case 4:
			w = &cutter{w, 1000}
			f.serve(w, r)
			return true
		}
		return false
	}
	c := newClient(t, Options{Ranges: smallRanges, Retry: Retry{Count: 30, Base: 1, Max: 1}})
	c.pays = always
	wantBlob(t, open(t, c, f.URL), d, 0, content)
}

// cutter breaks the connection after left bytes of a body.
type cutter struct {
	http.ResponseWriter

	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if n > 0 {
		_, _ = c.ResponseWriter.Write(p[:n])
	}
	if n < len(p) {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func TestRangesOverMirrors(t *testing.T) {
	t.Parallel()
	origin := newFake(t, nil)
	d, content := origin.add(2 << 20)
	var n atomic.Int64
	mirror := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) > 8 {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	})
	mirror.blobs = origin.blobs
	c := newClient(t, Options{Ranges: smallRanges, Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: mirror.URL}}}}})
	c.pays = always
	wantBlob(t, open(t, c, origin.URL), d, 0, content)
	if len(origin.seen()) == 0 {
		t.Error("the origin was not asked")
	}
}

func TestRangesFail(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) > 4 {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	d, _ := f.add(2 << 20)
	budget := stream.NewBudget(1 << 20)
	c := newClient(t, Options{Ranges: smallRanges, Budget: budget})
	c.pays = always
	_, err := readBlob(t.Context(), open(t, c, f.URL), d, 0)
	wantError(t, err, ErrNotFound)
	if budget.InUse() != 0 {
		t.Errorf("%d bytes of the budget are still in use", budget.InUse())
	}
}

// Closing a reader half way, or ending its context, stops its connections and
// gives its memory back.
func TestRangesStop(t *testing.T) {
	t.Parallel()
	for _, cancels := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			budget := stream.NewBudget(1 << 20)
			f, r := bubbleFake(t, Options{Ranges: smallRanges, Budget: budget}, nil)
			r.client.pays = always
			d, _ := f.add(2 << 20)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			body, err := r.Blob(ctx, d, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, body, 300<<10); err != nil {
				t.Fatal(err)
			}
			if budget.InUse() == 0 {
				t.Error("no memory is in use: not reading over several ranges")
			}
			if cancels {
				cancel()
				if _, err := io.Copy(io.Discard, body); !errors.Is(err, context.Canceled) {
					t.Errorf("got error %v, want %v", err, context.Canceled)
				}
			}
			_ = body.Close()
			_ = body.Close()
			if budget.InUse() != 0 {
				t.Errorf("%d bytes of the budget are still in use", budget.InUse())
			}
			if _, err := body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("read after close: got error %v", err)
			}
		})
	}
}

func TestParseContentRange(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in                 string
		first, last, total int64
		ok                 bool
	}{
		{"bytes 0-9/10", 0, 9, 10, true},
		{"Bytes 5-9/*", 5, 9, -1, true},
		{"bytes */10", -1, -1, 10, true},
		{"bytes */*", 0, 0, 0, false},
		{"bytes 9-5/10", 0, 0, 0, false},
		{"bytes 0-10/10", 0, 0, 0, false},
		{"bytes -5-9/10", 0, 0, 0, false},
		{"bytes 0-/10", 0, 0, 0, false},
		{"bytes 0-9", 0, 0, 0, false},
		{"items 0-9/10", 0, 0, 0, false},
		{"bytes 0-99999999999999999999/*", 0, 0, 0, false},
		{"", 0, 0, 0, false},
	} {
		first, last, total, err := parseContentRange(tt.in)
		if err == nil != tt.ok || first != tt.first || last != tt.last || total != tt.total {
			t.Errorf("parse %q: got %d %d %d %v", tt.in, first, last, total, err)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes */10", "bytes 0-9/*", "", "bytes 1-", "x y-z/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err != nil {
			return
		}
		if first < -1 || last < first || total < -1 || total >= 0 && last >= total {
			t.Errorf("parse %q: got %d-%d/%d", s, first, last, total)
		}
	})
}
