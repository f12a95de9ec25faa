package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dray/internal/oci"
)

// fake is a registry that does as it should, but for what its hook does first.
type fake struct {
	*httptest.Server

	manifests map[string][]byte // by tag or digest
	blobs     map[oci.Digest][]byte
	hook      func(w http.ResponseWriter, r *http.Request) (done bool)

	mu       sync.Mutex // guards requests
	requests []string   // "METHOD path?query range"
}

func newFake(t *testing.T, hook func(w http.ResponseWriter, r *http.Request) bool) *fake {
	t.Helper()
	f := unstarted(hook)
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func newTLSFake(t *testing.T, hook func(w http.ResponseWriter, r *http.Request) bool) *fake {
	t.Helper()
	f := unstarted(hook)
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = quiet() // handshakes fail on purpose
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func unstarted(hook func(w http.ResponseWriter, r *http.Request) bool) *fake {
	return &fake{manifests: map[string][]byte{}, blobs: map[oci.Digest][]byte{}, hook: hook}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Range")))
	f.mu.Unlock()
	if f.hook != nil && f.hook(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	if _, version, ok := strings.Cut(r.URL.Path, "/manifests/"); ok && f.manifests[version] != nil {
		raw := f.manifests[version]
		w.Header().Set("Content-Type", oci.MediaTypeManifest)
		w.Header().Set("Docker-Content-Digest", string(oci.DigestBytes(raw)))
		_, _ = w.Write(raw)
		return
	}
	if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && f.blobs[oci.Digest(digest)] != nil {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.blobs[oci.Digest(digest)]))
		return
	}
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}`)
}

// seen returns the requests so far.
func (f *fake) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.requests...)
}

func (f *fake) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(f.URL, "http://"), "https://")
}

// add stores size random bytes as a blob.
func (f *fake) add(sizeBytes int) (oci.Descriptor, []byte) {
	content := randomBytes(sizeBytes)
	d := oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Digest: oci.DigestBytes(content), Size: int64(sizeBytes)}
	f.blobs[d.Digest] = content
	return d, content
}

func randomBytes(sizeBytes int) []byte {
	content := make([]byte, sizeBytes)
	_, _ = rand.NewChaCha8([32]byte{byte(sizeBytes)}).Read(content)
	return content
}

// newClient returns a client that finds nothing on this machine and hardly waits.
func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	if o.AuthFiles == nil {
		o.AuthFiles = []string{}
	}
	if o.CertDirs == nil {
		o.CertDirs = []string{}
	}
	if o.Retry == (Retry{}) {
		o.Retry = Retry{Count: 3, Base: time.Millisecond, Max: 2 * time.Millisecond, AfterMax: 5 * time.Millisecond}
	}
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// open returns the repository team/app of a server.
func open(t *testing.T, c *Client, url string) *Repository {
	t.Helper()
	ref, err := oci.ParseReference(url + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// readBlob reads all of a blob from offset.
func readBlob(ctx context.Context, r *Repository, d oci.Descriptor, offset int64) ([]byte, error) {
	body, err := r.Blob(ctx, d, offset)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	var got bytes.Buffer
	_, err = io.Copy(struct{ io.Writer }{&got}, body)
	return got.Bytes(), err
}

func wantBlob(t *testing.T, r *Repository, d oci.Descriptor, offset int64, want []byte) {
	t.Helper()
	got, err := readBlob(t.Context(), r, d, offset)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes that are not the blob's %d", len(got), len(want))
	}
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want one that is %q", err, want)
	}
}

func details(t *testing.T, err, want error) *Error {
	t.Helper()
	wantError(t, err, want)
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got error %v without details", err)
	}
	return e
}

// cutAfter sends a header that promises all of content and the first n bytes.
func cutAfter(w http.ResponseWriter, content []byte, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	_, _ = w.Write(content[:n])
}

// pipes is a network in memory: connections work in a synctest bubble.
type pipes struct {
	connections chan net.Conn
	done        chan struct{}
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.connections <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.connections:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// bubbleFake serves a fake inside a synctest bubble, to a client of o.
func bubbleFake(t *testing.T, o Options, hook func(w http.ResponseWriter, r *http.Request) bool) (*fake, *Repository) {
	t.Helper()
	f := unstarted(hook)
	p := &pipes{connections: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: f, ErrorLog: quiet()}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(p) })
	o.AuthFiles, o.CertDirs = []string{}, []string{}
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	c.dial = p.dial
	t.Cleanup(func() {
		_ = c.Close()
		_ = server.Close()
		serving.Wait()
	})
	return f, open(t, c, "http://registry.test")
}
