//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"dray/internal/oci"
	"dray/internal/registryd"
)

// ParseFault reads CODE/N, cut/N or stall=DURATION/N: every Nth request for a blob
// is answered with the HTTP status, cut off, or answered late.
func ParseFault(s string) (Fault, error) {
	what, every, ok := strings.Cut(s, "/")
	n, err := strconv.ParseInt(every, 10, 64)
	if !ok || err != nil || n < 1 {
		return Fault{}, fmt.Errorf("fault %q: want 503/10, cut/10 or stall=2s/10", s)
	}
	f := Fault{Name: s, Every: n}
	if what == "cut" {
		f.cut = true
		return f, nil
	}
	if d, isStall := strings.CutPrefix(what, "stall="); isStall {
		f.stall, err = time.ParseDuration(d)
	} else if f.code, err = strconv.Atoi(what); err == nil && (f.code < 400 || f.code > 599) {
		err = errors.New("not an error status")
	}
	if err != nil {
		return Fault{}, fmt.Errorf("fault %q: %w", s, err)
	}
	return f, nil
}

// faulty does what the faults say before the registry answers.
type faulty struct {
	next   http.Handler
	faults []Fault
	blobs  atomic.Int64
	count  *counters
}

// ServeHTTP implements http.Handler.
func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.count.requests.Add(1)
	if len(f.faults) > 0 && strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
		n := f.blobs.Add(1)
		for _, fault := range f.faults {
			if n%fault.Every != 0 {
				continue
			}
			switch {
			case fault.code != 0:
				http.Error(w, `{"errors":[]}`, fault.code)
				return
			case fault.cut:
				w = &cutWriter{ResponseWriter: w}
			default:
				_ = waitUntil(r.Context(), time.Now().Add(fault.stall)) // the client may give up
			}
		}
	}
	f.next.ServeHTTP(w, r)
}

// cutWriter ends the connection after half of the body.
type cutWriter struct {
	http.ResponseWriter
	sent int64
}

// Write implements http.ResponseWriter.
func (c *cutWriter) Write(p []byte) (int, error) {
	size, _ := strconv.ParseInt(c.Header().Get("Content-Length"), 10, 64) // 0: cut at once
	if c.sent >= size/2 {
		panic(http.ErrAbortHandler) // how net/http is told to cut a connection
	}
	n, err := c.ResponseWriter.Write(p)
	c.sent += int64(n)
	return n, err
}

// registry is the embedded registry over one network, or one that the user named.
type registry struct {
	address string // HOST[:PORT][/PREFIX]; "": each image is asked where it was pulled from
	plain   bool   // HTTP
	theirs  bool   // not the embedded one: nothing is counted
	count   counters
	stop    func() error
}

// OriginRegistry stands for the registries that the images were pulled from.
const OriginRegistry = "origin"

// namedRegistry is one that the user named: [http://]HOST[:PORT][/PREFIX] with the
// images of the corpus below it, or origin.
func namedRegistry(name string) *registry {
	r := &registry{theirs: true, stop: func() error { return nil }}
	if name != OriginRegistry {
		name = strings.TrimSuffix(name, "/")
		r.address, r.plain = strings.CutPrefix(name, "http://")
		r.address = strings.TrimPrefix(r.address, "https://")
	}
	return r
}

// ErrNoOrigin reports an image that was built, and is in no registry.
var ErrNoOrigin = errors.New("the image was built here: no other registry has it unless you push it there and name that one")

// request is what to ask for an image.
func (r *registry) request(i CorpusImage) (request, error) {
	if r.address != "" {
		return request{reference: r.address + "/" + i.Name + "@" + string(i.Manifest), plain: r.plain}, nil
	}
	ref, err := oci.ParseReference(i.Source)
	if err != nil || ref.Transport != oci.Registry {
		return request{}, fmt.Errorf("image %s: %w", i.Name, ErrNoOrigin)
	}
	return request{reference: ref.Name() + "@" + string(i.Manifest), plain: ref.PlainHTTP}, nil
}

// startRegistry serves the layouts of dir on a loopback port.
func startRegistry(ctx context.Context, dir string, n Network, faults []Fault, logger *slog.Logger) (*registry, error) {
	backend, err := registryd.New(registryd.Options{Dir: dir, ReadOnly: true, Log: logger})
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start registry: %w", err), backend.Close())
	}
	r := &registry{address: listener.Addr().String(), plain: true}
	server := &http.Server{
		Handler:           &faulty{next: backend, faults: faults, count: &r.count},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1) // one value: how serving ended
	go func() { done <- server.Serve(newShapedListener(listener, n, &r.count)) }()
	r.stop = func() error {
		err := server.Close()
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return errors.Join(err, backend.Close())
	}
	return r, nil
}

// warm reads the blobs of an image, so that the registry answers from memory.
func warm(ctx context.Context, dir string) error {
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	if err != nil {
		return fmt.Errorf("warm registry: %w", err)
	}
	buffer := make([]byte, 1<<20)
	for _, name := range blobs {
		f, err := os.Open(name) //nolint:gosec // a blob of the corpus
		if err != nil {
			return fmt.Errorf("warm registry: %w", err)
		}
		for err == nil && ctx.Err() == nil {
			_, err = f.Read(buffer)
		}
		_ = f.Close()
	}
	return context.Cause(ctx)
}
