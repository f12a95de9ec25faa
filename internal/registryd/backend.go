package registryd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path/filepath"
	"slices"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
)

// backend is what the library asks for. Blobs and referrers never get to it; a
// function that is missing answers with DENIED.
func (s *Server) backend() ociregistry.Interface {
	f := &ociregistry.Funcs{
		NewError:         func(context.Context, string, string) error { return ociregistry.ErrDenied },
		GetManifest_:     s.getManifest,
		GetTag_:          s.getTag,
		ResolveManifest_: s.resolveManifest,
		ResolveTag_:      s.resolveTag,
		Repositories_:    s.repositories,
		Tags_:            s.tags,
	}
	if s.readOnly {
		return f
	}
	f.PushBlob_ = s.pushBlob
	f.PushBlobChunked_ = s.pushBlobChunked
	f.PushBlobChunkedResume_ = s.pushBlobChunkedResume
	f.MountBlob_ = s.mountBlob
	f.PushManifest_ = s.pushManifest
	f.DeleteBlob_ = s.deleteBlob
	f.DeleteManifest_ = s.deleteManifest
	f.DeleteTag_ = s.deleteTag
	return f
}

func errManifestTooLarge() error {
	return ociregistry.NewError("manifest is larger than 4 MiB", ociregistry.ErrManifestInvalid.Code(), nil)
}

// descriptor returns the part of d that the library looks at.
func descriptor(d oci.Descriptor) ociregistry.Descriptor {
	return ociregistry.Descriptor{MediaType: d.MediaType, Digest: ociregistry.Digest(d.Digest), Size: d.Size}
}

// blobError says in the protocol's words what a layout says of a blob.
func blobError(err error) error {
	switch {
	case errors.Is(err, stream.ErrMismatch):
		return ociregistry.NewError(err.Error(), ociregistry.ErrDigestInvalid.Code(), nil)
	case errors.Is(err, ocidir.ErrNotFound):
		return ociregistry.ErrBlobUnknown
	}
	return err
}

// manifestError is blobError for manifests. A digest that is not a manifest's is
// one that is unknown.
func manifestError(err error) error {
	switch {
	case errors.Is(err, ocidir.ErrNotFound), errors.Is(err, oci.ErrManifest), errors.Is(err, stream.ErrTooLarge):
		return ociregistry.ErrManifestUnknown
	}
	return err
}

type manifestReader struct {
	*bytes.Reader
	d oci.Descriptor
}

func (manifestReader) Close() error                         { return nil }
func (m manifestReader) Descriptor() ociregistry.Descriptor { return descriptor(m.d) }

func (s *Server) getManifest(ctx context.Context, repository string, digest ociregistry.Digest) (ociregistry.BlobReader, error) {
	d, raw, err := s.resolve(ctx, repository, "", string(digest))
	if err != nil {
		return nil, err
	}
	return manifestReader{bytes.NewReader(raw), d}, nil
}

func (s *Server) getTag(ctx context.Context, repository, tag string) (ociregistry.BlobReader, error) {
	d, raw, err := s.resolve(ctx, repository, tag, "")
	if err != nil {
		return nil, err
	}
	return manifestReader{bytes.NewReader(raw), d}, nil
}

func (s *Server) resolveManifest(ctx context.Context, repository string, digest ociregistry.Digest) (ociregistry.Descriptor, error) {
	d, _, err := s.resolve(ctx, repository, "", string(digest))
	return descriptor(d), err
}

func (s *Server) resolveTag(ctx context.Context, repository, tag string) (ociregistry.Descriptor, error) {
	d, _, err := s.resolve(ctx, repository, tag, "")
	return descriptor(d), err
}

// resolve returns a manifest by tag or by digest.
func (s *Server) resolve(ctx context.Context, repository, tag, digestText string) (oci.Descriptor, []byte, error) {
	var digest oci.Digest
	var err error
	if tag == "" {
		if digest, err = oci.ParseDigest(digestText); err != nil {
			return oci.Descriptor{}, nil, ociregistry.ErrDigestInvalid
		}
	}
	l, err := s.layout(ctx, repository)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	defer func() { _ = l.Close() }()
	if tag != "" {
		if tag, err = nameOf(ctx, l, repository, tag); err != nil {
			return oci.Descriptor{}, nil, err
		}
	}
	d, raw, err := l.Resolve(ctx, tag, digest)
	if err != nil {
		return oci.Descriptor{}, nil, manifestError(err)
	}
	return d, raw, nil
}

