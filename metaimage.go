//go:build linux

package dray

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/pull"
	"dray/internal/store"
)

// Annotations of the manifest that an image from a work directory gets, for image-rs
// keeps none. Those of a layer and of the configuration say what it was there.
const (
	importedManifest  = "dray.imported.manifest"  // digest of the one that image-rs pulled
	importedReference = "dray.imported.reference" // as image-rs had it
	importedBlob      = "dray.imported.digest"    // of the layer's blob, or the configuration
	importedDecoder   = "dray.imported.decoder"
	importedEncrypted = "dray.imported.encrypted" // "true": the blob was encrypted
)

// image records one image, if all its layers are there.
func (i *importer) image(ctx context.Context, from *metastore.Image) error {
	report := MetaImportImage{Reference: from.Reference, Original: from.Manifest, Config: from.ID}
	defer func() { i.done.Images = append(i.done.Images, report) }()
	refuse := func(err error) error {
		report.Refused = err.Error()
		i.refused++
		return nil
	}
	if known, err := i.client.store.Image(from.Manifest); err == nil {
		report.Reference, report.Manifest, report.Verified = known.Reference, known.Manifest.Digest, true
		return nil // the very image, from elsewhere
	}
	config, verified := from.RawConfig()
	report.Verified = verified
	image, err := oci.DecodeImage(config)
	if err != nil {
		return refuse(err)
	}
	source, err := i.manifest(from, config, image)
	if err != nil {
		return refuse(err)
	}
	ref, err := i.nameFor(from, oci.DigestBytes(source.manifest))
	if err != nil {
		return refuse(err)
	}
	record, evidence, err := i.client.engine.Pull(ctx, pull.Request{
		Reference: ref, Source: source, Local: true, Platform: oci.Platform{OS: image.OS, Architecture: image.Architecture, Variant: image.Variant},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", from.Reference, err)
	}
	if from.Signed {
		i.note("image %s is said to be signed: not taken over, since the work directory has no signature", ref)
	}
	report.Reference, report.Manifest = ref.String(), record.Manifest.Digest
	return i.tell(ctx, from, record, evidence, verified)
}

// nameFor returns the name that the image gets: the one that it has, unless this is
// pinned to a manifest that nobody has seen, or is another image's in the store.
func (i *importer) nameFor(from *metastore.Image, manifest oci.Digest) (oci.Reference, error) {
	ref, err := oci.ParseReference(from.Reference)
	if err != nil {
		return ref, err
	}
	if ref.Digest == "" {
		named, err := i.client.store.Ref(ref.String())
		if errors.Is(err, store.ErrNotFound) || err == nil && named == manifest {
			return ref, nil
		}
		if err != nil {
			return ref, err
		}
	}
	const shortHex = 12
	ref.Digest, ref.Tag = "", "imported-"+from.ID.Hex()[:shortHex]
	return ref, nil
}

// manifest makes a manifest for the image: uncompressed layers by their diff IDs, in
// the order of the configuration, which image-rs loses when a layer is repeated.
func (i *importer) manifest(from *metastore.Image, config []byte, image *oci.Image) (*imported, error) {
	byDiffID := map[oci.DiffID]*metastore.Layer{}
	for n := range i.dir.Layers {
		byDiffID[i.dir.Layers[n].DiffID] = &i.dir.Layers[n]
	}
	for _, blob := range from.Layers { // rather than another blob of the same layer
		l := i.dir.Layer(blob)
		byDiffID[l.DiffID] = l
	}
	m := oci.Manifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Layers: []oci.Descriptor{},
		Config:      oci.Descriptor{MediaType: oci.MediaTypeConfig, Digest: oci.DigestBytes(config), Size: int64(len(config))},
		Annotations: map[string]string{importedManifest: string(from.Manifest), importedReference: from.Reference},
	}
	m.Config.Annotations = map[string]string{importedBlob: string(from.ID)}
	for n, id := range image.RootFS.DiffIDs {
		l, kept := byDiffID[id], i.have[id]
		if l == nil {
			return nil, fmt.Errorf("diff_ids[%d]: the work directory has no layer %s: %w", n, id, metastore.ErrNotFound)
		}
		if kept == nil {
			return nil, fmt.Errorf("layer %s was refused: %w", id, ErrRefused)
		}
		annotations := map[string]string{importedBlob: string(l.Blob), importedDecoder: string(l.Decoder)}
		if l.Encrypted {
			annotations[importedEncrypted] = "true"
		}
		m.Layers = append(m.Layers, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: id.Digest(), Size: kept.SizeBytes, Annotations: annotations})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &imported{manifest: raw, config: config}, nil
}

// tell enters into the image's evidence what is special about it.
func (i *importer) tell(ctx context.Context, from *metastore.Image, record *store.Image, evidence *Evidence, verified bool) error {
	evidence.Fallbacks = append(evidence.Fallbacks, fmt.Sprintf(
		"imported from %s: the manifest %s was not there, and the image has one of its own; \"dray pull\" fetches it, and no layer", i.dir.Path, from.Manifest))
	if !verified {
		evidence.Fallbacks = append(evidence.Fallbacks, fmt.Sprintf("the configuration %s was not there byte for byte: what image-rs wrote of it is taken unverified", from.ID))
	}
	var err error
	if record.Evidence, err = json.Marshal(evidence); err != nil {
		return err
	}
	return i.client.store.PutImage(ctx, record)
}

// imported is an image as a source: its layers are in the store.
type imported struct{ manifest, config []byte }

var _ pull.Source = (*imported)(nil)

// Resolve implements [pull.Source].
func (i *imported) Resolve(context.Context, string, oci.Digest) (oci.Descriptor, []byte, error) {
	return oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: oci.DigestBytes(i.manifest), Size: int64(len(i.manifest))}, i.manifest, nil
}

// Blob implements [pull.Source]: there is only the configuration.
func (i *imported) Blob(_ context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	if d.Digest != oci.DigestBytes(i.config) {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, store.ErrNotFound) // collected meanwhile
	}
	return io.NopCloser(strings.NewReader(string(i.config[offset:]))), nil
}

// Close implements [pull.Source].
func (*imported) Close() error { return nil }
