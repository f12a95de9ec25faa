package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"dray/internal/durable"
	"dray/internal/oci"
)

const recordSuffix = ".json"

// Raw is a document kept byte for byte. In a record it is a JSON string, so that
// it can be read there, or {"base64": …} where it is not valid UTF-8.
type Raw []byte

type rawBase64 struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON implements [json.Marshaler].
func (r Raw) MarshalJSON() ([]byte, error) {
	if utf8.Valid(r) {
		return json.Marshal(string(r))
	}
	return json.Marshal(rawBase64{r})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (r *Raw) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		err := json.Unmarshal(raw, &text)
		*r = Raw(text)
		return err
	}
	var b rawBase64
	err := json.Unmarshal(raw, &b)
	*r = b.Base64
	return err
}

// Image is the record of an image: all that is needed to run it without asking
// the registry again. Records do not change, but for Pulled and Evidence when the
// image is pulled again.
type Image struct {
	Version     int             `json:"version"`
	Manifest    oci.Descriptor  `json:"manifest"`
	Config      oci.Descriptor  `json:"config"`
	Index       *oci.Descriptor `json:"index,omitempty"` // what the reference pointed to, when an index
	RawManifest Raw             `json:"raw_manifest"`
	RawConfig   Raw             `json:"raw_config"`
	DiffIDs     []oci.DiffID    `json:"diff_ids"` // bottom first
	Platform    oci.Platform    `json:"platform"`
	Reference   string          `json:"reference"` // as it was first pulled
	Pulled      time.Time       `json:"pulled"`
	Evidence    json.RawMessage `json:"evidence,omitempty"`

	// UnsyncedBoot is the boot in which the record was written while a layer of the
	// image was not synced; it is in the file's name.
	UnsyncedBoot string `json:"unsynced_boot,omitempty"`
}

// check tells whether the record is whole: what its digests promise.
func (i *Image) check() error {
	for _, part := range []struct {
		what string
		raw  Raw
		want oci.Digest
	}{{"manifest", i.RawManifest, i.Manifest.Digest}, {"config", i.RawConfig, i.Config.Digest}} {
		if _, err := oci.ParseDigest(string(part.want)); err != nil {
			return fmt.Errorf("%s: %w", part.what, err)
		}
		h := part.want.Hash()
		_, _ = h.Write(part.raw) // hash.Hash never fails
		if got := oci.DigestOf(part.want.Algorithm(), h); got != part.want {
			return fmt.Errorf("%s has digest %s, want %s", part.what, got, part.want)
		}
	}
	for _, id := range i.DiffIDs {
		if _, err := oci.ParseDiffID(string(id)); err != nil {
			return fmt.Errorf("diff ID: %w", err)
		}
	}
	return nil
}

// imagePath returns the path of an image's record; boot is "" for a durable one.
func (s *Store) imagePath(manifest oci.Digest, boot string) string {
	return s.path(dirImages, manifest.Algorithm(), recordFile(manifest.Hex(), boot))
}

// recordFile returns the name of a record that is marked with boot, unless "".
func recordFile(name, boot string) string {
	if boot != "" {
		name += "." + boot
	}
	return name + recordSuffix
}

// splitRecordFile undoes [recordFile].
func splitRecordFile(file string) (name, boot string, ok bool) {
	name, ok = strings.CutSuffix(file, recordSuffix)
	name, boot, marked := strings.Cut(name, ".")
	return name, boot, ok && (!marked || validBoot(boot))
}

