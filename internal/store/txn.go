package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dray/internal/durable"
	"dray/internal/oci"

	"golang.org/x/sys/unix"
)

// Txn is the writing of one layer. Its holder is the only writer of that layer,
// among all goroutines and processes, until [Txn.Commit] or [Txn.Abort]. Exactly
// one goroutine may end it.
type Txn struct {
	store   *Store
	id      oci.DiffID
	scratch *scratch // nil when the transaction has ended
	rewrite bool     // the layer is there, and what was written takes its place
}

// Begin starts to write the layer id, or returns it if it is there: exactly one
// of the results is set. While another writes the layer Begin waits, and returns
// what that one made; if it failed, the caller is the writer now. A layer that a
// power loss may have damaged is removed first.
func (s *Store) Begin(ctx context.Context, id oci.DiffID) (*Txn, *Layer, error) {
	layer, err := s.Layer(id)
	if err == nil {
		return nil, layer, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, nil, err
	}
	if s.readOnly {
		return nil, nil, fmt.Errorf("write layer %s: store %s: %w", id, s.root, ErrReadOnly)
	}
	c, err := s.claim(ctx, id.Digest().Algorithm()+"-"+id.Hex())
	if err != nil {
		return nil, nil, fmt.Errorf("write layer %s: %w", id, err)
	}
	layer, err = s.Layer(id)
	if err == nil {
		return nil, layer, c.release()
	}
	if errors.Is(err, errStale) {
		err = s.dropStaleLayer(ctx, id)
	} else if errors.Is(err, ErrNotFound) {
		err = nil
	}
	if err == nil {
		err = s.Explain(c.mkdir())
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("write layer %s: %w", id, err), c.release())
	}
	return &Txn{store: s, id: id, scratch: c}, nil, nil
}

// Rewrite starts to write a layer that is there in another form, and returns it.
// [Txn.Commit] then puts the new form in the place of the old one, in one step. It
// refuses with [ErrInUse] as long as a mount or a pull needs the layer.
func (s *Store) Rewrite(ctx context.Context, id oci.DiffID) (*Txn, *Layer, error) {
	if s.readOnly {
		return nil, nil, fmt.Errorf("rewrite layer %s: store %s: %w", id, s.root, ErrReadOnly)
	}
	c, err := s.claim(ctx, id.Digest().Algorithm()+"-"+id.Hex())
	if err != nil {
		return nil, nil, fmt.Errorf("rewrite layer %s: %w", id, err)
	}
	layer, err := s.Layer(id)
	if err == nil {
		err = s.Explain(c.mkdir())
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("rewrite layer %s: %w", id, err), c.release())
	}
	return &Txn{store: s, id: id, scratch: c, rewrite: true}, layer, nil
}

// exchange puts the new form of a layer in the place of the old one, which is then
// in the staging area. The new one is made durable before, as the old one may be.
func (t *Txn) exchange(ctx context.Context) error {
	s := t.store
	if err := durable.SyncFS(t.scratch.path); err != nil {
		return err
	}
	lock, err := s.lock(ctx, durable.Exclusive)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	used, _, err := s.leased()
	if err != nil {
		return err
	}
	mounts, err := s.Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		for _, id := range m.Layers {
			used[id] = true
		}
	}
	if used[t.id] {
		return fmt.Errorf("a mount or a pull needs it: %w", ErrInUse)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, t.scratch.path, unix.AT_FDCWD, s.layerPath(t.id), unix.RENAME_EXCHANGE); err != nil {
		return os.NewSyscallError("renameat2", err)
	}
	return errors.Join(durable.SyncDir(filepath.Dir(s.layerPath(t.id))), durable.SyncDir(s.path(dirStaging)))
}

// dropStaleLayer removes a layer that was never synced before the machine stopped.
// The caller is the layer's writer, so that nobody puts a good one in its place.
func (s *Store) dropStaleLayer(ctx context.Context, id oci.DiffID) error {
	stale, err := s.throw(s.sayStale(ctx, []string{layerDir(id)})...)
	return errors.Join(err, stale.empty())
}

// Path returns the directory in which the layer is written: empty at first, mode
// 0700, in the place of the future layer's directory. It is "" after the end.
func (t *Txn) Path() string {
	if t.scratch == nil {
		return ""
	}
	return t.scratch.path
}

