package metastore

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"

	"dray/internal/oci"
)

// FileName is the name of the document in a work directory.
const FileName = "meta_store.json"

// dirLayers is the directory of the layers in a work directory.
const dirLayers = "layers"

// ErrFormat reports a document that image-rs could not have meant: malformed,
// contradictory, or leading out of its directory.
var ErrFormat = errors.New("invalid meta_store.json")

// Decoder is how a layer's blob is compressed.
type Decoder string

// The decoders that image-rs knows.
const (
	Uncompressed Decoder = "Uncompressed"
	Gzip         Decoder = "Gzip"
	Zstd         Decoder = "Zstd"
)

// Layer is one unpacked layer.
type Layer struct {
	Decoder   Decoder    // what image-rs wrote says nothing: it is always Gzip
	Encrypted bool       // the blob is; the tree is not
	Blob      oci.Digest // of the blob as a registry has it
	DiffID    oci.DiffID // of the tar
	Name      string     // of its directory in WORKDIR/layers
}

// Image is an image whose layers lie in the work directory.
type Image struct {
	ID        oci.Digest      // of the configuration as a registry has it
	Manifest  oci.Digest      // of the platform's manifest
	Reference string          // as it was pulled
	Config    json.RawMessage // the configuration as image-rs wrote it, which need not have the digest ID
	Signed    bool
	Layers    []oci.Digest // blobs, bottom first, each once
}

// Document is meta_store.json.
type Document struct {
	Prefix    string            // directory that holds layers, when image-rs reads them; "" if there is no layer
	Images    []Image           // by ID
	Layers    []Layer           // by blob: those of layer_db and of all images
	Snapshots map[string]uint64 // snapshot_db
}

// Layer returns the layer whose blob has the digest, nil if there is none.
func (d *Document) Layer(blob oci.Digest) *Layer {
	i, ok := slices.BinarySearchFunc(d.Layers, blob, func(l Layer, blob oci.Digest) int { return cmp.Compare(l.Blob, blob) })
	if !ok {
		return nil
	}
	return &d.Layers[i]
}

// ByDiffID returns the layers that are said to be the layer id: the same tar may have
// come in several blobs.
func (d *Document) ByDiffID(id oci.DiffID) []*Layer {
	var found []*Layer
	for i := range d.Layers {
		if d.Layers[i].DiffID == id {
			found = append(found, &d.Layers[i])
		}
	}
	return found
}

// The document as JSON, in the order of image-rs's structures.
type (
	document struct {
		Images    map[oci.Digest]imageMeta `json:"image_db"`
		Layers    map[oci.Digest]layerMeta `json:"layer_db"`
		Snapshots map[string]uint64        `json:"snapshot_db"`
	}
	imageMeta struct {
		ID        oci.Digest      `json:"id"`
		Manifest  oci.Digest      `json:"digest"`
		Reference string          `json:"reference"`
		Config    json.RawMessage `json:"image_config"`
		Signed    bool            `json:"signed"`
		Layers    []layerMeta     `json:"layer_metas"`
	}
	layerMeta struct {
		Decoder   Decoder    `json:"decoder"`
		Encrypted bool       `json:"encrypted"`
		Blob      oci.Digest `json:"compressed_digest"`
		DiffID    oci.DiffID `json:"uncompressed_digest"`
		Path      string     `json:"store_path"`
	}
)

// Encode returns the document as image-rs writes it: compact, but with sorted keys.
// Every layer that an image names must be among the document's layers.
func (d *Document) Encode() ([]byte, error) {
	out := document{Images: map[oci.Digest]imageMeta{}, Layers: map[oci.Digest]layerMeta{}, Snapshots: d.Snapshots}
	if out.Snapshots == nil {
		out.Snapshots = map[string]uint64{}
	}
	for _, l := range d.Layers {
		out.Layers[l.Blob] = layerMeta{l.Decoder, l.Encrypted, l.Blob, l.DiffID, path.Join(d.Prefix, dirLayers, l.Name)}
	}
	for _, i := range d.Images {
		meta := imageMeta{i.ID, i.Manifest, i.Reference, i.Config, i.Signed, []layerMeta{}}
		for _, blob := range i.Layers {
			l, ok := out.Layers[blob]
			if !ok {
				return nil, fmt.Errorf("write %s: image %s: no layer %s", FileName, i.ID, blob)
			}
			meta.Layers = append(meta.Layers, l)
		}
		out.Images[i.ID] = meta
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // the bytes of a configuration stay what they are
	if err := encoder.Encode(out); err != nil {
		return nil, fmt.Errorf("write %s: %w", FileName, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// insert adds a layer whose blob the document does not have.
func (d *Document) insert(l Layer) {
	i, _ := slices.BinarySearchFunc(d.Layers, l.Blob, func(l Layer, blob oci.Digest) int { return cmp.Compare(l.Blob, blob) })
	d.Layers = slices.Insert(d.Layers, i, l)
}

// insertImage adds an image, unless it has one of this configuration.
func (d *Document) insertImage(image Image) (had bool) {
	i, had := slices.BinarySearchFunc(d.Images, image.ID, func(i Image, id oci.Digest) int { return cmp.Compare(i.ID, id) })
	if !had {
		d.Images = slices.Insert(d.Images, i, image)
	}
	return had
}
