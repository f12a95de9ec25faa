package ocidir

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"dray/internal/oci"
	"dray/internal/stream"
)

// maxNesting bounds how deep indexes lie within each other.
const maxNesting = 16

// WriteArchive writes the layout as an uncompressed tar file: what index.json
// lists and everything that can be reached from there. The same images give the
// same bytes, whatever order they came in. Every blob is verified on its way; a
// layer that is missing because it lies elsewhere (it has URLs) is left out.
func (l *Layout) WriteArchive(ctx context.Context, w io.Writer) error {
	if err := l.writeArchive(ctx, w); err != nil {
		return fmt.Errorf("write archive of %s: %w", l.path, err)
	}
	return nil
}

func (l *Layout) writeArchive(ctx context.Context, w io.Writer) error {
	index, err := l.index()
	if err != nil {
		return err
	}
	slices.SortFunc(index.Manifests, func(a, b oci.Descriptor) int {
		return cmp.Or(cmp.Compare(a.Annotations[AnnotationRefName], b.Annotations[AnnotationRefName]), cmp.Compare(a.Digest, b.Digest))
	})
	blobs := map[oci.Digest]int64{}
	for _, d := range index.Manifests {
		if err := l.reach(ctx, d, blobs, maxNesting); err != nil {
			return err
		}
	}
	raw, err := encodeIndex(index)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	marker := []byte(`{"imageLayoutVersion":"` + layoutVersion + `"}`)
	if err := errors.Join(writeFile(t, markerName, marker), writeFile(t, indexName, raw)); err != nil {
		return err
	}
	for _, digest := range slices.Sorted(maps.Keys(blobs)) {
		if err := l.writeBlob(ctx, t, digest, blobs[digest]); err != nil {
			return err
		}
	}
	return t.Close()
}

func writeHeader(t *tar.Writer, name string, size int64) error {
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
}

func writeFile(t *tar.Writer, name string, content []byte) error {
	if err := writeHeader(t, name, int64(len(content))); err != nil {
		return err
	}
	_, err := t.Write(content)
	return err
}

func (l *Layout) writeBlob(ctx context.Context, t *tar.Writer, digest oci.Digest, size int64) error {
	r, err := l.Blob(ctx, oci.Descriptor{Digest: digest, Size: size}, 0)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := writeHeader(t, blobName(digest), size); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{t}, stream.NewVerifier(r, "blob", digest, size), make([]byte, copyBufBytes))
	return err
}

// reach adds d and what it names, depth levels down, to blobs.
func (l *Layout) reach(ctx context.Context, d oci.Descriptor, blobs map[oci.Digest]int64, depth int) error {
	if depth == 0 {
		return fmt.Errorf("%s: indexes are nested deeper than %d: %w", d.Digest, maxNesting, oci.ErrManifest)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, seen := blobs[d.Digest]; seen {
		return nil
	}
	size, found, err := l.HasBlob(ctx, d.Digest)
	if err != nil {
		return err
	}
	if !found && len(d.URLs) > 0 {
		return nil
	}
	if !found {
		return fmt.Errorf("blob %s: %w", d.Digest, ErrNotFound)
	}
	blobs[d.Digest] = size
	if !oci.IsIndex(d.MediaType) && !oci.IsManifest(d.MediaType) {
		return nil
	}
	raw, err := l.manifest(d)
	if err != nil {
		return err
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	var named []oci.Descriptor
	if document.Index != nil {
		named = document.Index.Manifests
	} else {
		named = append(document.Manifest.Layers, document.Manifest.Config)
	}
	for _, child := range named {
		if err := l.reach(ctx, child, blobs, depth-1); err != nil {
			return err
		}
	}
	return nil
}
