package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dray/internal/oci"
	"dray/internal/stream"
)

func TestBlobReadsFromOffset(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	d, content := f.add(100_000)
	r := open(t, newClient(t, Options{}), f.URL)
	for _, offset := range []int64{0, 1, 99_999, 100_000} {
		wantBlob(t, r, d, offset, content[offset:])
	}
	for _, offset := range []int64{-1, 100_001} {
		if _, err := r.Blob(t.Context(), d, offset); err == nil {
			t.Errorf("offset %d: no error", offset)
		}
	}
}

func TestBlobInDescriptorNeedsNoRequest(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	r := open(t, newClient(t, Options{}), f.URL)
	d := oci.Descriptor{Digest: oci.DigestBytes([]byte("{}")), Size: 2, Data: []byte("{}")}
	wantBlob(t, r, d, 0, []byte("{}"))
	if n := len(f.seen()); n != 0 {
		t.Errorf("got %d requests, want none", n)
	}
}

// Faults of a server that a reader survives, each on the first requests only.
func TestBlobMends(t *testing.T) {
	t.Parallel()
	const sizeBytes = 300_000
	for _, tt := range []struct {
		name     string
		hook     func(f *fake, n int64, w http.ResponseWriter, r *http.Request) bool
		requests int
	}{
		{"body cut", func(f *fake, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n == 1 {
				cutAfter(w, f.one(), 1000)
			}
			return n == 1
		}, 2},
		{"body cut again and again", func(f *fake, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cutAfter(w, f.one(), 70_000)
				return true
			}
			if n < 5 { // every time with progress: more often than retries
				var from int
				_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, sizeBytes-1, sizeBytes))
				w.Header().Set("Content-Length", fmt.Sprint(sizeBytes-from))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(f.one()[from : from+70_000])
				return true
			}
			return false
		}, 5},
		{"connection reset", func(_ *fake, n int64, _ http.ResponseWriter, _ *http.Request) bool {
			if n <= 2 {
				panic(http.ErrAbortHandler)
			}
			return false
		}, 0},
		{"503 twice", func(_ *fake, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n <= 2 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return n <= 2
		}, 3},
		{"cut, then ranges ignored", func(f *fake, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cutAfter(w, f.one(), 1000)
				return true
			}
			r.Header.Del("Range")
			return false
		}, 2},
		{"cut, then a range of other bytes", func(f *fake, n int64, w http.ResponseWriter, r *http.Request) bool {
			switch n {
			case 1:
				cutAfter(w, f.one(), 1000)
				return true
			case 2:
				r.Header.Set("Range", "bytes=0-")
			}
			return false
		}, 3},
		{"cut, then ranges refused", func(f *fake, n int64, w http.ResponseWriter, _ *http.Request) bool {
			switch n {
			case 1:
				cutAfter(w, f.one(), 1000)
			case 2:
				w.WriteHeader(http.StatusBadRequest)
			}
			return n <= 2
		}, 3},
		{"cut, then 416 for what is there", func(f *fake, n int64, w http.ResponseWriter, _ *http.Request) bool {
			switch n {
			case 1:
				cutAfter(w, f.one(), 1000)
			case 2:
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			}
			return n <= 2
		}, 3},
		{"cut, then a shorter range than asked for", func(f *fake, n int64, w http.ResponseWriter, _ *http.Request) bool {
			switch n {
			case 1:
				cutAfter(w, f.one(), 1000)
			case 2:
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 1000-1999/%d", sizeBytes))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(f.one()[1000:2000])
			}
			return n <= 2
		}, 3},
		{"no length, then cut", func(f *fake, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n == 1 {
				_, _ = w.Write(f.one()[:5000])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			return false
		}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			f := newFake(t, nil)
			f.hook = func(w http.ResponseWriter, r *http.Request) bool { return tt.hook(f, n.Add(1), w, r) }
			d, content := f.add(sizeBytes)
			wantBlob(t, open(t, newClient(t, Options{}), f.URL), d, 0, content)
			if got := len(f.seen()); tt.requests > 0 && got != tt.requests {
				t.Errorf("got %d requests, want %d:\n%s", got, tt.requests, strings.Join(f.seen(), "\n"))
			}
		})
	}
}

