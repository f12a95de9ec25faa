//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/retar"
	"dray/internal/store"
	"dray/internal/stream"
)

// MetaExportOptions of [Client.ExportMetaStore].
type MetaExportOptions struct {
	Prefix string // where the work directory will lie when image-rs reads it; "": where it is made
	Naming string // of the layers' directories: "number", which image-rs demands, or "digest", which it once did; "": number
}

// MetaExport tells what [Client.ExportMetaStore] wrote.
type MetaExport struct {
	Path   string            `json:"path"`
	Images []MetaExportImage `json:"images"`
	Layers int               `json:"layers"`
	Notes  []string          `json:"notes,omitempty"`
}

// MetaExportImage is an image of the work directory.
type MetaExportImage struct {
	Reference string `json:"reference"`
	Manifest  Digest `json:"manifest_digest"`
	Config    Digest `json:"config_digest"`
}

// ExportMetaStore writes a work directory of image-rs with the images that the
// references name, with none all of the store: image-rs then takes their layers from
// there instead of pulling them. The directory must not exist, or be empty; it
// appears in one step, when it is complete. What goes into it is verified once more.
// Only root can make it: layers have owners, devices and trusted.* attributes.
func (c *Client) ExportMetaStore(ctx context.Context, out string, references []string, o MetaExportOptions) (*MetaExport, error) {
	images, err := c.exported(references)
	if err != nil {
		return nil, err
	}
	lease, err := c.store.Lease(ctx)
	if err != nil {
		return nil, err
	}
	done, err := c.exportMetaStore(ctx, out, images, lease, o)
	if err := errors.Join(err, lease.Release()); err != nil {
		return nil, fmt.Errorf("export %s: %w", out, err)
	}
	return done, nil
}

// exported finds the images to export.
func (c *Client) exported(references []string) ([]*Image, error) {
	if len(references) == 0 {
		return c.Images()
	}
	images := make([]*Image, len(references))
	for i, reference := range references {
		image, err := c.Find(reference)
		if err != nil {
			return nil, err
		}
		images[i] = image
	}
	return images, nil
}

