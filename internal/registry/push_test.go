package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"dray/internal/oci"
)

// An upload that breaks off is begun again where the registry cannot resume, as
// docker-registry cannot: it takes its own record of the offset for the client's.
func TestPushStartsAgain(t *testing.T) {
	t.Parallel()
	address := realRegistry(t, "")
	content := randomBytes(1 << 20)
	d := oci.Descriptor{Digest: oci.DigestBytes(content), Size: int64(len(content))}
	uploads := 0
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		body := io.Reader(r.Body)
		if r.Method == http.MethodPut || r.Method == http.MethodPatch {
			if uploads++; uploads <= 2 {
				body = io.MultiReader(io.LimitReader(r.Body, 300<<10), failing{})
			}
		}
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+address+r.URL.RequestURI(), body)
		if err != nil {
			t.Error(err)
			return true
		}
		req.Header, req.ContentLength, req.Host = r.Header.Clone(), r.ContentLength, r.Host
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer func() { _ = resp.Body.Close() }()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
		return true
	})
	var opened []int64
	r := open(t, newClient(t, Options{}), f.URL)
	err := r.PushBlob(t.Context(), d, func(offset int64) (io.ReadCloser, error) {
		opened = append(opened, offset)
		return fromBytes(content)(offset)
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(opened, []int64{0, 0, 0}) {
		t.Errorf("opened at %v, want three times at 0", opened)
	}
	wantBlob(t, r, d, 0, content)
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken on purpose") }

// uploads is the uploading half of a registry that can resume: one session.
type uploads struct {
	mu     sync.Mutex // guards the fields below
	got    []byte
	stored map[string][]byte
	breaks int // bytes after which the next bodies break off, halving; 0: none
}

func (u *uploads) hook(w http.ResponseWriter, r *http.Request) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	location := "/v2/team/app/blobs/uploads/1?state=" + fmt.Sprint(len(u.got))
	switch r.Method {
	case http.MethodPost:
		u.got = nil
		w.Header().Set("Location", "/v2/team/app/blobs/uploads/1?state=0")
		w.WriteHeader(http.StatusAccepted)
	case http.MethodGet:
		w.Header().Set("Location", location)
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(u.got)-1)))
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPatch, http.MethodPut:
		if from, _, ok := strings.Cut(r.Header.Get("Content-Range"), "-"); ok && from != fmt.Sprint(len(u.got)) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		if u.breaks > 0 {
			part, _ := io.ReadAll(io.LimitReader(r.Body, int64(u.breaks)))
			u.got = append(u.got, part...)
			u.breaks /= 2
			panic(http.ErrAbortHandler)
		}
		part, _ := io.ReadAll(r.Body)
		u.got = append(u.got, part...)
		if r.Method == http.MethodPatch {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		u.stored[r.URL.Query().Get("digest")] = u.got
		w.Header().Set("Docker-Content-Digest", string(oci.DigestBytes(u.got)))
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	default:
		return false
	}
	return true
}

func TestPushResumes(t *testing.T) {
	t.Parallel()
	u := &uploads{stored: map[string][]byte{}, breaks: 400 << 10}
	f := newFake(t, u.hook)
	content := randomBytes(2 << 20)
	d := oci.Descriptor{Digest: oci.DigestBytes(content), Size: int64(len(content))}
	var opened []int64
	c := newClient(t, Options{Retry: Retry{Count: 30, Base: 1, Max: 1}})
	err := open(t, c, f.URL).PushBlob(t.Context(), d, func(offset int64) (io.ReadCloser, error) {
		opened = append(opened, offset)
		return fromBytes(content)(offset)
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(u.stored[string(d.Digest)], content) {
		t.Error("stored another blob")
	}
	if len(opened) < 3 || opened[1] != 400<<10 || opened[2] != 600<<10 {
		t.Errorf("opened at %v, want 0, 409600, 614400, …", opened)
	}
}

// What cannot be read cannot be sent: that is not the registry's fault, and
// repeating does not help.
func TestPushSourceFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk is broken")
	for _, tt := range []struct {
		name string
		open func(int64) (io.ReadCloser, error)
	}{
		{"open", func(int64) (io.ReadCloser, error) { return nil, broken }},
		{"ends early", func(int64) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("short")), nil }},
		{"read", func(int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 5000)), brokenReader{broken})), nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := &uploads{stored: map[string][]byte{}}
			f := newFake(t, u.hook)
			opened := 0
			err := open(t, newClient(t, Options{}), f.URL).PushBlob(t.Context(), oci.Descriptor{Digest: oci.DigestBytes(nil), Size: 2 << 20},
				func(offset int64) (io.ReadCloser, error) { opened++; return tt.open(offset) })
			want := broken
			if tt.name == "ends early" {
				want = io.ErrUnexpectedEOF
			}
			if !errors.Is(err, want) {
				t.Errorf("got error %v, want %v", err, want)
			}
			if opened != 1 || len(u.stored) != 0 {
				t.Errorf("opened %d times, stored %d blobs", opened, len(u.stored))
			}
			if last := f.seen()[len(f.seen())-1]; !strings.HasPrefix(last, "DELETE ") {
				t.Errorf("last request is %q, want the session ended", last)
			}
		})
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