// one returns the only blob.
func (f *fake) one() []byte {
	for _, content := range f.blobs {
		return content
	}
	return nil
}

// Faults that a reader must not survive.
func TestBlobFails(t *testing.T) {
	t.Parallel()
	const sizeBytes = 300_000
	for _, tt := range []struct {
		name     string
		hook     func(f *fake, w http.ResponseWriter, r *http.Request)
		want     error
		requests int
	}{
		{"not found", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, ErrNotFound, 1},
		{"not authorized", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, ErrUnauthorized, 1},
		{"denied", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, ErrDenied, 1},
		{"gone for good", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }, nil, 1},
		{"500 for ever", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, ErrUnreachable, 4},
		{"429 for ever", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, ErrUnreachable, 4},
		{"too short", func(f *fake, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(f.one()[:1000]) }, stream.ErrMismatch, 1},
		{"too short without length", func(f *fake, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(f.one()[:1000])
			_ = http.NewResponseController(w).Flush()
		}, stream.ErrMismatch, 1},
		{"too long", func(f *fake, w http.ResponseWriter, _ *http.Request) {
			cutAfter(w, append(bytes.Clone(f.one()), 'x'), 5000)
		}, stream.ErrMismatch, 1},
		{"cut without progress", func(f *fake, w http.ResponseWriter, _ *http.Request) { cutAfter(w, f.one(), 0) }, ErrUnreachable, 4},
		{"redirected for ever", func(_ *fake, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, ErrProtocol, maxRedirects},
		{"redirected to nowhere", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) }, ErrProtocol, 1},
		{"not modified", func(_ *fake, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, ErrProtocol, 1},
		{"headers without end", func(_ *fake, w http.ResponseWriter, _ *http.Request) {
			for i := range 2000 {
				w.Header().Set(fmt.Sprint("X-Flood-", i), strings.Repeat("x", 100))
			}
		}, ErrUnreachable, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, nil)
			f.hook = func(w http.ResponseWriter, r *http.Request) bool { tt.hook(f, w, r); return true }
			d, _ := f.add(sizeBytes)
			_, err := readBlob(t.Context(), open(t, newClient(t, Options{}), f.URL), d, 0)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want one that is %v", err, tt.want)
			}
			if got := len(f.seen()); got != tt.requests {
				t.Errorf("got %d requests, want %d", got, tt.requests)
			}
		})
	}
}

// A body that goes on after the blob's last byte is not read to its end.
func TestBlobReadsNothingPastSize(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	d, content := f.add(10_000)
	ended := make(chan struct{})
	f.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		defer close(ended)
		_, _ = w.Write(content)
		for {
			if _, err := w.Write(content); err != nil {
				return true
			}
		}
	}
	c := newClient(t, Options{})
	wantBlob(t, open(t, c, f.URL), d, 0, content)
	<-ended
	if got := c.Stats().BytesReceived; got != d.Size {
		t.Errorf("received %d bytes, want %d", got, d.Size)
	}
}

func TestBlobAcrossMirrors(t *testing.T) {
	t.Parallel()
	origin := newFake(t, nil)
	d, content := origin.add(300_000)
	broken := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		cutAfter(w, content, 100_000)
		return true
	})
	lying := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content[:200_000]))
		return true
	})
	c := newClient(t, Options{Hosts: []Host{{Match: origin.host(), Mirrors: []Mirror{
		{URL: "http://127.0.0.1:1/dead"}, {URL: broken.URL + "/prefix/"}, {URL: lying.URL},
	}}}})
	r := open(t, c, origin.URL)
	wantBlob(t, r, d, 0, content)
	if got, want := broken.seen(), "GET /prefix/v2/team/app/blobs/"+string(d.Digest)+"?ns="+strings.ReplaceAll(origin.host(), ":", "%3A"); len(got) != 1 || got[0] != want {
		t.Errorf("got requests %q, want %q", got, want)
	}
	if got, want := origin.seen(), "GET /v2/team/app/blobs/"+string(d.Digest)+" bytes=100000-299999"; len(got) != 1 || got[0] != want {
		t.Errorf("got requests %q, want %q", got, want)
	}
	if got := c.Stats().Fallbacks; got < 3 {
		t.Errorf("got %d fallbacks, want at least 3", got)
	}
}

