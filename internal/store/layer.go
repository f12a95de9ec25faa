package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dray/internal/oci"
)

// Names inside a layer's directory.
const (
	FSName      = "fs"      // LayoutDir: the unpacked tree
	JournalName = "journal" // LayoutDir: what apply wrote down for checks

	TarName   = "layer.tar"   // LayoutEROFS: the uncompressed layer as it came
	IndexName = "index.erofs" // LayoutEROFS: the file system that points into it

	recordName = "layer.json"

	unsyncedPrefix = "unsynced-" // followed by the boot ID, see the package comment
)

// Layouts of a layer.
const (
	LayoutDir   = "dir"   // an unpacked tree
	LayoutEROFS = "erofs" // a tar and its index
	LayoutSeed  = "seed"  // an index over a tar that lies in a seed: see [SeedRef]
	LayoutTar   = "tar"   // only the tar, in a seed: what no index can express
)

// Whiteouts of a layer: the prefix of overlayfs's extended attributes.
// [LayoutEROFS] has the trusted form only.
const (
	WhiteoutsTrusted = "trusted"
	WhiteoutsUser    = "user"
)

// LayerRecord is layer.json: what the store remembers of a layer.
type LayerRecord struct {
	Version   int            `json:"version"`
	DiffID    oci.DiffID     `json:"diff_id"`
	Layout    string         `json:"layout"`
	Whiteouts string         `json:"whiteouts,omitempty"`
	Blob      oci.Descriptor `json:"blob,omitzero"` // the compressed blob that it was made of, if any
	SizeBytes int64          `json:"size_bytes"`    // of the uncompressed tar
	DiskBytes int64          `json:"disk_bytes"`    // in blocks, as written
	Entries   int64          `json:"entries"`
	Created   time.Time      `json:"created"`
	Notes     []string       `json:"notes,omitempty"` // what is not exact, such as devices left out
	Seed      *SeedRef       `json:"seed,omitempty"`  // where the contents are; nil: in the store

	// TarVerity and IndexVerity are what the file system measures the two files as
	// (fs-verity), "ALGORITHM:HEX"; "" where it does not.
	TarVerity   string `json:"tar_verity,omitempty"`
	IndexVerity string `json:"index_verity,omitempty"`

	// UnsyncedBoot is the boot in which the layer was written, as long as nothing has
	// synced it. It is not in the file but in the name of a mark beside it.
	UnsyncedBoot string `json:"unsynced_boot,omitempty"`
}

// Layer is a complete layer. Nothing below Path may be changed.
type Layer struct {
	LayerRecord
	Path string // its directory in the store
}

// FS returns the path of the unpacked tree of a layer in [LayoutDir].
func (l *Layer) FS() string {
	if l.Seed != nil {
		return l.Seed.Path
	}
	return filepath.Join(l.Path, FSName)
}

// Journal returns the path of what apply wrote down.
func (l *Layer) Journal() string { return filepath.Join(filepath.Dir(l.FS()), JournalName) }

// Tar returns the path of the uncompressed layer in [LayoutEROFS].
func (l *Layer) Tar() string { return filepath.Join(l.Path, TarName) }

// Index returns the path of the image over it.
func (l *Layer) Index() string {
	if l.Seed != nil && l.Seed.Index != "" {
		return l.Seed.Index
	}
	return filepath.Join(l.Path, IndexName)
}

// Indexed tells whether the layer is a tar with an index.
func (l *Layer) Indexed() bool { return l.Layout == LayoutEROFS || l.Layout == LayoutSeed }

// OpenTar opens the file that the uncompressed layer is in, and returns where in it
// the layer begins. The caller closes it.
func (l *Layer) OpenTar() (f *os.File, offset int64, err error) {
	if l.Seed == nil {
		f, err = os.Open(l.Tar())
		return f, 0, err
	}
	f, err = l.Seed.Open()
	return f, l.Seed.Offset, err
}

func (s *Store) layerPath(id oci.DiffID) string { return s.path(layerDir(id)) }

// layerDir returns the layer's directory, below the root.
func layerDir(id oci.DiffID) string {
	return filepath.Join(dirLayers, id.Digest().Algorithm(), id.Hex())
}

