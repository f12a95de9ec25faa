package pull_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"dray/internal/pull"
	"dray/internal/store"
	"dray/internal/testkit"
)

func inEROFS(o *pull.Options) {
	o.Layout = func(context.Context) (string, string, error) { return store.LayoutEROFS, "the test says so", nil }
}

// What the layout cannot express is unpacked, aloud.
func TestLayoutEROFS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := testkit.Image(t).
		Layer(testkit.Dir("etc"), testkit.File("etc/hostname", "one")).Gzip().
		Layer(testkit.SparseFile("sparse", testkit.SparseGNU, 1<<20, testkit.Extent{Offset: 4096, Size: 512})).Gzip().
		Layer(testkit.Random("big", 1<<20, 7)).Zstd().
		Write(testkit.LayoutAt(t, dir), "v1")
	b := newBench(t, inEROFS)
	_, evidence, err := b.pull(t, testkit.Registry(t, dir).Ref("a/b:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if evidence.Layout != store.LayoutEROFS || evidence.LayoutReason != "the test says so" {
		t.Errorf("got layout %q, %q", evidence.Layout, evidence.LayoutReason)
	}
	if len(evidence.Fallbacks) != 1 || !strings.Contains(evidence.Fallbacks[0], "sparse file") {
		t.Errorf("got fallbacks %q", evidence.Fallbacks)
	}
	for i, want := range []string{store.LayoutEROFS, store.LayoutDir, store.LayoutEROFS} {
		l, err := b.store.Layer(built.DiffIDs[i])
		if err != nil {
			t.Fatal(err)
		}
		if l.Layout != want || evidence.Layers[i].Layout != want || l.Entries == 0 || l.DiskBytes == 0 {
			t.Errorf("layer %d: %+v, want layout %q", i, l.LayerRecord, want)
		}
		files, err := os.ReadDir(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range files {
			if !strings.HasPrefix(f.Name(), "unsynced-") {
				names = append(names, f.Name())
			}
		}
		wantNames := map[string]string{store.LayoutEROFS: "index.erofs layer.json layer.tar", store.LayoutDir: "fs journal layer.json"}[want]
		if got := strings.Join(names, " "); got != wantNames {
			t.Errorf("layer %d holds %q, want %q", i, got, wantNames)
		}
		if want == store.LayoutEROFS {
			if info, err := os.Stat(l.Tar()); err != nil || info.Size() != l.SizeBytes {
				t.Errorf("layer %d: %v, %v", i, info, err)
			}
		}
	}
}