// Dir opens the directory of [Txn.Path]. The caller closes it.
func (t *Txn) Dir() (*os.File, error) {
	if t.scratch == nil {
		return nil, fmt.Errorf("write layer %s: %w", t.id, os.ErrClosed)
	}
	return os.Open(t.scratch.path)
}

// Commit puts the layer in its place, in one step. Everything that can be checked
// has been: after this the layer is used without a further look. It survives a
// killed process, and power loss after [Store.Sync]. The store fills in the
// record's Version, DiffID, UnsyncedBoot and, when zero, Created. After an error the
// transaction still has to be aborted.
func (t *Txn) Commit(ctx context.Context, record LayerRecord) (*Layer, error) {
	if t.scratch == nil {
		return nil, fmt.Errorf("commit layer %s: %w", t.id, os.ErrClosed)
	}
	s := t.store
	record.Version, record.DiffID, record.UnsyncedBoot = formatVersion, t.id, ""
	if record.Created.IsZero() {
		record.Created = s.now().UTC()
	}
	if err := t.commit(ctx, record); err != nil {
		return nil, fmt.Errorf("commit layer %s: %w", t.id, s.Explain(err))
	}
	c := t.scratch
	t.scratch = nil
	if t.rewrite {
		return &Layer{LayerRecord: record, Path: s.layerPath(t.id)}, c.discard()
	}
	if !record.ofBoot() {
		record.UnsyncedBoot = s.boot
	}
	return &Layer{LayerRecord: record, Path: s.layerPath(t.id)}, c.release()
}

func (t *Txn) commit(ctx context.Context, record LayerRecord) error {
	s := t.store
	raw, err := encodeRecord(record)
	if err != nil {
		return err
	}
	files := map[string][]byte{recordName: raw}
	if !t.rewrite && !record.ofBoot() {
		files[unsyncedPrefix+s.boot] = nil
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(t.scratch.path, name), content, filePerm); err != nil {
			return err
		}
	}
	if t.rewrite {
		return t.exchange(ctx)
	}
	to := s.layerPath(t.id)
	if err := os.MkdirAll(filepath.Dir(to), dirPerm); err != nil {
		return err
	}
	lock, err := s.lock(ctx, durable.Shared)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	return os.Rename(t.scratch.path, to)
}

// Abort gives the transaction up and removes what was written. It does nothing
// when the transaction has ended, so that it can be deferred. It works after the
// end of every context.
func (t *Txn) Abort() error {
	if t.scratch == nil {
		return nil
	}
	c := t.scratch
	t.scratch = nil
	if err := c.discard(); err != nil {
		return fmt.Errorf("abort layer %s: %w", t.id, err)
	}
	return nil
}

// Sync makes the layers ids durable: after it they survive power loss. It costs
// one sync of the file system, none when they all are durable already.
func (s *Store) Sync(ctx context.Context, ids []oci.DiffID) error {
	marks := map[string]*os.File{} // path of each marked layer → its directory
	defer func() {
		for _, dir := range marks {
			_ = dir.Close()
		}
	}()
	for _, id := range ids {
		layer, err := s.Layer(id)
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		if layer.UnsyncedBoot == "" || marks[layer.Path] != nil {
			continue
		}
		// Opened before the sync: should the layer be collected and written again
		// meanwhile, that one's mark is in another directory of the same name.
		dir, err := os.Open(layer.Path)
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("layer %s: %w", id, ErrNotFound) // just collected
		}
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		marks[layer.Path] = dir
	}
	if len(marks) == 0 {
		return nil
	}
	if s.readOnly {
		return fmt.Errorf("sync: store %s: %w", s.root, ErrReadOnly)
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if err := durable.SyncFS(s.root); err != nil {
		return s.Explain(err)
	}
	for _, dir := range marks {
		if err := ignoreMissing(unix.Unlinkat(int(dir.Fd()), unsyncedPrefix+s.boot, 0)); err != nil {
			return fmt.Errorf("sync: %w", s.Explain(err))
		}
	}
	// All marks first: the first fsync of a directory then carries the others too.
	for _, dir := range marks {
		if err := dir.Sync(); err != nil {
			return fmt.Errorf("sync: %w", s.Explain(err))
		}
	}
	return nil
}
