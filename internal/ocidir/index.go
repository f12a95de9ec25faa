package ocidir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/stream"
)

// maxNamesListed bounds how many names an error lists.
const maxNamesListed = 10

// Resolve returns the manifest or index that digest or, without one, tag names,
// with its bytes, verified against the digest and limited to [MaxManifestBytes].
// tag is the name that index.json gives, or the tag of the full reference there;
// "" takes the only image of the layout or, of several, "latest". Errors wrap
// [ErrNotFound] and list what there is.
func (l *Layout) Resolve(ctx context.Context, tag string, digest oci.Digest) (oci.Descriptor, []byte, error) {
	if ctx.Err() != nil {
		return oci.Descriptor{}, nil, context.Cause(ctx)
	}
	d, err := l.find(tag, digest)
	if err != nil {
		return oci.Descriptor{}, nil, fmt.Errorf("resolve in %s: %w", l.path, err)
	}
	raw, err := l.manifest(d)
	if err != nil {
		return oci.Descriptor{}, nil, fmt.Errorf("resolve in %s: %w", l.path, err)
	}
	d = oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(raw))}
	if d.MediaType == "" {
		document, err := oci.DecodeDocument(raw, "")
		if err != nil {
			return oci.Descriptor{}, nil, fmt.Errorf("resolve in %s: %s: %w", l.path, d.Digest, err)
		}
		d.MediaType = document.MediaType
	}
	return d, raw, nil
}

// find returns the descriptor of index.json that is asked for. A digest that is
// not there may be that of an index's child: the blob itself decides.
func (l *Layout) find(tag string, digest oci.Digest) (oci.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return oci.Descriptor{}, err
	}
	if digest == "" {
		return pick(index.Manifests, tag)
	}
	for _, d := range index.Manifests {
		if d.Digest == digest {
			return d, nil
		}
	}
	return oci.Descriptor{Digest: digest, Size: stream.AnySize}, nil
}

// pick returns the one descriptor that tag names.
func pick(descriptors []oci.Descriptor, tag string) (oci.Descriptor, error) {
	named := func(match func(name string) bool) []oci.Descriptor {
		var found []oci.Descriptor
		for _, d := range descriptors {
			same := func(o oci.Descriptor) bool { return o.Digest == d.Digest }
			if match(d.Annotations[AnnotationRefName]) && !slices.ContainsFunc(found, same) {
				found = append(found, d)
			}
		}
		return found
	}
	var found []oci.Descriptor
	if tag == "" {
		// The only one, or else the one that a tool that is given no name names so.
		if found = named(func(string) bool { return true }); len(found) > 1 {
			if latest := named(func(name string) bool { return TagOf(name) == oci.DefaultTag }); len(latest) == 1 {
				found = latest
			}
		}
	} else if found = named(func(name string) bool { return name == tag }); len(found) == 0 {
		found = named(func(name string) bool { return TagOf(name) == tag })
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(descriptors) == 0:
		return oci.Descriptor{}, fmt.Errorf("the layout has no images: %w", ErrNotFound)
	case len(found) == 0:
		return oci.Descriptor{}, fmt.Errorf("no image is named %q; there are %s: %w", tag, list(descriptors), ErrNotFound)
	case tag == "":
		return oci.Descriptor{}, fmt.Errorf("a tag or digest is needed to choose from %s: %w", list(descriptors), ErrNotFound)
	default:
		return oci.Descriptor{}, fmt.Errorf("%d images are named %q; a digest is needed to choose from %s: %w", len(found), tag, list(found), ErrNotFound)
	}
}

// TagOf returns the tag in a name of index.json: the name itself, or what follows
// the colon of a full reference. A full reference without a tag has none.
func TagOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	slash := strings.LastIndexByte(name, '/')
	if colon := strings.LastIndexByte(name, ':'); colon > slash {
		return name[colon+1:]
	}
	if slash >= 0 {
		return ""
	}
	return name
}

