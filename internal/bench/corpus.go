package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/ocidir"
)

// corpusFile lists the images of a corpus, beside their layouts.
const corpusFile = "corpus.json"

// corpusVersion is that of the recipes: a corpus of another version is built anew.
const corpusVersion = 1

// Corpus is what a corpus directory holds: images, each an OCI layout in a
// directory of its name, as the embedded registry wants them.
type Corpus struct {
	Version int           `json:"version"`
	Images  []CorpusImage `json:"images"`

	dir string
}

// CorpusImage describes an image of the corpus.
type CorpusImage struct {
	Name     string        `json:"name"`
	About    string        `json:"about"`
	Source   string        `json:"source,omitempty"` // the reference that it was pulled from; "": it was built
	Manifest oci.Digest    `json:"manifest_digest"`
	Layers   []CorpusLayer `json:"layers"`
}

// CorpusLayer describes a layer: what is in it and how much.
type CorpusLayer struct {
	Digest            oci.Digest `json:"digest"`
	DiffID            oci.DiffID `json:"diff_id"`
	CompressedBytes   int64      `json:"compressed_bytes"`
	UncompressedBytes int64      `json:"uncompressed_bytes"`
	Files             int        `json:"files"`
	Links             int        `json:"links"` // hard and symbolic
	Directories       int        `json:"directories"`
	Packages          []string   `json:"packages,omitempty"` // name_version_arch
}

// CompressedBytes returns the size of all layers as they are sent.
func (i *CorpusImage) CompressedBytes() (sum int64) {
	for _, l := range i.Layers {
		sum += l.CompressedBytes
	}
	return sum
}

// UncompressedBytes returns the size of all layers as tar files.
func (i *CorpusImage) UncompressedBytes() (sum int64) {
	for _, l := range i.Layers {
		sum += l.UncompressedBytes
	}
	return sum
}

// Files returns the number of regular files in all layers.
func (i *CorpusImage) Files() (sum int) {
	for _, l := range i.Layers {
		sum += l.Files
	}
	return sum
}

// ErrNoCorpus reports a directory without a corpus.
var ErrNoCorpus = errors.New("no corpus: build one with `dray bench corpus build DIR`")

// OpenCorpus reads the list of images in dir.
func OpenCorpus(dir string) (*Corpus, error) {
	raw, err := os.ReadFile(filepath.Join(dir, corpusFile)) //nolint:gosec // the user's directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open corpus %s: %w", dir, ErrNoCorpus)
	}
	if err != nil {
		return nil, fmt.Errorf("open corpus: %w", err)
	}
	c := &Corpus{dir: dir}
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("open corpus %s: %w", dir, err)
	}
	if c.Version != corpusVersion {
		return nil, fmt.Errorf("open corpus %s: it is of version %d, this program makes %d: build it anew", dir, c.Version, corpusVersion)
	}
	return c, nil
}

// Image returns the image of that name, nil if there is none.
func (c *Corpus) Image(name string) *CorpusImage {
	for i := range c.Images {
		if c.Images[i].Name == name {
			return &c.Images[i]
		}
	}
	return nil
}

// put adds the image, or replaces the one of its name, and saves the list.
func (c *Corpus) put(image CorpusImage) error {
	if old := c.Image(image.Name); old != nil {
		*old = image
	} else {
		c.Images = append(c.Images, image)
	}
	order := map[string]int{}
	for i, r := range recipes() {
		order[r.name] = i + 1
	}
	last := len(order) + 1 // those that were pulled
	slices.SortStableFunc(c.Images, func(a, b CorpusImage) int {
		return cmp.Compare(cmp.Or(order[a.Name], last), cmp.Or(order[b.Name], last))
	})
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save corpus: %w", err)
	}
	return durable.WriteFile(filepath.Join(c.dir, corpusFile), append(raw, '\n'), 0o644)
}

// putImage writes config and manifest over layers that the layout has.
func putImage(ctx context.Context, layout *ocidir.Layout, layers []CorpusLayer) (oci.Digest, error) {
	config := oci.Image{
		OS: "linux", Architecture: oci.HostPlatform().Architecture, RootFS: oci.RootFS{Type: "layers"},
		Config: oci.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"/bin/sh"}},
	}
	manifest := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		manifest.Layers = append(manifest.Layers, oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Digest: l.Digest, Size: l.CompressedBytes})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return "", fmt.Errorf("write config: %w", err)
	}
	manifest.Config, err = layout.PutBlob(ctx, oci.Descriptor{MediaType: oci.MediaTypeConfig, Digest: oci.DigestBytes(raw), Size: int64(len(raw))}, bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	if raw, err = json.Marshal(manifest); err != nil {
		return "", fmt.Errorf("write manifest: %w", err)
	}
	d, err := layout.PutManifest(ctx, oci.DefaultTag, oci.MediaTypeManifest, raw)
	return d.Digest, err
}
