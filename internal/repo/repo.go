package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
	"dray/internal/stream"
)

// ErrReadOnly reports a change to a repository that was opened to be read.
var ErrReadOnly = errors.New("repository was opened to be read")

// ErrTarget reports a reference that names no place to write to.
var ErrTarget = errors.New("not a target")

// Options of [Open] and [Create].
type Options struct {
	Registry *registry.Client // nil: references to registries are errors
}

// Repository is a place with images. Exactly one of remote and layout is set.
type Repository struct {
	ref     oci.Reference
	remote  *registry.Repository
	layout  *ocidir.Layout
	archive string        // what Commit writes; "" unless ref is an archive to be written
	staging string        // the directory of layout in that case
	lock    *durable.Lock // of staging; nil without
	write   bool
}

// Open opens the repository of ref to be read. Errors wrap [ocidir.ErrNotFound]
// or [ocidir.ErrNotLayout] where there is none; a registry is not asked yet.
func Open(ctx context.Context, ref oci.Reference, o Options) (*Repository, error) {
	r := &Repository{ref: ref}
	if ref.Transport == oci.Registry {
		return r, r.dial(o)
	}
	var err error
	r.layout, err = ocidir.Open(ctx, ref.Path, ref.Transport)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ocidir.ErrNotFound, err)
	}
	return r, err
}

func (r *Repository) dial(o Options) (err error) {
	if o.Registry == nil {
		return fmt.Errorf("open %s: no registry may be asked", r.ref)
	}
	r.remote, err = o.Registry.Repository(r.ref)
	return err
}

// Close releases what the repository holds. What was written to an archive
// without [Repository.Commit] is gone.
func (r *Repository) Close() error {
	var err error
	if r.layout != nil {
		err = r.layout.Close()
	}
	if r.staging != "" {
		err = errors.Join(err, os.RemoveAll(r.staging))
	}
	if r.lock != nil {
		err = errors.Join(err, r.lock.Release())
	}
	return err
}

// Reference returns the reference that was opened.
func (r *Repository) Reference() oci.Reference { return r.ref }

// Root returns the manifest or index that the reference names.
func (r *Repository) Root(ctx context.Context) (oci.Descriptor, []byte, error) {
	return r.Resolve(ctx, r.ref.Tag, r.ref.Digest)
}

// Resolve returns the manifest or index that digest or, without one, tag names,
// with its bytes, whose digest and size are those of the descriptor. In a layout,
// tag "" is its only image.
func (r *Repository) Resolve(ctx context.Context, tag string, digest oci.Digest) (oci.Descriptor, []byte, error) {
	if r.remote != nil {
		return r.remote.Resolve(ctx, tag, digest)
	}
	return r.layout.Resolve(ctx, tag, digest)
}

// Blob returns the bytes of d from offset on, not yet verified. The caller closes
// the reader; ending ctx ends a Read that waits.
func (r *Repository) Blob(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	if r.remote != nil {
		return r.remote.Blob(ctx, d, offset)
	}
	return r.layout.Blob(ctx, d, offset)
}

// ReadBlob returns all bytes of d, verified, at most limit of them.
func (r *Repository) ReadBlob(ctx context.Context, d oci.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("read %s of %s: %d bytes, the limit is %d: %w", d.Digest, r.ref, d.Size, limit, stream.ErrTooLarge)
	}
	body, err := r.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	raw, err := stream.ReadAll(stream.NewVerifier(body, "blob", d.Digest, d.Size), limit)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", d.Digest, r.ref, err)
	}
	return raw, nil
}

// BlobAt returns d to be read at any place, not verified. Each ReadAt of a
// registry's blob is one request, under ctx.
func (r *Repository) BlobAt(ctx context.Context, d oci.Descriptor) io.ReaderAt {
	return &blobAt{ctx: ctx, repository: r, descriptor: d}
}

type blobAt struct {
	ctx        context.Context //nolint:containedctx // io.ReaderAt has no place for it
	repository *Repository
	descriptor oci.Descriptor
}

// ReadAt implements [io.ReaderAt].
func (b *blobAt) ReadAt(p []byte, offset int64) (int, error) {
	want := min(int64(len(p)), max(0, b.descriptor.Size-offset))
	body, err := b.open(offset, want)
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }()
	n, err := io.ReadFull(body, p[:want])
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (b *blobAt) open(offset, size int64) (io.ReadCloser, error) {
	if b.repository.remote != nil {
		return b.repository.remote.BlobRange(b.ctx, b.descriptor, offset, size)
	}
	return b.repository.layout.Blob(b.ctx, b.descriptor, offset)
}

// Has tells whether the repository has a blob, and its size in bytes, -1 where a
// registry does not say.
func (r *Repository) Has(ctx context.Context, digest oci.Digest) (sizeBytes int64, found bool, err error) {
	if r.remote != nil {
		return r.remote.HasBlob(ctx, digest)
	}
	return r.layout.HasBlob(ctx, digest)
}

// Tags returns the names of the repository's images.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	if r.remote != nil {
		return r.remote.Tags(ctx)
	}
	return r.layout.Tags(ctx)
}

// Referrers returns the manifests whose subject is digest, of one artifact type
// or, when that is empty, of all. In a layout they are those of index.json.
func (r *Repository) Referrers(ctx context.Context, digest oci.Digest, artifactType string) ([]oci.Descriptor, error) {
	if r.remote != nil {
		return r.remote.Referrers(ctx, digest, artifactType)
	}
	listed, err := r.layout.Descriptors(ctx)
	if err != nil {
		return nil, err
	}
	var found []oci.Descriptor
	seen := map[oci.Digest]bool{}
	for _, d := range listed {
		if seen[d.Digest] || d.Digest == digest {
			continue
		}
		seen[d.Digest] = true
		_, raw, err := r.layout.Resolve(ctx, "", d.Digest)
		if err != nil {
			return nil, fmt.Errorf("list referrers of %s: %w", digest, err)
		}
		if referrer, ok := referrerOf(d, raw, digest); ok && (artifactType == "" || referrer.ArtifactType == artifactType) {
			found = append(found, referrer)
		}
	}
	return found, nil
}

// referrerOf returns d as a list of referrers shows it (distribution-spec,
// "Listing Referrers"), if raw has the subject.
func referrerOf(d oci.Descriptor, raw []byte, subject oci.Digest) (oci.Descriptor, bool) {
	var document struct {
		MediaType    string                     `json:"mediaType"`
		ArtifactType string                     `json:"artifactType"`
		Config       struct{ MediaType string } `json:"config"`
		Subject      *oci.Descriptor            `json:"subject"`
		Annotations  map[string]string          `json:"annotations"`
	}
	if json.Unmarshal(raw, &document) != nil || document.Subject == nil || document.Subject.Digest != subject {
		return oci.Descriptor{}, false
	}
	referrer := oci.Descriptor{
		MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(raw)),
		ArtifactType: document.ArtifactType, Annotations: document.Annotations,
	}
	if referrer.MediaType == "" {
		referrer.MediaType = document.MediaType
	}
	if referrer.ArtifactType == "" {
		referrer.ArtifactType = document.Config.MediaType
	}
	return referrer, true
}
