package inspect

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/sync/errgroup"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/stream"
)

// NamesOptions of [Image.Names].
type NamesOptions struct {
	Limits layer.Limits

	// Hash tells of which sizes files have digests; nil: of none. From a TOC all have.
	Hash func(sizeBytes int64) bool

	// Note is told why a layer is read whole of which the manifest names a TOC. It
	// may be called by several goroutines at once. nil is nobody.
	Note func(string)
}

// LayerNames returns the names of a layer's entries: from its TOC where the manifest
// vouches for one, else from its tar. What the formats add to a tree is left out.
func (i *Image) LayerNames(ctx context.Context, d oci.Descriptor, o NamesOptions) iter.Seq2[record.Name, error] {
	return func(yield func(record.Name, error) bool) {
		toc, err := i.Trusted(ctx, d, o.Limits)
		if err != nil && ctx.Err() == nil && o.Note != nil {
			o.Note(fmt.Sprintf("layer %s is read whole, as its TOC cannot be used: %v", d.Digest, err))
		}
		if toc == nil {
			if err := i.tarNames(ctx, d, o, yield); err != nil {
				yield(record.Name{}, err)
			}
			return
		}
		defer func() { _ = toc.Close() }()
		for e := range toc.Entries() {
			if !estargz.IsMeta(e.Name) && !yield(record.Name{Path: e.Name, IsDir: e.Type == layer.Dir, Size: e.Size, Digest: e.Digest}, nil) {
				return
			}
		}
	}
}

// Names returns what [Image.LayerNames] does, of every layer, bottom first; none of
// those that are kept elsewhere.
func (i *Image) Names(ctx context.Context, o NamesOptions) []iter.Seq2[record.Name, error] {
	all := make([]iter.Seq2[record.Name, error], len(i.Manifest.Layers))
	for n, d := range i.Manifest.Layers {
		all[n] = func(func(record.Name, error) bool) {}
		if len(d.URLs) == 0 {
			all[n] = i.LayerNames(ctx, d, o)
		}
	}
	return all
}

// Held are the names of an image's layers, kept to be read again: in memory while they
// are few, then in temporary files without names. Who has them closes them.
type Held []record.Names

// Hold reads the names of all layers, jobs layers at once.
func Hold(ctx context.Context, names []iter.Seq2[record.Name, error], jobs int) (Held, error) {
	held := make(Held, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(jobs)
	for n := range names {
		group.Go(func() error {
			for name, err := range names[n] {
				if err == nil {
					err = context.Cause(ctx)
				}
				if err == nil {
					err = held[n].Add(&name)
				}
				if err != nil {
					return err
				}
			}
			return held[n].Flush()
		})
	}
	if err := group.Wait(); err != nil {
		held.Close()
		return nil, fmt.Errorf("match patterns: %w", err)
	}
	return held, nil
}

// Layers returns the names of each layer, bottom first.
func (h Held) Layers() []iter.Seq2[record.Name, error] {
	layers := make([]iter.Seq2[record.Name, error], len(h))
	for n := range h {
		layers[n] = h[n].All()
	}
	return layers
}

// Close lets go of the names.
func (h Held) Close() {
	for n := range h {
		h[n].Close()
	}
}

// Trusted returns the reader of a layer whose manifest vouches for its TOC, which may
// be beside the image. It is nil, without an error, where the manifest names none.
// Of one that it names and that cannot be read, the error says why; the layer's tar
// says the same, at a greater price.
func (i *Image) Trusted(ctx context.Context, d oci.Descriptor, l layer.Limits) (*estargz.Reader, error) {
	hints, err := estargz.ParseHints(d.Annotations)
	if err != nil || hints.TOCDigest == "" && hints.ManifestChecksum == "" {
		return nil, err
	}
	return i.open(ctx, d, i.Repository.BlobAt(ctx, d), l)
}

// tarNames yields the names in a layer's tar.
func (i *Image) tarNames(ctx context.Context, d oci.Descriptor, o NamesOptions, yield func(record.Name, error) bool) error {
	plain, err := OpenTar(ctx, i.Repository, d, "", o.Limits, nil)
	if err != nil {
		return fmt.Errorf("read layer %s: %w", d.Digest, err)
	}
	defer func() { _ = plain.Close() }()
	tar := layer.NewTar(stream.NewSlicer(plain, plainBlockBytes), o.Limits)
	for {
		e, err := tar.Next()
		if errors.Is(err, io.EOF) {
			_, err = tar.Drain()
		}
		if err != nil {
			return fmt.Errorf("read layer %s: %w", d.Digest, err)
		}
		if e == nil {
			return nil
		}
		if estargz.IsMeta(e.Name) {
			continue
		}
		name := record.Name{Path: e.Name, IsDir: e.Type == layer.Dir, Size: e.Size}
		if e.Type == layer.Reg && e.Sparse == nil && o.Hash != nil && o.Hash(e.Size) {
			if name.Digest, err = digestOf(tar); err != nil {
				return fmt.Errorf("read layer %s: %w", d.Digest, err)
			}
		}
		if !yield(name, nil) {
			return nil
		}
	}
}

// digestOf reads the content of tar's entry.
func digestOf(tar *layer.Tar) (oci.Digest, error) {
	h := sha256.New()
	for {
		part, err := tar.Body()
		if errors.Is(err, io.EOF) {
			return oci.DigestOf(oci.SHA256, h), nil
		}
		if err != nil {
			return "", err
		}
		_, _ = h.Write(part) // hashes never fail
	}
}
