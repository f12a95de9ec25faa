package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/store"
	"dray/internal/testkit"
)

// merging returns a mounter of the bench's store that merges the indexes of layers
// from two on, and what it logs.
func (b *bench) merging() (*Mounter, *bytes.Buffer) {
	b.t.Helper()
	var said bytes.Buffer
	m, err := New(Options{Store: b.store, MergeAbove: 1, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		b.t.Fatal(err)
	}
	return m, &said
}

// compareMerged mounts layers one by one and merged, and compares, in both modes unless
// they are named.
func (b *bench) compareMerged(t *testing.T, layers []*store.Layer, only ...string) {
	t.Helper()
	merging, said := b.merging()
	for mode, readOnly := range modes() {
		if len(only) > 0 && !slices.Contains(only, mode) {
			continue
		}
		r := Request{Image: imageOf("x"), Layers: layers, Target: b.target("stacked"), ReadOnly: readOnly}
		b.mount(r)
		want := testkit.Tree(t, r.Target)
		b.unmount(r.Target)
		r.Target = b.target("merged")
		m, err := merging.Mount(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if !m.Merged {
			t.Errorf("not merged: %s", said)
		}
		if diff := testkit.Diff(want, testkit.Tree(t, r.Target)); diff != "" {
			t.Errorf("%s: merged, not as stacked: %s", mode, diff)
		}
		if err := merging.Unmount(t.Context(), r.Target); err != nil {
			t.Fatal(err)
		}
	}
}

// mergeable returns the layers of entries in EROFS form, false if some have none.
func (b *bench) mergeable(layers [][]testkit.Entry) ([]*store.Layer, bool) {
	b.t.Helper()
	var made []*store.Layer
	for _, entries := range layers {
		l, err := b.tryErofsLayer(entries...)
		if err != nil {
			return nil, false
		}
		made = append(made, l)
	}
	return made, true
}

func TestMergedOddImages(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	base := []testkit.Entry{testkit.Dir("etc").Chmod(0o700), testkit.File("etc/below", "x"), testkit.Dir("a"), testkit.Dir("a/b"), testkit.File("a/b/below", "x"), testkit.File("f", "below")}
	count := 0
	for _, odd := range testkit.Odd() {
		if odd.Large || odd.Verdict == testkit.Malformed {
			continue
		}
		layers, ok := b.mergeable(append([][]testkit.Entry{base}, odd.Layers...))
		if !ok || len(distinct(layers)) < 2 || len(distinct(layers)) > 200 {
			continue
		}
		count++
		t.Run(odd.Name, func(t *testing.T) { b.compareMerged(t, layers, "read-only") })
	}
	if count < 30 {
		t.Errorf("only %d odd images could be merged", count)
	}
}

// TestMergedKinds: what layers do to each other.
func TestMergedKinds(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	acl := testkit.ACL(5, 6, 7)
	for name, layers := range map[string][][]testkit.Entry{
		"attributes": {
			{testkit.Dir("d").Chmod(0o700).Chown(1, 2).Setxattr("user.a", "1").At(5, 6), testkit.File("d/f", "x")},
			{testkit.Dir("d").Chmod(0o3775).Chown(3, 4).Setxattr("user.b", "2").Setxattr("system.posix_acl_default", acl)},
			{testkit.File("d/g", "without an entry for its parent")},
			{testkit.Dir("d").At(7, 8), testkit.File("d/f", "y").Setxattr("security.capability", testkit.Capability(1))},
		},
		"root": {
			{testkit.Dir(".").Chmod(0o711).Chown(3, 4).Setxattr("user.a", "1"), testkit.File("a", "")},
			{testkit.Dir("."), testkit.File("b", "")},
			{testkit.Dir("."), testkit.File("c", "")},
		},
		"opaque root": {
			{testkit.Dir(".").Chmod(0o711), testkit.File("a", ""), testkit.Dir("d"), testkit.File("d/a", "")},
			{testkit.Opaque(""), testkit.Dir("d"), testkit.File("d/b", "")},
			{testkit.File("d/c", "")},
		},
		"hard links": {
			{testkit.File("a", "x"), testkit.Hardlink("b", "a"), testkit.Hardlink("c", "a"), testkit.Hardlink("d/e", "a")},
			{testkit.File("b", "y"), testkit.Hardlink("f", "b"), testkit.Whiteout("c")},
			{testkit.File("z", "z"), testkit.Hardlink("a2", "z"), testkit.Hardlink("d/z", "z"), testkit.Hardlink("aa", "z")},
		},
		"whiteouts": {
			{testkit.Dir("d"), testkit.Dir("d/e"), testkit.File("d/e/f", "1"), testkit.File("g", "1"), testkit.Symlink("l", "d")},
			{testkit.Whiteout("d/e"), testkit.Whiteout("g"), testkit.Whiteout("l"), testkit.Whiteout("never")},
			{testkit.Dir("d/e"), testkit.File("d/e/n", "2"), testkit.Dir("g"), testkit.File("g/g", "2")},
			{testkit.Whiteout("g"), testkit.Whiteout("d/e/n")},
		},
		"types": {
			{testkit.Dir("a"), testkit.File("a/x", ""), testkit.File("b", ""), testkit.Symlink("c", "a"), testkit.Fifo("e")},
			{testkit.File("a", "file"), testkit.Dir("b"), testkit.File("b/y", ""), testkit.Dir("c"), testkit.File("c/z", ""), testkit.Char("e", 1, 3)},
			{testkit.Dir("a"), testkit.File("a/w", ""), testkit.Symlink("b", "a"), testkit.Char("c", 0, 0), testkit.Block("e", 7, 0)},
		},
		"opaque": {
			{testkit.Dir("d"), testkit.File("d/-new", ""), testkit.File("d/old", ""), testkit.Dir("d/s"), testkit.File("d/s/x", "")},
			{testkit.Dir("d"), testkit.File("d/-new", "1"), testkit.Opaque("d"), testkit.File("d/+new", "2"), testkit.Dir("d/s"), testkit.Whiteout("d/old")},
			{testkit.Dir("d/s"), testkit.File("d/s/y", "")},
		},
		"names": {
			{testkit.File("\xff\xfe", "x"), testkit.File(strings.Repeat("n", 255), "x"), testkit.Symlink("long", strings.Repeat("t/", 2000)), testkit.File("...", "x"), testkit.File("-", "x")},
			{testkit.Files("many", 300)[0], testkit.File("\xff\xff", "y"), testkit.Symlink("long2", strings.Repeat("u", 300))},
		},
		"repeated": {
			{testkit.Dir("a"), testkit.File("a/x", "1")},
			{testkit.Whiteout("a/x"), testkit.File("a/y", "2")},
			{testkit.Dir("a"), testkit.File("a/x", "1")},
		},
		"nothing": {{}, {testkit.Dir("a")}, {}, {testkit.Whiteout("a")}},
	} {
		t.Run(name, func(t *testing.T) {
			made, ok := b.mergeable(layers)
			if !ok {
				t.Fatal("not expressible")
			}
			b.compareMerged(t, made)
		})
	}
}

// TestMergedAtRandom stacks layers of entries that have much to do with each other.
func TestMergedAtRandom(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	images := uint64(40)
	if testing.Short() {
		images = 10
	}
	for seed := range images {
		b.compareRandom(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// FuzzMerged is [TestMergedAtRandom] without an end.
func FuzzMerged(f *testing.F) {
	needEROFS(f)
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { newBench(t).compareRandom(t, seed) })
}

// compareRandom makes layers of a seed and compares them.
func (b *bench) compareRandom(t *testing.T, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	var layers []*store.Layer
	for len(distinct(layers)) < int(2+seed%5) {
		if l, err := b.tryErofsLayer(randomEntries(random)...); err == nil {
			layers = append(layers, l)
		}
	}
	mode := "read-only"
	if seed%2 == 0 {
		mode = "read-write"
	}
	b.compareMerged(t, layers, mode)
}

func randomEntries(random *rand.Rand) []testkit.Entry {
	names := []string{"a", "b", "a/x", "a/y", "a/b", "a/b/c", "b/x", "b/b", "b/b/x", "l", "l/x", "."}
	entries := make([]testkit.Entry, 0, 12)
	for range 2 + random.IntN(10) {
		name, other := names[random.IntN(len(names))], names[random.IntN(len(names))]
		var e testkit.Entry
		switch random.IntN(10) {
		case 0, 1:
			e = testkit.File(name, fmt.Sprint(random.Uint32()))
		case 2, 3, 4:
			e = testkit.Dir(name)
		case 5:
			e = testkit.Symlink(name, other)
		case 6:
			e = testkit.Hardlink(name, other)
		case 7:
			e = testkit.Char(name, random.Int64N(2), random.Int64N(2))
		case 8:
			e = testkit.Whiteout(name)
		case 9:
			e = testkit.Opaque(name)
		}
		if random.IntN(3) == 0 {
			e = e.Setxattr("user."+string('a'+rune(random.IntN(3))), other)
		}
		entries = append(entries, e.Chmod(0o500|random.Uint32N(1<<12)).Chown(random.Int64N(9), random.Int64N(9)).At(random.Int64N(99), random.Int64N(99)))
	}
	return entries
}

func TestMergedManyLayers(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	var layers []*store.Layer
	for i := range MaxLayers {
		layers = append(layers, b.erofsLayer(testkit.Dir("d").Chmod(uint32(0o700+i%64)), testkit.File(fmt.Sprintf("d/file-%d", i), fmt.Sprint(i)),
			testkit.File("top", fmt.Sprint(i)), testkit.Whiteout(fmt.Sprintf("d/file-%d", i-3)), testkit.Symlink(fmt.Sprintf("link-%d", i%50), fmt.Sprint(i))))
	}
	for _, count := range []int{100, MaxLayers} {
		t.Run(fmt.Sprint(count), func(t *testing.T) { b.compareMerged(t, layers[:count]) })
	}
	wantUnused(t, layers[0])
	wantUnused(t, layers[MaxLayers-1])
}

// TestMergedByDefault: an image of many layers is merged, one of few is not, and its
// tars and index are let go of with the mount.
func TestMergedByDefault(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	var layers []*store.Layer
	for i := range DefaultMergeAbove + 1 {
		layers = append(layers, b.erofsLayer(testkit.File(fmt.Sprintf("file-%d", i), fmt.Sprint(i))))
	}
	for _, count := range []int{DefaultMergeAbove, DefaultMergeAbove + 1} {
		m := b.mount(Request{Image: imageOf("x"), Layers: layers[:count], Target: b.target("rootfs")})
		if want := count > DefaultMergeAbove; m.Merged != want {
			t.Errorf("%d layers: merged %v, want %v", count, m.Merged, want)
		}
		if found, err := b.store.Mount(m.ID); err != nil || found.Merged != m.Merged {
			t.Errorf("its record: %+v, %v", found, err)
		}
		b.unmount(b.target("rootfs"))
	}
	merged, err := b.store.Merged(diffIDs(layers))
	if err != nil {
		t.Fatal(err)
	}
	wantUnused(t, layers[0])
	wantClosed(t, merged.Index())
	b.wantClean()
}

func TestMergedOnce(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	layers := []*store.Layer{b.erofsLayer(testkit.File("a", "1")), b.erofsLayer(testkit.File("b", "2"))}
	m, _ := b.merging()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := m.Mount(t.Context(), Request{Image: imageOf("x"), Layers: layers, Target: b.target(fmt.Sprint(i))}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	before, err := b.store.Merged(diffIDs(layers))
	if err != nil {
		t.Fatal(err)
	}
	// A mount outlives the collector.
	report, err := b.store.GC(t.Context(), store.GCOptions{})
	if err != nil || report.Merged != 1 || len(report.Layers) != 0 {
		t.Errorf("collected %+v, %v", report, err)
	}
	for i := range 8 {
		if got := read(t, b.target(fmt.Sprint(i))); got["a"] != "file 1" || got["b"] != "file 2" {
			t.Errorf("got %v", got)
		}
		b.unmount(b.target(fmt.Sprint(i)))
	}
	if _, err := os.Lstat(before.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the index is left: %v", err)
	}
	b.wantClean()
}

// TestMergedDamaged: a mount goes on without the index, aloud; the check of the store
// finds it, and after the repair it is made anew.
func TestMergedDamaged(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	layers := []*store.Layer{b.erofsLayer(testkit.File("a", "1")), b.erofsLayer(testkit.File("b", "2"))}
	m, said := b.merging()
	r := Request{Image: imageOf("x"), Layers: layers, Target: b.target("rootfs")}
	check := func(repair bool) store.VerifyReport {
		t.Helper()
		report, err := b.store.Verify(t.Context(), store.VerifyOptions{
			Check: func(_ context.Context, _ *store.Layer) ([]string, error) { return nil, nil }, CheckMerged: CheckMerged, Repair: repair,
		})
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	mount := func(merged bool) {
		t.Helper()
		got, err := m.Mount(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got.Merged != merged {
			t.Errorf("merged: %v, want %v: %s", got.Merged, merged, said)
		}
		if tree := read(t, r.Target); tree["a"] != "file 1" || tree["b"] != "file 2" {
			t.Errorf("got %v", tree)
		}
		b.unmount(r.Target)
	}
	mount(true)
	if report := check(false); !report.OK() {
		t.Errorf("problems where there are none: %+v", report.Problems)
	}
	found, err := b.store.Merged(diffIDs(layers))
	if err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(found.Index())
	if err != nil {
		t.Fatal(err)
	}
	// In a time, which nothing notices but the comparison.
	index[1536+32] ^= 1
	if err := os.WriteFile(found.Index(), index, 0o600); err != nil {
		t.Fatal(err)
	}
	if report := check(false); len(report.Problems) != 1 || !strings.Contains(report.Problems[0].Detail, "content differs: index.erofs differs") {
		t.Errorf("got %+v", report.Problems)
	}
	// In the superblock, where the kernel notices.
	index[1024+48] ^= 1
	if err := os.WriteFile(found.Index(), index, 0o600); err != nil {
		t.Fatal(err)
	}
	mount(false)
	if !strings.Contains(said.String(), "layers are stacked one by one") || !strings.Contains(said.String(), "dray store verify --repair") {
		t.Errorf("said %q", said)
	}
	check(true)
	mount(true)
	if report := check(false); !report.OK() {
		t.Errorf("problems after the repair: %+v", report.Problems)
	}
}

func TestNotMerged(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	m, said := b.merging()
	r := Request{Image: imageOf("x"), Layers: []*store.Layer{b.layer("dir", tree{"a": file("1")}), b.erofsLayer(testkit.File("b", "2"))}, Target: b.target("rootfs")}
	got, err := m.Mount(t.Context(), r)
	if err != nil || got.Merged || !strings.Contains(said.String(), "has the layout") {
		t.Errorf("got %+v, %v, said %q", got, err, said)
	}
	b.unmount(r.Target)
	damaged := b.erofsLayer(testkit.File("c", "2"))
	r.Layers = []*store.Layer{b.erofsLayer(testkit.File("b", "2")), damaged}
	index, err := os.ReadFile(damaged.Index())
	if err == nil {
		err = os.WriteFile(damaged.Index(), index[:1536], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Mount(t.Context(), r); err == nil || !strings.Contains(said.String(), erofs.ErrDamaged.Error()) {
		t.Errorf("got %v, said %q", err, said)
	}
	if left, err := filepath.Glob(filepath.Join(b.store.Root(), "merged", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	b.wantClean()
}

// BenchmarkMerged is [BenchmarkMountEROFS] with merged indexes: what is made once
// apart from what each mount costs, and looking a name up that is not there.
func BenchmarkMerged(b *testing.B) {
	w := newBench(b)
	needEROFS(b)
	var layers []*store.Layer
	for i := range MaxLayers {
		layers = append(layers, w.erofsLayer(testkit.Files(fmt.Sprintf("d/%d", i), 20)...))
	}
	merging, _ := w.merging()
	stacking, err := New(Options{Store: w.store, MergeAbove: -1})
	if err != nil {
		b.Fatal(err)
	}
	for _, count := range []int{2, 6, 10, 20, 30, 50, 100, 500} {
		for name, m := range map[string]*Mounter{"stacked": stacking, "merged": merging} {
			b.Run(fmt.Sprintf("layers=%d/%s", count, name), func(b *testing.B) { benchmarkLookup(b, m, w, layers[:count]) })
		}
		b.Run(fmt.Sprintf("layers=%d/making", count), func(b *testing.B) {
			ids := diffIDs(layers[:count])
			for b.Loop() {
				path := filepath.Join(b.TempDir(), "index")
				record, err := writeMerged(b.Context(), path, ids, layers[:count])
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(record.SizeBytes), "index-B")
				_ = os.Remove(path)
			}
		})
	}
}

func benchmarkLookup(b *testing.B, m *Mounter, w *bench, layers []*store.Layer) {
	b.Helper()
	r := Request{Image: imageOf("one"), Layers: layers, Target: w.target("rootfs")}
	benchmarkOne(b, m, r)
	if _, err := m.Mount(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	var st unix.Stat_t
	const lookups = 2000
	cpu := processTime(b)
	for i := range lookups {
		_ = unix.Lstat(filepath.Join(r.Target, fmt.Sprintf("no-such-%d", i)), &st)
	}
	cpu = processTime(b) - cpu
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/lookups, "lookup-µs")
	if err := m.Unmount(b.Context(), r.Target); err != nil {
		b.Fatal(err)
	}
}
