package dray

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"dray/internal/estargz"
	"dray/internal/inspect"
	"dray/internal/oci"
	"dray/internal/ocidir"
)

// ImageReport tells how an image's layers are built. Its method HTML draws them,
// and Err returns what verification found wrong.
type ImageReport = inspect.Report

// LayerReport is one layer of an [ImageReport].
type LayerReport = inspect.Layer

// InspectOptions of [Images.Inspect].
type InspectOptions struct {
	Entries bool   // list every entry of the TOCs and every chunk
	Verify  bool   // read all layers, and check every chunk, TOC, digest and diffID
	TempDir string // for layers that are verified; "" is the system's
	Jobs    int    // layers at once; 0 is one per core
}

// Inspect looks into the layers of an image. Of seekable layers it reads the TOC;
// of others, unless they are to be verified, nothing. What verification finds
// wrong is no error of this method, but in the report.
func (i *Images) Inspect(ctx context.Context, reference string, o InspectOptions) (report *ImageReport, err error) {
	err = i.look(ctx, reference, func(image *inspect.Image) error {
		report, err = image.Report(ctx, inspect.Options{
			Entries: o.Entries, Verify: o.Verify, TempDir: o.TempDir, Jobs: o.Jobs, Limits: i.layerLimits(),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", reference, err)
	}
	return report, nil
}

// TOC writes the TOC of a seekable layer, as it is in the layer, to w, and returns
// its digest. layer is a digest, or an index from 0, the bottom; "" is the only
// layer of an image.
func (i *Images) TOC(ctx context.Context, reference, layer string, w io.Writer) (digest Digest, err error) {
	err = i.look(ctx, reference, func(image *inspect.Image) error {
		n, err := layerIndex(image, layer)
		if err == nil {
			digest, err = image.TOC(ctx, n, w, i.layerLimits())
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read TOC of %s: %w", reference, err)
	}
	return digest, nil
}

// layerIndex finds a layer by digest or number.
func layerIndex(image *inspect.Image, layer string) (int, error) {
	count := len(image.Manifest.Layers)
	if layer == "" {
		if count != 1 {
			return 0, fmt.Errorf("it has %d layers: say which, by digest or number: %w", count, oci.ErrReference)
		}
		return 0, nil
	}
	if n, err := strconv.Atoi(layer); err == nil {
		if n < 0 || n >= count {
			return 0, fmt.Errorf("it has %d layers, the first is 0: no layer %d: %w", count, n, ocidir.ErrNotFound)
		}
		return n, nil
	}
	digest, err := oci.ParseDigest(layer)
	if err != nil {
		return 0, err
	}
	if n := image.Layer(digest); n >= 0 {
		return n, nil
	}
	return 0, fmt.Errorf("no layer %s: %w", digest, ocidir.ErrNotFound)
}

// ErrNoTOC reports a layer, or an image, that cannot be read in parts.
var ErrNoTOC = estargz.ErrNoTOC
