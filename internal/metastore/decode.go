package metastore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"

	"dray/internal/oci"
)

const (
	maxPathBytes = 4096 // of a layer's path: PATH_MAX
	maxDepth     = 128  // of objects in each other: that of image-rs's decoder
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrFormat, fmt.Errorf(format, args...))
}

// Decode reads a document. Errors wrap [ErrFormat] and say where it is wrong.
func Decode(raw []byte) (*Document, error) {
	document, err := decode(raw)
	if err != nil {
		return nil, malformed("%w", err)
	}
	return document, nil
}

func decode(raw []byte) (*Document, error) {
	if err := checkKeys(raw); err != nil {
		return nil, err
	}
	top, err := object(raw, "the document")
	if err != nil {
		return nil, err
	}
	d := &decoder{layers: map[oci.Digest]Layer{}, names: map[string]oci.DiffID{}}
	for _, part := range []struct {
		name string
		read func(json.RawMessage) error
	}{{"layer_db", d.layerDB}, {"image_db", d.imageDB}, {"snapshot_db", d.snapshotDB}} {
		if err := part.read(top[part.name]); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	layers, images := slices.Collect(maps.Values(d.layers)), d.doc.Images
	sort.Slice(layers, func(i, j int) bool { return layers[i].Blob < layers[j].Blob })
	sort.Slice(images, func(i, j int) bool { return images[i].ID < images[j].ID })
	d.doc.Layers = layers
	return &d.doc, nil
}

// checkKeys looks for keys that an object has twice, of which one decoder would
// take the first and another the last, and for anything behind the document.
func checkKeys(raw []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	type level struct {
		keys  map[string]bool // nil in an array
		isKey bool            // what comes next is one
	}
	var open []level
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) && len(open) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		at := len(open) - 1
		if at >= 0 && open[at].keys != nil {
			if key, ok := token.(string); ok && open[at].isKey {
				if open[at].keys[key] {
					return fmt.Errorf("at byte %d: key %.100q stands there twice", decoder.InputOffset(), key)
				}
				open[at].keys[key], open[at].isKey = true, false
				continue
			}
			open[at].isKey = true // after this value
		}
		if len(open) == maxDepth {
			return fmt.Errorf("at byte %d: more than %d objects in each other", decoder.InputOffset(), maxDepth)
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{map[string]bool{}, true})
		case json.Delim('['):
			open = append(open, level{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:at]
		}
	}
}

// object splits an object. It is not decoded into structures, which would take
// keys in any case, as image-rs does not.
func object(raw json.RawMessage, what string) (map[string]json.RawMessage, error) {
	if raw == nil {
		return nil, fmt.Errorf("%s is missing", what)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if fields == nil {
		return nil, fmt.Errorf("%s is null", what)
	}
	return fields, nil
}

// field decodes one that must be there.
func field[T any](fields map[string]json.RawMessage, name string) (value T, err error) {
	raw, ok := fields[name]
	if !ok {
		return value, fmt.Errorf("%s is missing", name)
	}
	if string(raw) == "null" {
		return value, fmt.Errorf("%s is null", name)
	}
	if err := json.Unmarshal(raw, &value); err != nil {
		return value, fmt.Errorf("%s: %w", name, err)
	}
	return value, nil
}

// digest decodes one whose algorithm dray has.
func digest(fields map[string]json.RawMessage, name string) (oci.Digest, error) {
	text, err := field[string](fields, name)
	if err != nil {
		return "", err
	}
	d, err := oci.ParseDigest(text)
	if err != nil {
		return "", fmt.Errorf("%s: %v", name, err) //nolint:errorlint // not a digest of the caller's
	}
	return d, nil
}

// decoder is one run of [Decode].
type decoder struct {
	doc    Document
	layers map[oci.Digest]Layer
	names  map[string]oci.DiffID // what lies in each directory
}

func (d *decoder) layerDB(raw json.RawMessage) error {
	db, err := object(raw, "it")
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(db)) {
		l, err := d.layer(db[key])
		if err == nil && string(l.Blob) != key {
			err = fmt.Errorf("compressed_digest is %s", l.Blob)
		}
		if err == nil {
			err = d.add(l)
		}
		if err != nil {
			return fmt.Errorf("layer %.100q: %w", key, err)
		}
	}
	return nil
}