func (c *Client) exportMetaStore(ctx context.Context, out string, images []*Image, lease *store.Lease, o MetaExportOptions) (done *MetaExport, err error) {
	w, err := metastore.Create(out, metastore.WriterOptions{Prefix: o.Prefix, Naming: metastore.Naming(o.Naming)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	e := &metaExporter{client: c, writer: w, done: &MetaExport{Path: out, Images: []MetaExportImage{}}, opaque: map[oci.Digest]bool{}}
	group, grouped := errgroup.WithContext(ctx)
	group.SetLimit(c.workers())
	for _, image := range images {
		if err = lease.Add(grouped, image.record.DiffIDs...); err == nil {
			err = e.layers(grouped, image, group)
		}
		if err != nil {
			err = fmt.Errorf("image %s: %w", image.Reference, err)
			break
		}
	}
	if failed := group.Wait(); failed != nil {
		err = failed // which is why the loop ended, if it did
	}
	if err != nil {
		return nil, err
	}
	for _, entry := range e.entries {
		e.image(entry)
	}
	return e.done, w.Commit()
}

// workers returns how many layers may be worked on at once.
func (c *Client) workers() int {
	if c.options.Workers > 0 {
		return c.options.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// metaExporter is one run of [Client.ExportMetaStore].
type metaExporter struct {
	client  *Client
	writer  *metastore.Writer
	done    *MetaExport
	entries []*metastore.Image

	mu     sync.Mutex // guards opaque, while layers are filled
	opaque map[oci.Digest]bool
}

// layers has the layers of an image filled that are not there yet.
func (e *metaExporter) layers(ctx context.Context, image *Image, group *errgroup.Group) error {
	entry, layers, err := metaImage(image)
	if err != nil {
		return err
	}
	e.entries = append(e.entries, entry)
	for _, l := range layers {
		dir, err := e.writer.Layer(l)
		if err != nil {
			return err
		}
		if dir == nil {
			continue
		}
		e.done.Layers++
		group.Go(func() error {
			opaque, err := e.client.exportLayer(ctx, l.DiffID, dir)
			e.mu.Lock()
			e.opaque[l.Blob] = opaque
			e.mu.Unlock()
			if err := errors.Join(err, dir.Close()); err != nil {
				return fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			return nil
		})
	}
	return nil
}

// image enters an image whose layers are filled. Those below one whose root is opaque
// are hidden, which overlayfs does not heed: they are not named.
func (e *metaExporter) image(entry *metastore.Image) {
	for i, blob := range slices.Backward(entry.Layers) {
		if e.opaque[blob] {
			entry.Layers = entry.Layers[i:]
			break
		}
	}
	if e.writer.Image(*entry) {
		e.done.Notes = append(e.done.Notes, fmt.Sprintf("image %s has the configuration of another, by which image-rs knows images: it is left out", entry.Reference))
		return
	}
	e.done.Images = append(e.done.Images, MetaExportImage{entry.Reference, entry.Manifest, entry.ID})
}

// metaImage describes an image as image-rs would, layers once each. What was taken
// over from a work directory goes back as it was there.
func metaImage(image *Image) (*metastore.Image, []metastore.Layer, error) {
	document, err := oci.DecodeDocument(image.record.RawManifest, image.record.Manifest.MediaType)
	if err != nil {
		return nil, nil, err
	}
	manifest := document.Manifest
	entry := &metastore.Image{ID: image.Config, Manifest: image.Manifest, Reference: image.Reference, Config: []byte(image.record.RawConfig)}
	if origin := manifest.Annotations[importedManifest]; origin != "" {
		entry.Manifest, entry.Reference = Digest(origin), manifest.Annotations[importedReference]
	}
	if id := manifest.Config.Annotations[importedBlob]; id != "" {
		entry.ID = Digest(id)
	}
	var layers []metastore.Layer
	for i, blob := range manifest.Layers {
		l := metastore.Layer{Decoder: decoderOf(blob.MediaType), Encrypted: oci.IsEncrypted(blob.MediaType), Blob: blob.Digest, DiffID: image.record.DiffIDs[i]}
		if i < len(image.Evidence.Layers) {
			l.Decoder = decoderOf(image.Evidence.Layers[i].Compression, blob.MediaType)
		}
		if origin := blob.Annotations[importedBlob]; origin != "" {
			l.Blob, l.Decoder = Digest(origin), metastore.Decoder(blob.Annotations[importedDecoder])
			l.Encrypted = blob.Annotations[importedEncrypted] != ""
		}
		if !slices.Contains(entry.Layers, l.Blob) {
			entry.Layers = append(entry.Layers, l.Blob)
			layers = append(layers, l)
		}
	}
	return entry, layers, nil
}

// decoderOf returns the compression that the first of the texts speaks of, which are
// names of compressions or media types.
func decoderOf(texts ...string) metastore.Decoder {
	for _, text := range texts {
		switch {
		case strings.Contains(text, "zst"):
			return metastore.Zstd
		case strings.Contains(text, "gz"):
			return metastore.Gzip
		case text != "":
			return metastore.Uncompressed
		}
	}
	return metastore.Gzip
}

// exportLayer fills a directory with a layer of the store, in image-rs's form of
// whiteouts, and verifies it: a tar while it is read, a tree by what its journal says.
// It tells whether the layer's root is opaque.
func (c *Client) exportLayer(ctx context.Context, id oci.DiffID, dir *os.File) (opaque bool, err error) {
	l, err := c.store.Layer(id)
	if err != nil {
		return false, err
	}
	if l.Layout == store.LayoutEROFS || l.Layout == store.LayoutSeed {
		tar, offset, err := l.OpenTar()
		if err != nil {
			return false, err
		}
		defer func() { _ = tar.Close() }()
		return c.unpackTo(ctx, dir, storedTar(l, tar, offset))
	}
	root, err := os.Open(l.FS())
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }()
	copied := retar.Open(ctx, root, retar.Exact(), retar.Options{
		UserXattrs: l.Whiteouts == store.WhiteoutsUser, MaxEntries: c.options.MaxEntries, MaxBytes: c.options.MaxLayerBytes,
	})
	const blockBytes = 128 << 10
	opaque, err = c.unpackTo(ctx, dir, stream.NewSlicer(copied, blockBytes))
	if err := errors.Join(err, copied.Close()); err != nil {
		return false, err
	}
	problems, err := checkJournal(ctx, l, dir, apply.Trusted)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%s; \"dray store verify --repair\" removes it, so that it can be pulled again: %w", problems[0], store.ErrCorrupt)
	}
	return opaque, err
}

func (c *Client) unpackTo(ctx context.Context, dir *os.File, tar stream.Blocks) (opaque bool, err error) {
	entries := layer.NewTar(tar, layer.Limits{MaxBytes: c.options.MaxLayerBytes, MaxEntries: c.options.MaxEntries})
	result, err := apply.Apply(ctx, dir, entries, apply.Options{Log: c.log})
	if err == nil {
		_, err = entries.Drain()
	}
	return result.OpaqueRoot, err
}
