package record

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
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

// Image is a record image: an image of one layer, a tar with the record. Who has it
// closes it.
type Image struct {
	Manifest, Config []byte
	Descriptor       oci.Descriptor // of Manifest
	Layer            oci.Descriptor

	layer spool
}

// ReadAt reads the layer.
func (i *Image) ReadAt(p []byte, at int64) (int, error) { return i.layer.ReadAt(p, at) }

// Close lets go of the layer.
func (i *Image) Close() { i.layer.close() }

// NewImage makes a record image, byte for byte as containerd's tool makes it of the
// same lines (document 003): nothing is indented, and both documents end with a
// newline. With a subject it is one of its referrers.
func NewImage(entries *List, platform oci.Platform, subject *oci.Descriptor) (*Image, error) {
	image := &Image{}
	if err := image.write(entries, platform, subject); err != nil {
		image.Close()
		return nil, fmt.Errorf("write record image: %w", err)
	}
	return image, nil
}

func (i *Image) write(entries *List, platform oci.Platform, subject *oci.Descriptor) error {
	packed, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(&i.layer, packed))
	t := tar.NewWriter(io.MultiWriter(z, plain))
	err := t.WriteHeader(&tar.Header{Name: FileName, Size: entries.Size(), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = entries.WriteTo(t)
	}
	if err = errors.Join(err, t.Close(), z.Close()); err == nil {
		err = i.layer.flush()
	}
	if err != nil {
		return err
	}
	i.Layer = oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Digest: oci.DigestOf("sha256", packed), Size: i.layer.size}
	config := oci.Image{Architecture: platform.Architecture, OS: platform.OS}
	config.RootFS = oci.RootFS{Type: "layers", DiffIDs: []oci.DiffID{oci.DiffID(oci.DigestOf("sha256", plain))}}
	if i.Config, err = encode(config); err != nil {
		return err
	}
	manifest := oci.Manifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeManifest,
		Config: describe(oci.MediaTypeConfig, i.Config),
		Layers: []oci.Descriptor{i.Layer},
	}
	if subject != nil {
		manifest.Subject, manifest.ArtifactType = subject, ArtifactType
	}
	if i.Manifest, err = encode(manifest); err != nil {
		return err
	}
	i.Descriptor = describe(oci.MediaTypeManifest, i.Manifest)
	i.Descriptor.ArtifactType = manifest.ArtifactType
	return nil
}

// encode returns v as JSON with a newline.
func encode(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	return append(raw, '\n'), err
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
func ReadTar(r io.Reader, l Limits) (rec *Record, err error) {
	defer func() {
		if err != nil && rec != nil {
			rec.Entries.Close()
			rec = nil
		}
	}()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rec, fmt.Errorf("read record image: %w: %w", ErrFormat, err)
		}
		if name, ok := cleanPath(h.Name); !ok || name != FileName || h.Typeflag != tar.TypeReg {
			continue
		}
		if rec != nil {
			return rec, fmt.Errorf("read record image: %s is there twice: %w", FileName, ErrFormat)
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
