package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dray/internal/durable"
	"dray/internal/oci"

	"golang.org/x/sys/unix"
)

const (
	lockSuffix  = ".lock"
	trashPrefix = "trash-" // of names without a lock: nobody needs what is there
)

// scratch is a name in the staging area that its holder has alone: the locked
// file NAME.lock and, once made, the directory NAME.
type scratch struct {
	name string
	path string
	lock *durable.Lock // nil for trash
}

// claim waits for the name and removes what a killed holder left under it.
func (s *Store) claim(ctx context.Context, name string) (*scratch, error) {
	path := s.path(dirStaging, name)
	lock, err := durable.Acquire(ctx, path+lockSuffix, durable.Exclusive)
	if err != nil {
		return nil, s.Explain(waitError(err))
	}
	c := &scratch{name: name, path: path, lock: lock}
	if err := removeTree(path); err != nil {
		return nil, errors.Join(err, c.release())
	}
	return c, nil
}

// made tells whether there is a directory.
func (c *scratch) made() bool {
	_, err := os.Lstat(c.path)
	return err == nil
}

// mkdir makes the empty directory of c.
func (c *scratch) mkdir() error { return os.Mkdir(c.path, dirPerm) }

// release gives the name up. The directory must be gone: who finds one takes it
// for what a killed process left.
func (c *scratch) release() error {
	if c.lock == nil {
		return nil
	}
	// Unlinked while it is held: whoever waits for it notices (durable.TryAcquire).
	err := os.Remove(c.path + lockSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, c.lock.Release())
}

// discard removes the directory and gives the name up.
func (c *scratch) discard() error {
	return errors.Join(removeTree(c.path), c.release())
}

// trash is what has lost its name in the store: paths in the staging area.
type trash []string

// throw takes the names of the trees at paths away, each in one step, so that
// nothing half deleted is ever in its place. The caller holds what keeps others
// from putting something new there. Deleting comes later ([trash.empty]) and needs
// no lock of the store.
//
// It works on a full disk too: trash has no lock of its own. Whoever opens the
// store meanwhile helps to delete it.
func (s *Store) throw(paths ...string) (trash, error) {
	var t trash
	for _, path := range paths {
		to := s.path(dirStaging, trashPrefix+randomName())
		if err := ignoreMissing(os.Rename(path, to)); err != nil {
			return t, err
		}
		t = append(t, to)
	}
	return t, nil
}

func (t trash) empty() error {
	var errs []error
	for _, path := range t {
		errs = append(errs, removeTree(path))
	}
	return errors.Join(errs...)
}

// InScratch calls do with an empty directory that nobody else uses, on the store's
// file system, and removes it afterwards, whatever happens. Others who want the
// same name wait.
func (s *Store) InScratch(ctx context.Context, name string, do func(dir string) error) error {
	if s.readOnly {
		return fmt.Errorf("store %s: %w", s.root, ErrReadOnly)
	}
	c, err := s.claim(ctx, name)
	if err != nil {
		return err
	}
	if err = c.mkdir(); err == nil {
		err = do(c.path)
	}
	return errors.Join(s.Explain(err), c.discard())
}

