package testkit

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dray/internal/registryd"
)

// Server is a registry that may misbehave. It counts what it is asked.
type Server struct {
	URL    string // http://127.0.0.1:PORT
	Host   string // 127.0.0.1:PORT
	CAFile string // what signs its certificate; "" for plain HTTP
	// StorageHost is where [Redirect] sends clients, as to object storage.
	StorageHost string

	backend http.Handler
	closing chan struct{} // closed when stalled answers must end

	mu       sync.Mutex // guards the fields below
	faults   []*fault
	requests []Request
	active   int // requests that are being answered
	tokens   map[string]*token
	signed   map[string]int // uses left of redirected URLs
}

// Request is one that the server has answered.
type Request struct {
	Method, Path, Query string
	Header              http.Header
	Storage             bool // came to the place of [Redirect]
	Status              int
	Bytes               int64 // of the body that was sent
}

// Fault is one way to misbehave, towards requests that match: those whose
// "METHOD /path" contains its part, or, for a part that begins with "STORAGE ", those
// to the host of [Redirect] that contain the rest. The first fault of the list stands
// before the others, as a proxy would.
//
//	testkit.Registry(t, dir,
//		testkit.Status("/manifests/", 503).Times(2),          // twice, then well
//		testkit.Cut("/blobs/", 100_000).After(1).Times(3))    // after the first request
type Fault struct {
	match       string
	after, stop int // how many requests pass before, and how many fail; 0 for all
	wrap        func(s *Server, next http.Handler) http.Handler
}

// fault is a Fault with its counts.
type fault struct {
	Fault
	seen int // guarded by the server's mu
}

// Times limits a fault to that many requests.
func (f Fault) Times(count int) Fault { f.stop = count; return f }

// After lets that many requests pass first.
func (f Fault) After(count int) Fault { f.after = count; return f }

// Registry starts a registry over the layouts in dir, on a free loopback port,
// until the test ends.
//
//	registry := testkit.Registry(t, layoutDir)
//	dray pull registry.Ref("any/name:v1")
func Registry(tb testing.TB, dir string, faults ...Fault) *Server {
	tb.Helper()
	return start(tb, dir, false, faults)
}

// TLSRegistry is Registry over HTTPS, with a certificate for 127.0.0.1 (and not
// for localhost) that [Server.CAFile] signs.
func TLSRegistry(tb testing.TB, dir string, faults ...Fault) *Server {
	tb.Helper()
	return start(tb, dir, true, faults)
}

func start(tb testing.TB, dir string, tls bool, faults []Fault) *Server {
	tb.Helper()
	backend, err := registryd.New(registryd.Options{Dir: dir})
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{backend: backend, closing: make(chan struct{}), tokens: map[string]*token{}, signed: map[string]int{}}
	s.Add(faults...)
	server := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are meant to fail
	if tls {
		server.EnableHTTP2 = true
		server.StartTLS()
		s.CAFile = filepath.Join(tb.TempDir(), "ca.crt")
		raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		if err := os.WriteFile(s.CAFile, raw, 0o600); err != nil {
			tb.Fatal(err)
		}
	} else {
		server.Start()
	}
	storage := httptest.NewServer(http.HandlerFunc(s.serveStorage))
	s.URL, s.Host = server.URL, server.Listener.Addr().String()
	s.StorageHost = storage.Listener.Addr().String()
	tb.Cleanup(func() {
		close(s.closing)
		server.Close()
		storage.Close()
		if err := backend.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Add makes the server misbehave in more ways, from now on.
func (s *Server) Add(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.faults = append(s.faults, &fault{Fault: f})
	}
}

// Mend ends all faults.
func (s *Server) Mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Ref returns a reference to name, "repository:tag", in this registry.
func (s *Server) Ref(name string) string {
	if s.CAFile != "" {
		return s.Host + "/" + name
	}
	return s.URL + "/" + name
}

// CertDir returns a directory in the layout of Docker's certs.d that trusts this
// registry.
func (s *Server) CertDir(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	raw, err := os.ReadFile(s.CAFile)
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, s.Host), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, s.Host, "ca.crt"), raw, 0o600)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Requests returns what was answered until now, in the order of the answers' ends. A
// client may have all of an answer before the server has come to its end, which is waited
// for; not for what stalls.
func (s *Server) Requests() []Request {
	const patience = 10 * time.Second
	for end := time.Now().Add(patience); s.answering() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *Server) answering() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active > 0
}

// Count returns how many requests were answered whose "METHOD /path" contains
// part, and how many bytes of bodies that took.
func (s *Server) Count(part string) (requests int, bytes int64) {
	for _, r := range s.Requests() {
		if strings.Contains(r.Method+" "+r.Path, part) {
			requests++
			bytes += r.Bytes
		}
	}
	return requests, bytes
}

// Forget forgets the requests until now.
func (s *Server) Forget() {
	_ = s.Requests() // those whose answers are there
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// serve passes a request through the faults that want it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	counted := &counter{ResponseWriter: w}
	defer s.record(r, counted, false) // also when a fault cuts the connection
	s.chain(r.Method+" "+r.URL.Path, false).ServeHTTP(counted, r)
}

// storagePrefix begins what faults of the host of [Redirect] match.
const storagePrefix = "STORAGE "

// chain returns the backend behind the faults that a request meets; its answer ends with
// record.
func (s *Server) chain(request string, storage bool) http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
	handler := s.backend
	for _, f := range slices.Backward(s.faults) {
		match, ofStorage := strings.CutPrefix(f.match, storagePrefix)
		if ofStorage != storage || !strings.Contains(request, match) {
			continue
		}
		f.seen++
		if f.seen > f.after && (f.stop == 0 || f.seen <= f.after+f.stop) {
			handler = f.wrap(s, handler)
		}
	}
	return handler
}

func (s *Server) record(r *http.Request, c *counter, storage bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.requests = append(s.requests, Request{
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header.Clone(), Storage: storage, Status: c.status, Bytes: c.bytes,
	})
}

// counter counts what is sent.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counter) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// Unwrap is for [http.ResponseController].
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
