package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dray/internal/durable"
	"dray/internal/oci"
)

// MergedRecord is merged.json: what the store remembers of an index over the tars of
// several layers.
type MergedRecord struct {
	Version   int          `json:"version"`
	ChainID   oci.ChainID  `json:"chain_id"`
	Layers    []oci.DiffID `json:"layers"` // of the chain, bottom first
	SizeBytes int64        `json:"size_bytes"`
	Verity    string       `json:"verity,omitempty"` // as [LayerRecord.IndexVerity]
	Created   time.Time    `json:"created"`

	// Seeds is where the layers lie that lie in seeds: the index is good for no other place.
	Seeds map[oci.DiffID]SeedRef `json:"seeds,omitempty"`
}

// Merged is an index over the tars of all layers of an image. It is made of the
// layers' own indexes whenever it is missing, so it is neither synced nor missed: one
// that another boot has written is as good as absent. [Store.GC] takes it with the
// last image that has these layers.
type Merged struct {
	MergedRecord
	Path string // its directory in the store
}

const mergedRecordName = "merged.json"

// Index returns the path of the index.
func (m *Merged) Index() string { return filepath.Join(m.Path, IndexName) }

// chainOf names the layers of an image, bottom first; "" for none.
func chainOf(layers []oci.DiffID) oci.ChainID {
	if len(layers) == 0 {
		return ""
	}
	chain := oci.ChainIDs(layers)
	return chain[len(chain)-1]
}

// mergedDir returns where the index of a chain is, below the root.
func (s *Store) mergedDir(chain oci.ChainID) string {
	algorithm, name, _ := strings.Cut(string(chain), ":")
	return filepath.Join(dirMerged, algorithm, name+"."+s.boot)
}

// Merged returns the index over the tars of layers, bottom first, or [ErrNotFound].
func (s *Store) Merged(layers []oci.DiffID) (*Merged, error) {
	chain := chainOf(layers)
	return s.readMerged(s.mergedDir(chain), chain)
}

func (s *Store) readMerged(dir string, chain oci.ChainID) (*Merged, error) {
	m := &Merged{Path: s.path(dir)}
	err := readRecord(filepath.Join(m.Path, mergedRecordName), &m.MergedRecord)
	if err == nil {
		err = checkFormat(m.Path, m.Version)
	}
	if err == nil && (m.ChainID != chain || chainOf(m.Layers) != chain) {
		err = fmt.Errorf("its record says %q: %w", m.ChainID, ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("look up merged index %s: %w", chain, err)
	}
	return m, nil
}

// PutMerged returns the index over the tars of layers, and calls write to make it when
// it is not there, or is one of layers that lay elsewhere: an empty directory gets the
// file [IndexName]. Others who want the same one wait for it. The store fills in the
// record's Version, ChainID, Layers, Seeds and Created.
func (s *Store) PutMerged(ctx context.Context, layers []*Layer, write func(dir string) (MergedRecord, error)) (*Merged, error) {
	want := MergedRecord{Layers: diffIDsOf(layers), Seeds: seedsOf(layers)}
	chain := chainOf(want.Layers)
	found, err := s.readMergedOf(want)
	if err == nil {
		return found, nil
	}
	if s.readOnly {
		return nil, fmt.Errorf("merge indexes: store %s: %w", s.root, ErrReadOnly)
	}
	c, err := s.claim(ctx, "merged-"+strings.ReplaceAll(string(chain), ":", "-"))
	if err != nil {
		return nil, fmt.Errorf("merge indexes: %w", err)
	}
	made, err := s.putMerged(ctx, c, want, write)
	if err = errors.Join(err, c.discard()); err != nil { // of what is in its place only the lock is left
		return nil, fmt.Errorf("merge indexes: %w", s.Explain(err))
	}
	return made, nil
}

// readMergedOf is [Store.Merged] of layers that lie where those do.
func (s *Store) readMergedOf(want MergedRecord) (*Merged, error) {
	found, err := s.Merged(want.Layers)
	if err == nil && !maps.Equal(found.Seeds, want.Seeds) {
		err = fmt.Errorf("merged index %s is of layers that lay elsewhere: %w", found.ChainID, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}

// seedsOf returns where those of the layers lie that lie in seeds; nil for none.
func seedsOf(layers []*Layer) map[oci.DiffID]SeedRef {
	var seeds map[oci.DiffID]SeedRef
	for _, l := range layers {
		if l.Seed != nil && seeds == nil {
			seeds = map[oci.DiffID]SeedRef{}
		}
		if l.Seed != nil {
			seeds[l.DiffID] = *l.Seed
		}
	}
	return seeds
}

func diffIDsOf(layers []*Layer) []oci.DiffID {
	ids := make([]oci.DiffID, len(layers))
	for i, l := range layers {
		ids[i] = l.DiffID
	}
	return ids
}

func (s *Store) putMerged(ctx context.Context, c *scratch, want MergedRecord, write func(dir string) (MergedRecord, error)) (*Merged, error) {
	chain := chainOf(want.Layers)
	to := s.mergedDir(chain)
	found, err := s.readMergedOf(want)
	if err == nil {
		return found, nil // another was faster
	}
	if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
		return nil, err
	}
	if err := c.mkdir(); err != nil {
		return nil, err
	}
	record, err := write(c.path)
	if err != nil {
		return nil, err
	}
	record.Version, record.ChainID, record.Layers, record.Seeds, record.Created = formatVersion, chain, want.Layers, want.Seeds, s.now().UTC()
	raw, err := encodeRecord(record)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.path, mergedRecordName), raw, filePerm); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(s.path(to)), dirPerm); err != nil {
		return nil, err
	}
	lock, err := s.lock(ctx, durable.Shared)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Release() }()
	old, err := s.throw(s.path(to)) // one without a good record
	if err == nil {
		err = os.Rename(c.path, s.path(to))
	}
	return &Merged{MergedRecord: record, Path: s.path(to)}, errors.Join(err, old.empty())
}

