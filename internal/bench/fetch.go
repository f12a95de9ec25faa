//go:build linux

package bench

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	client "dray/internal/registry"
	"dray/internal/repo"
)

// FetchOptions of [FetchImages].
type FetchOptions struct {
	Dir        string // of the corpus
	References []string
	Registry   *client.Client
	Say        func(format string, args ...any)
}

// KnownImages are those of Contrast's evaluation of its image puller: small and large,
// few layers and many.
func KnownImages() []string {
	return []string{
		"ghcr.io/edgelesssys/contrast/dmesg:v0.0.1",
		"ghcr.io/edgelesssys/contrast/coordinator:latest",
		"docker.io/library/busybox:latest",
		"docker.io/nginxinc/nginx-unprivileged:latest",
		"docker.io/prom/prometheus:latest",
		"ghcr.io/edgelesssys/contrast/initializer:latest",
		"docker.io/tensorflow/tensorflow:latest-gpu",
	}
}

// FetchImages adds images to the corpus, for this machine's platform, each pulled once
// and kept as a layout; those that are there are not asked for again. It returns their
// names. Images that cannot be had do not stop the others; their errors are joined, with
// [ErrNoImages] when there is none at all.
func FetchImages(ctx context.Context, o FetchOptions) (names []string, err error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil { //nolint:gosec // images for others to read
		return nil, fmt.Errorf("fetch images: %w", err)
	}
	corpus, err := openOrMake(o.Dir)
	if err != nil {
		return nil, err
	}
	var problems error
	for _, reference := range o.References {
		name, err := corpus.fetch(ctx, reference, &o)
		if ctx.Err() != nil {
			return names, fmt.Errorf("fetch images: %w", context.Cause(ctx))
		}
		if err != nil {
			problems = errors.Join(problems, fmt.Errorf("image %s: %w", reference, err))
			continue
		}
		names = append(names, name)
	}
	if problems != nil && len(names) == 0 {
		return nil, fmt.Errorf("%w:\n%w", ErrNoImages, problems)
	}
	return names, problems
}

// ErrNoImages reports that not one image could be fetched.
var ErrNoImages = errors.New("no image could be fetched (--mirror names a registry that has them, --corpus debian needs none)")

func openOrMake(dir string) (*Corpus, error) {
	corpus, err := OpenCorpus(dir)
	if errors.Is(err, ErrNoCorpus) {
		return &Corpus{Version: corpusVersion, dir: dir}, nil
	}
	return corpus, err
}

// nameFor is what the image is called in reports and in the embedded registry: the last
// part of its repository, with the tag unless that is latest, and as many more of its
// parts as it takes to be told from other images.
func (c *Corpus) nameFor(ref oci.Reference) string {
	parts := strings.Split(strings.Trim(ref.Name(), "/"), "/")
	if ref.Transport != oci.Registry {
		parts = strings.Split(strings.Trim(strings.TrimSuffix(ref.Path, ".tar"), "/"), "/")
	}
	tag := ""
	if ref.Tag != "" && ref.Tag != oci.DefaultTag {
		tag = "-" + ref.Tag
	}
	for n := len(parts) - 1; ; n-- {
		name := strings.ToLower(strings.ReplaceAll(strings.Join(parts[max(n, 0):], "-"), ":", "-") + tag)
		built := func(r recipe) bool { return r.name == name }
		if i := c.Image(name); n <= 0 || (i == nil || i.Source == ref.String()) && !slices.ContainsFunc(recipes(), built) {
			return name
		}
	}
}

