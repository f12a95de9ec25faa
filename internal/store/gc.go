package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"dray/internal/durable"
	"dray/internal/oci"
)

// Removed tells what [Store.Remove] took away.
type Removed struct {
	Refs  []string   `json:"refs"`
	Image oci.Digest `json:"image,omitempty"` // "" while another name points to it
}

// Remove removes a name, or with the digest of a manifest all its names, and the
// image when no name is left. Its layers go with the next [Store.GC]. An image that
// is mounted is refused ([ErrInUse]); one that a pull is about to name keeps its
// record. What is not there is an [ErrNotFound].
func (s *Store) Remove(ctx context.Context, nameOrDigest string) (Removed, error) {
	lock, err := s.lock(ctx, durable.Exclusive)
	if err != nil {
		return Removed{}, fmt.Errorf("remove %q: %w", nameOrDigest, err)
	}
	defer func() { _ = lock.Release() }()
	removed, err := s.remove(nameOrDigest)
	if err != nil {
		return removed, fmt.Errorf("remove %q: %w", nameOrDigest, s.Explain(err))
	}
	return removed, nil
}

func (s *Store) remove(nameOrDigest string) (removed Removed, err error) {
	refs, err := s.Refs()
	if err != nil {
		return removed, err
	}
	digest, notDigest := oci.ParseDigest(nameOrDigest)
	if notDigest == nil {
		if _, err := s.Image(digest); errors.Is(err, ErrNotFound) {
			return removed, err
		}
	} else if digest, err = s.Ref(nameOrDigest); err != nil {
		return removed, err
	}
	var names []string
	last := true
	for _, ref := range refs {
		if ref.Digest != digest {
			continue
		}
		if notDigest == nil || ref.Name == nameOrDigest {
			names = append(names, ref.Name)
		} else {
			last = false
		}
	}
	if last {
		if err := s.refuseMounted(digest); err != nil {
			return removed, err
		}
	}
	for _, name := range names {
		if err := s.removeRef(name); err != nil {
			return removed, err
		}
		removed.Refs = append(removed.Refs, name)
	}
	_, leased, err := s.leased()
	if err != nil || !last || leased[digest] {
		return removed, err
	}
	removed.Image = digest
	return removed, s.removeImage(digest)
}

func (s *Store) refuseMounted(digest oci.Digest) error {
	mounts, err := s.Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Image == digest && s.ThisBoot(m) {
			return fmt.Errorf("image %s is mounted at %s; unmount it first: %w", digest, m.Target, ErrInUse)
		}
	}
	return nil
}

func (s *Store) removeImage(digest oci.Digest) error {
	for _, boot := range []string{"", s.boot} {
		if err := durable.Remove(s.imagePath(digest, boot)); err != nil {
			return err
		}
	}
	return nil
}

// GCOptions says what [Store.GC] takes.
type GCOptions struct {
	DryRun           bool          // report, remove nothing
	KeepUnreferenced time.Duration // how long what nothing refers to stays after it was pulled
}

// GCReport tells what [Store.GC] took, or would take.
type GCReport struct {
	Layers []oci.DiffID `json:"layers"`
	Images []oci.Digest `json:"images"` // dangling
	Stale  []string     `json:"stale"`  // damaged by power loss: paths below the root
	Merged int          `json:"merged"` // merged indexes
	Bytes  int64        `json:"bytes"`  // on disk, of all that
}

// GC removes images without a name and layers without an image, unless a lease or
// a mount needs them. It may run beside everything else, in any process: it keeps
// others out only while it reads the records and takes names away, not while it
// deletes. Where a record cannot be read nothing is removed, since nobody knows
// what it refers to: the error is an [ErrCorrupt].
func (s *Store) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	report, doomed, err := s.collect(ctx, o)
	for _, path := range doomed {
		size, sizeErr := treeSize(ctx, path)
		err = errors.Join(err, sizeErr)
		report.Bytes += size.DiskBytes
	}
	if !o.DryRun {
		err = errors.Join(err, doomed.empty())
	}
	if err != nil {
		return report, fmt.Errorf("collect garbage in %s: %w", s.root, s.Explain(err))
	}
	if !o.DryRun {
		s.log.LogAttrs(ctx, slog.LevelInfo, "garbage collected", slog.Int("layers", len(report.Layers)),
			slog.Int("images", len(report.Images)), slog.Int64("freed_bytes", report.Bytes))
	}
	return report, nil
}

