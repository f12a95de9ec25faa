package record

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"dray/internal/oci"
)

// FileName is the entry of a record image's layer that has the record.
const FileName = "stargz.record.json"

// ArtifactType is what a record attached to its image is (image-spec,
// manifest.md, "Guidelines for Artifact Usage").
const ArtifactType = "application/vnd.dray.record.v1+jsonl"

// Image is a record image: an image of one layer, a tar with the record.
type Image struct {
	Manifest, Config, Layer []byte
	Descriptor              oci.Descriptor // of Manifest
}

// NewImage makes a record image, byte for byte as containerd's tool makes it of the
// same lines (document 003): nothing is indented, and both documents end with a
// newline. With a subject it is one of its referrers.
func NewImage(entries []Entry, platform oci.Platform, subject *oci.Descriptor) (*Image, error) {
	var text, plain, packed bytes.Buffer
	if err := Write(&text, entries); err != nil {
		return nil, err
	}
	t := tar.NewWriter(&plain)
	err := t.WriteHeader(&tar.Header{Name: FileName, Size: int64(text.Len()), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = t.Write(text.Bytes())
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return nil, fmt.Errorf("write record image: %w", err)
	}
	z := gzip.NewWriter(&packed)
	_, err = z.Write(plain.Bytes())
	if err = errors.Join(err, z.Close()); err != nil {
		return nil, fmt.Errorf("write record image: %w", err)
	}
	image := &Image{Layer: packed.Bytes()}
	config := oci.Image{Architecture: platform.Architecture, OS: platform.OS}
	config.RootFS = oci.RootFS{Type: "layers", DiffIDs: []oci.DiffID{oci.DiffID(oci.DigestBytes(plain.Bytes()))}}
	if image.Config, err = encode(config); err != nil {
		return nil, err
	}
	manifest := oci.Manifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeManifest,
		Config: describe(oci.MediaTypeConfig, image.Config),
		Layers: []oci.Descriptor{describe(oci.MediaTypeLayerGz, image.Layer)},
	}
	if subject != nil {
		manifest.Subject, manifest.ArtifactType = subject, ArtifactType
	}
	if image.Manifest, err = encode(manifest); err != nil {
		return nil, err
	}
	image.Descriptor = describe(oci.MediaTypeManifest, image.Manifest)
	image.Descriptor.ArtifactType = manifest.ArtifactType
	return image, nil
}

// encode returns v as JSON with a newline.
func encode(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write record image: %w", err)
	}
	return append(raw, '\n'), nil
}

func describe(mediaType string, b []byte) oci.Descriptor {
	return oci.Descriptor{MediaType: mediaType, Digest: oci.DigestBytes(b), Size: int64(len(b))}
}

// LayerOf returns the layer of a record image, or an error that wraps [ErrFormat].
func LayerOf(m *oci.Manifest) (oci.Descriptor, error) {
	if len(m.Layers) != 1 || !oci.IsLayer(m.Layers[0].MediaType) {
		return oci.Descriptor{}, fmt.Errorf("read record image: it has %d layers and not one tar: %w", len(m.Layers), ErrFormat)
	}
	return m.Layers[0], nil
}

// ErrNoFile reports a tar without a record: an image of something else.
var ErrNoFile = fmt.Errorf("%w: the image has none", ErrFormat)

// ReadTar reads the record in the tar of a record image's layer, uncompressed, to
// the tar's end.
func ReadTar(r io.Reader, l Limits) (*Record, error) {
	var rec *Record
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read record image: %w: %w", ErrFormat, err)
		}
		if name, ok := cleanPath(h.Name); !ok || name != FileName || h.Typeflag != tar.TypeReg {
			continue
		}
		if rec != nil {
			return nil, fmt.Errorf("read record image: %s is there twice: %w", FileName, ErrFormat)
		}
		if rec, err = Read(t, l); err != nil {
			return nil, err
		}
	}
	if rec == nil {
		return nil, fmt.Errorf("read record image: no %s: %w", FileName, ErrNoFile)
	}
	return rec, nil
}
