package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/store"
)

// cleanupTime limits what is done after the caller's context has ended.
const cleanupTime = 30 * time.Second

// Options of a [Mounter].
type Options struct {
	Store *store.Store
	// UserXattr is set in user namespaces other than the first: whiteouts are in
	// "user." form there.
	UserXattr bool
	// MergeAbove is above how many different layers in EROFS form their indexes are
	// merged; 0: [DefaultMergeAbove], negative: never.
	MergeAbove int
	Log        *slog.Logger // nil discards
}

// Mounter makes and removes root file systems of one store.
type Mounter struct {
	store      *store.Store
	userXattr  bool
	mergeAbove int
	log        *slog.Logger
	kernel     kernel
	turn       chan struct{} // holds one token; who has it may wait for ROOT/mounts.lock
}

// New returns a Mounter.
func New(o Options) (*Mounter, error) {
	if o.Store == nil {
		return nil, errors.New("make mounter: no store")
	}
	m := &Mounter{store: o.Store, userXattr: o.UserXattr, mergeAbove: cmp.Or(o.MergeAbove, DefaultMergeAbove), log: o.Log, turn: make(chan struct{}, 1)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m, nil
}

// Request says what to mount where.
type Request struct {
	Image  oci.Digest     // recorded; the same image at the same target is not mounted twice
	Layers []*store.Layer // bottom first; may repeat, may be none. The caller leases them ([store.Lease]) and the image
	// Target is an absolute path. The directory is made when it is missing; its
	// parent must be there. The last component must not be a symbolic link.
	Target   string
	ReadOnly bool
	// Replace unmounts another image of this store that is mounted at Target. When
	// that, or the new mount, fails, the old one stays.
	Replace bool

	merged *store.Merged // in the place of Layers; nil for none
}

// Mount makes the root file system. It returns the mount that is there already
// when the same image is mounted at the target in the same way. Errors:
// [ErrTarget], [ErrTargetBusy], [ErrTooManyLayers], [ErrLayer], [ErrBusy] when the
// mount to be replaced is in use, and [store.ErrNotFound] for a layer that has
// been collected. After an error nothing is left, and nothing has changed.
func (m *Mounter) Mount(ctx context.Context, r Request) (*store.Mount, error) {
	mounted, err := m.mount(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("mount at %q: %w", r.Target, err)
	}
	return mounted, nil
}

func (m *Mounter) mount(ctx context.Context, r Request) (*store.Mount, error) {
	at, err := openPlace(r.Target)
	if err != nil {
		return nil, err
	}
	defer at.close()
	if r.merged, err = m.mergedIndex(ctx, r.Layers); err != nil {
		return nil, err
	}
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	var trash []*store.Mount // of which only the directories are left
	mounted, err := m.mountLocked(ctx, r, at, &trash)
	unlock()
	m.discard(ctx, trash)
	return mounted, err
}

// mountLocked is mount with the lock held.
func (m *Mounter) mountLocked(ctx context.Context, r Request, at *place, trash *[]*store.Mount) (*store.Mount, error) {
	made, err := at.make()
	if err != nil {
		return nil, err
	}
	old, err := m.occupant(ctx, at, trash)
	if err != nil {
		return nil, err
	}
	if old != nil {
		if old.record.Image == r.Image && old.record.ReadOnly == r.ReadOnly && slices.Equal(old.record.Layers, diffIDs(r.Layers)) {
			return old.record, nil
		}
		if !r.Replace {
			return nil, fmt.Errorf("%w: image %s is mounted there as %s", ErrTargetBusy, old.record.Image, old.record.ID)
		}
	}
	mounted, err := m.create(ctx, r, at, old, trash)
	if err != nil && made {
		at.remove()
	}
	return mounted, err
}

// live is a mount of ours that is visible in this namespace.
type live struct {
	record *store.Mount
	entry  entry
}

// occupant returns the mount of this store's at a place, nil when nothing is
// mounted there, or [ErrTargetBusy] when something else is. What a killed process
// left half done there is taken away.
func (m *Mounter) occupant(ctx context.Context, at *place, trash *[]*store.Mount) (*live, error) {
	for {
		id, ok, err := at.mountID()
		if err != nil || !ok {
			return nil, err
		}
		mounts, err := readTable(ownTable)
		if err != nil {
			return nil, err
		}
		e := mounts.byID(id)
		record, err := m.store.Mount(e.recordID())
		if errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("%w of something else than dray with this store (%s %q)", ErrTargetBusy, e.fsType, e.source)
		}
		if err != nil {
			return nil, err
		}
		if mounts.own(record) != e {
			return nil, fmt.Errorf("%w of a copy of mount %s at %q", ErrTargetBusy, record.ID, record.Target)
		}
		if record.State == store.MountMounted {
			record.Target = at.path
			return &live{record, e}, nil
		}
		if err := m.settle(ctx, record, mounts, trash); err != nil {
			return nil, err
		}
	}
}

