package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"dray/internal/oci"
)

// Blob returns the bytes [offset, d.Size) of a blob, unverified: who reads them
// puts a [stream.Verifier] around. The reader mends what passes (see the package
// comment) and then returns the error that did not; it reads nothing past
// d.Size. ctx bounds the reader's life, too. The reader must be closed.
//
// Where no endpoint has the blob, d.URLs are tried: layers that may not be
// distributed are kept elsewhere.
func (r *Repository) Blob(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	if _, err := oci.ParseDigest(string(d.Digest)); err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	if offset < 0 || d.Size < 0 || offset > d.Size {
		return nil, fmt.Errorf("open blob %s: offset %d of %d bytes", d.Digest, offset, d.Size)
	}
	if offset == d.Size {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	if int64(len(d.Data)) == d.Size {
		return io.NopCloser(bytes.NewReader(d.Data[offset:])), nil
	}
	b := &blob{repository: r, digest: d.Digest, size: d.Size, sources: r.blobSources(d)}
	reader, err := b.open(ctx, offset)
	if err != nil {
		return nil, fmt.Errorf("read blob %s of %s: %w", d.Digest, r.name, err)
	}
	return reader, nil
}

// BlobRange returns size bytes of a blob from an offset on, unverified, like
// [Repository.Blob]. From a server without ranges more may be transferred than is
// given out.
func (r *Repository) BlobRange(ctx context.Context, d oci.Descriptor, offset, size int64) (io.ReadCloser, error) {
	if _, err := oci.ParseDigest(string(d.Digest)); err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	if offset < 0 || size < 0 || offset > d.Size-size {
		return nil, fmt.Errorf("open blob %s: %d bytes from %d of %d", d.Digest, size, offset, d.Size)
	}
	if size == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	b := &blob{repository: r, digest: d.Digest, size: d.Size, sources: r.blobSources(d)}
	s := b.span(ctx, offset, offset+size)
	s.exact, s.probe = true, true
	if err := s.connect(); err != nil {
		return nil, fmt.Errorf("read blob %s of %s: %w", d.Digest, r.name, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(s, size), s}, nil
}

// BlobParts returns what opens parts of a blob, like [Repository.BlobRange], but
// never has more transferred than what was asked for: [ErrNoRanges] where the host
// does not serve ranges. What one part teaches of the host and of where it redirects
// to, the others know. It may be called by several goroutines.
func (r *Repository) BlobParts(d oci.Descriptor) (open func(ctx context.Context, offset, size int64) (io.ReadCloser, error), err error) {
	if _, err := oci.ParseDigest(string(d.Digest)); err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	b := &blob{repository: r, digest: d.Digest, size: d.Size, sources: r.blobSources(d)}
	return func(ctx context.Context, offset, size int64) (io.ReadCloser, error) {
		if offset < 0 || size <= 0 || offset > d.Size-size {
			return nil, fmt.Errorf("open blob %s: %d bytes from %d of %d", d.Digest, size, offset, d.Size)
		}
		s := b.span(ctx, offset, offset+size)
		s.exact = true
		if b.sources[s.source].health.noRanges.Load() {
			return nil, ErrNoRanges
		}
		if err := s.connect(); err != nil {
			return nil, fmt.Errorf("read blob %s of %s: %w", d.Digest, r.name, err)
		}
		return s, nil
	}, nil
}

// blob is one blob and where it may be had.
type blob struct {
	repository *Repository
	digest     oci.Digest
	size       int64
	sources    []*source // in the order in which they are tried

	mu    sync.Mutex // guards first
	first int        // index of the first source that has not failed
}

func (r *Repository) blobSources(d oci.Descriptor) []*source {
	var sources []*source
	for _, e := range r.endpoints {
		if !e.mirror || !e.down() {
			sources = append(sources, &source{endpoint: e, call: e.pull(http.MethodGet, "blobs/"+string(d.Digest))})
		}
	}
	origin := r.origin()
	for _, address := range d.URLs {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !origin.access.PlainHTTP) {
			continue
		}
		e := &endpoint{
			client: r.client, scheme: u.Scheme, host: u.Host, access: origin.accessTo(u.Host), foreign: u,
			health: r.client.healthOf(u.Scheme + "://" + u.Host),
		}
		sources = append(sources, &source{endpoint: e, call: call{method: http.MethodGet, url: u}})
	}
	return sources
}

// open returns a reader of [offset, size), over several connections if the blob
// is large, its host allows and it pays.
func (b *blob) open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	s := b.span(ctx, offset, b.size)
	ranges := b.repository.client.options.Ranges
	large := ranges.Streams > 1 && b.size-offset >= ranges.MinBytes
	if large && !b.sources[s.source].health.noRanges.Load() {
		s.exact, s.probe, s.end = true, true, offset+ranges.MinBytes/leadShare
	}
	if err := s.connect(); err != nil {
		return nil, err
	}
	if !s.exact {
		return s, nil
	}
	return newWide(ctx, s), nil
}
