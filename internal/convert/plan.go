package convert

import (
	"context"
	"fmt"
	"slices"

	"dray/internal/oci"
	"dray/internal/repo"
	"dray/internal/stream"
)

// Limits of what a source may make a conversion read.
const (
	maxDepth       = 8     // of indexes in indexes
	maxManifests   = 10000 // of all indexes
	maxConfigBytes = 8 << 20
)

// node is a manifest or an index of the source.
type node struct {
	source   oci.Descriptor // as its parent has it
	raw      []byte
	document *oci.Document
	children []*node // of an index, without the dropped ones
	image    *image  // what is to be converted; nil for indexes and what is kept
	target   oci.Descriptor
}

// image is an image that is converted.
type image struct {
	manifest  oci.Descriptor
	document  *oci.Manifest
	config    *oci.Image
	rawConfig []byte
	first     first
	layers    []*job
}

// planner reads the source's documents.
type planner struct {
	source *repo.Repository
	o      *Options
	result *Result
	count  int
	found  []bool // by Options.Platforms, or one for the host
}

// plan reads the tree of documents from the root on, and chooses.
func plan(ctx context.Context, source *repo.Repository, o *Options, result *Result) (*node, error) {
	d, raw, err := source.Root(ctx)
	if err != nil {
		return nil, err
	}
	p := &planner{source: source, o: o, result: result, found: make([]bool, len(o.wanted()))}
	root := &node{source: d, raw: raw}
	if root.document, err = oci.DecodeDocument(raw, d.MediaType); err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	root.source.MediaType = root.document.MediaType
	result.Source = root.source
	if root.document.Manifest != nil {
		if !isImage(root.document.Manifest) {
			return nil, fmt.Errorf("%s is no image but %s: %w", d.Digest, kindOf(root.document.Manifest), ErrUnsupported)
		}
		return root, p.alone(ctx, root)
	}
	if err := p.index(ctx, root, maxDepth); err != nil {
		return nil, err
	}
	if o.AllPlatforms {
		return root, nil
	}
	for i, platform := range o.wanted() {
		if !p.found[i] {
			return nil, fmt.Errorf("%s: no image for %s; choose with --platform or --all-platforms: %w", d.Digest, platform, oci.ErrPlatform)
		}
	}
	return root, nil
}

// wanted returns the platforms of an index that are converted.
func (o *Options) wanted() []oci.Platform {
	if len(o.Platforms) > 0 {
		return o.Platforms
	}
	return []oci.Platform{o.Host}
}

func kindOf(m *oci.Manifest) string {
	if m.ArtifactType != "" {
		return m.ArtifactType
	}
	return m.Config.MediaType
}

// alone takes the source's only image, whatever its platform, unless one was asked
// for.
func (p *planner) alone(ctx context.Context, n *node) error {
	if err := p.image(ctx, n); err != nil || len(p.o.Platforms) == 0 || p.o.AllPlatforms {
		return err
	}
	have := platformOf(n.image.config)
	if !slices.ContainsFunc(p.o.Platforms, func(want oci.Platform) bool { return want.Rank(have) > 0 }) {
		return fmt.Errorf("%s is an image for %s: %w", n.source.Digest, have, oci.ErrPlatform)
	}
	return nil
}

func platformOf(i *oci.Image) oci.Platform {
	return oci.Platform{OS: i.OS, Architecture: i.Architecture, Variant: i.Variant}
}

// index reads what an index names and is not dropped.
func (p *planner) index(ctx context.Context, n *node, depth int) error {
	if depth == 0 {
		return fmt.Errorf("index %s: more than %d indexes inside each other: %w", n.source.Digest, maxDepth, oci.ErrManifest)
	}
	kept := p.choose(n.document.Index)
	for i, d := range n.document.Index.Manifests {
		var child *node
		if kept[i] {
			var err error
			if child, err = p.child(ctx, d, depth); err != nil {
				return err
			}
		}
		if child == nil {
			p.result.Dropped = append(p.result.Dropped, d)
			continue
		}
		n.children = append(n.children, child)
	}
	return nil
}

