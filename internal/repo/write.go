package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
	"dray/internal/stream"
)

// stagingPrefix marks the directory, beside an archive, that it is made from.
const stagingPrefix = ".dray-archive-"

// Create opens the repository of ref to be written, and makes a layout that is
// missing. ref must not be pinned to a digest. An archive that exists is replaced
// if it has no other images; all else is left alone, an error that wraps [ErrTarget].
func Create(ctx context.Context, ref oci.Reference, o Options) (*Repository, error) {
	if ref.Digest != "" {
		return nil, fmt.Errorf("write to %s: what is written decides the digest: leave out @%s: %w", ref, ref.Digest, ErrTarget)
	}
	r := &Repository{ref: ref, write: true}
	switch ref.Transport {
	case oci.Registry:
		return r, r.dial(o)
	case oci.LayoutDir:
		var err error
		r.layout, err = ocidir.Create(ctx, ref.Path)
		return r, err
	case oci.OCIArchive:
		return r, r.stageArchive(ctx)
	}
	panic("repo: internal error: unknown transport")
}

// stageArchive makes the layout that the archive will be written from.
func (r *Repository) stageArchive(ctx context.Context) error {
	if err := checkReplaced(ctx, r.ref); err != nil {
		return err
	}
	path, err := filepath.Abs(r.ref.Path)
	if err != nil {
		return err
	}
	if err := sweepStaging(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write to %s: %w", r.ref, err)
	}
	staging, err := os.MkdirTemp(filepath.Dir(path), stagingPrefix)
	if err != nil {
		return fmt.Errorf("write to %s: %w", r.ref, err)
	}
	r.archive, r.staging = path, staging
	if r.lock, err = durable.TryAcquire(filepath.Join(staging, lockName), durable.Exclusive); err == nil {
		r.layout, err = ocidir.Create(ctx, staging)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write to %s: %w", r.ref, err), r.Close())
	}
	return nil
}

// lockName is the file in a staging directory whose lock says that it is in use.
const lockName = "lock"

// sweepStaging removes what killed writers of archives left in dir.
func sweepStaging(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, stagingPrefix+"*", lockName))
	if err != nil {
		return err
	}
	for _, name := range left {
		lock, err := durable.TryAcquire(name, durable.Exclusive)
		if err != nil {
			continue // in use, or somebody else's
		}
		if err := errors.Join(os.RemoveAll(filepath.Dir(name)), lock.Release()); err != nil {
			return err
		}
	}
	return nil
}

// checkReplaced refuses to replace what is not an older form of the target.
func checkReplaced(ctx context.Context, ref oci.Reference) error {
	old, err := ocidir.Open(ctx, ref.Path, oci.OCIArchive)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write to %s: something else is there: %w: %w", ref, ErrTarget, err)
	}
	defer func() { _ = old.Close() }()
	names, err := old.Tags(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if ocidir.TagOf(name) != targetTag(ref) {
			return fmt.Errorf("write to %s: the archive has another image, %q, which would be lost: remove the file or write to a new one: %w", ref, name, ErrTarget)
		}
	}
	return nil
}

// targetTag returns the name that an image gets where the reference has none.
func targetTag(ref oci.Reference) string {
	if ref.Tag == "" {
		return oci.DefaultTag
	}
	return ref.Tag
}

// Pushed tells how a blob came to where it is.
type Pushed uint8

// Ways of a blob.
const (
	Found   Pushed = iota // it was there
	Mounted               // the registry took it from another repository, or the file system linked it
	Sent                  // it was transferred
)

// PushBlob brings d from another repository, verified. In a registry it is
// mounted from there where both are of one registry, in a layout linked.
func (r *Repository) PushBlob(ctx context.Context, d oci.Descriptor, from *Repository) (Pushed, error) {
	if err := r.writable(); err != nil {
		return Found, err
	}
	if size, found, err := r.Has(ctx, d.Digest); err != nil {
		return Found, err
	} else if found {
		return Found, sameSize(d, size)
	}
	if mounted, err := r.mount(ctx, d, from); mounted || err != nil {
		return Mounted, err
	}
	if r.remote == nil {
		body, err := from.Blob(ctx, d, 0)
		if err != nil {
			return Sent, err
		}
		defer func() { _ = body.Close() }()
		_, err = r.layout.PutBlob(ctx, d, body)
		return Sent, err
	}
	return Sent, r.remote.PushBlob(ctx, d, func(offset int64) (io.ReadCloser, error) {
		body, err := from.Blob(ctx, d, offset)
		if err != nil || offset > 0 { // then the registry alone can tell whether it is right
			return body, err
		}
		return &verified{stream.NewVerifier(body, "blob", d.Digest, d.Size), body}, nil
	})
}

// verified is a blob's body whose end is an error where it is not what it should be.
type verified struct {
	io.Reader
	io.Closer
}

func sameSize(d oci.Descriptor, size int64) error {
	if size >= 0 && d.Size >= 0 && size != d.Size {
		return &stream.MismatchError{What: "blob", Want: d.Digest, WantSize: d.Size, GotSize: size}
	}
	return nil
}

