package registry

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dray/internal/oci"
	"dray/internal/stream"
)

func TestPullMendsACutBody(t *testing.T) {
	t.Parallel()
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	dg := oci.DigestBytes(blob)
	mf := []byte(`{"schemaVersion":2}`)
	cut := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"token":"abc"}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer abc" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x",scope="repository:a/b:pull"`)
			w.WriteHeader(401)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = w.Write(mf)
			return
		}
		if cut++; cut == 1 {
			w.Header().Set("Content-Length", "1048576")
			_, _ = w.Write(blob[:1000])
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	defer srv.Close()
	c, err := NewClient(Options{AuthFiles: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := oci.ParseReference(srv.URL + "/a/b:t")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	d, raw, err := r.Resolve(t.Context(), "t", "")
	if err != nil || !bytes.Equal(raw, mf) {
		t.Fatal(err, d)
	}
	b, err := r.Blob(t.Context(), oci.Descriptor{Digest: dg, Size: int64(len(blob))}, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, stream.NewVerifier(b, "blob", dg, int64(len(blob))))
	t.Log(n, err, c.Stats())
	if err != nil {
		t.Fatal(err)
	}
}
