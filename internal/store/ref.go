package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"
	"unicode/utf8"

	"dray/internal/durable"
	"dray/internal/oci"
)

// maxNameBytes bounds the name of a reference, as oci.ParseReference does.
const maxNameBytes = 4096

// Ref is a name for an image.
type Ref struct {
	Version int        `json:"version"`
	Name    string     `json:"name"`
	Digest  oci.Digest `json:"digest"` // of the manifest
	Updated time.Time  `json:"updated"`
}

// refPath returns the path of a name's file: names are of any length and hold any
// character, their digests are neither. boot is "" for a durable one.
func (s *Store) refPath(name, boot string) string {
	return s.path(dirRefs, recordFile(oci.DigestBytes([]byte(name)).Hex(), boot))
}

// SetRef makes name point to an image that is in the store, in one step and, when
// the image is durable, durably. A missing image is an [ErrNotFound].
func (s *Store) SetRef(ctx context.Context, name string, manifest oci.Digest) error {
	if name == "" || len(name) > maxNameBytes || !utf8.ValidString(name) {
		return fmt.Errorf("set reference: a name has 1 to %d bytes of UTF-8, this one has %d", maxNameBytes, len(name))
	}
	lock, err := s.lock(ctx, durable.Shared) // from the look at the image to the reference
	if err != nil {
		return fmt.Errorf("set reference %q: %w", name, err)
	}
	defer func() { _ = lock.Release() }()
	image, err := s.Image(manifest)
	if err != nil {
		return fmt.Errorf("set reference %q: %w", name, err)
	}
	now, boot, err := s.ref(name)
	if err == nil && now.Digest == manifest && boot == image.UnsyncedBoot {
		return nil // a pull that found everything there
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("set reference %q: %w", name, err)
	}
	if err := s.putRef(name, manifest, image.UnsyncedBoot); err != nil {
		return fmt.Errorf("set reference %q: %w", name, s.Explain(err))
	}
	return nil
}

func (s *Store) putRef(name string, manifest oci.Digest, boot string) error {
	ref := Ref{Version: formatVersion, Name: name, Digest: manifest, Updated: s.now().UTC()}
	return s.putMarked(ref, boot, func(boot string) string { return s.refPath(name, boot) })
}

// Settle makes an image that was stored before its layers were synced durable, and
// the names that point to it, as they are now: it revives nothing that was removed
// meanwhile, which is an [ErrNotFound], and moves no name. It does nothing to a
// durable image.
func (s *Store) Settle(ctx context.Context, manifest oci.Digest) error {
	image, err := s.Image(manifest)
	if err == nil && image.UnsyncedBoot != "" {
		err = s.Sync(ctx, image.DiffIDs)
	}
	if err == nil && image.UnsyncedBoot != "" {
		err = s.settle(ctx, manifest)
	}
	if err != nil {
		return fmt.Errorf("make image %s durable: %w", manifest, s.Explain(err))
	}
	return nil
}

func (s *Store) settle(ctx context.Context, manifest oci.Digest) error {
	lock, err := s.lock(ctx, durable.Exclusive) // nobody moves a name meanwhile
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	image, err := s.Image(manifest)
	if err != nil {
		return err
	}
	for _, id := range image.DiffIDs {
		if layer, err := s.Layer(id); err != nil {
			return err
		} else if layer.UnsyncedBoot != "" {
			return fmt.Errorf("layer %s was written again: %w", id, ErrBusy)
		}
	}
	image.UnsyncedBoot = ""
	if err := s.putMarked(image, "", func(boot string) string { return s.imagePath(manifest, boot) }); err != nil {
		return err
	}
	refs, err := s.Refs()
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if ref.Digest != manifest {
			continue
		}
		if err := s.putRef(ref.Name, manifest, ""); err != nil {
			return err
		}
	}
	return nil
}

// Ref returns the digest of the manifest that name points to, or [ErrNotFound].
func (s *Store) Ref(name string) (oci.Digest, error) {
	ref, _, err := s.ref(name)
	if err != nil {
		return "", fmt.Errorf("look up %q: %w", name, err)
	}
	return ref.Digest, nil
}

