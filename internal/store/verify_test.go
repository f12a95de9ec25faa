package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dray/internal/durable"
	"dray/internal/oci"

	"github.com/google/go-cmp/cmp"
)

// damaged is a store with the image "a" (layers base, top), the image "b" (layer
// base), and a mount of a.
type damaged struct {
	s *Store
	a *Image
	b *Image
	m *Mount
}

func newDamaged(t *testing.T) damaged {
	t.Helper()
	d := damaged{s: newStore(t)}
	d.a, d.b = putImage(t, d.s, "a", "base", "top"), putImage(t, d.s, "b", "base")
	m, err := d.s.NewMount(t.Context(), Mount{Image: d.a.Manifest.Digest, Layers: d.a.DiffIDs, Target: "/t"})
	if err != nil {
		t.Fatal(err)
	}
	d.m = m
	return d
}

func (d damaged) layer(name string, elem ...string) string {
	return filepath.Join(append([]string{d.s.layerPath(diffID(name))}, elem...)...)
}

func (d damaged) relative(t *testing.T, path string) string {
	t.Helper()
	return must(filepath.Rel(d.s.root, path))(t)
}

func TestVerifyFindsAndRepairs(t *testing.T) {
	t.Parallel()
	write := func(path string, content string) error { return os.WriteFile(path, []byte(content), 0o600) }
	top := func(t *testing.T, d damaged) []string {
		t.Helper()
		return []string{d.relative(t, d.layer("top")), d.relative(t, d.s.imagePath(d.a.Manifest.Digest, "")), d.relative(t, d.s.refPath("a", ""))}
	}
	for name, c := range map[string]struct {
		damage func(t *testing.T, d damaged) error
		want   func(t *testing.T, d damaged) []string // paths, the mount's aside
	}{
		"layer record is garbage": {
			func(_ *testing.T, d damaged) error { return write(d.layer("top", recordName), "\x00\x00") }, top,
		},
		"layer record is missing": {
			func(_ *testing.T, d damaged) error { return os.Remove(d.layer("top", recordName)) }, top,
		},
		"layer record is another's": {
			func(_ *testing.T, d damaged) error {
				raw, err := os.ReadFile(d.layer("base", recordName))
				return errors.Join(err, write(d.layer("top", recordName), string(raw)))
			}, top,
		},
		"layer has no tree": {
			func(_ *testing.T, d damaged) error { return os.RemoveAll(d.layer("top", FSName)) }, top,
		},
		"layer is missing": {
			func(_ *testing.T, d damaged) error { return os.RemoveAll(d.layer("top")) },
			func(t *testing.T, d damaged) []string { t.Helper(); return top(t, d)[1:] },
		},
		"layer's content differs": {
			func(_ *testing.T, d damaged) error { return write(d.layer("top", FSName, "etc", "name"), "t0p") }, top,
		},
		"shared layer's content differs": {
			func(_ *testing.T, d damaged) error { return write(d.layer("base", FSName, "etc", "name"), "") },
			func(t *testing.T, d damaged) []string {
				t.Helper()
				return append(top(t, d)[1:], d.relative(t, d.layer("base")), d.relative(t, d.s.imagePath(d.b.Manifest.Digest, "")), d.relative(t, d.s.refPath("b", "")))
			},
		},
		"image record is cut": {
			func(_ *testing.T, d damaged) error { return os.Truncate(d.s.imagePath(d.a.Manifest.Digest, ""), 100) },
			func(t *testing.T, d damaged) []string { t.Helper(); return top(t, d)[1:] },
		},
		"manifest was changed": {
			func(t *testing.T, d damaged) error {
				t.Helper()
				path := d.s.imagePath(d.a.Manifest.Digest, "")
				raw := must(os.ReadFile(path))(t)
				return write(path, strings.Replace(string(raw), `schemaVersion\": 2`, `schemaVersion\": 3`, 1))
			},
			func(t *testing.T, d damaged) []string { t.Helper(); return top(t, d)[1:] },
		},
		"reference to nothing": {
			func(_ *testing.T, d damaged) error { return os.Remove(d.s.imagePath(d.a.Manifest.Digest, "")) },
			func(t *testing.T, d damaged) []string { t.Helper(); return top(t, d)[2:] },
		},
		"reference is garbage": {
			func(_ *testing.T, d damaged) error { return write(d.s.refPath("a", ""), "[]") },
			func(t *testing.T, d damaged) []string { t.Helper(); return top(t, d)[2:] },
		},
		"reference of another name": {
			func(_ *testing.T, d damaged) error { return os.Rename(d.s.refPath("b", ""), d.s.refPath("a", "")) },
			func(t *testing.T, d damaged) []string { t.Helper(); return top(t, d)[2:] },
		},
		"strangers": {
			func(_ *testing.T, d damaged) error {
				return errors.Join(os.Mkdir(d.s.path(dirLayers, oci.SHA256, "x"), 0o700), write(d.s.path(dirImages, oci.SHA256, "x"), ""), write(d.s.path(dirRefs, "x.json"), ""))
			},
			func(*testing.T, damaged) []string {
				return []string{"layers/sha256/x", "images/sha256/x", "refs/x.json"}
			},
		},
		"left by stopped processes": {
			func(_ *testing.T, d damaged) error {
				return errors.Join(os.MkdirAll(d.s.path(dirStaging, "sha256-x", "fs"), 0o700), write(d.s.path(dirStaging, "sha256-x.lock"), ""),
					os.Mkdir(d.s.path(dirStaging, "trash-x"), 0o700), write(d.s.path(dirRefs, ".tmp-x"), ""), write(d.s.path(dirStaging, "lease-x.lock"), "layer x\n"))
			},
			func(*testing.T, damaged) []string {
				return []string{"staging/sha256-x", "staging/trash-x", "refs/.tmp-x"}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDamaged(t)
			if err := c.damage(t, d); err != nil {
				t.Fatal(err)
			}
			report, err := d.s.Verify(t.Context(), VerifyOptions{Check: checkName, Repair: true})
			if err != nil {
				t.Fatal(err)
			}
			got, want := map[string]bool{}, map[string]bool{}
			for _, p := range report.Problems {
				if p.Action == "" || p.Detail == "" {
					t.Errorf("%+v says too little", p)
				}
				if p.Path != d.relative(t, d.m.Path) {
					got[p.Path] = true
				}
			}
			for _, path := range c.want(t, d) {
				want[path] = true
				if _, err := os.Lstat(d.s.path(path)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("problems (-got +want):\n%s", diff)
			}
			if err := d.s.RemoveMount(t.Context(), d.m.ID); err != nil {
				t.Fatal(err)
			}
			again, err := d.s.Verify(t.Context(), VerifyOptions{Check: checkName})
			if err != nil || !again.OK() {
				t.Errorf("after the repair: %+v, %v", again.Problems, err)
			}
			putImage(t, d.s, "a", "base", "top") // pulls what is missing
			wantClean(t, d.s)
		})
	}
}

// What cannot be understood is kept, with the reason, and nothing else touches it.
func TestUnreadableLayerIsEvidence(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	put(t, s, "x")
	const garbage = "{\"version\": 1, \"diffID\": \"sha2"
	record := filepath.Join(s.layerPath(diffID("x")), recordName)
	if err := os.WriteFile(record, []byte(garbage), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Layer(diffID("x"))
	wantErr(t, err, ErrCorrupt)
	_, _, err = s.Begin(t.Context(), diffID("x"))
	wantErr(t, err, ErrCorrupt)
	_, err = s.Layers()
	wantErr(t, err, ErrCorrupt)
	gc(t, s, GCOptions{})
	report, err := open(t, s.Root()).Verify(t.Context(), VerifyOptions{})
	if err != nil || len(report.Problems) != 1 || report.Problems[0].Action != "" {
		t.Fatalf("report %+v, %v", report, err)
	}
	if got, err := os.ReadFile(record); err != nil || string(got) != garbage {
		t.Fatalf("evidence is %q, %v", got, err)
	}
	if _, err := s.Verify(t.Context(), VerifyOptions{Repair: true}); err != nil {
		t.Fatal(err)
	}
	kept := must(filepath.Glob(s.path(dirQuarantine, "*", diffID("x").Hex(), recordName)))(t)
	if len(kept) != 1 {
		t.Fatalf("quarantine holds %q", kept)
	}
	if got, err := os.ReadFile(kept[0]); err != nil || string(got) != garbage {
		t.Errorf("evidence is %q, %v", got, err)
	}
	var why Problem
	raw := must(os.ReadFile(filepath.Join(filepath.Dir(kept[0]), "..", "why.json")))(t)
	if err := json.Unmarshal(raw, &why); err != nil || !strings.Contains(why.Detail, "corrupt") || why.Path != layerDir(diffID("x")) {
		t.Errorf("why.json says %s, %v", raw, err)
	}
	put(t, s, "x")
	wantClean(t, s)
}

func TestVerifyLeavesLiveMounts(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	if err := os.WriteFile(d.layer("top", recordName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := d.s.Verify(t.Context(), VerifyOptions{Repair: true})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range report.Problems {
		if p.Path == d.relative(t, d.m.Path) {
			found = strings.Contains(p.Action, "unmount")
		}
	}
	if !found {
		t.Errorf("the mount is not among %+v, or without advice", report.Problems)
	}
	if _, err := d.s.Mount(d.m.ID); err != nil {
		t.Error(err)
	}
	// A mount whose record cannot be read is taken out of the way.
	if err := os.WriteFile(filepath.Join(d.m.Path, stateName), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = d.s.Mount(d.m.ID)
	wantErr(t, err, ErrCorrupt)
	if _, err := d.s.Verify(t.Context(), VerifyOptions{Repair: true}); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, d.s.path(dirMounts))
	wantClean(t, d.s)
}

// Content checks hold a lease, no lock, and what they could not do is an error.
func TestVerifyCheck(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	put(t, d.s, "alone")
	checked := map[oci.DiffID]int{}
	_, err := d.s.Verify(t.Context(), VerifyOptions{Check: func(ctx context.Context, layer *Layer) ([]string, error) {
		checked[layer.DiffID]++
		_, err := d.s.GC(ctx, GCOptions{})
		return nil, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(checked, map[oci.DiffID]int{diffID("base"): 1, diffID("top"): 1, diffID("alone"): 1}); diff != "" {
		t.Errorf("checked:\n%s", diff)
	}
	errCheck := errors.New("cannot look")
	_, err = d.s.Verify(t.Context(), VerifyOptions{Check: func(context.Context, *Layer) ([]string, error) { return nil, errCheck }})
	wantErr(t, err, errCheck)
	wantClean(t, d.s)
}

// A process that is at work is not taken for one that stopped.
func TestVerifyBesideWork(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	txn, _, err := s.Begin(t.Context(), diffID("a"))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, txn, "a")
	lease := must(s.Lease(t.Context()))(t)
	other := open(t, s.Root()) // sweeps
	for _, repair := range []bool{false, true} {
		report, err := other.Verify(t.Context(), VerifyOptions{Repair: repair})
		if err != nil || !report.OK() {
			t.Errorf("repair %v: %+v, %v", repair, report, err)
		}
	}
	if _, err := txn.Commit(t.Context(), LayerRecord{Layout: LayoutDir}); err != nil {
		t.Error(err)
	}
	if err := lease.Release(); err != nil {
		t.Error(err)
	}
	wantClean(t, s)
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version string
		want    error
		says    string
	}{
		"newer":   {`{"version": 7, "dray": "3.1"}`, ErrVersion, `use dray "3.1" or newer`},
		"garbage": {`?`, ErrCorrupt, fileVersion},
		"empty":   {``, ErrCorrupt, fileVersion},
		"zero":    {`{}`, ErrCorrupt, "format 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			put(t, s, "a")
			if err := os.WriteFile(s.path(fileVersion), []byte(c.version), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, readOnly := range []bool{false, true} {
				_, err := Open(t.Context(), Options{Root: s.Root(), ReadOnly: readOnly})
				wantErr(t, err, c.want)
				if !strings.Contains(err.Error(), c.says) {
					t.Errorf("%q does not say %q", err, c.says)
				}
			}
			if got, err := os.ReadFile(s.path(fileVersion)); err != nil || string(got) != c.version {
				t.Errorf("version is now %q, %v", got, err)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		s := newStore(t)
		if err := os.Remove(s.path(fileVersion)); err != nil {
			t.Fatal(err)
		}
		open(t, s.Root()) // an empty store whose making was interrupted
		put(t, s, "a")
		if err := os.Remove(s.path(fileVersion)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), Options{Root: s.Root()})
		wantErr(t, err, ErrCorrupt)
	})
	t.Run("records", func(t *testing.T) {
		t.Parallel()
		d := newDamaged(t)
		for _, path := range []string{d.layer("top", recordName), d.s.imagePath(d.a.Manifest.Digest, ""), d.s.refPath("a", ""), filepath.Join(d.m.Path, stateName)} {
			raw := must(os.ReadFile(path))(t)
			if err := os.WriteFile(path, bytes.Replace(raw, []byte(`"version": 1`), []byte(`"version": 2`), 1), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := d.s.GC(t.Context(), GCOptions{})
			wantErr(t, err, ErrVersion)
			_, err = d.s.Verify(t.Context(), VerifyOptions{Repair: true})
			wantErr(t, err, ErrVersion)
			if err := durable.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		wantClean(t, d.s)
	})
}