// list names descriptors for an error.
func list(descriptors []oci.Descriptor) string {
	var names []string
	for _, d := range descriptors[:min(len(descriptors), maxNamesListed)] {
		name := d.Annotations[AnnotationRefName]
		if name == "" {
			names = append(names, string(d.Digest))
		} else {
			names = append(names, fmt.Sprintf("%.200q", name))
		}
	}
	if more := len(descriptors) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// manifest returns the bytes of d, verified.
func (l *Layout) manifest(d oci.Descriptor) ([]byte, error) {
	if d.Size > MaxManifestBytes {
		return nil, fmt.Errorf("manifest %s has %d bytes, the limit is %d: %w", d.Digest, d.Size, MaxManifestBytes, stream.ErrTooLarge)
	}
	f, _, err := l.OpenBlob(d.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := stream.ReadAll(stream.NewVerifier(f, "manifest", d.Digest, d.Size), MaxManifestBytes)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return raw, nil
}

// index returns index.json.
func (l *Layout) index() (*oci.Index, error) {
	raw, err := l.read(indexName, maxIndexBytes)
	if err != nil {
		return nil, err
	}
	document, err := oci.DecodeDocument(raw, oci.MediaTypeIndex)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", indexName, err)
	}
	if document.Index == nil {
		return nil, fmt.Errorf("read %s: it is a manifest: %w", indexName, oci.ErrManifest)
	}
	return document.Index, nil
}

// Descriptors returns what index.json lists, in its order.
func (l *Layout) Descriptors(_ context.Context) ([]oci.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, fmt.Errorf("list image layout %s: %w", l.path, err)
	}
	return index.Manifests, nil
}

// Tags returns the names of index.json as they are there, sorted, each once.
func (l *Layout) Tags(ctx context.Context) ([]string, error) {
	descriptors, err := l.Descriptors(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, d := range descriptors {
		if name := d.Annotations[AnnotationRefName]; name != "" {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// PutManifest stores a manifest or index and lists it in index.json, named tag or,
// for "", by its digest alone. mediaType "" leaves the type to the document. A
// document of a type that dray knows is checked; errors wrap [oci.ErrManifest].
func (l *Layout) PutManifest(ctx context.Context, tag, mediaType string, raw []byte) (oci.Descriptor, error) {
	if len(raw) > MaxManifestBytes {
		return oci.Descriptor{}, fmt.Errorf("put manifest: %d bytes, the limit is %d: %w", len(raw), MaxManifestBytes, stream.ErrTooLarge)
	}
	var children []oci.Descriptor
	if mediaType == "" || oci.IsIndex(mediaType) || oci.IsManifest(mediaType) {
		document, err := oci.DecodeDocument(raw, mediaType)
		if err != nil {
			return oci.Descriptor{}, fmt.Errorf("put manifest: %w", err)
		}
		mediaType = document.MediaType
		if document.Index != nil {
			children = document.Index.Manifests
		}
	}
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestBytes(raw), Size: int64(len(raw))}
	if _, err := l.PutBlob(ctx, d, strings.NewReader(string(raw))); err != nil {
		return oci.Descriptor{}, err
	}
	err := l.update(ctx, func(index *oci.Index) error {
		setTag(index, d, tag)
		l.foldChildren(index, children)
		return nil
	})
	return d, err
}

// Tag names d, whose bytes the layout has, in index.json. Another image of that
// name loses it and stays listed by its digest.
func (l *Layout) Tag(ctx context.Context, d oci.Descriptor, tag string) error {
	if _, found, err := l.HasBlob(ctx, d.Digest); err != nil {
		return err
	} else if !found {
		return fmt.Errorf("tag %s in %s: %w", d.Digest, l.path, ErrNotFound)
	}
	return l.update(ctx, func(index *oci.Index) error {
		setTag(index, d, tag)
		return nil
	})
}

// Untag takes a name away; its image stays listed by its digest. [ErrNotFound]
// when nothing has the name.
func (l *Layout) Untag(ctx context.Context, tag string) error {
	return l.update(ctx, func(index *oci.Index) error {
		if tag == "" || !dropName(index, tag) {
			return fmt.Errorf("no image is named %q; there are %s: %w", tag, list(index.Manifests), ErrNotFound)
		}
		return nil
	})
}

// Delete removes a manifest with all of its names. Blobs that it names stay, as
// other images may need them. [ErrNotFound] when there is none.
func (l *Layout) Delete(ctx context.Context, digest oci.Digest) error {
	if err := l.update(ctx, func(index *oci.Index) error {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d oci.Descriptor) bool { return d.Digest == digest })
		return nil
	}); err != nil {
		return err
	}
	return l.DeleteBlob(ctx, digest)
}

// setTag lists d under tag. It replaces an entry of d without a name.
func setTag(index *oci.Index, d oci.Descriptor, tag string) {
	if tag != "" {
		dropName(index, tag)
	}
	same := func(o oci.Descriptor) bool { return o.Digest == d.Digest }
	if tag == "" && slices.ContainsFunc(index.Manifests, same) {
		return
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(o oci.Descriptor) bool { return same(o) && unnamed(o) })
	d.Annotations = maps.Clone(d.Annotations)
	delete(d.Annotations, AnnotationRefName)
	if tag != "" {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[AnnotationRefName] = tag
	}
	index.Manifests = append(index.Manifests, d)
}

// dropName takes a name away from its entries. An image that would no longer be
// listed keeps an entry without a name.
func dropName(index *oci.Index, name string) bool {
	var kept, dropped []oci.Descriptor
	for _, d := range index.Manifests {
		if d.Annotations[AnnotationRefName] == name {
			dropped = append(dropped, d)
		} else {
			kept = append(kept, d)
		}
	}
	for _, d := range dropped {
		if slices.ContainsFunc(kept, func(o oci.Descriptor) bool { return o.Digest == d.Digest }) {
			continue
		}
		d.Annotations = maps.Clone(d.Annotations)
		delete(d.Annotations, AnnotationRefName)
		kept = append(kept, d)
	}
	index.Manifests = kept
	return len(dropped) > 0
}

// foldChildren stops listing what an index contains by its digest alone: it is
// found through the index, and the layout has as many images as its user thinks.
// What has a subject stays, since referrers are looked for in index.json.
func (l *Layout) foldChildren(index *oci.Index, children []oci.Descriptor) {
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d oci.Descriptor) bool {
		return unnamed(d) && slices.ContainsFunc(children, func(c oci.Descriptor) bool { return c.Digest == d.Digest }) && !l.hasSubject(d)
	})
}

