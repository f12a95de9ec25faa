package dray_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dray"
	"dray/internal/pull"
	"dray/internal/store"
	"dray/internal/testkit"
)

// needEROFS returns a client that stores layers so, or skips.
func needEROFS(t *testing.T) *dray.Client {
	t.Helper()
	client := newClientFor(t, dray.LayoutEROFS)
	report, err := client.Layouts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !report.EROFS {
		testkit.Lacking(t, "EROFS", report.Reason)
	}
	return client
}

func TestLayoutIsSaidWithItsReason(t *testing.T) {
	t.Parallel()
	if _, err := dray.New(t.Context(), dray.Options{Store: t.TempDir(), Layout: "zfs"}); !errors.Is(err, dray.ErrLayout) {
		t.Errorf("got %v for a layout that does not exist", err)
	}
	dir := t.TempDir()
	testkit.Image(t).Layer(testkit.File("x", "y")).Write(testkit.LayoutAt(t, dir), "v1")
	for _, layout := range layouts() {
		client := newClientFor(t, layout)
		report, err := client.Layouts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		image, err := client.Pull(t.Context(), "local://"+dir+":v1", dray.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if e := image.Evidence; e.Layout != string(report.Default) || e.LayoutReason != report.Reason || e.LayoutReason == "" || e.Layers[0].Layout != e.Layout {
			t.Errorf("%s: got evidence of %q, %q, %+v; the report is %+v", layout, e.Layout, e.LayoutReason, e.Layers, report)
		}
	}
}

// A store in memory would hold every page of a tar twice.
func TestLayoutOnTmpfs(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/dev/shm", "dray-test-*") //nolint:usetesting // it has to be in memory
	if err != nil {
		testkit.Lacking(t, "/dev/shm", err.Error())
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	client, err := dray.New(t.Context(), dray.Options{Store: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	report, err := client.Layouts(t.Context())
	if err != nil || report.Default != dray.LayoutDir || report.Reason == "" {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestConvert(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	client := needEROFS(t)
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "rootfs")
	shared := []testkit.Entry{testkit.Dir("d"), testkit.File("d/x", "1").Chown(5, 6), testkit.Hardlink("d/y", "d/x")}
	built := testkit.Image(t).Layer(shared...).Gzip().
		Layer(testkit.Whiteout("d/x"), testkit.SparseFile("sparse", testkit.SparseGNU, 1<<20, testkit.Extent{Offset: 1 << 19, Size: 512})).
		Layer(shared...).Gzip().Write(testkit.LayoutAt(t, dir), "v1")
	reference := "local://" + dir + ":v1"
	if _, err := client.Pull(t.Context(), reference, dray.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	look := func() testkit.Nodes {
		mounted := mountAt(t, client, reference, target, dray.MountOptions{ReadOnly: true})
		defer func() {
			if err := client.Unmount(context.Background(), mounted.Target); err != nil {
				t.Error(err)
			}
		}()
		if _, err := client.Convert(t.Context(), reference, dray.LayoutDir, dray.PullOptions{}); !errors.Is(err, store.ErrInUse) && err != nil {
			t.Errorf("got %v for an image that is mounted", err)
		}
		return testkit.Tree(t, target)
	}
	want := look()
	for _, c := range []struct {
		layout          dray.Layout
		converted, kept int
	}{{dray.LayoutDir, 1, 0}, {dray.LayoutDir, 0, 0}, {dray.LayoutEROFS, 1, 1}, {dray.LayoutEROFS, 0, 1}} {
		done, err := client.Convert(t.Context(), reference, c.layout, dray.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(done.Converted) != c.converted || len(done.Kept) != c.kept || slices.Contains(done.Converted, built.DiffIDs[1]) {
			t.Errorf("to %s: got %+v, want %d and %d", c.layout, done, c.converted, c.kept)
		}
		if c.kept > 0 && (len(done.Fallbacks) == 0 || !strings.Contains(done.Fallbacks[0], "sparse")) {
			t.Errorf("got fallbacks %q", done.Fallbacks)
		}
		if diff := testkit.Diff(want, look()); diff != "" {
			t.Errorf("as %s: %s", c.layout, diff)
		}
		wantSound(t, client)
	}
	if _, err := client.Convert(t.Context(), reference, dray.LayoutAuto, dray.PullOptions{}); !errors.Is(err, dray.ErrLayout) {
		t.Errorf("got %v for no layout in particular", err)
	}
}

// TestMergedImage: many layers become one mount, whichever layout they have had between.
func TestMergedImage(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	client := needEROFS(t)
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "rootfs")
	var layers [][]testkit.Entry
	b := testkit.Image(t)
	for i := range 35 {
		entries := []testkit.Entry{
			testkit.Dir("."), testkit.Dir("d").Chmod(uint32(0o700 + i)), testkit.File("d/"+strconv.Itoa(i), strconv.Itoa(i)), testkit.File("top", strconv.Itoa(i)),
			testkit.Whiteout("d/" + strconv.Itoa(i-7)),
		}
		layers = append(layers, entries)
		b.Layer(entries...).Gzip()
	}
	b.Write(testkit.LayoutAt(t, dir), "v1")
	reference := "local://" + dir + ":v1"
	if _, err := client.Pull(t.Context(), reference, dray.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	look := func(merged bool) {
		t.Helper()
		mounted := mountAt(t, client, reference, target, dray.MountOptions{})
		if mounted.Merged != merged {
			t.Errorf("merged: %v, want %v", mounted.Merged, merged)
		}
		if diff := testkit.Diff(testkit.Expect(layers...), testkit.Tree(t, target)); diff != "" {
			t.Error(diff)
		}
		if err := client.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		wantSound(t, client)
	}
	if found, err := client.Inspect(reference); err != nil || found.Merged == nil {
		t.Errorf("the pull has merged nothing: %+v, %v", found, err)
	}
	look(true)
	for _, layout := range []dray.Layout{dray.LayoutDir, dray.LayoutEROFS} {
		if _, err := client.Convert(t.Context(), reference, layout, dray.PullOptions{}); err != nil {
			t.Fatal(err)
		}
		look(layout == dray.LayoutEROFS)
	}
	if _, err := client.Remove(t.Context(), reference); err != nil {
		t.Fatal(err)
	}
	report, err := client.GC(t.Context(), dray.GCOptions{})
	if err != nil || report.Merged != 1 || len(report.Layers) != 35 {
		t.Errorf("collected %+v, %v", report, err)
	}
	if usage, err := client.DiskUsage(t.Context()); err != nil || usage.Merged.Inodes > 2 { // directories
		t.Errorf("left %+v, %v", usage.Merged, err)
	}
}

// The root's words for layouts and moments are those of the store and the engine,
// which it does not name everywhere, so as to be built elsewhere than on Linux.
func TestSameWords(t *testing.T) {
	t.Parallel()
	if dray.LayoutDir != store.LayoutDir || dray.LayoutEROFS != store.LayoutEROFS {
		t.Error("layouts differ from the store's")
	}
	if pull.SyncMode(dray.SyncBefore) != pull.SyncBefore || pull.SyncMode(dray.SyncAfter) != pull.SyncAfter || pull.SyncMode(dray.SyncNever) != pull.SyncNever {
		t.Error("moments of syncing differ from the engine's")
	}
}
