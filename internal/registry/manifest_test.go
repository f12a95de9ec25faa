package registry

import (
	"bytes"
	"crypto/sha512"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
	"dray/internal/stream"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + oci.MediaTypeDockerManifest + `"}`)
	sha256 := oci.DigestBytes(raw)
	h := sha512.New()
	_, _ = h.Write(raw)
	long := oci.DigestOf(oci.SHA512, h)
	for _, tt := range []struct {
		name        string
		tag         string
		digest      oci.Digest
		contentType string
		want        oci.Descriptor
	}{
		{"tag", "v1", "", oci.MediaTypeManifest, oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: sha256}},
		{"digest", "", sha256, oci.MediaTypeManifest, oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: sha256}},
		{"digest decides", "v2", sha256, oci.MediaTypeManifest, oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: sha256}},
		{"sha512", "", long, oci.MediaTypeManifest, oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: long}},
		{"type with parameters", "v1", "", oci.MediaTypeManifest + "; charset=utf-8", oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: sha256}},
		{"type from the document", "v1", "", "text/plain", oci.Descriptor{MediaType: oci.MediaTypeDockerManifest, Digest: sha256}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
				if len(r.Header.Values("Accept")) != 4 {
					t.Errorf("got Accept %q", r.Header.Values("Accept"))
				}
				w.Header().Set("Content-Type", tt.contentType)
				_, _ = w.Write(raw)
				return true
			})
			got, bytesGot, err := open(t, newClient(t, Options{}), f.URL).Resolve(t.Context(), tt.tag, tt.digest)
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Size = int64(len(raw))
			if diff := cmp.Diff(tt.want, got); diff != "" || !bytes.Equal(bytesGot, raw) {
				t.Errorf("got %q (-want +got):\n%s", bytesGot, diff)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	right := oci.DigestBytes([]byte("{}"))
	for _, tt := range []struct {
		name   string
		tag    string
		digest oci.Digest
		serve  func(w http.ResponseWriter)
		want   error
	}{
		{"other bytes than asked for", "", oci.DigestBytes([]byte("x")), func(w http.ResponseWriter) { _, _ = io.WriteString(w, "{}") }, stream.ErrMismatch},
		{"header that contradicts", "v1", "", func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", string(oci.DigestBytes([]byte("x"))))
			_, _ = io.WriteString(w, "{}")
		}, stream.ErrMismatch},
		{"header that contradicts the digest", "", right, func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", string(oci.DigestBytes([]byte("x"))))
			_, _ = io.WriteString(w, "{}")
		}, stream.ErrMismatch},
		{"too large by its length", "v1", "", func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 2000)) }, stream.ErrTooLarge},
		{"too large without a length", "v1", "", func(w http.ResponseWriter) {
			for range 20 {
				_, _ = w.Write(make([]byte, 100))
				_ = http.NewResponseController(w).Flush()
			}
		}, stream.ErrTooLarge},
		{"not found", "v1", "", func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, ErrNotFound},
		{"tag that is none", "../x", "", nil, oci.ErrReference},
		{"no tag", "", "", nil, oci.ErrReference},
		{"digest that is none", "", "sha256:x", nil, oci.ErrDigest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool { tt.serve(w); return true })
			r := open(t, newClient(t, Options{ManifestBytes: 1000}), f.URL)
			_, _, err := r.Resolve(t.Context(), tt.tag, tt.digest)
			wantError(t, err, tt.want)
			if got, want := len(f.seen()), 1; got > want {
				t.Errorf("got %d requests, want at most %d", got, want)
			}
			if tt.name == "not found" && !strings.Contains(err.Error(), r.Name()+":v1") {
				t.Errorf("error does not name the image: %v", err)
			}
		})
	}
}

// A mirror that has something else, or nothing, is passed over; for tags one
// that is for digests only is not asked.
func TestResolveOverMirrors(t *testing.T) {
	t.Parallel()
	origin := newFake(t, nil)
	raw := []byte("{}")
	d := oci.DigestBytes(raw)
	origin.manifests["v1"], origin.manifests[string(d)] = raw, raw
	lying := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool { _, _ = io.WriteString(w, "other"); return true })
	empty := newFake(t, nil)
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: empty.URL}, {URL: lying.URL, DigestOnly: true}}}}})
	r := open(t, c, origin.URL)
	for _, digest := range []oci.Digest{"", d} {
		if _, got, err := r.Resolve(t.Context(), "v1", digest); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("got %q, error %v", got, err)
		}
	}
	if got := len(lying.seen()); got != 1 {
		t.Errorf("mirror for digests got %d requests, want 1", got)
	}
}

// A mirror that cannot be reached is left alone for a while.
func TestDeadMirrorIsPassedOver(t *testing.T) {
	t.Parallel()
	origin := newFake(t, nil)
	origin.manifests["v1"] = []byte("{}")
	dead := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: dead.URL}}}}})
	for range 3 {
		if err := resolve(t, open(t, c, origin.URL)); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(dead.seen()); got != 1 {
		t.Errorf("mirror got %d requests, want 1", got)
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\r\n\u001b[31msuch `+strings.Repeat("x", 1000)+`"}]}`)
		return true
	})
	err := resolve(t, open(t, newClient(t, Options{}), f.URL+""))
	e := details(t, err, ErrNotFound)
	if e.Code != "MANIFEST_UNKNOWN" || len(e.Message) > 300 || strings.ContainsAny(e.Message, "\r\n\x1b") {
		t.Errorf("got code %q, message %q", e.Code, e.Message)
	}
	if want := "resolve " + f.host() + "/team/app:v1: GET " + f.URL + "/v2/team/app/manifests/v1: 404 Not Found: MANIFEST_UNKNOWN: "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %q, want it to begin with %q", err, want)
	}
}

func TestClosedClient(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	c := newClient(t, Options{})
	r := open(t, c, f.URL)
	_ = c.Close()
	_ = c.Close()
	if err := resolve(t, r); err == nil {
		t.Error("no error after Close")
	}
	if got := len(f.seen()); got != 0 {
		t.Errorf("got %d requests, want none", got)
	}
}

func TestSettingUpDoesNoIO(t *testing.T) {
	t.Parallel()
	c := newClient(t, Options{AuthFiles: []string{"/does/not/exist"}, CertDirs: []string{"/does/not/exist"}, CAs: []byte("nonsense")})
	if _, err := c.Repository(oci.Reference{Host: "registry.example", Repository: "a"}); err != nil {
		t.Error(err)
	}
}
