package seed

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/testkit"
)

// What holds bytes where they are depends on who could change them.
func TestJudge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	onDisk := Loose
	if isDisk(fs.Type) || isMemory(fs.Type) {
		onDisk = Held
	}
	verity := filepath.Join(dir, "sys", "dev", "block", fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), "dm")
	if err := errors.Join(os.MkdirAll(verity, 0o700), os.WriteFile(filepath.Join(verity, "uuid"), []byte("CRYPT-VERITY-1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "looped", "dev", "block", filepath.Base(filepath.Dir(verity)), "loop"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		machine machine
		mode    os.FileMode
		want    Hold
	}{
		"own file":            {machine{sysfs: "/sys"}, 0o600, onDisk},
		"group writes":        {machine{sysfs: "/sys"}, 0o620, Loose},
		"others write":        {machine{sysfs: "/sys"}, 0o602, Loose},
		"foreign disks":       {machine{sysfs: "/sys", foreignDisks: true}, 0o600, map[bool]Hold{true: Held, false: Loose}[isMemory(fs.Type)]},
		"user namespace":      {machine{sysfs: "/sys", inUserNS: true}, 0o600, Loose},
		"dm-verity":           {machine{sysfs: filepath.Join(dir, "sys"), foreignDisks: true}, 0o602, Sealed},
		"in a file":           {machine{sysfs: filepath.Join(dir, "looped")}, 0o600, map[bool]Hold{true: Held, false: Loose}[isMemory(fs.Type)]},
		"no word of a device": {machine{sysfs: dir}, 0o600, onDisk},
	} {
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, why := test.machine.judge(f); got != test.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", name, got, why, test.want)
		}
		_ = f.Close()
	}
	for fsType, want := range map[int64]bool{unix.EXT4_SUPER_MAGIC: true, unix.OVERLAYFS_SUPER_MAGIC: false, unix.FUSE_SUPER_MAGIC: false, unix.NFS_SUPER_MAGIC: false, unix.V9FS_MAGIC: false, 0x6a656a63: false} {
		if isDisk(fsType) != want {
			t.Errorf("file system %#x: %t", fsType, !want)
		}
	}
}

// small returns a seed of one layer and one name, in memory and in order.
func small(tb testing.TB) *Content {
	tb.Helper()
	dir := tb.TempDir()
	raw := testkit.Tar(testkit.File("a", "1"))
	for name, content := range map[string][]byte{store.TarName: raw, store.IndexName: []byte("index")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	id := oci.DiffID(oci.DigestBytes(raw))
	return &Content{
		Names:     map[string]oci.Digest{"example.org/a:1": oci.Digest(id)},
		Documents: map[oci.Digest][]byte{oci.DigestBytes([]byte("doc")): []byte("doc")},
		Layers:    []*store.Layer{{LayerRecord: store.LayerRecord{DiffID: id, Layout: store.LayoutEROFS, SizeBytes: int64(len(raw))}, Path: dir}},
	}
}

func writeArchive(tb testing.TB, c *Content, form Form) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "seed")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	c.Form = form
	w, err := NewWriter(f, c)
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range c.Layers {
		if err := w.Layer(tb.Context(), l); err != nil {
			tb.Fatal(err)
		}
	}
	if err := errors.Join(w.End(tb.Context()), w.Close(), f.Close()); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Both archives are read as what was written, below any prefix, and hold the layer.
