package seed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
)

// Names in a seed beside those of a store.
const (
	ManifestName = "seed.json" // a list of what is inside, see [Manifest]
	blobsName    = "blobs"     // of an OCI image layout: blobs by digest
	versionName  = "version"   // of a store
	recordName   = "layer.json"
	layoutName   = "oci-layout"
)

// Limits of what is read of a seed into memory.
const (
	maxRecordBytes   = 64 << 20 // an image record: manifest and config, both in JSON strings
	maxManifestBytes = 32 << 20 // seed.json
	maxDocumentBytes = 4 << 20  // a manifest or an index
)

// Seed is one seed.
type Seed struct {
	path    string // as it was named
	trusted bool
	machine *machine

	mu         sync.Mutex          // guards the fields below
	archive    *archive            // as it was last seen; nil: not yet, or a directory
	document   *metastore.Document // as it was last seen, in a work directory
	documentID store.FileID
}

// Path returns the seed's path as it was named.
func (s *Seed) Path() string { return s.path }

// Trusted tells whether the user vouches for it.
func (s *Seed) Trusted() bool { return s.trusted }

// files opens the seed as it is now.
func (s *Seed) files() (files, error) {
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	mode := info.Mode()
	switch {
	case mode.IsDir():
		return directory(s.path), nil
	case !mode.IsRegular() && mode.Type() != fs.ModeDevice:
		return nil, fmt.Errorf("%s: %s: %w", s.path, kindOf(mode), ErrNotSeed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, err := store.IdentifyFile(f); err == nil && s.archive != nil && id == s.archive.file && mode.IsRegular() {
		return s.archive, nil
	}
	s.archive, err = openArchive(f)
	if err != nil {
		s.archive = nil
		return nil, err
	}
	return s.archive, nil
}

// check makes sure that there is a seed of a form that is known.
func (s *Seed) check() error {
	from, err := s.files()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open seed: %w: %w", err, ErrNotSeed)
	}
	if err != nil {
		return fmt.Errorf("open seed: %w", err)
	}
	raw, err := readFile(from, ManifestName, maxManifestBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return s.checkOther(from)
	}
	if err == nil {
		_, err = DecodeManifest(raw)
	}
	if err == nil {
		err = checkVersion(from)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // what is in it has versions of its own
		return fmt.Errorf("open seed %s: %w", s.path, err)
	}
	return nil
}

// checkVersion looks at the version file.
func checkVersion(from files) error {
	raw, err := readFile(from, versionName, maxDocumentBytes)
	if err != nil {
		return err
	}
	err = store.CheckVersion(versionName, raw)
	if errors.Is(err, store.ErrCorrupt) {
		return problem("%w", err)
	}
	return err
}

// checkOther looks for what is not a seed by name but can be used as one.
func (s *Seed) checkOther(from files) error {
	err := checkVersion(from)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open seed %s: %w", s.path, err)
	}
	for _, name := range []string{layoutName, metastore.FileName} {
		p, err := from.open(name)
		if err == nil && name == metastore.FileName {
			return errors.Join(p.Close(), s.checkMetaStore(from))
		}
		if err == nil {
			return p.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open seed %s: %w", s.path, err)
		}
	}
	return fmt.Errorf("open seed %s: it has no %s, nor is it a store, an OCI image layout or a work directory of image-rs: %w", s.path, ManifestName, ErrNotSeed)
}

// Manifest returns the seed's own list of what is inside: what it says, unverified.
// The error is [fs.ErrNotExist] for what is not a seed by name.
func (s *Seed) Manifest() (*Manifest, error) {
	from, err := s.files()
	if err != nil {
		return nil, err
	}
	raw, err := readFile(from, ManifestName, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	return DecodeManifest(raw)
}

// Document returns the bytes of the manifest, index or config with a digest,
// verified; ok is false when the seed has none.
func (s *Seed) Document(d oci.Digest) (raw []byte, ok bool) {
	from, err := s.files()
	if err != nil {
		return nil, false
	}
	path := filepath.Join("images", d.Algorithm(), d.Hex()+".json")
	if record, err := readFile(from, path, maxRecordBytes); err == nil {
		if image, err := store.DecodeImage(path, record); err == nil && image.Manifest.Digest == d {
			return image.RawManifest, true
		}
	}
	raw, err = readFile(from, filepath.Join(blobsName, d.Algorithm(), d.Hex()), maxDocumentBytes)
	if err != nil || digestOf(d, raw) != d {
		return nil, false
	}
	return raw, true
}

// Config returns the bytes of the config of an image, verified.
func (s *Seed) Config(d oci.Digest) (raw []byte, ok bool) {
	if raw, ok = s.Document(d); ok {
		return raw, true
	}
	images, err := s.images()
	if err != nil {
		return nil, false
	}
	for _, image := range images {
		if image.Config.Digest == d {
			return image.RawConfig, true
		}
	}
	from, err := s.files()
	if err != nil {
		return nil, false
	}
	return s.metaConfig(from, d)
}

// images returns the records that are whole. Others are not there.
func (s *Seed) images() ([]*store.Image, error) {
	from, err := s.files()
	if err != nil {
		return nil, err
	}
	var images []*store.Image
	for _, algorithm := range []string{oci.SHA256, oci.SHA384, oci.SHA512} {
		names, err := from.names(filepath.Join("images", algorithm))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			path := filepath.Join("images", algorithm, name)
			raw, err := readFile(from, path, maxRecordBytes)
			if err != nil {
				continue
			}
			if image, err := store.DecodeImage(path, raw); err == nil {
				images = append(images, image)
			}
		}
	}
	return images, nil
}

