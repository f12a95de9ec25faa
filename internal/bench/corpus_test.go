//go:build linux

package bench_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/bench"
)

func TestCorpusIsDeterministic(t *testing.T) {
	t.Parallel()
	var made []bench.CorpusImage
	for range 2 {
		c, err := bench.BuildRecipe(t.Context(), t.TempDir(), "x", 3, 256<<10)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, c.Images...)
	}
	if diff := cmp.Diff(made[0], made[1]); diff != "" {
		t.Errorf("two builds differ:\n%s", diff)
	}
	ratio := float64(made[0].UncompressedBytes()) / float64(made[0].CompressedBytes())
	if ratio < 2.2 || ratio > 2.9 {
		t.Errorf("generated layers shrink %.2f times, want about 2.5", ratio)
	}
	if made[0].Layers[0].Digest == made[0].Layers[1].Digest {
		t.Error("layers repeat themselves")
	}
}

// An image stays as it was until the one that takes its place is complete.
func TestInterruptedBuildKeepsTheImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before, err := bench.BuildRecipe(t.Context(), dir, "x", 2, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bench.BuildRecipe(ctx, dir, "x", 3, 64<<10); err == nil {
		t.Fatal("a build went on without its context")
	}
	manifest := filepath.Join(dir, "x", "blobs", "sha256", before.Image("x").Manifest.Hex())
	if _, err := os.Stat(manifest); err != nil {
		t.Error(err)
	}
	after, err := bench.BuildRecipe(t.Context(), dir, "x", 3, 64<<10)
	if err != nil || len(after.Image("x").Layers) != 3 {
		t.Fatalf("%v, %v", after, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "x?*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(manifest); err == nil {
		t.Error("the image before is still there")
	}
}

func TestCorpusIsMissing(t *testing.T) {
	t.Parallel()
	if _, err := bench.OpenCorpus(t.TempDir()); !errors.Is(err, bench.ErrNoCorpus) {
		t.Errorf("got %v", err)
	}
}

func TestAptAnswers(t *testing.T) {
	t.Parallel()
	got, err := bench.ParseURIs([]byte("'http://h/z_1%3a2-3_amd64.deb' z_1%3a2-3_amd64.deb 10 MD5Sum:00\nnoise\n'http://h/a_1_all.deb' a_1_all.deb 10 MD5Sum:00\n"))
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	wanted, err := bench.Wanted("z_1%3a2-3+b1_amd64.deb")
	if err != nil || wanted != "z=1:2-3+b1" {
		t.Errorf("got %q, %v", wanted, err)
	}
	if _, err := bench.ParseURIs([]byte("'http://h/x' ../x.deb 1 MD5Sum:00\n")); err == nil {
		t.Error("a file outside of the cache was taken")
	}
}

func TestMergedUsr(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"./bin/sh": "usr/bin/sh", "./usr/bin/sh": "usr/bin/sh", "./": ".", "./lib64": "lib64", "./etc/x": "etc/x", "../../x": "x", "./library/x": "library/x",
	} {
		if got := bench.Merged(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestHardLinksCountOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before, err := bench.DiskUsage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "c"} {
		if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(1<<30), sparse.Close()); err != nil {
		t.Fatal(err)
	}
	after, err := bench.DiskUsage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if blocks := after.Blocks - before.Blocks; blocks < 1<<20 || blocks > 1<<20+64<<10 {
		t.Errorf("blocks: %d", blocks)
	}
	if apparent := after.Apparent - before.Apparent; apparent < 1<<20+1<<30 || apparent > 1<<20+1<<30+64<<10 {
		t.Errorf("apparent: %d", apparent)
	}
}
