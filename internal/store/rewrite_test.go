package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRecall(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var got []string
	if s.Recall("x", &got) {
		t.Error("recalled what nobody remembered")
	}
	if err := s.Remember(t.Context(), "x", []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	if !s.Recall("x", &got) || len(got) != 2 || got[1] != "b" {
		t.Errorf("got %q", got)
	}
	s.boot = "11111111-1111-1111-1111-111111111111"
	if s.Recall("x", &got) {
		t.Error("recalled what another boot remembered")
	}
}

func TestRewrite(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	layer := put(t, s, "top")
	rewrite := func() error {
		txn, old, err := s.Rewrite(t.Context(), layer.DiffID)
		if err != nil {
			return err
		}
		if old.Layout != LayoutDir {
			t.Errorf("got the old layer as %+v", old)
		}
		for _, name := range []string{TarName, IndexName} {
			if err := os.WriteFile(filepath.Join(txn.Path(), name), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err = txn.Commit(t.Context(), LayerRecord{Layout: LayoutEROFS, SizeBytes: int64(len(TarName))})
		return errors.Join(err, txn.Abort())
	}
	lease, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Add(t.Context(), layer.DiffID); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v while it is leased", err)
	}
	if l, err := s.Layer(layer.DiffID); err != nil || l.Layout != LayoutDir {
		t.Errorf("got %+v, %v after a refusal", l, err)
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(); err != nil {
		t.Fatal(err)
	}
	l, err := s.Layer(layer.DiffID)
	if err != nil || l.Layout != LayoutEROFS || l.UnsyncedBoot != "" || l.complete() != nil {
		t.Errorf("got %+v, %v", l, err)
	}
	if left, err := os.ReadDir(s.path(dirStaging)); err != nil || len(left) > 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
	if _, _, err := s.Rewrite(t.Context(), diffID("absent")); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v for a layer that is not there", err)
	}
}
