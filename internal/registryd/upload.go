package registryd

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
)

// Uploads that nobody continues are given up, so that they do not fill the disk.
const (
	uploadIdle  = time.Hour
	maxUploads  = 1024
	minChunk    = 1 // bytes; any size of chunk will do
	uploadIDLen = 26
)

// uploads are the blobs that clients are sending in pieces.
type uploads struct {
	mu   *sync.Mutex // guards byID, and inUse and since of each upload
	byID map[string]*upload
}

// upload is one of them. A request that works on it has it to itself.
type upload struct {
	repository string
	id         string
	layout     *ocidir.Layout
	staged     *ocidir.Staged
	inUse      bool
	since      time.Time // of the last request
}

func newUploads() uploads { return uploads{mu: new(sync.Mutex), byID: map[string]*upload{}} }

// begin takes ownership of layout.
func (u uploads) begin(repository string, layout *ocidir.Layout) (*upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, old := range u.byID {
		if !old.inUse && time.Since(old.since) > uploadIdle {
			_ = u.end(old)
		}
	}
	if len(u.byID) >= maxUploads {
		return nil, errors.Join(ociregistry.ErrTooManyRequests, layout.Close())
	}
	staged, err := layout.Stage()
	if err != nil {
		return nil, errors.Join(err, layout.Close())
	}
	up := &upload{repository: repository, id: rand.Text(), layout: layout, staged: staged, inUse: true}
	u.byID[up.id] = up
	return up, nil
}

// take gives the upload to one request.
func (u uploads) take(repository, id string) (*upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.byID[id]
	if up == nil || up.repository != repository {
		return nil, ociregistry.ErrBlobUploadUnknown
	}
	if up.inUse {
		return nil, ociregistry.NewError("another request is working on this upload", ociregistry.ErrBlobUploadInvalid.Code(), nil)
	}
	up.inUse = true
	return up, nil
}

// put gives the upload back, to be continued.
func (u uploads) put(up *upload) {
	u.mu.Lock()
	defer u.mu.Unlock()
	up.inUse, up.since = false, time.Now()
}

// drop ends the upload that the caller has.
func (u uploads) drop(up *upload) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.end(up)
}

func (u uploads) end(up *upload) error {
	if u.byID[up.id] != up {
		return nil
	}
	delete(u.byID, up.id)
	up.staged.Abort()
	return up.layout.Close()
}

func (u uploads) close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	for _, up := range u.byID {
		errs = append(errs, u.end(up))
	}
	return errors.Join(errs...)
}

// checkRange refuses a chunk that does not begin where the upload stands. The
// library tells no difference between a chunk at 0 and one without a range.
func (u uploads) checkRange(id64, contentRange string) error {
	id, err := base64.RawURLEncoding.DecodeString(id64)
	if err != nil || len(id) != uploadIDLen {
		return nil // the library refuses it
	}
	start, _, _ := strings.Cut(contentRange, "-")
	offset, err := strconv.ParseInt(start, 10, 64)
	if err != nil {
		return nil // the library refuses it
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.byID[string(id)]
	if up == nil || up.inUse {
		return nil // take refuses it
	}
	if offset != up.staged.Size() {
		return fmt.Errorf("chunk begins at %d, the upload has %d bytes: %w", offset, up.staged.Size(), ociregistry.ErrRangeInvalid)
	}
	return nil
}

var _ ociregistry.BlobWriter = (*blobWriter)(nil)

// blobWriter is an upload in the hands of a request.
type blobWriter struct {
	uploads uploads
	up      *upload
	ended   bool
}

// Write implements [io.Writer].
func (w *blobWriter) Write(p []byte) (int, error) { return w.up.staged.Write(p) }

// Close keeps the upload for the next request.
func (w *blobWriter) Close() error {
	if !w.ended {
		w.ended = true
		w.uploads.put(w.up)
	}
	return nil
}

// Size implements [ociregistry.BlobWriter].
func (w *blobWriter) Size() int64 { return w.up.staged.Size() }

// ChunkSize implements [ociregistry.BlobWriter].
func (w *blobWriter) ChunkSize() int { return minChunk }

// ID implements [ociregistry.BlobWriter].
func (w *blobWriter) ID() string { return w.up.id }

// Commit implements [ociregistry.BlobWriter]. Whatever comes of it, the upload has
// ended.
func (w *blobWriter) Commit(digest ociregistry.Digest) (ociregistry.Descriptor, error) {
	want, err := oci.ParseDigest(string(digest))
	if err != nil {
		return ociregistry.Descriptor{}, ociregistry.ErrDigestInvalid
	}
	if w.ended {
		return ociregistry.Descriptor{}, ociregistry.ErrBlobUploadInvalid
	}
	w.ended = true
	d, err := w.up.staged.Commit(want, stream.AnySize)
	if err := errors.Join(err, w.uploads.drop(w.up)); err != nil {
		return ociregistry.Descriptor{}, blobError(err)
	}
	return descriptor(d), nil
}

// Cancel implements [ociregistry.BlobWriter].
func (w *blobWriter) Cancel() error {
	if w.ended {
		return nil
	}
	w.ended = true
	return w.uploads.drop(w.up)
}