func (c *Corpus) fetch(ctx context.Context, reference string, o *FetchOptions) (name string, err error) {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return "", err
	}
	for i := range c.Images {
		if c.Images[i].Source == ref.String() {
			o.Say("%s: is there", c.Images[i].Name)
			return c.Images[i].Name, nil
		}
	}
	image := CorpusImage{Name: c.nameFor(ref), Source: ref.String()}
	o.Say("%s: fetching %s …", image.Name, ref)
	from, err := repo.Open(ctx, ref, repo.Options{Registry: o.Registry})
	if err != nil {
		return "", err
	}
	defer func() { _ = from.Close() }()
	dir := filepath.Join(c.dir, image.Name)
	if err := os.RemoveAll(dir); err != nil { // of a fetch that ended early
		return "", err
	}
	layout, err := ocidir.Create(ctx, dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, layout.Close()) }()
	if err := copyImage(ctx, from, layout, &image); err != nil {
		return "", err
	}
	image.About = fmt.Sprintf("%s, %s", ref, image.Manifest)
	o.Say("%s: %.1f MB compressed, %.1f MB unpacked, %d files", image.Name, float64(image.CompressedBytes())/1e6, float64(image.UncompressedBytes())/1e6, image.Files())
	return image.Name, c.put(image)
}

// chooseManifest follows indexes to the manifest of this machine's platform.
func chooseManifest(ctx context.Context, from *repo.Repository) (mediaType string, raw []byte, manifest *oci.Manifest, err error) {
	d, raw, err := from.Root(ctx)
	const maxDepth = 4
	for range maxDepth {
		if err != nil {
			return "", nil, nil, err
		}
		document, err := oci.DecodeDocument(raw, d.MediaType)
		if err != nil {
			return "", nil, nil, err
		}
		if document.Manifest != nil {
			return document.MediaType, raw, document.Manifest, nil
		}
		if d, err = oci.HostPlatform().Choose(document.Index); err != nil {
			return "", nil, nil, err
		}
		if d, raw, err = from.Resolve(ctx, "", d.Digest); err != nil {
			return "", nil, nil, err
		}
	}
	return "", nil, nil, errors.New("indexes are nested too deep")
}

// maxConfigBytes bounds an image's config.
const maxConfigBytes = 8 << 20

// copyImage copies one platform's image and looks into its layers.
func copyImage(ctx context.Context, from *repo.Repository, layout *ocidir.Layout, image *CorpusImage) error {
	mediaType, raw, manifest, err := chooseManifest(ctx, from)
	if err != nil {
		return err
	}
	config, err := from.ReadBlob(ctx, manifest.Config, maxConfigBytes)
	if err != nil {
		return err
	}
	described := oci.Image{}
	if err := json.Unmarshal(config, &described); err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	if len(described.RootFS.DiffIDs) != len(manifest.Layers) {
		return fmt.Errorf("read config: %d diff_ids for %d layers", len(described.RootFS.DiffIDs), len(manifest.Layers))
	}
	for i, d := range append(slices.Clone(manifest.Layers), manifest.Config) {
		if err := copyBlob(ctx, from, layout, d); err != nil {
			return err
		}
		if i == len(manifest.Layers) {
			break // the config
		}
		l, err := describeLayer(ctx, layout, d)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		l.DiffID = described.RootFS.DiffIDs[i]
		image.Layers = append(image.Layers, l)
	}
	put, err := layout.PutManifest(ctx, oci.DefaultTag, mediaType, raw)
	image.Manifest = put.Digest
	return err
}

func copyBlob(ctx context.Context, from *repo.Repository, layout *ocidir.Layout, d oci.Descriptor) error {
	if _, found, err := layout.HasBlob(ctx, d.Digest); err != nil || found {
		return err
	}
	body, err := from.Blob(ctx, d, 0)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = layout.PutBlob(ctx, d, body) // verifies
	return err
}

// describeLayer counts what a layer holds.
func describeLayer(ctx context.Context, layout *ocidir.Layout, d oci.Descriptor) (CorpusLayer, error) {
	l := CorpusLayer{Digest: d.Digest, CompressedBytes: d.Size}
	body, err := layout.Blob(ctx, d, 0)
	if err != nil {
		return l, err
	}
	defer func() { _ = body.Close() }()
	plain, err := layer.Decompress(body, layer.Options{})
	if err != nil {
		return l, err
	}
	defer func() { _ = plain.Close() }()
	counted := io.TeeReader(plain, countWriter{&l.UncompressedBytes})
	entries := tar.NewReader(counted)
	for {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, counted) // padding belongs to the layer
			return l, err
		}
		if err != nil {
			return l, err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			l.Directories++
		case tar.TypeLink, tar.TypeSymlink:
			l.Links++
		default:
			l.Files++
		}
	}
}