// nameOf returns the name by which the layout knows repository:tag: the tag, or
// else a full reference to this repository on whatever host.
func nameOf(ctx context.Context, l *ocidir.Layout, repository, tag string) (string, error) {
	names, err := l.Tags(ctx)
	if err != nil || slices.Contains(names, tag) {
		return tag, err
	}
	for _, name := range names {
		ref, err := oci.ParseReference(name)
		if err == nil && ref.Tag == tag && ocidir.TagOf(name) == tag && (ref.Repository == repository || ref.Name() == repository) {
			return name, nil
		}
	}
	return tag, nil
}

func (s *Server) tags(ctx context.Context, repository, startAfter string) iter.Seq2[string, error] {
	l, err := s.layout(ctx, repository)
	if err != nil {
		return ociregistry.ErrorSeq[string](err)
	}
	names, err := l.Tags(ctx)
	if err := errors.Join(err, l.Close()); err != nil {
		return ociregistry.ErrorSeq[string](err)
	}
	tags := map[string]bool{}
	for _, name := range names {
		if tag := ocidir.TagOf(name); tag > startAfter && ociref.IsValidTag(tag) {
			tags[tag] = true
		}
	}
	return ociregistry.SliceSeq(slices.Sorted(maps.Keys(tags)))
}

// repositories lists the layouts, or the repositories that the only layout names.
func (s *Server) repositories(ctx context.Context, startAfter string) iter.Seq2[string, error] {
	found := map[string]bool{}
	var err error
	if s.single {
		err = s.namedRepositories(ctx, found)
	} else {
		err = filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			if entry.IsDir() {
				if reserved(entry.Name()) {
					return fs.SkipDir
				}
				return nil
			}
			name, err := filepath.Rel(s.dir, filepath.Dir(path))
			if entry.Name() == "oci-layout" && validRepository(filepath.ToSlash(name)) {
				found[filepath.ToSlash(name)] = true
			}
			return err
		})
	}
	if err != nil {
		return ociregistry.ErrorSeq[string](err)
	}
	return ociregistry.SliceSeq(slices.DeleteFunc(slices.Sorted(maps.Keys(found)), func(name string) bool { return name <= startAfter }))
}

func (s *Server) namedRepositories(ctx context.Context, found map[string]bool) error {
	l, err := ocidir.Open(ctx, s.dir, oci.LayoutDir)
	if err != nil {
		return err
	}
	names, err := l.Tags(ctx)
	for _, name := range names {
		if ocidir.TagOf(name) == name {
			continue // a bare tag names no repository
		}
		if ref, err := oci.ParseReference(name); err == nil {
			found[ref.Repository] = true
		}
	}
	return errors.Join(err, l.Close())
}

// referrers reads what index.json lists: a layout has no other list of them.
func (s *Server) referrers(ctx context.Context, repository string, subject oci.Digest, artifactType string) ([]oci.Descriptor, error) {
	l, err := s.layout(ctx, repository)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	descriptors, err := l.Descriptors(ctx)
	if err != nil {
		return nil, err
	}
	found := []oci.Descriptor{} // "manifests" is a list, even without any
	seen := map[oci.Digest]bool{}
	for _, listed := range descriptors {
		if seen[listed.Digest] {
			continue
		}
		seen[listed.Digest] = true
		d, raw, err := l.Resolve(ctx, "", listed.Digest)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			continue // one broken image does not hide the others
		}
		var m oci.Manifest // an index has the same fields
		if json.Unmarshal(raw, &m) != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
		if d.ArtifactType == "" {
			d.ArtifactType = m.Config.MediaType
		}
		if artifactType == "" || d.ArtifactType == artifactType {
			found = append(found, d)
		}
	}
	return found, nil
}

func (s *Server) pushBlob(ctx context.Context, repository string, d ociregistry.Descriptor, r io.Reader) (ociregistry.Descriptor, error) {
	digest, err := oci.ParseDigest(string(d.Digest))
	if err != nil {
		return ociregistry.Descriptor{}, ociregistry.ErrDigestInvalid
	}
	l, err := s.create(ctx, repository)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	put, err := l.PutBlob(ctx, oci.Descriptor{Digest: digest, Size: d.Size}, r)
	if err := errors.Join(err, l.Close()); err != nil {
		return ociregistry.Descriptor{}, blobError(err)
	}
	_, _ = io.Copy(io.Discard, r) // a blob that was there already is sent all the same
	return descriptor(put), nil
}