// hasSubject tells whether d refers to another image; what cannot be read might.
func (l *Layout) hasSubject(d oci.Descriptor) bool {
	raw, err := l.manifest(d)
	if err != nil {
		return true
	}
	var probe struct {
		Subject json.RawMessage `json:"subject"`
	}
	return json.Unmarshal(raw, &probe) != nil || probe.Subject != nil
}

func unnamed(d oci.Descriptor) bool { return d.Annotations[AnnotationRefName] == "" }

// update changes index.json while it holds the layout's lock. The names of all blobs
// are on the disk before it, once for all that were written.
func (l *Layout) update(ctx context.Context, change func(*oci.Index) error) (err error) {
	if _, err := l.writable(); err != nil {
		return err
	}
	lock, err := durable.Acquire(ctx, filepath.Join(l.dir, markerName), durable.Exclusive)
	if err != nil {
		return fmt.Errorf("write image layout %s: %w", l.path, err)
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	index, err := l.index()
	if err != nil {
		return fmt.Errorf("write image layout %s: %w", l.path, err)
	}
	if err := change(index); err != nil {
		return fmt.Errorf("write image layout %s: %w", l.path, err)
	}
	if err := l.syncBlobs(); err != nil {
		return fmt.Errorf("write image layout %s: %w", l.path, err)
	}
	return writeIndex(filepath.Join(l.dir, indexName), index)
}

func (l *Layout) syncBlobs() error {
	var errs []error
	for _, algorithm := range []string{oci.SHA256, oci.SHA384, oci.SHA512} {
		err := durable.SyncDir(filepath.Join(l.dir, blobsName, algorithm))
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, durable.SyncDir(filepath.Join(l.dir, blobsName)))...)
}

func writeIndex(path string, index *oci.Index) error {
	raw, err := encodeIndex(index)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, raw, 0o644)
}

// encodeIndex returns index as the content of index.json.
func encodeIndex(index *oci.Index) ([]byte, error) {
	index.SchemaVersion = 2
	if index.Manifests == nil {
		index.Manifests = []oci.Descriptor{}
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", indexName, err)
	}
	if len(raw) > maxIndexBytes {
		return nil, fmt.Errorf("encode %s: %d bytes, the limit is %d: %w", indexName, len(raw), maxIndexBytes, stream.ErrTooLarge)
	}
	return raw, nil
}
