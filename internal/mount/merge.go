package mount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"dray/internal/erofs"
	"dray/internal/oci"
	"dray/internal/store"
)

// DefaultMergeAbove is above how many different layers an image's indexes are merged
// into one, which is then mounted in their place: the more layers, the more there are
// to mount and to look into for each name. Below, making the index and keeping it costs
// more than it saves; docs/bench.md has the figures.
const DefaultMergeAbove = 30

// Prepare makes the merged index of layers, bottom first, if a mount of them needs one
// that is not there, so that no mount has to wait for it. What goes wrong is said, and
// said again by the mount that then goes without; the error is that of ctx.
func (m *Mounter) Prepare(ctx context.Context, layers []*store.Layer) error {
	_, err := m.mergedIndex(ctx, layers)
	return err
}

// mergedIndex returns the merged index of layers, which is made when there is none,
// or nil where the layers are to be stacked one by one. That hangs on what is known of
// the layers alone, so that all mounts of an image are made in the same way; where it
// goes wrong it is said, and the layers are stacked.
func (m *Mounter) mergedIndex(ctx context.Context, layers []*store.Layer) (*store.Merged, error) {
	below := distinct(layers)
	if m.mergeAbove < 0 || len(below) <= m.mergeAbove || m.userXattr {
		return nil, nil
	}
	trees := slices.DeleteFunc(slices.Clone(below), (*store.Layer).Indexed)
	if len(trees) == len(below) {
		return nil, nil // as was asked for
	}
	if len(trees) > 0 {
		m.stackOneByOne(ctx, fmt.Errorf("layer %s, for one, has the layout %q", trees[0].DiffID, trees[0].Layout))
		return nil, nil
	}
	ids := diffIDs(layers)
	merged, err := m.store.PutMerged(ctx, layers, func(dir string) (store.MergedRecord, error) {
		return writeMerged(ctx, filepath.Join(dir, store.IndexName), ids, below)
	})
	switch {
	case err == nil:
		return merged, nil
	case ctx.Err() != nil:
		return nil, err
	}
	m.stackOneByOne(ctx, err)
	return nil, nil
}

// stackOneByOne says that many layers are mounted in the slower way.
func (m *Mounter) stackOneByOne(ctx context.Context, why error) {
	m.log.LogAttrs(ctx, slog.LevelWarn, "layers are stacked one by one, not merged", slog.Any("reason", why))
}

// writeMerged writes the merged index of layers, each once, bottom first. ids are those
// of the image.
func writeMerged(ctx context.Context, path string, ids []oci.DiffID, layers []*store.Layer) (record store.MergedRecord, err error) {
	x, err := mergeIndexes(ctx, filepath.Dir(path), ids, layers)
	if err != nil {
		return record, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return record, err
	}
	record.SizeBytes, err = x.WriteTo(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return record, err
	}
	if record.Verity, err = erofs.Seal(path); errors.Is(err, erofs.ErrNoVerity) {
		err = nil
	}
	return record, err
}

// mergeIndexes reads the indexes of layers into one. What exceeds its memory is in dir.
func mergeIndexes(ctx context.Context, dir string, ids []oci.DiffID, layers []*store.Layer) (*erofs.Index, error) {
	readers := make([]io.ReaderAt, len(layers))
	for i, l := range layers {
		f, err := os.Open(l.Index())
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		readers[i] = f
	}
	chain := oci.ChainIDs(ids)
	return erofs.Merge(ctx, chain[len(chain)-1], readers, erofs.Options{Dir: dir})
}

// CheckMerged makes a merged index again and returns how the stored one differs.
// layers are those that it names.
func CheckMerged(ctx context.Context, merged *store.Merged, layers []*store.Layer) (problems []string, err error) {
	f, err := os.Open(merged.Index())
	if err != nil {
		return []string{err.Error()}, nil
	}
	defer func() { _ = f.Close() }()
	x, err := mergeIndexes(ctx, filepath.Dir(merged.Path), merged.Layers, distinct(layers))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	difference, err := x.Compare(bufio.NewReader(f))
	if difference != "" {
		problems = []string{store.IndexName + " " + difference}
	}
	return problems, err
}
