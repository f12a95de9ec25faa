package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"dray/internal/oci"
)

// benchStore makes a store with an image of as many layers, on the disk.
func benchStore(b *testing.B, layers int) (*Store, []oci.DiffID) {
	b.Helper()
	s, err := Open(b.Context(), Options{Root: filepath.Join(b.TempDir(), "store")})
	if err != nil {
		b.Fatal(err)
	}
	var ids []oci.DiffID
	for i := range layers {
		name := fmt.Sprint(i)
		ids = append(ids, diffID(name))
		benchPut(b, s, name)
	}
	if err := s.Sync(b.Context(), ids); err != nil {
		b.Fatal(err)
	}
	return s, ids
}

func benchPut(b *testing.B, s *Store, name string) {
	b.Helper()
	txn, _, err := s.Begin(b.Context(), diffID(name))
	if err != nil {
		b.Fatal(err)
	}
	if err := fillLayer(txn.Path(), name); err != nil {
		b.Fatal(err)
	}
	if _, err := txn.Commit(b.Context(), LayerRecord{Layout: LayoutDir}); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkOpen(b *testing.B) {
	s, _ := benchStore(b, 1000)
	for b.Loop() {
		if _, err := Open(b.Context(), Options{Root: s.Root()}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTransaction(b *testing.B) {
	s, _ := benchStore(b, 0)
	for i := 0; b.Loop(); i++ {
		benchPut(b, s, fmt.Sprint(i))
	}
}

func BenchmarkMountRecord(b *testing.B) {
	s, ids := benchStore(b, 100)
	for b.Loop() {
		m, err := s.NewMount(b.Context(), Mount{Layers: ids, Target: "/t"})
		if err != nil {
			b.Fatal(err)
		}
		m.State = MountMounted
		if err := s.UpdateMount(b.Context(), m); err != nil {
			b.Fatal(err)
		}
		if err := s.RemoveMount(b.Context(), m.ID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSync is what durability costs a pull of six layers, beyond the writing of
// their contents.
func BenchmarkSync(b *testing.B) {
	s, _ := benchStore(b, 0)
	for i := 0; b.Loop(); i++ {
		var ids []oci.DiffID
		for j := range 6 {
			name := fmt.Sprint(i, j)
			benchPut(b, s, name)
			ids = append(ids, diffID(name))
		}
		if err := s.Sync(b.Context(), ids); err != nil {
			b.Fatal(err)
		}
	}
}
