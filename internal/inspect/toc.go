package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
)

// tocSuffix is what containerd's tools add to a tag for the image of its external
// TOCs.
const tocSuffix = "-esgztoc"

// externalTOC returns the blob with the TOC of a layer, or nil: from the image
// beside this one whose layers say which layer they are about.
func (i *Image) externalTOC(ctx context.Context, blob oci.Digest) (io.ReadCloser, error) {
	tag := i.Repository.Reference().Tag
	if tag == "" {
		tag = oci.DefaultTag
	}
	d, raw, err := i.Repository.Resolve(ctx, tag+tocSuffix, "")
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, ocidir.ErrNotFound) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, err
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return nil, fmt.Errorf("read image of TOCs %s: %w", d.Digest, err)
	}
	if document.Manifest == nil {
		return nil, nil //nolint:nilnil // it is something else
	}
	for _, l := range document.Manifest.Layers {
		if l.Annotations[estargz.AnnotationLayerDigest] == string(blob) {
			return i.Repository.Blob(ctx, l, 0)
		}
	}
	return nil, nil //nolint:nilnil // there is none
}

// Layer returns the index of the layer with that digest, or -1.
func (i *Image) Layer(digest oci.Digest) int {
	for n, d := range i.Manifest.Layers {
		if d.Digest == digest {
			return n
		}
	}
	return -1
}

// TOC writes the TOC of a layer as it is, uncompressed, to w and returns its
// digest. Errors wrap [estargz.ErrNoTOC] for an ordinary layer.
func (i *Image) TOC(ctx context.Context, n int, w io.Writer, limits layer.Limits) (oci.Digest, error) {
	d := i.Manifest.Layers[n]
	hints, err := estargz.ParseHints(d.Annotations)
	if err != nil {
		return "", err
	}
	o := estargz.OpenOptions{Hints: hints, Limits: estargz.Limits{Layer: limits}}
	digest, err := estargz.CopyTOC(w, i.Repository.BlobAt(ctx, d), d.Size, o)
	if !errors.Is(err, estargz.ErrNoTOC) {
		return digest, err
	}
	external, tocErr := i.externalTOC(ctx, d.Digest)
	if tocErr != nil || external == nil {
		return "", errors.Join(err, tocErr)
	}
	defer func() { _ = external.Close() }()
	o.ExternalTOC = external
	return estargz.CopyTOC(w, i.Repository.BlobAt(ctx, d), d.Size, o)
}