// PutImage writes the record of an image whose layers are all in the store: a
// missing one is an [ErrNotFound]. It is durable when they are ([Store.Sync]). The
// store fills in Version, UnsyncedBoot and, when zero, Pulled.
func (s *Store) PutImage(ctx context.Context, image *Image) error {
	if err := image.check(); err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	lock, err := s.lock(ctx, durable.Shared) // from the look at the layers to the record
	if err != nil {
		return fmt.Errorf("store image %s: %w", image.Manifest.Digest, err)
	}
	defer func() { _ = lock.Release() }()
	image.Version, image.UnsyncedBoot = formatVersion, ""
	for _, id := range image.DiffIDs {
		layer, err := s.Layer(id)
		if err != nil {
			return fmt.Errorf("store image %s: %w", image.Manifest.Digest, err)
		}
		if layer.UnsyncedBoot != "" {
			image.UnsyncedBoot = layer.UnsyncedBoot
		}
	}
	if image.Pulled.IsZero() {
		image.Pulled = s.now().UTC()
	}
	if err := s.putMarked(image, image.UnsyncedBoot, func(boot string) string { return s.imagePath(image.Manifest.Digest, boot) }); err != nil {
		return fmt.Errorf("store image %s: %w", image.Manifest.Digest, s.Explain(err))
	}
	return nil
}

// putMarked writes a record: durably when boot is "", instead of a marked one, or
// beside the durable one with the mark of boot.
func (s *Store) putMarked(record any, boot string, path func(boot string) string) error {
	if err := os.MkdirAll(filepath.Dir(path("")), dirPerm); err != nil {
		return err
	}
	if boot != "" {
		return writeRecord(path(boot), record, unsynced)
	}
	if err := writeRecord(path(""), record, synced); err != nil {
		return err
	}
	return ignoreMissing(os.Remove(path(s.boot)))
}

// Image returns the image whose manifest has the digest, [ErrNotFound], or
// [ErrCorrupt] when the record is not what its digests promise.
func (s *Store) Image(manifest oci.Digest) (*Image, error) {
	if _, err := oci.ParseDigest(string(manifest)); err != nil {
		return nil, fmt.Errorf("look up image: %w", err)
	}
	for _, boot := range []string{"", s.boot} {
		image, err := readImage(s.imagePath(manifest, boot), manifest)
		if err == nil {
			image.UnsyncedBoot = boot
			return image, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, fmt.Errorf("look up image %s: %w", manifest, err)
		}
	}
	return nil, fmt.Errorf("image %s: %w", manifest, ErrNotFound)
}

func readImage(path string, manifest oci.Digest) (*Image, error) {
	image := &Image{}
	if err := readRecord(path, image); err != nil {
		return nil, err
	}
	if err := checkFormat(path, image.Version); err != nil {
		return nil, err
	}
	if err := image.check(); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", path, ErrCorrupt, err)
	}
	if image.Manifest.Digest != manifest {
		return nil, fmt.Errorf("read %s: record of image %s: %w", path, image.Manifest.Digest, ErrCorrupt)
	}
	return image, nil
}

// imageDigests lists the images that have a record in force. Files that cannot be
// records come second, those of other boots third.
func (s *Store) imageDigests() (digests []oci.Digest, strangers, stale []string, err error) {
	for _, algorithm := range algorithms() {
		names, err := readNames(s.path(dirImages, algorithm))
		if err != nil {
			return nil, nil, nil, err
		}
		for _, file := range names {
			path := filepath.Join(dirImages, algorithm, file)
			if durable.IsTemp(file) {
				continue
			}
			name, boot, ok := splitRecordFile(file)
			digest, err := oci.ParseDigest(algorithm + ":" + name)
			switch {
			case !ok || err != nil:
				strangers = append(strangers, path)
			case boot != "" && boot != s.boot:
				stale = append(stale, path)
			case len(digests) == 0 || digests[len(digests)-1] != digest: // names are sorted
				digests = append(digests, digest)
			}
		}
	}
	return digests, strangers, stale, nil
}

// Images returns all images, by digest. Those that cannot be understood are in the
// error, which is then an [ErrCorrupt]; the others are returned all the same.
func (s *Store) Images() ([]*Image, error) {
	digests, _, _, err := s.imageDigests()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var images []*Image
	var broken []error
	for _, digest := range digests {
		image, err := s.Image(digest)
		switch {
		case errors.Is(err, ErrNotFound): // just removed
		case err != nil:
			broken = append(broken, err)
		default:
			images = append(images, image)
		}
	}
	return images, errors.Join(broken...)
}