// ref reads the reference in force, and the boot that it is marked with: what this
// boot wrote and has not synced is newer than what is durable.
func (s *Store) ref(name string) (ref *Ref, boot string, err error) {
	for _, boot := range []string{s.boot, ""} {
		ref, err := readRef(s.refPath(name, boot))
		if err == nil && ref.Name != name {
			err = fmt.Errorf("read %s: record of %q: %w", s.refPath(name, boot), ref.Name, ErrCorrupt)
		}
		if !errors.Is(err, ErrNotFound) {
			return ref, boot, err
		}
	}
	return nil, "", ErrNotFound
}

func readRef(path string) (*Ref, error) {
	ref := &Ref{}
	if err := readRecord(path, ref); err != nil {
		return nil, err
	}
	if err := checkFormat(path, ref.Version); err != nil {
		return nil, err
	}
	if ref.Digest == "" || ref.Name == "" {
		return nil, fmt.Errorf("read %s: no name or no digest: %w", path, ErrCorrupt)
	}
	return ref, nil
}

// Refs returns all references, by name. Those that cannot be understood are in the
// error, which is then an [ErrCorrupt]; the others are returned all the same.
func (s *Store) Refs() ([]Ref, error) {
	files, err := s.refFiles()
	if err != nil {
		return nil, fmt.Errorf("list references: %w", err)
	}
	var refs []Ref
	var broken []error
	for _, f := range files.inForce {
		ref, err := f.read(s)
		switch {
		case errors.Is(err, ErrNotFound): // just removed
		case err != nil:
			broken = append(broken, err)
		default:
			refs = append(refs, *ref)
		}
	}
	sort.Slice(refs, func(i, j int) bool { return refs[i].Name < refs[j].Name })
	return refs, errors.Join(broken...)
}

// refFile is a file of ROOT/refs.
type refFile struct {
	path string // below the root
	hash string // of the name
}

// read returns the reference and checks that its file is the right one.
func (f refFile) read(s *Store) (*Ref, error) {
	ref, err := readRef(s.path(f.path))
	if err != nil {
		return nil, err
	}
	if oci.DigestBytes([]byte(ref.Name)).Hex() != f.hash {
		return nil, fmt.Errorf("read %s: record of %q: %w", f.path, ref.Name, ErrCorrupt)
	}
	return ref, nil
}

type refFiles struct {
	inForce   []refFile
	strangers []string // cannot be records
	stale     []string // of other boots
}

func (s *Store) refFiles() (refFiles, error) {
	names, err := readNames(s.path(dirRefs))
	if err != nil {
		return refFiles{}, err
	}
	var files refFiles
	marked := map[string]bool{} // names that have an unsynced file of this boot
	for _, file := range names {
		if name, boot, ok := splitRecordFile(file); ok && boot == s.boot {
			marked[name] = true
		}
	}
	for _, file := range names {
		path := filepath.Join(dirRefs, file)
		name, boot, ok := splitRecordFile(file)
		switch {
		case durable.IsTemp(file):
		case !ok || len(name) != 64:
			files.strangers = append(files.strangers, path)
		case boot != "" && boot != s.boot:
			files.stale = append(files.stale, path)
		case boot == "" && marked[name]: // there is a newer one
		default:
			files.inForce = append(files.inForce, refFile{path, name})
		}
	}
	return files, nil
}

// RemoveRef removes a name. A missing one is an [ErrNotFound]. The image stays
// until the collector comes; [Store.Remove] takes it away too.
func (s *Store) RemoveRef(ctx context.Context, name string) error {
	lock, err := s.lock(ctx, durable.Exclusive)
	if err != nil {
		return fmt.Errorf("remove reference %q: %w", name, err)
	}
	defer func() { _ = lock.Release() }()
	return s.removeRef(name)
}

// removeRef removes a name, the durable file first: the other hides it.
func (s *Store) removeRef(name string) error {
	found := false
	for _, boot := range []string{"", s.boot} {
		err := os.Remove(s.refPath(name, boot))
		found = found || err == nil
		if err = ignoreMissing(err); err != nil {
			return fmt.Errorf("remove reference %q: %w", name, s.Explain(err))
		}
	}
	if !found {
		return fmt.Errorf("remove reference %q: %w", name, ErrNotFound)
	}
	if err := durable.SyncDir(s.path(dirRefs)); err != nil {
		return fmt.Errorf("remove reference %q: %w", name, s.Explain(err))
	}
	return nil
}