// Layer returns the layer id, [ErrNotFound], or [ErrCorrupt] when it is there but
// cannot be understood. A layer whose seed is gone is not there.
func (s *Store) Layer(id oci.DiffID) (*Layer, error) {
	// The directory may be collected and made again while it is read.
	for range 3 {
		layer, err := s.readLayer(id)
		if !errors.Is(err, errChanged) {
			return layer, err
		}
	}
	return nil, fmt.Errorf("look up layer %s: %w", id, ErrBusy)
}

var errChanged = errors.New("changed while it was read")

func (s *Store) readLayer(id oci.DiffID) (*Layer, error) {
	path := s.layerPath(id)
	mark, _, err := s.layerNames(id)
	if err != nil {
		return nil, err
	}
	layer := &Layer{Path: path}
	if err := readRecord(filepath.Join(path, recordName), &layer.LayerRecord); err != nil {
		return nil, s.missingRecord(id, path, err)
	}
	if err := checkFormat(path, layer.Version); err != nil {
		return nil, fmt.Errorf("look up layer %s: %w", id, err)
	}
	if layer.DiffID != id {
		return nil, fmt.Errorf("look up layer %s: its record says %q: %w", id, layer.DiffID, ErrCorrupt)
	}
	layer.UnsyncedBoot = mark
	if layer.Seed != nil {
		if err := layer.Seed.holds(s.boot); err != nil {
			return nil, fmt.Errorf("layer %s: %w", id, err)
		}
	}
	return layer, nil
}

// layerNames looks at the names in a layer's directory only: the mark of this boot,
// and whether there is a record.
func (s *Store) layerNames(id oci.DiffID) (mark string, recorded bool, err error) {
	if _, err := oci.ParseDiffID(string(id)); err != nil {
		return "", false, fmt.Errorf("look up layer: %w", err)
	}
	names, err := readNames(s.layerPath(id))
	if err != nil {
		return "", false, fmt.Errorf("look up layer %s: %w", id, err)
	}
	for _, name := range names {
		boot, marked := strings.CutPrefix(name, unsyncedPrefix)
		if marked && boot != s.boot {
			return "", false, fmt.Errorf("layer %s: %w", id, errStale)
		}
		if marked {
			mark = boot
		}
		recorded = recorded || name == recordName
	}
	return mark, recorded, nil
}

// missingRecord tells a layer that is absent from one whose record is.
func (s *Store) missingRecord(id oci.DiffID, path string, err error) error {
	if !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("look up layer %s: %w", id, err)
	}
	if _, statErr := os.Lstat(path); errors.Is(statErr, fs.ErrNotExist) {
		return fmt.Errorf("layer %s: %w", id, ErrNotFound)
	}
	if _, statErr := os.Lstat(filepath.Join(path, recordName)); statErr == nil {
		return errChanged
	}
	return fmt.Errorf("look up layer %s: %s has no %s: %w", id, path, recordName, ErrCorrupt)
}

// layerIDs lists the layers' directories, whatever is in them. Names that are not
// digests come second.
func (s *Store) layerIDs() (ids []oci.DiffID, strangers []string, err error) {
	for _, algorithm := range algorithms() {
		names, err := readNames(s.path(dirLayers, algorithm))
		if err != nil {
			return nil, nil, err
		}
		for _, name := range names {
			id, err := oci.ParseDiffID(algorithm + ":" + name)
			if err != nil {
				strangers = append(strangers, filepath.Join(dirLayers, algorithm, name))
				continue
			}
			ids = append(ids, id)
		}
	}
	return ids, strangers, nil
}

// Layers returns all layers, by diff ID. Those that cannot be understood are in
// the error, which is then an [ErrCorrupt]; the others are returned all the same.
func (s *Store) Layers() ([]*Layer, error) {
	ids, _, err := s.layerIDs()
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	var layers []*Layer
	var broken []error
	for _, id := range ids {
		layer, err := s.Layer(id)
		switch {
		case errors.Is(err, ErrNotFound): // stale, or just collected
		case err != nil:
			broken = append(broken, err)
		default:
			layers = append(layers, layer)
		}
	}
	return layers, errors.Join(broken...)
}