// choose tells which entries of an index are converted, copied or looked into.
func (p *planner) choose(index *oci.Index) []bool {
	kept := make([]bool, len(index.Manifests))
	for i, d := range index.Manifests {
		// What names no platform must be looked into.
		kept[i] = p.o.AllPlatforms || d.Platform == nil || d.Platform.OS == "unknown"
	}
	for w, want := range p.o.wanted() {
		best := 0
		for _, d := range index.Manifests {
			if d.Platform != nil {
				best = max(best, want.Rank(*d.Platform))
			}
		}
		for i, d := range index.Manifests {
			if best > 0 && d.Platform != nil && want.Rank(*d.Platform) == best {
				kept[i], p.found[w] = true, true
			}
		}
	}
	for i, d := range index.Manifests {
		of, attestation := attests(d)
		if at := slices.IndexFunc(index.Manifests, func(o oci.Descriptor) bool { return o.Digest == of }); attestation && at >= 0 {
			kept[i] = kept[at] // it goes with the image that it speaks of
		}
	}
	return kept
}

// child reads an entry of an index. It returns nil for what only a look inside
// shows to be of another platform.
func (p *planner) child(ctx context.Context, d oci.Descriptor, depth int) (*node, error) {
	if p.count++; p.count > maxManifests {
		return nil, fmt.Errorf("more than %d manifests: %w", maxManifests, stream.ErrTooLarge)
	}
	n := &node{source: d}
	if !oci.IsIndex(d.MediaType) && !oci.IsManifest(d.MediaType) {
		return n, nil // a blob, which an index may name
	}
	_, raw, err := p.source.Resolve(ctx, "", d.Digest)
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != d.Size {
		return nil, &stream.MismatchError{What: "manifest", Want: d.Digest, WantSize: d.Size, GotSize: int64(len(raw))}
	}
	n.raw = raw
	if n.document, err = oci.DecodeDocument(raw, d.MediaType); err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	if n.document.Index != nil {
		if err := p.index(ctx, n, depth-1); err != nil || len(n.children) > 0 || len(n.document.Index.Manifests) == 0 {
			return n, err
		}
		return nil, nil //nolint:nilnil // nothing is left of it
	}
	if _, attestation := attests(d); attestation || !isImage(n.document.Manifest) {
		return n, nil
	}
	if err := p.image(ctx, n); err != nil {
		return nil, err
	}
	if d.Platform != nil || p.o.AllPlatforms {
		return n, nil
	}
	chosen := false
	for w, want := range p.o.wanted() {
		if want.Rank(platformOf(n.image.config)) > 0 {
			chosen, p.found[w] = true, true
		}
	}
	if !chosen {
		return nil, nil //nolint:nilnil // see above
	}
	return n, nil
}

// image reads an image's configuration and checks what can be known of its layers.
func (p *planner) image(ctx context.Context, n *node) error {
	m := n.document.Manifest
	raw, err := p.source.ReadBlob(ctx, m.Config, maxConfigBytes)
	if err != nil {
		return fmt.Errorf("read config of %s: %w", n.source.Digest, err)
	}
	config, err := oci.DecodeImage(raw)
	if err != nil {
		return fmt.Errorf("read config of %s: %w", n.source.Digest, err)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("read config of %s: %d diff_ids for %d layers: %w", n.source.Digest, len(config.RootFS.DiffIDs), len(m.Layers), oci.ErrManifest)
	}
	for i, l := range m.Layers {
		if oci.IsEncrypted(l.MediaType) {
			return fmt.Errorf("image %s: layer %d is encrypted (%s): %w", n.source.Digest, i, l.MediaType, ErrUnsupported)
		}
	}
	if isDocker(n.document.MediaType) && !p.o.OCI && p.o.zstd() {
		return fmt.Errorf("image %s: Docker's manifests (%s) have no zstd layers: add --oci: %w", n.source.Digest, n.document.MediaType, ErrUnsupported)
	}
	n.image = &image{manifest: n.source, document: m, config: config, rawConfig: raw}
	return nil
}
