package pull

import (
	"context"
	"errors"
	"fmt"

	"dray/internal/oci"
	"dray/internal/stream"
)

// maxIndexDepth bounds how deep indexes may nest.
const maxIndexDepth = 4

// ErrUnsupported reports an image that is sound but that this version does not
// know how to bring to life: not an image, encrypted, of another kind.
var ErrUnsupported = errors.New("unsupported image")

// resolved is an image as its manifest and config describe it, both verified.
type resolved struct {
	index       *oci.Descriptor // outermost, nil if there was none
	manifest    oci.Descriptor
	rawManifest []byte
	rawConfig   []byte
	document    *oci.Manifest
	image       *oci.Image
	bytes       int64 // fetched
}

// resolve follows the reference to one platform's manifest and its config.
func (e *Engine) resolve(ctx context.Context, r Request) (*resolved, error) {
	descriptor, raw, err := r.Source.Resolve(ctx, r.Reference.Tag, r.Reference.Digest)
	if err != nil {
		return nil, err
	}
	r.note(descriptor, raw)
	found := &resolved{bytes: int64(len(raw))}
	document, err := oci.DecodeDocument(raw, descriptor.MediaType)
	if err != nil {
		return nil, err
	}
	if document.Index != nil {
		index := descriptor
		found.index = &index
	}
	for depth := 0; document.Index != nil; depth++ {
		if depth == maxIndexDepth {
			return nil, fmt.Errorf("resolve index %s: more than %d indexes inside each other: %w", descriptor.Digest, maxIndexDepth, oci.ErrManifest)
		}
		descriptor, raw, document, err = e.enter(ctx, r, document.Index, found)
		if err != nil {
			return nil, err
		}
	}
	found.manifest, found.rawManifest, found.document = descriptor, raw, document.Manifest
	found.manifest.MediaType = document.MediaType
	return found, e.readConfig(ctx, r, found)
}

// note hands a document out.
func (r *Request) note(d oci.Descriptor, raw []byte) {
	if r.Document != nil {
		r.Document(d.Digest, raw)
	}
}

// enter goes from an index to the entry that fits the platform, or to the first
// nested one that has something that does.
func (e *Engine) enter(ctx context.Context, r Request, index *oci.Index, found *resolved) (oci.Descriptor, []byte, *oci.Document, error) {
	chosen, noMatch := r.Platform.Choose(index)
	candidates := []oci.Descriptor{chosen}
	if noMatch != nil {
		candidates = oci.Nested(index)
	}
	for _, candidate := range candidates {
		descriptor, raw, err := r.Source.Resolve(ctx, "", candidate.Digest)
		if err != nil {
			return oci.Descriptor{}, nil, nil, err
		}
		if descriptor.Size != candidate.Size {
			return oci.Descriptor{}, nil, nil, &stream.MismatchError{What: "manifest", Want: candidate.Digest, Got: descriptor.Digest, WantSize: candidate.Size, GotSize: descriptor.Size}
		}
		r.note(descriptor, raw)
		found.bytes += int64(len(raw))
		document, err := oci.DecodeDocument(raw, candidate.MediaType)
		if err != nil {
			return oci.Descriptor{}, nil, nil, err
		}
		if noMatch == nil || document.Index != nil && e.offers(r, document.Index) || document.Manifest != nil && len(candidates) == 1 {
			return descriptor, raw, document, nil
		}
	}
	return oci.Descriptor{}, nil, nil, fmt.Errorf("%w; choose another with --platform", noMatch)
}

// offers tells whether the platform, or a way deeper, is in the index.
func (e *Engine) offers(r Request, index *oci.Index) bool {
	_, err := r.Platform.Choose(index)
	return err == nil || len(oci.Nested(index)) > 0
}

// readConfig fetches the config and holds it against the manifest.
func (e *Engine) readConfig(ctx context.Context, r Request, found *resolved) error {
	config := found.document.Config
	if found.document.ArtifactType != "" || config.MediaType != oci.MediaTypeConfig && config.MediaType != oci.MediaTypeDockerConfig {
		return fmt.Errorf("read config of %s: type is %q, not that of an image: %w", found.manifest.Digest, config.MediaType, ErrUnsupported)
	}
	raw, err := e.readBlob(ctx, r.Source, config, "config", e.options.MaxConfigBytes)
	if err != nil {
		return err
	}
	found.rawConfig = raw
	found.bytes += int64(len(raw))
	if found.image, err = oci.DecodeImage(raw); err != nil {
		return err
	}
	layers, diffIDs := found.document.Layers, found.image.RootFS.DiffIDs
	if len(layers) != len(diffIDs) {
		return fmt.Errorf("read config %s: %d diff_ids for %d layers: %w", config.Digest, len(diffIDs), len(layers), oci.ErrManifest)
	}
	if len(layers) > e.options.MaxLayers {
		return fmt.Errorf("read manifest %s: %d layers, the limit is %d: %w", found.manifest.Digest, len(layers), e.options.MaxLayers, stream.ErrTooLarge)
	}
	for i, l := range layers {
		if oci.IsEncrypted(l.MediaType) {
			return fmt.Errorf("read manifest %s: layer %d is encrypted (%s), which this version cannot decrypt: %w", found.manifest.Digest, i, l.MediaType, ErrUnsupported)
		}
		if l.Size > e.options.MaxLayerBytes {
			return fmt.Errorf("read manifest %s: layer %d has %d bytes, the limit is %d: %w", found.manifest.Digest, i, l.Size, e.options.MaxLayerBytes, stream.ErrTooLarge)
		}
	}
	have := oci.Platform{OS: found.image.OS, Architecture: found.image.Architecture, Variant: found.image.Variant}
	if have.OS == "" || have.Architecture == "" {
		return nil // images from scratch tools name none; there is nothing to compare
	}
	if r.Platform.Rank(have) == 0 {
		return fmt.Errorf("read config %s: image is for %s, wanted is %s; pull it with --platform %s: %w", config.Digest, have, r.Platform, have, oci.ErrPlatform)
	}
	return nil
}

// readBlob returns a small blob, verified. Content that its descriptor carries
// (image-spec, descriptor.md, "data") is verified the same way.
func (e *Engine) readBlob(ctx context.Context, source Source, d oci.Descriptor, what string, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("read %s %s: %d bytes, the limit is %d: %w", what, d.Digest, d.Size, limit, stream.ErrTooLarge)
	}
	body, err := source.Blob(ctx, d, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", what, d.Digest, err)
	}
	defer func() { _ = body.Close() }()
	raw, err := stream.ReadAll(stream.NewVerifier(body, what, d.Digest, d.Size), limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return raw, nil
}
