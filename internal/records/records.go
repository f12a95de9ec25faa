// Package records brings records to and from repositories: as record images, which
// have a reference of their own; attached to the image that they belong to, as its
// referrers; and out of layers whose files are in an order already.
//
// A record is advice, so that one that is attached is not looked for in vain: what
// cannot be read of several is skipped and named. A record that was asked for by
// its reference is read, or it is an error.
package records

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"dray/internal/estargz"
	"dray/internal/inspect"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/repo"
	"dray/internal/stream"
)

// ErrNone reports an image without a record of the kind that was asked for.
var ErrNone = errors.New("no record")

const (
	// maxBlobBytes bounds the layer of a record image: a million paths are 10 MB.
	maxBlobBytes = 64 << 20
	// maxImageBytes bounds what the layer of a record image unpacks to.
	maxImageBytes = 4 << 30
	// maxAttached bounds how many records of one image are read.
	maxAttached = 64
)

// Source says where a record comes from.
type Source string

// The sources.
const (
	Any      Source = ""         // the first of the following that there is
	Records  Source = "image"    // a record image
	Referrer Source = "attached" // records attached to an image
	Layers   Source = "layers"   // the order of files in seekable layers
)

// Options of [Read].
type Options struct {
	From     Source
	Platform oci.Platform
	Limits   record.Limits
	Layer    layer.Limits
}

// Result is what [Read] found. Who has it closes its entries.
type Result struct {
	record.Record

	From       Source // never Any
	Image      *inspect.Image
	Count      int      // records that were put together
	Unreadable []string // records, or orders of layers, that could not be read, and why
}

// Read returns the record that is in the repository's reference. Errors wrap
// [ErrNone], [record.ErrFormat], [record.ErrTooLarge], or are the repository's.
func Read(ctx context.Context, r *repo.Repository, o Options) (*Result, error) {
	image, err := inspect.Open(ctx, r, o.Platform)
	if err != nil {
		return nil, err
	}
	if o.From != Any {
		return readFrom(ctx, image, o)
	}
	for _, o.From = range []Source{Records, Referrer, Layers} {
		result, err := readFrom(ctx, image, o)
		if !errors.Is(err, ErrNone) {
			return result, err
		}
	}
	return nil, fmt.Errorf("read record of %s: it is no record image, none is attached to it, and its layers put no files first: %w", r.Reference(), ErrNone)
}

func readFrom(ctx context.Context, image *inspect.Image, o Options) (*Result, error) {
	switch o.From {
	case Records:
		return fromImage(ctx, image, o)
	case Referrer:
		return Attached(ctx, image, o)
	case Layers:
		return fromLayers(ctx, image, o)
	case Any:
	}
	panic("records: internal error: no source " + o.From)
}

// fromImage reads a record image.
func fromImage(ctx context.Context, image *inspect.Image, o Options) (*Result, error) {
	d, err := record.LayerOf(image.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNone, err) //nolint:errorlint // it is not malformed, but something else
	}
	if d.Size > maxBlobBytes {
		return nil, fmt.Errorf("read record image: its layer has %d bytes, the limit is %d: %w", d.Size, maxBlobBytes, ErrNone)
	}
	rec, err := readLayer(ctx, image.Repository, d, o)
	if err != nil {
		return nil, err
	}
	return &Result{Record: *rec, From: Records, Image: image, Count: 1}, nil
}

// readLayer reads the record in a layer. [ErrNone] is an image of something else.
func readLayer(ctx context.Context, r *repo.Repository, d oci.Descriptor, o Options) (*record.Record, error) {
	body, err := r.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	blob := stream.NewVerifier(body, "blob", d.Digest, d.Size)
	plain, err := layer.Decompress(blob, layer.Options{MaxBytes: maxImageBytes})
	if err != nil {
		return nil, fmt.Errorf("read record image: %w", err)
	}
	defer func() { _ = plain.Close() }()
	rec, err := record.ReadTar(plain, o.Limits)
	// What was exchanged on the way is that, and no malformed record.
	if _, drained := stream.Drain(stream.NewSlicer(blob, drainBytes)); errors.Is(drained, stream.ErrMismatch) {
		if rec != nil {
			rec.Entries.Close()
		}
		return nil, drained
	}
	if errors.Is(err, record.ErrNoFile) {
		return nil, fmt.Errorf("%w: %v", ErrNone, err) //nolint:errorlint // as above
	}
	return rec, err
}

// drainBytes is the piece in which the rest of a blob is read.
const drainBytes = 64 << 10