func TestPushFails(t *testing.T) {
	t.Parallel()
	content := randomBytes(1000)
	d := oci.Descriptor{Digest: oci.DigestBytes(content), Size: 1000}
	for _, tt := range []struct {
		name string
		hook func(w http.ResponseWriter, r *http.Request) bool
		want error
	}{
		{"denied", func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }, ErrDenied},
		{"no location", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusAccepted)
			}
			return r.Method == http.MethodPost
		}, ErrProtocol},
		{"stored as something else", func(w http.ResponseWriter, r *http.Request) bool {
			switch r.Method {
			case http.MethodPost:
				w.Header().Set("Location", "/upload")
				w.WriteHeader(http.StatusAccepted)
				return true
			case http.MethodPut:
				w.Header().Set("Docker-Content-Digest", string(oci.DigestBytes(nil)))
				w.WriteHeader(http.StatusCreated)
				return true
			}
			return false
		}, ErrProtocol},
		{"busy", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, ErrUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, tt.hook)
			wantError(t, open(t, newClient(t, Options{}), f.URL).PushBlob(t.Context(), d, fromBytes(content)), tt.want)
		})
	}
}

// A caller that goes away ends the upload, and the session at the registry.
func TestPushIsCancelled(t *testing.T) {
	t.Parallel()
	u := &uploads{stored: map[string][]byte{}}
	f := newFake(t, u.hook)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := open(t, newClient(t, Options{}), f.URL).PushBlob(ctx, oci.Descriptor{Digest: oci.DigestBytes(nil), Size: 1 << 30}, func(int64) (io.ReadCloser, error) {
		cancel()
		return io.NopCloser(zeros{}), nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
	if last := f.seen()[len(f.seen())-1]; !strings.HasPrefix(last, "DELETE ") {
		t.Errorf("last request is %q, want the session ended", last)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestListsWithPages(t *testing.T) {
	t.Parallel()
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch page := r.URL.Query().Get("last"); page {
		case "":
			w.Header().Set("Link", `</v2/team/app/tags/list?last=b>; rel="next"`)
			_, _ = io.WriteString(w, `{"tags":["a","b"]}`)
		case "b":
			w.Header().Set("Link", `<http://elsewhere.test/x>; rel="prev", <?last=c>; rel="next"`)
			_, _ = io.WriteString(w, `{"tags":["c"]}`)
		default:
			_, _ = io.WriteString(w, `{"tags":null}`)
		}
		return true
	})
	got, err := open(t, newClient(t, Options{}), f.URL).Tags(t.Context())
	if err != nil || !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestListsWithoutEnd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, link, body string
		want             error
	}{
		{"page that leads to itself", `</v2/team/app/tags/list?n=1000>; rel="next"`, "{}", ErrProtocol},
		{"page elsewhere", `<http://elsewhere.test/x>; rel="next"`, "{}", ErrProtocol},
		{"not JSON", "", "<html>", ErrProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Link", tt.link)
				_, _ = io.WriteString(w, tt.body)
				return true
			})
			_, err := open(t, newClient(t, Options{}), f.URL).Tags(t.Context())
			wantError(t, err, tt.want)
		})
	}
}

func TestReferrersFromTheRegistry(t *testing.T) {
	t.Parallel()
	subject, one, two := oci.DigestBytes([]byte("s")), oci.DigestBytes([]byte("1")), oci.DigestBytes([]byte("2"))
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/team/app/referrers/"+string(subject) {
			t.Errorf("got request for %s", r.URL.Path)
		}
		_, _ = fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"digest":%q,"size":1,"artifactType":"a"},{"digest":%q,"size":1,"artifactType":"b"}]}`, oci.MediaTypeIndex, one, two)
		return true
	})
	r := open(t, newClient(t, Options{}), f.URL)
	for artifactType, want := range map[string][]oci.Digest{"": {one, two}, "b": {two}, "c": nil} {
		got, err := r.Referrers(t.Context(), subject, artifactType)
		var digests []oci.Digest
		for _, d := range got {
			digests = append(digests, d.Digest)
		}
		if err != nil || !slices.Equal(digests, want) {
			t.Errorf("of type %q: got %v, %v, want %v", artifactType, digests, err, want)
		}
	}
}

func TestReferrersOverMirrors(t *testing.T) {
	t.Parallel()
	subject, one := oci.DigestBytes([]byte("s")), oci.DigestBytes([]byte("1"))
	origin := newFake(t, nil)
	origin.manifests[fallbackTag(subject)] = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"digest":%q,"size":1}]}`, oci.MediaTypeIndex, one)
	origin.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", oci.MediaTypeIndex)
			_, _ = w.Write(origin.manifests[fallbackTag(subject)])
			return true
		}
		return false
	}
	mirror := newFake(t, nil)
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: mirror.URL}}}}})
	got, err := open(t, c, origin.URL).Referrers(t.Context(), subject, "")
	if err != nil || len(got) != 1 || got[0].Digest != one {
		t.Errorf("got %v, %v", got, err)
	}
	if n := len(mirror.seen()); n != 2 {
		t.Errorf("mirror got %d requests, want 2", n)
	}
}