func (d *decoder) layer(raw json.RawMessage) (l Layer, err error) {
	fields, err := object(raw, "the layer")
	if err != nil {
		return l, err
	}
	if l.Decoder, err = field[Decoder](fields, "decoder"); err != nil {
		return l, err
	}
	switch l.Decoder {
	case Uncompressed, Gzip, Zstd:
	default:
		return l, fmt.Errorf("decoder: %.100q is none of %s, %s and %s", l.Decoder, Uncompressed, Gzip, Zstd)
	}
	if l.Encrypted, err = field[bool](fields, "encrypted"); err != nil {
		return l, err
	}
	if l.Blob, err = digest(fields, "compressed_digest"); err != nil {
		return l, err
	}
	diffID, err := digest(fields, "uncompressed_digest")
	if err != nil {
		return l, err
	}
	l.DiffID = oci.DiffID(diffID)
	where, err := field[string](fields, "store_path")
	if err != nil {
		return l, err
	}
	l.Name, err = d.place(where)
	return l, err
}

// place takes a layer's path apart: PREFIX/layers/NAME, with the same PREFIX for
// all.
func (d *decoder) place(where string) (name string, err error) {
	switch {
	case len(where) > maxPathBytes:
		return "", fmt.Errorf("store_path has %d bytes, a path has at most %d", len(where), maxPathBytes)
	case !path.IsAbs(where):
		return "", fmt.Errorf("store_path %q is not absolute", where)
	case strings.ContainsRune(where, 0):
		return "", fmt.Errorf("store_path %q has a NUL", where)
	case path.Clean(where) != where:
		return "", fmt.Errorf("store_path %q has \".\", \"..\" or empty components", where)
	}
	above, name := path.Split(where)
	prefix, parent := path.Split(path.Clean(above))
	if parent != dirLayers || name == "" {
		return "", fmt.Errorf("store_path %q is not WORKDIR/%s/NAME", where, dirLayers)
	}
	prefix = path.Clean(prefix)
	if d.doc.Prefix == "" {
		d.doc.Prefix = prefix
	}
	if prefix != d.doc.Prefix {
		return "", fmt.Errorf("store_path %q leads out of %s, where other layers are", where, d.doc.Prefix)
	}
	return name, nil
}

// add enters a layer, which must not contradict another.
func (d *decoder) add(l Layer) error {
	if known, ok := d.layers[l.Blob]; ok && known != l {
		return fmt.Errorf("layer %s stands there twice, differently", l.Blob)
	}
	if id, ok := d.names[l.Name]; ok && id != l.DiffID {
		return fmt.Errorf("directory %q is said to be layer %s and layer %s", l.Name, id, l.DiffID)
	}
	d.layers[l.Blob], d.names[l.Name] = l, l.DiffID
	return nil
}

func (d *decoder) imageDB(raw json.RawMessage) error {
	db, err := object(raw, "it")
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(db)) {
		image, err := d.image(db[key])
		if err == nil && string(image.ID) != key {
			err = fmt.Errorf("id is %s", image.ID)
		}
		if err != nil {
			return fmt.Errorf("image %.100q: %w", key, err)
		}
		d.doc.Images = append(d.doc.Images, image)
	}
	return nil
}

func (d *decoder) image(raw json.RawMessage) (i Image, err error) {
	fields, err := object(raw, "the image")
	if err != nil {
		return i, err
	}
	if i.ID, err = digest(fields, "id"); err != nil {
		return i, err
	}
	if i.Manifest, err = digest(fields, "digest"); err != nil {
		return i, err
	}
	if i.Reference, err = field[string](fields, "reference"); err != nil {
		return i, err
	}
	if i.Signed, err = field[bool](fields, "signed"); err != nil {
		return i, err
	}
	if _, err := object(fields["image_config"], "image_config"); err != nil {
		return i, err
	}
	i.Config = fields["image_config"]
	metas, err := field[[]json.RawMessage](fields, "layer_metas")
	if err != nil {
		return i, err
	}
	for n, raw := range metas {
		l, err := d.layer(raw)
		if err == nil {
			err = d.add(l)
		}
		if err != nil {
			return i, fmt.Errorf("layer_metas[%d]: %w", n, err)
		}
		i.Layers = append(i.Layers, l.Blob)
	}
	return i, nil
}

func (d *decoder) snapshotDB(raw json.RawMessage) error {
	if raw == nil {
		return fmt.Errorf("it is missing")
	}
	if err := json.Unmarshal(raw, &d.doc.Snapshots); err != nil {
		return err
	}
	if d.doc.Snapshots == nil {
		return fmt.Errorf("it is null")
	}
	return nil
}