// Attached returns the records that are attached to an image, put together with
// the same weight. Those that cannot be read are skipped, unless all are.
func Attached(ctx context.Context, image *inspect.Image, o Options) (*Result, error) {
	found, err := image.Repository.Referrers(ctx, image.Descriptor.Digest, record.ArtifactType)
	if err != nil {
		return nil, err
	}
	result := &Result{From: Referrer, Image: image}
	var parts []record.Weighted
	defer func() {
		for _, p := range parts {
			if p.Entries != result.Entries {
				p.Entries.Close()
			}
		}
	}()
	for n, d := range found {
		if n == maxAttached {
			result.Unreadable = append(result.Unreadable, fmt.Sprintf("%d more records", len(found)-n))
			break
		}
		rec, err := attached(ctx, image, d, o)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			result.Unreadable = append(result.Unreadable, fmt.Sprintf("%s: %v", d.Digest, err))
			continue
		}
		result.Count++
		result.Lines += rec.Lines
		result.Skipped += rec.Skipped
		parts = append(parts, record.Weighted{Entries: rec.Entries})
	}
	switch {
	case result.Count > 1:
		result.Entries, err = record.Merge(ctx, parts)
	case result.Count == 1:
		result.Entries = parts[0].Entries
	case len(found) > 0:
		return nil, fmt.Errorf("read records attached to %s: none can be read: %s: %w", image.Descriptor.Digest, result.Unreadable[0], record.ErrFormat)
	default:
		return nil, fmt.Errorf("read records attached to %s: %w", image.Descriptor.Digest, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// attached reads one of the records of an image, which must be about it.
func attached(ctx context.Context, image *inspect.Image, d oci.Descriptor, o Options) (*record.Record, error) {
	d, raw, err := image.Repository.Resolve(ctx, "", d.Digest)
	if err != nil {
		return nil, err
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return nil, err
	}
	m := document.Manifest
	if m == nil || m.Subject == nil || m.Subject.Digest != image.Descriptor.Digest {
		return nil, fmt.Errorf("its subject is another image: %w", record.ErrFormat)
	}
	blob, err := record.LayerOf(m)
	if err != nil {
		return nil, err
	}
	return readLayer(ctx, image.Repository, blob, o)
}

// fromLayers returns the order that seekable layers have their files in, the
// lowest first, with the digests of what the files hold.
func fromLayers(ctx context.Context, image *inspect.Image, o Options) (*Result, error) {
	result := &Result{Record: record.Record{Entries: &record.List{}}, From: Layers, Image: image, Count: 1}
	err := result.addLayers(ctx, o)
	result.Lines = result.Entries.Len()
	switch {
	case err != nil:
	case result.Lines == 0 && len(result.Unreadable) > 0:
		err = fmt.Errorf("read order of files in %s: %s: %w", image.Descriptor.Digest, result.Unreadable[0], ErrNone)
	case result.Lines == 0:
		err = fmt.Errorf("read order of files in %s: no layer puts any first: %w", image.Descriptor.Digest, ErrNone)
	}
	if err != nil {
		result.Entries.Close()
		return nil, err
	}
	return result, nil
}

func (r *Result) addLayers(ctx context.Context, o Options) error {
	for n, d := range r.Image.Manifest.Layers {
		toc, err := r.Image.Trusted(ctx, d, o.Layer)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			r.Unreadable = append(r.Unreadable, fmt.Sprintf("layer %s: %v", d.Digest, err))
		}
		if toc == nil {
			continue
		}
		err = r.addLayer(n, toc)
		_ = toc.Close() // never fails
		if err != nil {
			return err
		}
	}
	return nil
}

// addLayer adds what comes first in a layer.
func (r *Result) addLayer(n int, toc *estargz.Reader) error {
	for _, name := range toc.Prioritized() {
		e, ok := toc.Lookup(name)
		if !ok || e.Type == layer.Dir || strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		entry := record.Entry{Path: name, ManifestDigest: r.Image.Descriptor.Digest, LayerIndex: &n}
		if e.Type == layer.Reg && e.Size > 0 && e.Digest != "" {
			entry.ContentDigest, entry.Size = e.Digest, e.Size
		}
		if err := r.Entries.Add(&entry); err != nil {
			return err
		}
	}
	return nil
}

// Push writes a record image and gives it the name of the repository's reference.
// The caller commits.
func Push(ctx context.Context, r *repo.Repository, entries *record.List, p oci.Platform) (oci.Descriptor, error) {
	d, err := put(ctx, r, entries, p, nil)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("push record to %s: %w", r.Reference(), err)
	}
	return d, r.Tag(ctx, d)
}

// Attach writes a record that is a referrer of an image of the same repository.
func Attach(ctx context.Context, r *repo.Repository, entries *record.List, p oci.Platform, image oci.Descriptor) (oci.Descriptor, error) {
	subject := oci.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}
	d, err := put(ctx, r, entries, p, &subject)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("attach record to %s: %w", image.Digest, err)
	}
	return d, nil
}

func put(ctx context.Context, r *repo.Repository, entries *record.List, p oci.Platform, subject *oci.Descriptor) (oci.Descriptor, error) {
	image, err := record.NewImage(entries, p, subject)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer image.Close()
	if err := r.PutFrom(ctx, image.Layer, image); err != nil {
		return oci.Descriptor{}, err
	}
	if _, err := r.PutBlob(ctx, oci.MediaTypeConfig, image.Config); err != nil {
		return oci.Descriptor{}, err
	}
	return r.PutManifest(ctx, image.Descriptor.MediaType, image.Manifest)
}