func TestArchives(t *testing.T) {
	t.Parallel()
	for _, form := range []Form{AsTar, AsEROFS} {
		for _, prefix := range []string{"", "/usr/share/dray/seed", "/" + strings.Repeat("long/", 40)} {
			c := small(t)
			c.Prefix = prefix
			set, err := Open(t.Context(), Options{Paths: []string{writeArchive(t, c, form)}})
			if err != nil {
				t.Fatal(err)
			}
			one := set.Seeds()[0]
			id := c.Layers[0].DiffID
			if err := one.Verify(t.Context(), id); err != nil {
				t.Error(err)
			}
			if raw, ok := one.Document(oci.DigestBytes([]byte("doc"))); !ok || string(raw) != "doc" {
				t.Errorf("document: %q, %t", raw, ok)
			}
			if digest, ok := one.Name("example.org/a:1"); !ok || digest != oci.Digest(id) {
				t.Errorf("name: %s, %t", digest, ok)
			}
			if _, ok := one.Name("example.org/b:1"); ok {
				t.Error("an unknown name is known")
			}
			if ids, err := one.LayerIDs(); err != nil || len(ids) != 1 || ids[0] != id {
				t.Errorf("layers: %v, %v", ids, err)
			}
			if found, refused := set.Layers(oci.DiffID(oci.DigestBytes(nil))); len(found)+len(refused) > 0 {
				t.Errorf("an unknown layer: %v, %v", found, refused)
			}
		}
	}
}

// An archive that is replaced is read anew.
func TestArchiveReplaced(t *testing.T) {
	t.Parallel()
	first, second := small(t), small(t)
	second.Names = map[string]oci.Digest{"example.org/b:2": oci.Digest(second.Layers[0].DiffID)}
	path := writeArchive(t, first, AsTar)
	set, err := Open(t.Context(), Options{Paths: []string{path}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(writeArchive(t, second, AsEROFS), path); err != nil {
		t.Fatal(err)
	}
	if _, ok := set.Seeds()[0].Name("example.org/b:2"); !ok {
		t.Error("the new archive is not read")
	}
}

// FuzzArchive: whatever a file holds, it is a seed or an error, and what it gives is
// within it.
func FuzzArchive(f *testing.F) {
	for _, form := range []Form{AsTar, AsEROFS} {
		raw, err := os.ReadFile(writeArchive(f, small(f), form))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)/2])
	}
	var sparse bytes.Buffer
	w := tar.NewWriter(&sparse)
	_ = w.WriteHeader(&tar.Header{Name: "x/seed.json", Size: 2, Mode: 0o600, PAXRecords: map[string]string{"path": "../seed.json"}})
	_, _ = w.Write([]byte("{}"))
	_ = w.Close()
	f.Add(sparse.Bytes())
	path := filepath.Join(f.TempDir(), "seed")
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		set, err := Open(context.Background(), Options{Paths: []string{path}})
		if err != nil {
			if !errors.Is(err, ErrNotSeed) && !errors.Is(err, ErrRefused) && !errors.Is(err, store.ErrVersion) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		one := set.Seeds()[0]
		from, err := one.files()
		if err != nil {
			t.Fatal(err)
		}
		a, ok := from.(*archive)
		if !ok {
			t.Fatal("a file is no archive")
		}
		for name, part := range a.parts {
			if part.offset < 0 || part.size < 0 || part.offset+part.size > int64(len(raw)) || strings.HasPrefix(name, "/") || strings.Contains("/"+name+"/", "/../") {
				t.Fatalf("%q lies at %+v of %d bytes", name, part, len(raw))
			}
			p, err := a.open(name)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, p.reader()); err != nil || n != part.size {
				t.Fatalf("%q: %d bytes, %v", name, n, err)
			}
			_ = p.Close()
		}
		ids, _ := one.LayerIDs()
		for _, id := range ids {
			if err := one.Verify(context.Background(), id); err != nil && !errors.Is(err, ErrRefused) {
				t.Fatalf("error of no kind: %v", err)
			}
		}
	})
}

// FuzzRecords: whatever records and manifests hold, they are what they should be or
// an error.
func FuzzRecords(f *testing.F) {
	entries, err := small(f).entries()
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		if e.content != nil {
			f.Add(e.content)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := DecodeManifest(raw); err == nil && m.Version != manifestVersion {
			t.Fatalf("manifest of version %d", m.Version)
		}
		if image, err := store.DecodeImage("x", raw); err == nil && digestOf(image.Manifest.Digest, image.RawManifest) != image.Manifest.Digest {
			t.Fatal("an image without its digest")
		}
		_, _ = store.DecodeLayer("x", raw)
		_, _ = store.DecodeRef("x", raw)
	})
}