// mergedIndex is the place of a merged index.
type mergedIndex struct {
	dir   string // below the root
	chain oci.ChainID
	stale bool // of another boot
}

// mergedIndexes lists all of them. Names that cannot be theirs come second.
func (s *Store) mergedIndexes() (found []mergedIndex, strangers []string, err error) {
	for _, algorithm := range algorithms() {
		names, err := readNames(s.path(dirMerged, algorithm))
		if err != nil {
			return nil, nil, err
		}
		for _, name := range names {
			dir := filepath.Join(dirMerged, algorithm, name)
			hexID, boot, _ := strings.Cut(name, ".")
			if _, err := oci.ParseDigest(algorithm + ":" + hexID); err != nil || !validBoot(boot) {
				strangers = append(strangers, dir)
				continue
			}
			found = append(found, mergedIndex{dir: dir, chain: oci.ChainID(algorithm + ":" + hexID), stale: boot != s.boot})
		}
	}
	return found, strangers, nil
}

// deadMerged returns the paths of merged indexes that no image needs, or that another
// boot has written.
func (s *Store) deadMerged(needed func(oci.ChainID) bool) ([]string, error) {
	indexes, _, err := s.mergedIndexes()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, m := range indexes {
		if m.stale || !needed(m.chain) {
			paths = append(paths, s.path(m.dir))
		}
	}
	return paths, nil
}

// inspectMerged looks at all merged indexes.
func (in *inspection) inspectMerged() error {
	indexes, strangers, err := in.store.mergedIndexes()
	if err != nil {
		return err
	}
	for _, path := range strangers {
		in.found(path, "not the name of a merged index")
	}
	for _, m := range indexes {
		if m.stale {
			continue // ignored, and collected
		}
		found, err := in.store.readMerged(m.dir, m.chain)
		switch {
		case errors.Is(err, ErrVersion):
			return err
		case err != nil:
			in.found(m.dir, err.Error())
			continue
		}
		if _, err := os.Lstat(found.Index()); err != nil {
			in.found(m.dir, err.Error())
		} else if problems := in.badMerged[m.chain]; problems != nil {
			in.found(m.dir, "content differs: "+strings.Join(problems, "; "))
		}
	}
	return nil
}

// checkMerged calls check for every merged index whose layers are all good, which the
// caller leases.
func (s *Store) checkMerged(ctx context.Context, bad map[oci.DiffID][]string, check func(context.Context, *Merged, []*Layer) ([]string, error)) (map[oci.ChainID][]string, error) {
	indexes, _, err := s.mergedIndexes()
	if err != nil || check == nil {
		return nil, err
	}
	found := map[oci.ChainID][]string{}
	for _, at := range indexes {
		m, err := s.readMerged(at.dir, at.chain)
		if err != nil || at.stale {
			continue // told by the inspection
		}
		layers, ok := s.goodLayers(m.Layers, bad)
		if !ok || !maps.Equal(m.Seeds, seedsOf(layers)) {
			continue // of use again when they are, and where they were
		}
		problems, err := check(ctx, m, layers)
		if err != nil {
			return nil, fmt.Errorf("check merged index %s: %w", m.ChainID, err)
		}
		if len(problems) > 0 {
			found[m.ChainID] = problems
		}
	}
	return found, nil
}

// goodLayers returns layers that are all there, in a layout that merged indexes are of,
// and not bad.
func (s *Store) goodLayers(ids []oci.DiffID, bad map[oci.DiffID][]string) ([]*Layer, bool) {
	layers := make([]*Layer, len(ids))
	for i, id := range ids {
		l, err := s.Layer(id)
		if err != nil || l.complete() != nil || bad[id] != nil || !l.Indexed() {
			return nil, false
		}
		layers[i] = l
	}
	return layers, true
}

// sweepMerged throws the merged indexes of other boots away.
func (s *Store) sweepMerged(ctx context.Context) (trash, error) {
	paths, err := s.deadMerged(func(oci.ChainID) bool { return true })
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		s.log.LogAttrs(ctx, slog.LevelDebug, "removing the merged index of another boot", slog.String("path", path))
	}
	return s.throw(paths...)
}
