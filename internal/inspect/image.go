package inspect

import (
	"context"
	"fmt"
	"slices"

	"dray/internal/oci"
	"dray/internal/repo"
	"dray/internal/stream"
)

const (
	// maxConfigBytes bounds an image's configuration.
	maxConfigBytes = 8 << 20
	// maxDepth bounds how deep indexes may be nested.
	maxDepth = 4
)

// Image is one image of a repository.
type Image struct {
	Descriptor oci.Descriptor // of the manifest
	Manifest   *oci.Manifest
	Config     *oci.Image // nil where the configuration is none of an image
	Repository *repo.Repository
}

// Open returns the image that the repository's reference names: of an index, the
// one for the platform. Errors wrap [oci.ErrPlatform], [oci.ErrManifest],
// [stream.ErrMismatch], or are the repository's.
func Open(ctx context.Context, r *repo.Repository, p oci.Platform) (*Image, error) {
	d, raw, err := r.Root(ctx)
	if err != nil {
		return nil, err
	}
	return find(ctx, r, d, raw, p, maxDepth)
}

func find(ctx context.Context, r *repo.Repository, d oci.Descriptor, raw []byte, p oci.Platform, depth int) (*Image, error) {
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	if document.Manifest != nil {
		i := &Image{Descriptor: d, Manifest: document.Manifest, Repository: r}
		i.Descriptor.Annotations = nil // those of the index's entry: not the image's
		return i, i.readConfig(ctx)
	}
	chosen, noMatch := p.Choose(document.Index)
	candidates := []oci.Descriptor{chosen}
	if noMatch != nil {
		candidates = oci.Nested(document.Index)
		if depth == 0 || len(candidates) == 0 {
			return nil, fmt.Errorf("%w; choose another with --platform", noMatch)
		}
	}
	for i, c := range candidates {
		d, raw, err := r.Resolve(ctx, "", c.Digest)
		if err != nil {
			return nil, err
		}
		if c.Size != d.Size {
			return nil, &stream.MismatchError{What: "manifest", Want: c.Digest, Got: d.Digest, WantSize: c.Size, GotSize: d.Size}
		}
		image, err := find(ctx, r, d, raw, p, depth-1)
		if err == nil || i == len(candidates)-1 {
			return image, err
		}
	}
	panic("inspect: internal error: no candidates")
}

func (i *Image) readConfig(ctx context.Context) error {
	c := i.Manifest.Config
	if !slices.Contains([]string{oci.MediaTypeConfig, oci.MediaTypeDockerConfig}, c.MediaType) {
		return nil
	}
	raw, err := i.Repository.ReadBlob(ctx, c, maxConfigBytes)
	if err != nil {
		return err
	}
	i.Config, err = oci.DecodeImage(raw)
	if err != nil {
		return fmt.Errorf("read config %s: %w", c.Digest, err)
	}
	return nil
}

// DiffID returns the diffID of a layer, or "" where the configuration has none.
func (i *Image) DiffID(layer int) oci.DiffID {
	if i.Config == nil || len(i.Config.RootFS.DiffIDs) != len(i.Manifest.Layers) {
		return ""
	}
	return i.Config.RootFS.DiffIDs[layer]
}

// Platform returns what the image runs on, or "" if it does not say.
func (i *Image) Platform() string {
	if i.Config == nil || i.Config.OS == "" {
		return ""
	}
	return oci.Platform{OS: i.Config.OS, Architecture: i.Config.Architecture, Variant: i.Config.Variant}.String()
}