// collect takes the names of all garbage away, or in a dry run finds it.
func (s *Store) collect(ctx context.Context, o GCOptions) (report GCReport, doomed trash, err error) {
	lock, err := s.lock(ctx, durable.Exclusive)
	if err != nil {
		return report, nil, err
	}
	defer func() { _ = lock.Release() }()
	due := func(made time.Time) bool { return o.KeepUnreferenced <= 0 || s.now().Sub(made) >= o.KeepUnreferenced }
	live, chains, err := s.mark(due, &report)
	if err != nil {
		return report, nil, err
	}
	merged, err := s.deadMerged(func(id oci.ChainID) bool { return chains[id] })
	if err != nil {
		return report, nil, err
	}
	report.Merged = len(merged)
	paths, err := s.deadLayers(live, due, &report)
	paths = append(paths, merged...)
	if err != nil || o.DryRun {
		return report, paths, err
	}
	for _, digest := range report.Images {
		if err := s.removeImage(digest); err != nil { // before its layers: no record without layers
			return report, nil, err
		}
	}
	paths = append(paths, s.sayStale(ctx, report.Stale)...)
	if len(paths) == 0 {
		return report, nil, nil
	}
	doomed, err = s.throw(paths...)
	if err == nil {
		err = s.syncLayerNames() // before anything in them is deleted
	}
	return report, doomed, err
}

// syncLayerNames makes it durable that layers have lost their names.
func (s *Store) syncLayerNames() error {
	dirs := []string{s.path(dirStaging)}
	for _, algorithm := range algorithms() {
		dirs = append(dirs, s.path(dirLayers, algorithm))
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); err != nil {
			continue // not every algorithm has layers
		}
		if err := durable.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// mark collects the layers that are needed, and the chains of images that are, and
// notes dangling images and stale records in the report. The caller holds ROOT/lock
// exclusively.
func (s *Store) mark(due func(time.Time) bool, report *GCReport) (live map[oci.DiffID]bool, chains map[oci.ChainID]bool, err error) {
	live, keep, err := s.leased()
	if err != nil {
		return nil, nil, err
	}
	mounts, err := s.Mounts()
	if err != nil {
		return nil, nil, err
	}
	for _, m := range mounts {
		keep[m.Image] = true
		for _, id := range m.Layers {
			live[id] = true
		}
	}
	refs, err := s.Refs()
	if err != nil {
		return nil, nil, err
	}
	for _, ref := range refs {
		keep[ref.Digest] = true
	}
	images, err := s.Images()
	if err != nil {
		return nil, nil, err
	}
	chains = map[oci.ChainID]bool{}
	for _, image := range images {
		if !keep[image.Manifest.Digest] && due(image.Pulled) {
			report.Images = append(report.Images, image.Manifest.Digest)
			continue
		}
		chains[chainOf(image.DiffIDs)] = true
		for _, id := range image.DiffIDs {
			live[id] = true
		}
	}
	report.Stale, err = s.stale()
	return live, chains, err
}

// deadLayers returns the paths of layers that can go. One that cannot be read
// stays, as evidence.
func (s *Store) deadLayers(live map[oci.DiffID]bool, due func(time.Time) bool, report *GCReport) ([]string, error) {
	ids, _, err := s.layerIDs()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, id := range ids {
		layer, err := s.Layer(id)
		switch {
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNotFound):
		case err != nil:
			return nil, err
		case !live[id] && due(layer.Created):
			report.Layers = append(report.Layers, id)
			paths = append(paths, layer.Path)
		}
	}
	return paths, nil
}
