package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dray/internal/oci"

	"golang.org/x/sys/unix"
)

// fillDisk leaves about freeBytes free, in a file outside the store.
func fillDisk(t *testing.T, dir string, freeBytes int64) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ballast-"+randomName())
	if err := os.WriteFile(path, make([]byte, int64(st.Bavail)*st.Bsize-freeBytes), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantNoSpace fails the test unless err says how much is free, in both units.
func wantNoSpace(t *testing.T, err error) {
	t.Helper()
	wantErr(t, err, ErrNoSpace)
	full, ok := errors.AsType[*SpaceError](err)
	if !ok || !strings.Contains(err.Error(), fmt.Sprintf("%d B (%.1f MiB) free", full.FreeBytes, float64(full.FreeBytes)/(1<<20))) {
		t.Errorf("%v does not say what is free", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := tmpfs(t, "size=2m")
	s := open(t, filepath.Join(dir, "store"))
	i := putImage(t, s, "a", "base", "top")
	fillDisk(t, dir, 64<<10)

	err := s.CheckSpace(10 << 20)
	wantNoSpace(t, err)
	if !strings.Contains(err.Error(), "10485760 B (10.0 MiB) needed") {
		t.Errorf("%v does not say what is needed", err)
	}
	if err := s.CheckSpace(1 << 10); err != nil {
		t.Errorf("1 KiB: %v", err)
	}

	txn, _, err := s.Begin(t.Context(), diffID("big"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Explain(os.WriteFile(filepath.Join(txn.Path(), "big"), make([]byte, 1<<20), 0o600))
	wantNoSpace(t, err)
	_, err = txn.Commit(t.Context(), LayerRecord{Layout: LayoutDir, Notes: []string{strings.Repeat("n", 1<<20)}})
	wantNoSpace(t, err)
	if err := txn.Abort(); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s)

	fillDisk(t, dir, 0)
	big := image("b", "base")
	big.Evidence = []byte(`"` + strings.Repeat("e", 1<<20) + `"`)
	wantNoSpace(t, s.PutImage(t.Context(), big))
	wantNoSpace(t, s.SetRef(t.Context(), "b", i.Manifest.Digest))
	_, err = s.NewMount(t.Context(), Mount{Layers: i.DiffIDs, Target: "/t"})
	wantNoSpace(t, err)
	wantClean(t, s)

	// A full store opens, and can be emptied.
	if err := os.Remove(s.path(fileBoot)); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.Root())
	if _, err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := gc(t, s, GCOptions{}); len(got.Layers) != 2 {
		t.Errorf("collected %+v", got)
	}
	wantEmpty(t, s.path(dirLayers, oci.SHA256))
	wantClean(t, s)
}

func TestNoInodes(t *testing.T) {
	dir := tmpfs(t, "size=2m,nr_inodes=60")
	s := open(t, filepath.Join(dir, "store"))
	putImage(t, s, "a", "base")
	var err error
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
	}
	_, _, err = s.Begin(t.Context(), diffID("b"))
	wantNoSpace(t, err)
	if !strings.Contains(err.Error(), "0 inodes free") {
		t.Errorf("%v does not say that inodes are missing", err)
	}
	_, err = s.Lease(t.Context())
	wantNoSpace(t, err)
	s = open(t, s.Root())
	if _, err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	gc(t, s, GCOptions{})
	wantEmpty(t, s.path(dirLayers, oci.SHA256))
	wantClean(t, s)
}

func TestReadOnlyFileSystem(t *testing.T) {
	dir := tmpfs(t, "size=2m")
	root := filepath.Join(dir, "store")
	s := open(t, root)
	i := putImage(t, s, "a", "base", "top")
	remount(t, dir, unix.MS_RDONLY)
	_, err := beginNew(t, s, "c")
	wantErr(t, err, ErrReadOnly) // it was writable when it was opened
	wantErr(t, s.SetRef(t.Context(), "b", i.Manifest.Digest), ErrReadOnly)

	s = open(t, root)
	if !s.ReadOnly() {
		t.Error("opened for writing")
	}
	wantReadOnly(t, s, i)
	_, err = Open(t.Context(), Options{Root: filepath.Join(dir, "none")})
	wantErr(t, err, ErrReadOnly)
}

// beginNew is Begin for a layer that must not be there.
func beginNew(t *testing.T, s *Store, name string) (*Txn, error) {
	t.Helper()
	txn, layer, err := s.Begin(t.Context(), diffID(name))
	if layer != nil {
		t.Errorf("found layer %s", name)
	}
	return txn, err
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "size=2m"); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyOption(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	i := putImage(t, s, "a", "base", "top")
	before := must(treeSize(t.Context(), s.Root()))(t)
	ro := must(Open(t.Context(), Options{Root: s.Root(), ReadOnly: true}))(t)
	wantReadOnly(t, ro, i)
	if after := must(treeSize(t.Context(), s.Root()))(t); after != before {
		t.Errorf("something was written: %+v, before %+v", after, before)
	}
	none := filepath.Join(t.TempDir(), "none")
	_, err := Open(t.Context(), Options{Root: none, ReadOnly: true})
	wantErr(t, err, ErrNotFound)
	if _, err := os.Lstat(none); err == nil {
		t.Error("a read-only store was made")
	}
}

// wantReadOnly reads everything in a read-only store with the image i named a, and
// changes nothing.
func wantReadOnly(t *testing.T, s *Store, i *Image) {
	t.Helper()
	if got, err := s.Ref("a"); err != nil || got != i.Manifest.Digest {
		t.Errorf("a is %s, %v", got, err)
	}
	if _, err := s.Image(i.Manifest.Digest); err != nil {
		t.Error(err)
	}
	if layers := must(s.Layers())(t); len(layers) != 2 {
		t.Errorf("%d layers", len(layers))
	}
	must(s.Usage(t.Context()))(t)
	if report := must(s.Verify(t.Context(), VerifyOptions{Check: checkName}))(t); !report.OK() || report.Layers != 2 {
		t.Errorf("verify: %+v", report)
	}
	lease := must(s.Lease(t.Context()))(t)
	if err := errors.Join(lease.Add(t.Context(), i.DiffIDs...), lease.Release()); err != nil {
		t.Errorf("lease: %v", err)
	}
	if _, layer, err := s.Begin(t.Context(), diffID("top")); err != nil || layer == nil {
		t.Errorf("Begin of what is there: %v", err)
	}
	if err := s.Sync(t.Context(), i.DiffIDs); err != nil {
		t.Errorf("Sync of what is durable: %v", err)
	}
	_, beginErr := beginNew(t, s, "absent")
	_, mountErr := s.NewMount(t.Context(), Mount{Layers: i.DiffIDs})
	_, removeErr := s.Remove(t.Context(), "a")
	_, gcErr := s.GC(t.Context(), GCOptions{})
	_, repairErr := s.Verify(t.Context(), VerifyOptions{Repair: true})
	for name, err := range map[string]error{
		"Begin":       beginErr,
		"NewMount":    mountErr,
		"Remove":      removeErr,
		"GC":          gcErr,
		"repair":      repairErr,
		"PutImage":    s.PutImage(t.Context(), i),
		"SetRef":      s.SetRef(t.Context(), "b", i.Manifest.Digest),
		"RemoveRef":   s.RemoveRef(t.Context(), "a"),
		"UpdateMount": s.UpdateMount(t.Context(), &Mount{}),
		"RemoveMount": s.RemoveMount(t.Context(), "x"),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: got %v, want ErrReadOnly", name, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{"", file, filepath.Join(file, "below")} {
		if _, err := Open(t.Context(), Options{Root: root}); err == nil {
			t.Errorf("opened %q", root)
		}
	}
}

// A new store belongs to its owner alone, whatever the umask and the parents.
func TestNewStoreIsPrivate(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "a", "b", "store"))
	for _, path := range []string{s.Root(), s.path(dirLayers), s.path(dirStaging), s.path(dirMounts)} {
		if info := must(os.Stat(path))(t); info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}
