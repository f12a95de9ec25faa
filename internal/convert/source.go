package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/repo"
	"dray/internal/stream"
)

// The rings in front of and behind the inflater.
const (
	storedBlocks     = 4
	storedBlockBytes = 64 << 10
	plainBlocks      = 4
	plainBlockBytes  = 128 << 10
)

// tarReader is the tar of a layer. It ends with io.EOF only if the blob had its
// digest and the tar its diffID.
type tarReader struct {
	io.Reader
	close func()
}

// Close implements [io.Closer].
func (t *tarReader) Close() error {
	t.close()
	return nil
}

// openTar opens a layer's tar. diffID "" is not verified. count, if not nil, is
// told how much of the blob was read.
func openTar(ctx context.Context, source *repo.Repository, d oci.Descriptor, diffID oci.DiffID, l layer.Limits, count func(int)) (*tarReader, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, err := source.Blob(ctx, d, 0)
	if err != nil {
		cancel()
		return nil, err
	}
	var src io.Reader = body
	if count != nil {
		src = &counter{body, count}
	}
	fetched := stream.NewAhead(ctx, stream.NewVerifier(src, "blob", d.Digest, d.Size), storedBlocks, storedBlockBytes)
	plain, err := layer.Decompress(fetched, layer.Options{MaxBytes: l.MaxBytes})
	if err != nil {
		cancel()
		_ = fetched.Close()
		_ = body.Close()
		return nil, err
	}
	inflated := stream.NewAhead(ctx, plain, plainBlocks, plainBlockBytes)
	t := &tarReader{Reader: inflated, close: func() {
		cancel()
		_ = inflated.Close()
		_ = plain.Close()
		_ = fetched.Close()
		_ = body.Close()
	}}
	if diffID != "" {
		t.Reader = stream.NewVerifier(inflated, "layer", diffID.Digest(), stream.AnySize)
	}
	return t, nil
}

type counter struct {
	r     io.Reader
	count func(int)
}

// Read implements [io.Reader].
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.count(n)
	return n, err
}

// namesOf returns the names of a layer's entries: from its TOC where the manifest
// vouches for one, else from its tar.
func namesOf(ctx context.Context, source *repo.Repository, d oci.Descriptor, l layer.Limits) iter.Seq2[record.Name, error] {
	return func(yield func(record.Name, error) bool) {
		if r := openTOC(ctx, source, d, l); r != nil {
			defer func() { _ = r.Close() }()
			for e := range r.Entries() {
				if !estargz.IsMeta(e.Name) && !yield(record.Name{Path: e.Name, IsDir: e.Type == layer.Dir, Size: e.Size}, nil) {
					return
				}
			}
			return
		}
		if err := tarNames(ctx, source, d, l, yield); err != nil {
			yield(record.Name{}, err)
		}
	}
}

// openTOC returns a reader of a layer that is seekable, or nil: then its tar says
// the same, at a greater price.
func openTOC(ctx context.Context, source *repo.Repository, d oci.Descriptor, l layer.Limits) *estargz.Reader {
	hints, err := estargz.ParseHints(d.Annotations)
	if err != nil || hints.TOCDigest == "" && hints.ManifestChecksum == "" {
		return nil
	}
	r, err := estargz.Open(source.BlobAt(ctx, d), d.Size, estargz.OpenOptions{Hints: hints, Limits: estargz.Limits{Layer: l}})
	if err != nil {
		return nil
	}
	return r
}

func tarNames(ctx context.Context, source *repo.Repository, d oci.Descriptor, l layer.Limits, yield func(record.Name, error) bool) error {
	t, err := openTar(ctx, source, d, "", l, nil)
	if err != nil {
		return fmt.Errorf("read layer %s: %w", d.Digest, err)
	}
	defer func() { _ = t.Close() }()
	tar := layer.NewTar(stream.NewSlicer(t, plainBlockBytes), l)
	for {
		e, err := tar.Next()
		if errors.Is(err, io.EOF) {
			_, err = tar.Drain()
			return err
		}
		if err != nil {
			return fmt.Errorf("read layer %s: %w", d.Digest, err)
		}
		if !estargz.IsMeta(e.Name) && !yield(record.Name{Path: e.Name, IsDir: e.Type == layer.Dir, Size: e.Size}, nil) {
			return nil
		}
	}
}
