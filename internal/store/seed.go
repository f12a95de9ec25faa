package store

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"dray/internal/erofs"
	"dray/internal/oci"

	"golang.org/x/sys/unix"
)

// SeedRef says where in a seed the contents of a layer lie that the store has not
// got itself. It holds for the boot in which it was written and as long as the file
// there is the one that was looked at; otherwise the layer is as good as absent.
type SeedRef struct {
	Seed    string `json:"seed"`              // as the user named it
	Path    string `json:"path"`              // the file with the tar, or the directory of the tree
	Offset  int64  `json:"offset,omitempty"`  // of the tar in the file
	Index   string `json:"index,omitempty"`   // path of a trusted seed's own index; "": the store has one
	Trusted bool   `json:"trusted,omitempty"` // taken at its word; otherwise all of it was hashed
	Boot    string `json:"boot"`              // in which that was so
	File    FileID `json:"file"`
}

// FileID tells a file from every other, and from itself before a change.
type FileID struct {
	Dev       uint64 `json:"dev"`
	Ino       uint64 `json:"ino"`
	SizeBytes int64  `json:"size_bytes"`
	MTimeNsec int64  `json:"mtime_ns"`
	CTimeNsec int64  `json:"ctime_ns"`
	Verity    string `json:"verity,omitempty"` // fs-verity's digest: the kernel refuses to read anything else
}

// IdentifyFile returns what tells an open file or directory from others.
func IdentifyFile(f *os.File) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return FileID{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return FileID{
		Dev: st.Dev, Ino: st.Ino, SizeBytes: st.Size,
		MTimeNsec: st.Mtim.Nano(), CTimeNsec: st.Ctim.Nano(), Verity: measureVerity(f),
	}, nil
}

// Open opens what r refers to, if it is still what it was: whoever uses what was
// opened uses that, whatever becomes of the path. Otherwise the error is an
// [ErrNotFound].
func (r *SeedRef) Open() (*os.File, error) {
	// Not to be kept waiting by a FIFO that somebody has put there.
	f, err := os.OpenFile(r.Path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &seedGoneError{r.Seed, err}
	}
	now, err := IdentifyFile(f)
	if err == nil && now != r.File {
		err = fmt.Errorf("%s was changed or replaced", r.Path)
	}
	if err != nil {
		_ = f.Close()
		return nil, &seedGoneError{r.Seed, err}
	}
	return f, nil
}

// seedGoneError reports a layer that lay in a seed which is not what it was: the layer
// is not in the store then, and is taken from a seed or pulled again.
type seedGoneError struct {
	seed  string
	cause error
}

var errOtherBoot = errors.New("it was looked at in another boot")

// Error implements error.
func (e *seedGoneError) Error() string {
	return fmt.Sprintf("its contents were in seed %s, and are not there as they were: %v; pull it again, or give the seed that has it", e.seed, e.cause)
}

// Is makes it the state of an object that may be dropped, and an [ErrNotFound].
func (*seedGoneError) Is(target error) bool { return target == errStale || target == ErrNotFound }

// Unwrap returns the cause.
func (e *seedGoneError) Unwrap() error { return e.cause }

// holds tells whether r is still good in this boot.
func (r *SeedRef) holds(boot string) error {
	if r.Boot != boot && (r.File.Verity == "" || r.Trusted) {
		return &seedGoneError{r.Seed, errOtherBoot}
	}
	f, err := r.Open()
	if err != nil {
		return err
	}
	return f.Close()
}

// ofBoot tells whether the layer is of use in this boot only: it need not survive
// the loss of power, nor what is made of it be marked.
func (l *LayerRecord) ofBoot() bool { return l.Seed != nil && l.Seed.File.Verity == "" }

// Boot returns the ID of this boot of the machine, as [SeedRef] has it.
func (s *Store) Boot() string { return s.boot }

// DecodeImage reads the record of an image that is in no store of ours. The error
// is [ErrCorrupt] or [ErrVersion] unless it is the image with that manifest, whole:
// what is returned has been hashed, but for what no digest names: Pulled, Reference,
// Evidence, Platform, DiffIDs and Index.
func DecodeImage(path string, raw []byte) (*Image, error) {
	image := &Image{}
	if err := decodeRecord(path, raw, image); err != nil {
		return nil, err
	}
	if err := checkFormat(path, image.Version); err != nil {
		return nil, err
	}
	if err := image.check(); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", path, ErrCorrupt, err)
	}
	return image, nil
}

// CheckVersion looks at the version file of a store that is not ours. The error is
// [ErrCorrupt] or [ErrVersion].
func CheckVersion(path string, raw []byte) error {
	var v versionRecord
	if err := decodeRecord(path, raw, &v); err != nil {
		return err
	}
	return v.check()
}

// DecodeLayer reads the record of a layer that is in no store of ours.
func DecodeLayer(path string, raw []byte) (*LayerRecord, error) {
	layer := &LayerRecord{}
	if err := decodeRecord(path, raw, layer); err != nil {
		return nil, err
	}
	return layer, checkFormat(path, layer.Version)
}

// DecodeRef reads a reference that is in no store of ours.
func DecodeRef(path string, raw []byte) (*Ref, error) {
	ref := &Ref{}
	if err := decodeRecord(path, raw, ref); err != nil {
		return nil, err
	}
	return ref, checkFormat(path, ref.Version)
}

// Reset empties the directory of [Txn.Path], for another attempt.
func (t *Txn) Reset() error {
	if t.scratch == nil {
		return fmt.Errorf("write layer %s: %w", t.id, os.ErrClosed)
	}
	if err := removeTree(t.scratch.path); err != nil {
		return err
	}
	return t.store.Explain(t.scratch.mkdir())
}

// measureVerity returns the digest of a file that fs-verity guards, "" for any
// other: then, and only then, a change of its bytes cannot be read.
func measureVerity(f *os.File) string {
	measured, err := erofs.Measure(int(f.Fd()))
	if err != nil {
		return ""
	}
	return measured
}

// SeedUsage is what seeds spare the store.
type SeedUsage struct {
	Seed       string       `json:"seed"`
	Layers     int          `json:"layers"`            // that are used where they lie
	Images     int          `json:"images"`            // that use some of them
	UsedBy     []oci.Digest `json:"used_by,omitempty"` // their manifests
	SavedBytes int64        `json:"saved_bytes"`
}

// seedUsage adds up the layers that lie in seeds.
func (s *Store) seedUsage(layers []*Layer) ([]SeedUsage, error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	bySeed := map[string]*SeedUsage{}
	var names []string
	inSeed := map[string]map[string]bool{}
	for _, l := range layers {
		if l.Seed == nil {
			continue
		}
		u := bySeed[l.Seed.Seed]
		if u == nil {
			u = &SeedUsage{Seed: l.Seed.Seed}
			bySeed[u.Seed], inSeed[u.Seed] = u, map[string]bool{}
			names = append(names, u.Seed)
		}
		u.Layers++
		u.SavedBytes += l.SizeBytes
		inSeed[u.Seed][string(l.DiffID)] = true
	}
	slices.Sort(names)
	usage := make([]SeedUsage, 0, len(names))
	for _, name := range names {
		u := bySeed[name]
		for _, image := range images {
			if slices.ContainsFunc(image.DiffIDs, func(id oci.DiffID) bool { return inSeed[name][string(id)] }) {
				u.Images++
				u.UsedBy = append(u.UsedBy, image.Manifest.Digest)
			}
		}
		usage = append(usage, *u)
	}
	return usage, nil
}
