package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"dray/internal/oci"
)

// layersOf returns layers that are in the store, as far as merged indexes care.
func layersOf(ids []oci.DiffID) []*Layer {
	var layers []*Layer
	for _, id := range ids {
		layers = append(layers, &Layer{LayerRecord: LayerRecord{DiffID: id}})
	}
	return layers
}

// putMerged stores a merged index with some content.
func putMerged(t *testing.T, s *Store, layers []oci.DiffID) *Merged {
	t.Helper()
	m, err := s.PutMerged(t.Context(), layersOf(layers), func(dir string) (MergedRecord, error) {
		return MergedRecord{SizeBytes: 5}, os.WriteFile(filepath.Join(dir, IndexName), []byte("index"), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPutMerged(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	layers := []oci.DiffID{put(t, s, "a").DiffID, put(t, s, "b").DiffID}
	if _, err := s.Merged(layers); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v before there is one", err)
	}
	failure := errors.New("cannot be merged")
	if _, err := s.PutMerged(t.Context(), layersOf(layers), func(string) (MergedRecord, error) { return MergedRecord{}, failure }); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(s.path(dirStaging)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	made := putMerged(t, s, layers)
	found, err := s.PutMerged(t.Context(), layersOf(layers), func(string) (MergedRecord, error) {
		t.Error("made again")
		return MergedRecord{}, failure
	})
	if err != nil || found.ChainID != made.ChainID || found.SizeBytes != 5 || len(found.Layers) != 2 {
		t.Errorf("got %+v, %v", found, err)
	}
	if _, err := s.Merged(layers[:1]); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v for other layers", err)
	}
	// Of layers that lie elsewhere it is another.
	elsewhere := layersOf(layers)
	for offset := range int64(2) {
		elsewhere[1].Seed = &SeedRef{Seed: "seed", Offset: offset}
		made := false
		found, err := s.PutMerged(t.Context(), elsewhere, func(dir string) (MergedRecord, error) {
			made = true
			return MergedRecord{}, os.WriteFile(filepath.Join(dir, IndexName), nil, 0o600)
		})
		if err != nil || !made || found.Seeds[layers[1]].Offset != offset {
			t.Errorf("got %+v, %v, made again: %v", found, err, made)
		}
		if _, err := s.PutMerged(t.Context(), elsewhere, nil); err != nil {
			t.Error(err)
		}
	}
	made = putMerged(t, s, layers)
	// A record that cannot be read is not believed, and replaced.
	if err := os.WriteFile(filepath.Join(made.Path, mergedRecordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := s.Verify(t.Context(), VerifyOptions{})
	if err != nil || len(report.Problems) != 1 {
		t.Errorf("got %+v, %v", report.Problems, err)
	}
	putMerged(t, s, layers)
	if report, err := s.Verify(t.Context(), VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("got %+v, %v", report.Problems, err)
	}
	usage, err := s.Usage(t.Context())
	if err != nil || usage.Merged.DiskBytes == 0 {
		t.Errorf("got usage %+v, %v", usage.Merged, err)
	}
}

// TestMergedOfAnotherBoot: it was not synced, so that nobody knows what is in it.
func TestMergedOfAnotherBoot(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	layers := []oci.DiffID{put(t, s, "a").DiffID}
	made := putMerged(t, s, layers)
	stale := filepath.Join(filepath.Dir(made.Path), oci.Digest(made.ChainID).Hex()+".11111111-1111-1111-1111-111111111111")
	if err := os.Rename(made.Path, stale); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Merged(layers); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if report, err := s.Verify(t.Context(), VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("got %+v, %v", report.Problems, err)
	}
	if err := os.Remove(s.path(fileBoot)); err != nil { // as if the machine had been started
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Root: s.root}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

func TestMergedIsCollectedWithItsImage(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a, b := put(t, s, "a"), put(t, s, "b")
	layers := []oci.DiffID{a.DiffID, b.DiffID}
	kept := putMerged(t, s, layers)
	putMerged(t, s, layers[:1])
	image := putImage(t, s, "image", "a", "b")
	for _, dry := range []bool{true, false} {
		report, err := s.GC(t.Context(), GCOptions{DryRun: dry})
		if err != nil || report.Merged != 1 || len(report.Layers) != 0 {
			t.Errorf("dry %v: got %+v, %v", dry, report, err)
		}
	}
	if _, err := s.Merged(layers); err != nil {
		t.Error(err)
	}
	if _, err := s.Merged(layers[:1]); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Remove(t.Context(), string(image.Manifest.Digest)); err != nil {
		t.Fatal(err)
	}
	if report, err := s.GC(t.Context(), GCOptions{}); err != nil || report.Merged != 1 || len(report.Layers) != 2 {
		t.Errorf("got %+v, %v", report, err)
	}
	if _, err := os.Lstat(kept.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}
