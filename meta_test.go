package dray_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray"
	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/testkit"
)

// What image-rs would mount of an exported work directory is the image, whatever has
// ever been odd about it, and from either layout.
func TestExportMetaStoreOddImages(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	images := map[dray.Digest]testkit.OddImage{} // by configuration
	for _, odd := range testkit.Odd() {
		if odd.Verdict != testkit.Good || odd.Large || len(odd.Layers) == 0 || len(odd.Layers) > 50 {
			continue // image-rs mounts neither no layers nor more than an option of 4 KiB holds
		}
		if built := odd.Write(t, layout, odd.Name); !repeats(built) { // image-rs loses their order
			images[built.Config.Digest] = odd
		}
	}
	for _, l := range layouts() {
		t.Run(string(l), func(t *testing.T) { testExportOddImages(t, l, "local://"+dir, images) })
	}
}

func testExportOddImages(t *testing.T, layout dray.Layout, from string, images map[dray.Digest]testkit.OddImage) {
	t.Helper()
	client := newClientFor(t, layout)
	for _, odd := range images {
		if _, err := client.Pull(t.Context(), from+":"+odd.Name, dray.PullOptions{}); err != nil {
			t.Fatalf("%s: %v", odd.Name, err)
		}
	}
	out := filepath.Join(t.TempDir(), "w")
	if _, err := client.ExportMetaStore(t.Context(), out, nil, dray.MetaExportOptions{}); err != nil {
		t.Fatal(err)
	}
	work, err := metastore.Open(out, metastore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = work.Close() }()
	if len(work.Images) != len(images) {
		t.Errorf("got %d images, want %d", len(work.Images), len(images))
	}
	for i := range work.Images {
		odd := images[work.Images[i].ID]
		t.Run(odd.Name, func(t *testing.T) {
			target := mountImageRS(t, work, &work.Images[i])
			if diff := testkit.Diff(odd.Tree(), testkit.Tree(t, target)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func repeats(built testkit.Built) bool {
	seen := map[dray.Digest]bool{}
	return slices.ContainsFunc(built.Layers, func(l oci.Descriptor) bool {
		again := seen[l.Digest]
		seen[l.Digest] = true
		return again
	})
}

// mountImageRS mounts an image of a work directory as image-rs does, read-only.
func mountImageRS(t *testing.T, work *metastore.WorkDir, image *metastore.Image) string {
	t.Helper()
	lower := []string{}
	for _, blob := range image.Layers {
		lower = append(lower, work.LayerPath(work.Layer(blob)))
	}
	if len(lower) == 1 { // overlayfs wants two
		lower = append([]string{t.TempDir()}, lower...)
	}
	slices.Reverse(lower)
	target := t.TempDir()
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

// A store whose layers were damaged is not exported.
func TestExportMetaStoreDamaged(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	for _, layout := range layouts() {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			built := testkit.Image(t).Layer(testkit.File("file", strings.Repeat("content", 1000))).Write(testkit.LayoutAt(t, dir), "v1")
			client := newClientFor(t, layout)
			if _, err := client.Pull(t.Context(), "local://"+dir+":v1", dray.PullOptions{}); err != nil {
				t.Fatal(err)
			}
			damaged := 0
			at := filepath.Join(client.Store(), "layers", "sha256", built.DiffIDs[0].Hex())
			for _, name := range []string{"fs/file", "layer.tar"} {
				if raw, err := os.ReadFile(filepath.Join(at, name)); err == nil {
					raw[1000] ^= 1
					if err := os.WriteFile(filepath.Join(at, name), raw, 0o600); err != nil {
						t.Fatal(err)
					}
					damaged++
				}
			}
			if damaged != 1 {
				t.Fatalf("damaged %d files", damaged)
			}
			parent := t.TempDir()
			_, err := client.ExportMetaStore(t.Context(), filepath.Join(parent, "w"), nil, dray.MetaExportOptions{})
			if kind := dray.KindOf(err); kind != dray.KindCorrupt && kind != dray.KindUnverified {
				t.Errorf("got %v (kind %d)", err, kind)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// What is in the store under the very digest stays what it is, and another image's
// name stays that image's.
func TestImportMetaStoreKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.Mknod())
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	first := testkit.Image(t).Layer(testkit.File("file", "first")).Write(layout, "v1")
	reference := "local://" + dir + ":v1"
	from := newClient(t)
	if _, err := from.Pull(t.Context(), reference, dray.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "w")
	if _, err := from.ExportMetaStore(t.Context(), out, nil, dray.MetaExportOptions{}); err != nil {
		t.Fatal(err)
	}
	done, err := from.ImportMetaStore(t.Context(), out, dray.MetaImportOptions{})
	if err != nil || done.Images[0].Manifest != first.Manifest.Digest || done.Layers[0].Result != "store" {
		t.Errorf("into the store it came from: got %+v, %v", done, err)
	}

	second := testkit.Image(t).Layer(testkit.File("file", "second")).Write(layout, "v1")
	to := newClient(t)
	if _, err := to.Pull(t.Context(), reference, dray.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	done, err = to.ImportMetaStore(t.Context(), out, dray.MetaImportOptions{Trust: true})
	if err != nil {
		t.Fatal(err)
	}
	want := "local://" + dir + ":imported-" + first.Config.Digest.Hex()[:12]
	if got := done.Images[0].Reference; got != want {
		t.Errorf("imported as %s, want %s", got, want)
	}
	if image, err := to.Find(reference); err != nil || image.Manifest != second.Manifest.Digest {
		t.Errorf("%s is now %+v, %v", reference, image, err)
	}
	if _, err := to.Find(string(first.Manifest.Digest)); dray.KindOf(err) != dray.KindNotFound {
		t.Errorf("an image stands under a manifest that nobody has seen: %v", err)
	}
	wantSound(t, to)
}

// What is interrupted leaves nothing behind, and what was there as it was.
func TestMetaStoreInterrupted(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	dir := t.TempDir()
	testkit.Image(t).Layer(testkit.Random("random", 4<<20, 1)).Write(testkit.LayoutAt(t, dir), "v1")
	for _, layout := range layouts() {
		client := newClientFor(t, layout)
		if _, err := client.Pull(t.Context(), "local://"+dir+":v1", dray.PullOptions{}); err != nil {
			t.Fatal(err)
		}
		parent := t.TempDir()
		out := filepath.Join(parent, "w")
		stopped, stop := context.WithCancel(t.Context())
		stop()
		if _, err := client.ExportMetaStore(stopped, out, nil, dray.MetaExportOptions{}); dray.KindOf(err) != dray.KindInterrupted {
			t.Errorf("export: got %v", err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Errorf("export left %v, %v", left, err)
		}
		if _, err := client.ExportMetaStore(t.Context(), out, nil, dray.MetaExportOptions{}); err != nil {
			t.Fatal(err)
		}
		to := newClientFor(t, layout)
		_, err := to.ImportMetaStore(stopped, out, dray.MetaImportOptions{Trust: true})
		wantRefused(t, to, err, dray.KindInterrupted)
	}
}