// sweep removes what nobody holds: the staging area of killed processes and their
// temporary files.
func (s *Store) sweep(ctx context.Context) error {
	orphans, err := s.orphans()
	for _, c := range orphans {
		if c.made() { // a bare lock may be another's that was not fast enough: it makes a new one
			s.log.LogAttrs(ctx, slog.LevelInfo, "removing what a stopped process left", slog.String("path", c.path))
		}
		err = errors.Join(err, c.discard())
	}
	if err != nil {
		return err
	}
	lock, err := durable.TryAcquire(s.path(fileLock), durable.Exclusive)
	if errors.Is(err, durable.ErrLocked) {
		return nil // somebody writes records now; the temporary files are left to a later start
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	temps, err := s.temps()
	for _, path := range temps {
		err = errors.Join(err, ignoreMissing(os.Remove(path)))
	}
	return err
}

// sweepStale removes what a power loss may have damaged, at the first opening after
// each start of the machine.
func (s *Store) sweepStale(ctx context.Context) error {
	var last string
	if err := readRecord(s.path(fileBoot), &last); err == nil && last == s.boot {
		return nil // a damaged file, or none, only costs another look
	}
	lock, err := s.lock(ctx, durable.Exclusive)
	if err != nil {
		return err
	}
	stale, err := s.throwStale(ctx)
	merged, mergedErr := s.sweepMerged(ctx)
	stale, err = append(stale, merged...), errors.Join(err, mergedErr)
	if err == nil {
		err = s.Explain(writeRecord(s.path(fileBoot), s.boot, unsynced))
	}
	if errors.Is(err, ErrNoSpace) {
		err = nil // looked at again next time; a full store has to open, to be emptied
	}
	return errors.Join(err, lock.Release(), stale.empty())
}

func (s *Store) throwStale(ctx context.Context) (trash, error) {
	stale, err := s.stale()
	if err != nil {
		return nil, err
	}
	return s.throw(s.sayStale(ctx, stale)...)
}

// stale lists the objects, below the root, that bear the mark of another boot.
func (s *Store) stale() ([]string, error) {
	_, _, stale, err := s.imageDigests()
	if err != nil {
		return nil, err
	}
	files, err := s.refFiles()
	if err != nil {
		return nil, err
	}
	stale = append(stale, files.stale...)
	ids, _, err := s.layerIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if _, err := s.Layer(id); errors.Is(err, errStale) {
			stale = append(stale, layerDir(id))
		}
	}
	return stale, nil
}

// sayStale logs what is going to be removed and returns the paths of it.
func (s *Store) sayStale(ctx context.Context, stale []string) []string {
	paths := make([]string, len(stale))
	for i, name := range stale {
		s.log.LogAttrs(ctx, slog.LevelWarn, "removing what was not synced before the machine stopped, or lay in a seed that is gone", slog.String("path", name))
		paths[i] = s.path(name)
	}
	return paths
}

// orphans claims every name in the staging area whose holder is gone.
func (s *Store) orphans() ([]*scratch, error) {
	entries, err := os.ReadDir(s.path(dirStaging))
	if err != nil {
		return nil, err
	}
	var orphans []*scratch
	for _, entry := range entries {
		name := strings.TrimSuffix(entry.Name(), lockSuffix)
		path := s.path(dirStaging, name)
		if strings.HasPrefix(name, trashPrefix) {
			orphans = append(orphans, &scratch{name: name, path: path})
			continue
		}
		lock, err := durable.TryAcquire(path+lockSuffix, durable.Exclusive)
		if errors.Is(err, durable.ErrLocked) {
			continue // in use, or claimed a moment ago by its other entry
		}
		if err != nil {
			return orphans, err
		}
		orphans = append(orphans, &scratch{name: name, path: path, lock: lock})
	}
	return orphans, nil
}

// temps lists the files that killed writers of records left. Only who holds
// ROOT/lock exclusively knows that no writer is about.
func (s *Store) temps() ([]string, error) {
	dirs := []string{s.root, s.path(dirRefs), s.path(dirFacts)}
	for _, algorithm := range algorithms() {
		dirs = append(dirs, s.path(dirImages, algorithm))
	}
	mounts, err := filepath.Glob(s.path(dirMounts, "*"))
	if err != nil {
		return nil, err
	}
	var temps []string
	for _, dir := range append(dirs, mounts...) {
		names, err := readNames(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if durable.IsTemp(name) {
				temps = append(temps, filepath.Join(dir, name))
			}
		}
	}
	return temps, nil
}

// readNames lists a directory, if it is there and is one.
func readNames(dir string) ([]string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0) //nolint:gosec // in the store
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, ignoreMissing(err) // removed while it was read
}

func algorithms() []string { return []string{oci.SHA256, oci.SHA384, oci.SHA512} }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
