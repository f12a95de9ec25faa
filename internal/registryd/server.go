package registryd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"cuelabs.dev/go/oci/ociregistry/ociserver"

	"dray/internal/oci"
	"dray/internal/ocidir"
)

// Time-outs of the server. Bodies have none: a slow client is a client.
const (
	headerTimeout   = 10 * time.Second
	shutdownTimeout = 5 * time.Second
)

// Options are the settings of a [Server].
type Options struct {
	// Dir holds the layouts; it is made when missing, unless ReadOnly.
	Dir string
	// ReadOnly refuses pushes and deletions.
	ReadOnly bool
	// Log takes a line for each request (debug) and for each fault of ours
	// (error). nil discards.
	Log *slog.Logger
}

// Server is the registry as an [http.Handler].
type Server struct {
	dir      string
	single   bool // dir is one layout
	readOnly bool
	log      *slog.Logger
	protocol http.Handler
	uploads  uploads
	active   sync.WaitGroup // requests that are being answered
}

var _ http.Handler = (*Server)(nil)

// New returns a registry over o.Dir. Whether that is one layout is decided here.
func New(o Options) (*Server, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if !o.ReadOnly {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // readable by all, as layouts are
			return nil, fmt.Errorf("open registry: %w", err)
		}
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("open registry: %s is not a directory", dir)
	}
	_, err = os.Lstat(filepath.Join(dir, "index.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	s := &Server{dir: dir, single: err == nil, readOnly: o.ReadOnly, log: log, uploads: newUploads()}
	s.protocol = ociserver.New(s.backend(), &ociserver.Options{DebugID: "dray", WriteError: s.writeError})
	return s, nil
}

// Close waits for requests that are being answered and gives up the uploads that are
// under way. What serves s must have stopped.
func (s *Server) Close() error {
	s.active.Wait()
	return s.uploads.close()
}

// Serve answers on listener until ctx ends, then lets requests that are under way
// finish for a moment. It closes the listener. A stop by ctx is not an error.
func Serve(ctx context.Context, s *Server, listener net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	served := make(chan error, 1) // so that its sender never waits
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve registry: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		_ = server.Close() // connections that are still busy are cut
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve registry: %w", err)
	}
	return nil
}

// ServeHTTP implements [http.Handler]. Blobs and referrers are answered here, the
// rest by the library, after what it does not check.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.active.Add(1)
	defer s.active.Done()
	s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("method", r.Method), slog.String("path", r.URL.Path))
	t := parse(r.URL.Path)
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	var err error
	switch {
	case t.kind == "blobs" && t.last != "uploads" && read:
		err = s.serveBlob(w, r, t)
	case t.kind == "referrers" && r.Method == http.MethodGet:
		err = s.serveReferrers(w, r, t)
	default:
		if err = s.prepare(w, r, t); err == nil {
			s.protocol.ServeHTTP(w, r)
		}
	}
	if err != nil {
		s.writeError(w, r, err)
	}
}

// target is a path of the protocol: /v2/<repository>/<kind>/<last>.
type target struct{ repository, kind, last string }

func parse(path string) target {
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/v2/"), "/")
	rest, last := cutLast(path)
	repository, kind := cutLast(rest)
	if kind == "uploads" {
		repository = strings.TrimSuffix(repository, "/blobs")
	}
	return target{repository, kind, last}
}

func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, '/')
	return s[:max(i, 0)], s[i+1:]
}

// prepare checks what the library leaves open.
func (s *Server) prepare(w http.ResponseWriter, r *http.Request, t target) error {
	switch {
	case t.kind == "manifests" && r.Method == http.MethodPut:
		if r.ContentLength > ocidir.MaxManifestBytes {
			return errManifestTooLarge()
		}
		r.Body = http.MaxBytesReader(w, r.Body, ocidir.MaxManifestBytes)
	case t.kind == "blobs" && t.last == "uploads" && r.Method == http.MethodPost:
		return s.prepareMount(r, t)
	case t.kind == "uploads" && r.Header.Get("Content-Range") != "":
		return s.uploads.checkRange(t.last, r.Header.Get("Content-Range"))
	case t.kind == "tags" || t.last == "_catalog":
		w.Header().Set("Content-Type", "application/json")
	}
	return nil
}