// create makes the overlay, in place of old when that is not nil.
func (m *Mounter) create(ctx context.Context, r Request, at *place, old *live, trash *[]*store.Mount) (_ *store.Mount, err error) {
	record, err := m.store.NewMount(ctx, store.Mount{Image: r.Image, Layers: diffIDs(r.Layers), Target: at.path, ReadOnly: r.ReadOnly})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			*trash = append(*trash, record)
		}
	}()
	image, err := m.openStack(ctx, &r)
	defer image.close()
	if err != nil {
		return nil, err
	}
	record.Merged = r.merged != nil
	s, err := m.plan(ctx, record, image)
	if err != nil {
		return nil, err
	}
	made, err := build(m.kernel.api(ctx, m.log), s)
	if err != nil {
		return nil, err
	}
	defer made.close()
	if old == nil {
		err = m.finish(ctx, record, made, at)
	} else {
		err = m.replace(ctx, record, made, at, old)
	}
	if err != nil {
		return nil, err
	}
	if old != nil {
		if err := m.release(ctx, old.record, trash); err != nil {
			m.log.LogAttrs(ctx, slog.LevelWarn, "the replaced mount is left to recovery", slog.String("mount", old.record.ID), slog.Any("error", err))
		}
	}
	m.log.LogAttrs(ctx, slog.LevelInfo, "mounted", slog.String("target", at.path), slog.String("mount", record.ID),
		slog.String("image", string(r.Image)), slog.Int("layers", len(r.Layers)), slog.Bool("merged", record.Merged), slog.Bool("read_only", r.ReadOnly))
	return record, nil
}

// finish attaches an overlay and completes its record, or does neither.
func (m *Mounter) finish(ctx context.Context, record *store.Mount, made detached, at *place) error {
	if err := attach(made, at); err != nil {
		return err
	}
	record.State = store.MountMounted
	err := m.store.UpdateMount(ctx, record)
	if err == nil {
		return nil
	}
	mounts, tableErr := readTable(ownTable)
	if e := mounts.atTarget(record); e.id != 0 {
		_, unmountErr := e.unmount(unix.MNT_DETACH)
		tableErr = errors.Join(tableErr, unmountErr)
	}
	return errors.Join(err, tableErr)
}

// attach makes an overlay visible at a place.
func attach(made detached, at *place) error {
	dir, err := at.open()
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return made.attach(dir)
}

// replace is finish in the place of another mount. A copy of that one is kept
// until the new one is there.
func (m *Mounter) replace(ctx context.Context, record *store.Mount, made detached, at *place, old *live) error {
	dir, err := at.open()
	if err != nil {
		return err
	}
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	_ = dir.Close() // it would keep the old mount busy
	if err != nil {
		return fmt.Errorf("copy the mount to be replaced: %w", err)
	}
	spare := detachedFD(fd)
	defer spare.close()
	if _, err := old.entry.unmount(0); err != nil {
		return err
	}
	if err := m.finish(ctx, record, made, at); err != nil {
		return errors.Join(err, attach(spare, at))
	}
	return nil
}

// plan says what the kernel is to stack, and makes the directories for it.
func (m *Mounter) plan(ctx context.Context, record *store.Mount, image *stack) (spec, error) {
	layers := image.layers
	s := spec{id: record.ID, userXattr: m.userXattr}
	var extra []string // above the layers, as overlayfs wants two lower directories, or one
	switch {
	case !record.ReadOnly:
		s.upper, s.work = record.Upper(), record.Work()
		if err := image.root.apply(s.upper); err != nil {
			return s, err
		}
		if len(layers) == 0 {
			extra = []string{"bottom"}
		}
	case len(layers) == 0:
		extra = []string{"root", "bottom"}
	case len(layers) == 1, !image.atTop && len(layers) < MaxLayers:
		extra = []string{"root"}
	case !image.atTop:
		m.log.LogAttrs(ctx, slog.LevelWarn, "no room to give the root directory its attributes: it has those of the top layer", slog.Int("layers", len(layers)))
	}
	for _, name := range extra {
		path := filepath.Join(record.Path, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			return s, fmt.Errorf("make empty directory: %w", err)
		}
		if err := os.Chmod(path, defaultRootPerm); err != nil { // whatever the umask
			return s, fmt.Errorf("make empty directory: %w", err)
		}
		if err := image.root.apply(path); err != nil {
			return s, err
		}
	}
	s.lowers = len(extra) + len(layers)
	s.lower = func(i int) (int, error) {
		if i < len(extra) {
			return openDir(filepath.Join(record.Path, extra[i]))
		}
		return image.open(layers[len(layers)-1-(i-len(extra))])
	}
	return s, nil
}

func diffIDs(layers []*store.Layer) []oci.DiffID {
	ids := make([]oci.DiffID, len(layers))
	for i, l := range layers {
		ids[i] = l.DiffID
	}
	return ids
}

// lock waits for this process's turn and for the other processes. The returned
// function gives both back.
func (m *Mounter) lock(ctx context.Context) (func(), error) {
	if ctx.Err() != nil { // select would choose by chance
		return nil, context.Cause(ctx)
	}
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	held, err := durable.Acquire(ctx, filepath.Join(m.store.Root(), "mounts.lock"), durable.Exclusive)
	if err != nil {
		<-m.turn
		return nil, err
	}
	return func() {
		_ = held.Release()
		<-m.turn
	}, nil
}

// discard removes records and directories of mounts that are gone. It needs no
// lock, and goes on after the end of ctx. What it cannot remove, Recover will.
func (m *Mounter) discard(ctx context.Context, trash []*store.Mount) {
	if len(trash) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for _, record := range trash {
		if err := m.store.RemoveMount(ctx, record.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
			m.log.LogAttrs(ctx, slog.LevelWarn, "directories of a mount are left", slog.String("mount", record.ID), slog.Any("error", err))
		}
	}
}