func TestBlobFromForeignURL(t *testing.T) {
	t.Parallel()
	registry := newFake(t, nil)
	elsewhere := newFake(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials sent to a foreign address")
		}
		return false
	})
	d, content := elsewhere.add(10_000)
	d.URLs = []string{"ftp://nonsense", elsewhere.URL + "/any/blobs/" + string(d.Digest)}
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Access: Access{Credentials: &Credentials{Username: "u", Password: "p"}, PlainHTTP: true}}}})
	wantBlob(t, open(t, c, registry.URL), d, 0, content)
	secure := newClient(t, Options{})
	ref := oci.Reference{Host: registry.host(), Repository: "a/b"}
	r, err := secure.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t.Context(), r, d, 0); err == nil {
		t.Error("foreign address without TLS was used for a registry with TLS")
	}
}

// A signed address that a registry redirects to is used for the blob's next
// requests, without credentials; when it has expired, the registry is asked
// again.
func TestBlobRedirectExpires(t *testing.T) {
	t.Parallel()
	var signed, expired atomic.Int64
	cdn := newFake(t, nil)
	d, content := cdn.add(300_000)
	cdn.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials sent to another host")
		}
		if r.URL.Query().Get("signature") != fmt.Sprint(signed.Load()) || expired.Add(1) == 2 {
			signed.Add(1)
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		var from int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		if from == 0 {
			cutAfter(w, content, 1000)
			return true
		}
		return false
	}
	origin := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		http.Redirect(w, r, fmt.Sprintf("%s/data/blobs/%s?signature=%d", cdn.URL, d.Digest, signed.Load()), http.StatusTemporaryRedirect)
		return true
	})
	c := newClient(t, Options{Hosts: []Host{{Match: origin.host(), Access: Access{Credentials: &Credentials{Username: "u", Password: "p"}}}}})
	wantBlob(t, open(t, c, origin.URL), d, 0, content)
	if got := len(origin.seen()); got != 3 {
		t.Errorf("origin got %d requests, want 3: challenge, redirect, redirect after it expired:\n%s", got, strings.Join(origin.seen(), "\n"))
	}
}

func TestRedirectFromTLSToPlainIsRefused(t *testing.T) {
	t.Parallel()
	plain := newFake(t, nil)
	d, _ := plain.add(1000)
	secure := newTLSFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, plain.URL+"/v2/x/blobs/"+string(d.Digest)+"?secret=1", http.StatusFound)
		return true
	})
	_, err := readBlob(t.Context(), open(t, newClient(t, Options{InsecureSkipVerify: true}), secure.URL), d, 0)
	wantError(t, err, ErrProtocol)
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("error shows a query: %v", err)
	}
}

// A stalled body is given up after the progress time-out, however slowly the
// consumer reads what comes.
func TestBlobStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		f, r := bubbleFake(t, Options{}, nil)
		d, content := f.add(100_000)
		f.hook = func(w http.ResponseWriter, req *http.Request) bool {
			if n.Add(1) > 1 {
				return false
			}
			cutAfter(w, content, 50_000)
			_ = http.NewResponseController(w).Flush()
			<-req.Context().Done()
			return true
		}
		body, err := r.Blob(t.Context(), d, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = body.Close() }()
		var got bytes.Buffer
		if _, err := io.CopyN(&got, body, 10_000); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour) // a slow consumer is not a slow network
		start := time.Now()
		if _, err := io.Copy(&got, body); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), content) {
			t.Error("not the blob's bytes")
		}
		if took := time.Since(start); took < DefaultProgressTimeout || took > DefaultProgressTimeout+DefaultRetryMax {
			t.Errorf("stalled body was given up after %v, want %v", took, DefaultProgressTimeout)
		}
	})
}