// prepareMount turns a mount of what the other repository does not have into the
// beginning of an upload, as the specification wants it.
func (s *Server) prepareMount(r *http.Request, t target) error {
	query := r.URL.Query()
	digest, err := oci.ParseDigest(query.Get("mount"))
	if err != nil || query.Get("from") == "" {
		return nil //nolint:nilerr // not a mount, or one that the library refuses
	}
	if !validRepository(t.repository) || !validRepository(query.Get("from")) {
		return ociregistry.ErrNameInvalid
	}
	from, err := s.layout(r.Context(), query.Get("from"))
	if errors.Is(err, ociregistry.ErrNameUnknown) {
		r.URL.RawQuery = ""
		return nil
	}
	if err != nil {
		return err
	}
	_, found, err := from.HasBlob(r.Context(), digest)
	if !found {
		r.URL.RawQuery = ""
	}
	return errors.Join(err, from.Close())
}

// writeError answers with err; what is not the client's fault is logged and not
// told.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	if _, status := ociregistry.MarshalError(err); status == http.StatusInternalServerError && r.Context().Err() == nil {
		s.log.LogAttrs(r.Context(), slog.LevelError, "request", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
		err = errors.New("internal error; see the registry's log")
	}
	for name := range w.Header() {
		if strings.HasPrefix(name, "Content-") {
			w.Header().Del(name)
		}
	}
	_ = ociregistry.WriteError(w, err) // the client is gone
}

// serveBlob sends a blob, whole or in ranges.
func (s *Server) serveBlob(w http.ResponseWriter, r *http.Request, t target) error {
	digest, err := oci.ParseDigest(t.last)
	if err != nil {
		return ociregistry.ErrDigestInvalid
	}
	l, err := s.layout(r.Context(), t.repository)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	f, _, err := l.OpenBlob(digest)
	if errors.Is(err, ocidir.ErrNotFound) {
		return ociregistry.ErrBlobUnknown
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", string(digest))
	w.Header().Set("ETag", `"`+string(digest)+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}

// serveReferrers lists what has a digest for its subject.
func (s *Server) serveReferrers(w http.ResponseWriter, r *http.Request, t target) error {
	subject, err := oci.ParseDigest(t.last)
	if err != nil {
		return ociregistry.ErrDigestInvalid
	}
	artifactType := r.URL.Query().Get("artifactType")
	found, err := s.referrers(r.Context(), t.repository, subject, artifactType)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Manifests: found})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", oci.MediaTypeIndex)
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	_, _ = w.Write(raw) // the client is gone
	return nil
}

// reserved are the names that a layout's files have: no repository may lie there.
func reserved(part string) bool {
	return part == "blobs" || part == "index.json" || part == "oci-layout"
}

func validRepository(name string) bool {
	const maxBytes = 255
	if len(name) > maxBytes || !ociref.IsValidRepository(name) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if reserved(part) {
			return false
		}
	}
	return true
}

// layout opens the layout of a repository; NAME_UNKNOWN when there is none. The
// caller closes it.
func (s *Server) layout(ctx context.Context, repository string) (*ocidir.Layout, error) {
	dir, err := s.layoutDir(repository)
	if err != nil {
		return nil, err
	}
	l, err := ocidir.Open(ctx, dir, oci.LayoutDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ocidir.ErrNotLayout) {
		return nil, ociregistry.ErrNameUnknown
	}
	return l, err
}

// create opens the layout of a repository and makes it when there is none.
func (s *Server) create(ctx context.Context, repository string) (*ocidir.Layout, error) {
	dir, err := s.layoutDir(repository)
	if err != nil {
		return nil, err
	}
	l, err := ocidir.Open(ctx, dir, oci.LayoutDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ocidir.ErrNotLayout) {
		return ocidir.Create(ctx, dir)
	}
	return l, err
}

func (s *Server) layoutDir(repository string) (string, error) {
	if !validRepository(repository) {
		return "", ociregistry.ErrNameInvalid
	}
	if s.single {
		return s.dir, nil
	}
	return filepath.Join(s.dir, filepath.FromSlash(repository)), nil
}