func (s *Server) pushBlobChunked(ctx context.Context, repository string, _ int) (ociregistry.BlobWriter, error) {
	l, err := s.create(ctx, repository)
	if err != nil {
		return nil, err
	}
	up, err := s.uploads.begin(repository, l)
	if err != nil {
		return nil, err
	}
	return &blobWriter{uploads: s.uploads, up: up}, nil
}

// pushBlobChunkedResume does not look at the offset: see [uploads.checkRange].
func (s *Server) pushBlobChunkedResume(_ context.Context, repository, id string, _ int64, _ int) (ociregistry.BlobWriter, error) {
	up, err := s.uploads.take(repository, id)
	if err != nil {
		return nil, err
	}
	return &blobWriter{uploads: s.uploads, up: up}, nil
}

func (s *Server) mountBlob(ctx context.Context, from, to string, digest ociregistry.Digest) (ociregistry.Descriptor, error) {
	parsed, err := oci.ParseDigest(string(digest))
	if err != nil {
		return ociregistry.Descriptor{}, ociregistry.ErrDigestInvalid
	}
	source, err := s.layout(ctx, from)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	defer func() { _ = source.Close() }()
	l, err := s.create(ctx, to)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	d, err := l.LinkBlob(ctx, source, parsed)
	if err := errors.Join(err, l.Close()); err != nil {
		return ociregistry.Descriptor{}, blobError(err)
	}
	return descriptor(d), nil
}

func (s *Server) pushManifest(ctx context.Context, repository, tag string, raw []byte, mediaType string) (ociregistry.Descriptor, error) {
	l, err := s.create(ctx, repository)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	defer func() { _ = l.Close() }()
	if err := complete(ctx, l, raw, mediaType); err != nil {
		return ociregistry.Descriptor{}, err
	}
	d, err := l.PutManifest(ctx, tag, mediaType, raw)
	if errors.Is(err, oci.ErrManifest) {
		return ociregistry.Descriptor{}, ociregistry.NewError(err.Error(), ociregistry.ErrManifestInvalid.Code(), nil)
	}
	return descriptor(d), err
}

// complete checks that a manifest's blobs are there, but for layers that lie
// elsewhere. Indexes may name manifests that were never pushed.
func complete(ctx context.Context, l *ocidir.Layout, raw []byte, mediaType string) error {
	if !oci.IsManifest(mediaType) {
		return nil
	}
	document, err := oci.DecodeDocument(raw, mediaType)
	if err != nil || document.Manifest == nil {
		return nil //nolint:nilerr // PutManifest says what is wrong
	}
	for _, d := range append(document.Manifest.Layers, document.Manifest.Config) {
		if len(d.URLs) > 0 {
			continue
		}
		_, found, err := l.HasBlob(ctx, d.Digest)
		if err != nil {
			return err
		}
		if !found {
			return ociregistry.NewError("blob "+string(d.Digest)+" is not in this repository", ociregistry.ErrManifestBlobUnknown.Code(), nil)
		}
	}
	return nil
}

func (s *Server) deleteBlob(ctx context.Context, repository string, digest ociregistry.Digest) error {
	return s.remove(ctx, repository, digest, func(l *ocidir.Layout, d oci.Digest) error {
		return blobError(l.DeleteBlob(ctx, d))
	})
}

func (s *Server) deleteManifest(ctx context.Context, repository string, digest ociregistry.Digest) error {
	return s.remove(ctx, repository, digest, func(l *ocidir.Layout, d oci.Digest) error {
		if _, _, err := l.Resolve(ctx, "", d); err != nil { // a layer is no manifest
			return manifestError(err)
		}
		return manifestError(l.Delete(ctx, d))
	})
}

func (s *Server) remove(ctx context.Context, repository string, digest ociregistry.Digest, do func(*ocidir.Layout, oci.Digest) error) error {
	parsed, err := oci.ParseDigest(string(digest))
	if err != nil {
		return ociregistry.ErrDigestInvalid
	}
	l, err := s.layout(ctx, repository)
	if err != nil {
		return err
	}
	return errors.Join(do(l, parsed), l.Close())
}

func (s *Server) deleteTag(ctx context.Context, repository, tag string) error {
	l, err := s.layout(ctx, repository)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	name, err := nameOf(ctx, l, repository, tag)
	if err != nil {
		return err
	}
	return manifestError(l.Untag(ctx, name))
}