func TestHeaderNeverComes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, r := bubbleFake(t, Options{Retry: Retry{Count: -1}}, func(_ http.ResponseWriter, req *http.Request) bool {
			<-req.Context().Done()
			return true
		})
		start := time.Now()
		_, _, err := r.Resolve(t.Context(), "v1", "")
		wantError(t, err, ErrUnreachable)
		if took := time.Since(start); took != DefaultHeaderTimeout {
			t.Errorf("took %v, want %v", took, DefaultHeaderTimeout)
		}
	})
}

func TestRetryAfterIsHonouredAndCapped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, value string
		least, most time.Duration
	}{
		{"seconds", "20", 20 * time.Second, 20 * time.Second},
		{"date", time.Date(2000, 1, 1, 0, 0, 30, 0, time.UTC).Format(http.TimeFormat), 30 * time.Second, 30 * time.Second},
		{"too long", "86400", DefaultRetryAfterMax, DefaultRetryAfterMax},
		{"nonsense", "soon", 0, DefaultRetryBase},
		{"past", time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat), 0, DefaultRetryBase},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // time begins at midnight of 1 January 2000
				var n atomic.Int64
				f, r := bubbleFake(t, Options{}, func(w http.ResponseWriter, _ *http.Request) bool {
					if n.Add(1) > 1 {
						return false
					}
					w.Header().Set("Retry-After", tt.value)
					w.WriteHeader(http.StatusTooManyRequests)
					return true
				})
				f.manifests["v1"] = []byte("{}")
				start := time.Now()
				if _, _, err := r.Resolve(t.Context(), "v1", ""); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took < tt.least || took > tt.most {
					t.Errorf("waited %v, want %v to %v", took, tt.least, tt.most)
				}
			})
		})
	}
}

func TestWaitsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	cause := errors.New("the caller went away")
	for _, tt := range []struct {
		name string
		hook func(w http.ResponseWriter, r *http.Request) bool
	}{
		{"back-off", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}},
		{"header", func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }},
		{"body", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "1000")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				_, r := bubbleFake(t, Options{}, tt.hook)
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
				start := time.Now()
				_, err := readBlob(ctx, r, oci.Descriptor{Digest: oci.DigestBytes(nil), Size: 1000}, 0)
				if !errors.Is(err, cause) || errors.Is(err, ErrUnreachable) {
					t.Errorf("got error %v, want %v", err, cause)
				}
				if took := time.Since(start); took != 100*time.Millisecond {
					t.Errorf("took %v after the context had ended", took-100*time.Millisecond)
				}
			})
		})
	}
}

// A reader that gives up does not end as if the blob had: a verifier would blame
// the content for the network.
func TestBlobFailureIsNotItsEnd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		then func(f *fake, w http.ResponseWriter)
	}{
		{"connections closed", func(*fake, http.ResponseWriter) { panic(http.ErrAbortHandler) }},
		{"bodies cut", func(f *fake, w http.ResponseWriter) { cutAfter(w, f.one(), 500) }},
		{"bodies empty", func(f *fake, w http.ResponseWriter) { cutAfter(w, f.one(), 0) }},
	} {
		for _, sizeBytes := range []int{100_000, 2 << 20} { // one stream, and a lead
			t.Run(fmt.Sprint(tt.name, " ", sizeBytes), func(t *testing.T) {
				t.Parallel()
				var n atomic.Int64
				f := newFake(t, nil)
				d, _ := f.add(sizeBytes)
				f.hook = func(w http.ResponseWriter, r *http.Request) bool {
					if n.Add(1) > 1 {
						tt.then(f, w)
						return true
					}
					f.serve(&cutter{w, 1000}, r)
					return true
				}
				body, err := open(t, newClient(t, Options{Ranges: smallRanges}), f.URL).Blob(t.Context(), d, 0)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, stream.NewVerifier(body, "blob", d.Digest, d.Size))
				if !errors.Is(err, ErrUnreachable) || errors.Is(err, io.EOF) || errors.Is(err, stream.ErrMismatch) {
					t.Errorf("got error %v, want %v", err, ErrUnreachable)
				}
				_ = body.Close()
			})
		}
	}
}