// Name returns the digest of the manifest that a reference has in the seed: what
// the seed says, which no digest proves. It is believed if only root and this user can
// write it.
func (s *Seed) Name(reference string) (oci.Digest, bool) {
	from, err := s.files()
	if err != nil {
		return "", false
	}
	path := filepath.Join("refs", oci.DigestBytes([]byte(reference)).Hex()+".json")
	p, err := from.open(path)
	if err != nil {
		return "", false
	}
	defer func() { _ = p.Close() }()
	if hold, _ := s.machine.judge(p.File); hold == Loose && !s.trusted {
		return "", false
	}
	raw, err := stream.ReadAll(p.reader(), maxDocumentBytes)
	if err != nil {
		return "", false
	}
	ref, err := store.DecodeRef(path, raw)
	if err != nil || ref.Name != reference {
		return "", false
	}
	if _, err := oci.ParseDigest(string(ref.Digest)); err != nil {
		return "", false
	}
	return ref.Digest, true
}

// Hold judges the seed's own file or directory, and says why.
func (s *Seed) Hold() (Hold, string) {
	if s.trusted {
		return Trusted, "the user trusts it"
	}
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Loose, err.Error()
	}
	defer func() { _ = f.Close() }()
	return s.machine.judge(f)
}

func digestOf(like oci.Digest, raw []byte) oci.Digest {
	h := like.Hash()
	_, _ = h.Write(raw) // hash.Hash never fails
	return oci.DigestOf(like.Algorithm(), h)
}

// usualPlaces returns the seeds that are looked for when the user names none.
func usualPlaces() []string {
	places, _ := filepath.Glob("/var/lib/dray/seeds/*") // the pattern is good
	return append([]string{"/usr/share/dray/seed"}, places...)
}

// Options of [Open].
type Options struct {
	Paths   []string // that the user names; each must be a seed
	Trusted []string // the same, and the user vouches for what is in them
	Usual   bool     // look in the usual places if there are no others

	// ForeignDisks says that whoever provides this machine's disks is not trusted.
	ForeignDisks bool
	InUserNS     bool
}

// Set is the seeds of a client, in the order in which they are asked.
type Set struct {
	seeds  []*Seed
	broken []error // of the usual places: nobody named them, so nobody fails
}

// Open looks at the seeds. An error about one that the user has named is one of
// [ErrNotSeed], [ErrRefused], [store.ErrVersion], or the system's.
func Open(_ context.Context, o Options) (*Set, error) {
	m := &machine{sysfs: "/sys", foreignDisks: o.ForeignDisks, inUserNS: o.InUserNS}
	set := &Set{}
	for _, path := range o.Trusted {
		set.seeds = append(set.seeds, &Seed{path: path, trusted: true, machine: m})
	}
	for _, path := range o.Paths {
		set.seeds = append(set.seeds, &Seed{path: path, machine: m})
	}
	for _, s := range set.seeds {
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	if len(set.seeds) > 0 || !o.Usual {
		return set, nil
	}
	for _, path := range usualPlaces() {
		s := &Seed{path: path, machine: m}
		switch err := s.check(); {
		case err == nil:
			set.seeds = append(set.seeds, s)
		case !errors.Is(err, fs.ErrNotExist):
			set.broken = append(set.broken, err)
		}
	}
	return set, nil
}

// Seeds returns the seeds. A nil set has none.
func (s *Set) Seeds() []*Seed {
	if s == nil {
		return nil
	}
	return s.seeds
}

// Empty tells whether there are no seeds at all.
func (s *Set) Empty() bool { return len(s.Seeds()) == 0 }

// Broken returns what is wrong with seeds that nobody has named.
func (s *Set) Broken() []error {
	if s == nil {
		return nil
	}
	return s.broken
}

// Name returns what a reference names in the first seed that knows it.
func (s *Set) Name(reference string) (digest oci.Digest, from *Seed, ok bool) {
	for _, one := range s.Seeds() {
		if digest, ok := one.Name(reference); ok {
			return digest, one, true
		}
	}
	return "", nil, false
}
