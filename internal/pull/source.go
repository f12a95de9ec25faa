package pull

import (
	"context"
	"errors"
	"io"
	"sync"

	"dray/internal/oci"
	"dray/internal/registry"
)

// Source is where an image comes from: a repository of a registry, or an OCI
// image layout on disk.
type Source interface {
	// Resolve returns the manifest or index that the digest or, without one, the
	// tag names, with its bytes, whose digest and size are those of the descriptor.
	Resolve(ctx context.Context, tag string, digest oci.Digest) (oci.Descriptor, []byte, error)
	// Blob returns the bytes of d from offset on, not yet verified. Transient
	// faults are retried inside. The caller closes the reader; ending ctx ends a
	// Read that waits.
	Blob(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error)
	// Close gives up what the source holds. The engine calls it once, when the
	// pull and every flight that it started have ended.
	Close() error
}

// Ranged is a [Source] that has parts of a blob.
type Ranged interface {
	// BlobParts returns what opens parts of d, not verified, as [Source.Blob] does all
	// of it. It asks nobody; what it returns is safe for concurrent use, and fails where
	// more would have to be transferred than was asked for.
	BlobParts(d oci.Descriptor) (open func(ctx context.Context, offset, size int64) (io.ReadCloser, error), err error)
}

var _ Ranged = (*registry.Repository)(nil)

// sharedSource closes its source when the last user is done: a flight may outlive
// the pull that started it.
type sharedSource struct {
	Source
	local bool

	mu    sync.Mutex // guards users
	users int
	err   error // of Close
}

func (s *sharedSource) retain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
}

func (s *sharedSource) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		s.err = errors.Join(s.err, s.Close())
	}
}