// mount takes a blob over without its bytes, where that is possible.
func (r *Repository) mount(ctx context.Context, d oci.Descriptor, from *Repository) (bool, error) {
	switch {
	case r.remote != nil && from.remote != nil:
		if from.ref.Host != r.ref.Host || from.ref.Repository == r.ref.Repository {
			return false, nil
		}
		mounted, err := r.remote.MountBlob(ctx, d.Digest, from.ref.Repository)
		if err != nil && ctx.Err() == nil && !errors.Is(err, registry.ErrUnreachable) {
			return false, nil // it is sent the blob
		}
		return mounted, err
	case r.layout != nil && from.layout != nil && from.ref.Transport == oci.LayoutDir:
		// A linked file is not read, so that it is verified here, once.
		if err := from.verify(ctx, d); err != nil {
			return false, err
		}
		linked, err := r.layout.LinkBlob(ctx, from.layout, d.Digest)
		if err == nil {
			err = sameSize(d, linked.Size)
		}
		return err == nil, err
	}
	return false, nil
}

func (r *Repository) verify(ctx context.Context, d oci.Descriptor) error {
	body, err := r.Blob(ctx, d, 0)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.Copy(io.Discard, stream.NewVerifier(body, "blob", d.Digest, d.Size))
	return err
}

// MountBlob takes d over from another repository of the same registry, if it is
// there and the registry allows it, and tells whether it did. A layout has no others.
func (r *Repository) MountBlob(ctx context.Context, d oci.Descriptor, repository string) (bool, error) {
	if err := r.writable(); err != nil || r.remote == nil {
		return false, err
	}
	return r.remote.MountBlob(ctx, d.Digest, repository)
}

// PutBlob stores a small blob and returns its digest and size.
func (r *Repository) PutBlob(ctx context.Context, mediaType string, raw []byte) (oci.Descriptor, error) {
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestBytes(raw), Size: int64(len(raw))}
	return d, r.PutFrom(ctx, d, bytes.NewReader(raw))
}

// PutFrom stores a blob that can be read again.
func (r *Repository) PutFrom(ctx context.Context, d oci.Descriptor, blob io.ReaderAt) error {
	if err := r.writable(); err != nil {
		return err
	}
	if r.remote == nil {
		_, err := r.layout.PutBlob(ctx, d, io.NewSectionReader(blob, 0, d.Size))
		return err
	}
	return r.remote.PushBlob(ctx, d, func(offset int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(blob, offset, d.Size-offset)), nil
	})
}

// StreamBlob stores a blob while it is made, so that it is kept nowhere else.
// produce writes it and returns its digest and size, which are verified. It may be
// called again, one call after the other, and must then write the same bytes.
func (r *Repository) StreamBlob(ctx context.Context, produce func(ctx context.Context, w io.Writer) (oci.Descriptor, error)) (oci.Descriptor, error) {
	if err := r.writable(); err != nil {
		return oci.Descriptor{}, err
	}
	if r.remote != nil {
		return r.remote.PushStream(ctx, produce)
	}
	staged, err := r.layout.Stage()
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer staged.Abort()
	d, err := produce(ctx, staged)
	if err != nil {
		return oci.Descriptor{}, err
	}
	_, err = staged.Commit(d.Digest, d.Size)
	return d, err
}

// PutManifest stores a manifest or index under its digest, without a name; what it
// names must be there. One with a subject is listed with the subject's referrers.
func (r *Repository) PutManifest(ctx context.Context, mediaType string, raw []byte) (oci.Descriptor, error) {
	if err := r.writable(); err != nil {
		return oci.Descriptor{}, err
	}
	if r.remote != nil {
		return r.remote.PushManifest(ctx, "", mediaType, raw)
	}
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestBytes(raw), Size: int64(len(raw))}
	if hasSubject(raw) {
		return r.layout.PutManifest(ctx, "", mediaType, raw)
	}
	// index.json is for what is named and for referrers; the rest is found from there.
	_, err := r.layout.PutBlob(ctx, d, bytes.NewReader(raw))
	return d, err
}

// Tag gives the name of the reference to d, a manifest that was put. A layout's
// image without one is "latest".
func (r *Repository) Tag(ctx context.Context, d oci.Descriptor) error {
	return r.TagAs(ctx, d, r.TargetTag())
}

// TargetTag returns the name that [Repository.Tag] gives.
func (r *Repository) TargetTag() string { return targetTag(r.ref) }

// TagAs is Tag with another name.
func (r *Repository) TagAs(ctx context.Context, d oci.Descriptor, tag string) error {
	if err := r.writable(); err != nil {
		return err
	}
	if r.remote == nil {
		return r.layout.Tag(ctx, oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, tag)
	}
	_, raw, err := r.remote.Resolve(ctx, "", d.Digest)
	if err != nil {
		return err
	}
	_, err = r.remote.PushManifest(ctx, tag, d.MediaType, raw)
	return err
}

// Commit makes an archive of what was written; elsewhere all is there already.
func (r *Repository) Commit(ctx context.Context) (err error) {
	if r.archive == "" {
		return r.writable()
	}
	f, err := os.Create(filepath.Join(r.staging, "archive"))
	if err != nil {
		return fmt.Errorf("write %s: %w", r.ref, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", r.ref, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	err = errors.Join(r.layout.WriteArchive(ctx, f), f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), r.archive); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(r.archive))
}

func (r *Repository) writable() error {
	if !r.write {
		return fmt.Errorf("write to %s: %w", r.ref, ErrReadOnly)
	}
	return nil
}

func hasSubject(raw []byte) bool {
	var probe struct {
		Subject *oci.Descriptor `json:"subject"`
	}
	return json.Unmarshal(raw, &probe) == nil && probe.Subject != nil
}
