package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/store"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// modes are the ways to mount the same layers.
func modes() map[string]bool { return map[string]bool{"read-write": false, "read-only": true} }

func TestContent(t *testing.T) {
	base := tree{
		".": dir(0o755), "etc": dir(0o755), "etc/passwd": file("root"), "etc/shadow": file("x"),
		"usr": dir(0o755), "usr/bin": dir(0o755), "usr/bin/sh": file("elf"), "bin": {link: "usr/bin"},
	}
	change := tree{"etc": dir(0o700), "etc/passwd": file("root\nme"), "etc/shadow": whiteout(), "usr": dir(0o755), "usr/bin": opaqueDir(0o755), "usr/bin/new": file("n")}
	back := tree{"etc": dir(0o755), "etc/shadow": file("again"), "bin": whiteout()}
	for _, tt := range []struct {
		name   string
		layers []tree
	}{
		{"no layers", nil},
		{"one", []tree{base}},
		{"one with whiteouts", []tree{change}},
		{"two", []tree{base, change}},
		{"three", []tree{base, change, back}},
		{"the same twice", []tree{base, base}},
		{"A B A", []tree{base, change, base}},
		{"B A B", []tree{change, base, change}},
		{"A B A B", []tree{base, change, base, change}},
		{"opaque root", []tree{base, {".": opaqueDir(0o755), "only": file("o")}}},
		{"opaque root in the middle", []tree{base, {".": opaqueDir(0o755), "only": file("o")}, back}},
		{"empty layer", []tree{base, {}, change}},
	} {
		for mode, readOnly := range modes() {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				b := newBench(t)
				var layers []*store.Layer
				for _, content := range tt.layers {
					layers = append(layers, b.layer(fmt.Sprint(content), content))
				}
				target := b.target("rootfs")
				b.mount(Request{Image: imageOf(tt.name), Layers: layers, Target: target, ReadOnly: readOnly})
				if diff := cmp.Diff(unpack(tt.layers...), read(t, target)); diff != "" {
					t.Errorf("tree (-unpacked +mounted):\n%s", diff)
				}
				err := os.WriteFile(filepath.Join(target, "written"), nil, 0o600)
				if readOnly != errors.Is(err, syscall.EROFS) || !readOnly && err != nil {
					t.Errorf("write: %v", err)
				}
				b.unmount(target)
				b.wantClean()
			})
		}
	}
}

// TestRepeatedLayersAreUnpackedInOrder compares random stacks of few layers, which
// repeat, with the layers unpacked one after another: a proof of the package
// comment's by trying.
func TestRepeatedLayersAreUnpackedInOrder(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(1, 2))
	var contents []tree
	var layers []*store.Layer
	for i := range 12 {
		contents = append(contents, randomTree(random))
		layers = append(layers, b.layer(fmt.Sprint("layer ", i), contents[i]))
	}
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		// Few different layers, so that most repeat.
		choice := []int{random.IntN(12), random.IntN(12), random.IntN(12)}
		var stack []*store.Layer
		var content []tree
		for range 2 + random.IntN(6) {
			i := choice[random.IntN(len(choice))]
			stack, content = append(stack, layers[i]), append(content, contents[i])
		}
		target := b.target("rootfs")
		b.mount(Request{Image: imageOf("random"), Layers: stack, Target: target, ReadOnly: round%2 == 0})
		if diff := cmp.Diff(unpack(content...), read(t, target)); diff != "" {
			t.Fatalf("round %d: layers %v, tree (-unpacked +mounted):\n%s", round, content, diff)
		}
		b.unmount(target)
	}
	b.wantClean()
}

// randomTree makes a layer of few names, so that layers touch each other's.
func randomTree(r *rand.Rand) tree {
	content := tree{}
	var fill func(dir string, depth int)
	fill = func(parent string, depth int) {
		for _, name := range []string{"a", "b", "c"} {
			p := path.Join(parent, name)
			switch r.IntN(8) {
			case 0:
				content[p] = file(fmt.Sprint(r.IntN(1000)))
			case 1:
				content[p] = whiteout()
			case 2, 3, 4:
				if depth == 0 {
					break
				}
				content[p] = node{dir: true, opaque: r.IntN(4) == 0, perm: []fs.FileMode{0o755, 0o700, 0o711}[r.IntN(3)]}
				fill(p, depth-1)
			}
		}
	}
	if r.IntN(3) == 0 {
		content["."] = dir(0o755)
	}
	fill(".", 3)
	return content
}

func TestManyLayers(t *testing.T) {
	b := newBench(t)
	var layers []*store.Layer
	var contents []tree
	for i := range MaxLayers + 1 {
		content := tree{fmt.Sprintf("file-%d", i): file("x"), "last": file(fmt.Sprint(i))}
		contents = append(contents, content)
		layers = append(layers, b.layer(fmt.Sprint(i), content))
	}
	target := b.target("rootfs")
	for _, count := range []int{1, 2, 3, 100, 499, 500} {
		for mode, readOnly := range modes() {
			t.Run(fmt.Sprint(count, "/", mode), func(t *testing.T) {
				b.mount(Request{Image: imageOf("many"), Layers: layers[:count], Target: target, ReadOnly: readOnly})
				if diff := cmp.Diff(unpack(contents[:count]...), read(t, target)); diff != "" {
					t.Errorf("tree (-unpacked +mounted):\n%s", diff)
				}
				b.unmount(target)
			})
		}
	}
	t.Run("501", func(t *testing.T) {
		_, err := b.Mount(t.Context(), Request{Image: imageOf("many"), Layers: layers, Target: target})
		if !errors.Is(err, ErrTooManyLayers) {
			t.Errorf("error %v, want ErrTooManyLayers", err)
		}
	})
	t.Run("1000 of which 500 differ", func(*testing.T) {
		twice := slices.Concat(layers[:500], layers[:500])
		b.mount(Request{Image: imageOf("many"), Layers: twice, Target: target})
		b.unmount(target)
	})
	t.Run("501 but the lowest hidden", func(*testing.T) {
		layers := slices.Clone(layers)
		layers[1] = b.layer("opaque", tree{".": opaqueDir(0o755)})
		b.mount(Request{Image: imageOf("many"), Layers: layers, Target: target})
		b.unmount(target)
	})
	t.Run("mount(2)", func(t *testing.T) {
		old := &bench{newMounter(t, b.store), t, b.base}
		old.force(apiMount)
		old.mount(Request{Image: imageOf("many"), Layers: layers[:200], Target: target})
		old.unmount(target)
		_, err := old.Mount(t.Context(), Request{Image: imageOf("many"), Layers: layers[:300], Target: target})
		if !errors.Is(err, ErrTooManyLayers) {
			t.Errorf("300 layers: error %v, want ErrTooManyLayers", err)
		}
	})
	b.wantClean()
}

func TestOddNames(t *testing.T) {
	for _, name := range []string{"a:b", "a,b", `a\b`, "a b", "a\nb", "a\tb", "\xff\xfe", `\040`, "#", "-o ro", "ünïcode", "lowerdir=x,upperdir=y:z"} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			for _, a := range []api{apiMount, apiString, apiFD} {
				b := newBenchAt(t, name+fmt.Sprint(a))
				b.force(a)
				layer := b.layer("one", tree{name: file("x")})
				other := b.layer("two", tree{"other": file("y")})
				r := Request{Image: imageOf("odd"), Layers: []*store.Layer{layer, other}, Target: b.target(name)}
				first := b.mount(r)
				if _, err := os.Stat(filepath.Join(b.target(name), name)); err != nil {
					t.Error(err)
				}
				if again := b.mount(r); again.ID != first.ID || again.Target != b.target(name) {
					t.Errorf("mounted again: %+v, first %+v", again, first)
				}
				b.unmount(b.target(name))
				b.wantClean()
			}
		})
	}
}

// force makes a mounter use a way that a newer kernel does not need.
func (b *bench) force(a api) { b.kernel.once.Do(func() { b.kernel.found = a }) }

func TestOlderKernels(t *testing.T) {
	var probed kernel
	if got := probed.api(t.Context(), newMounter(t, openStore(t, t.TempDir())).log); got == apiMount {
		t.Skip("this kernel is one: ", probed.why)
	}
	for _, a := range []api{apiMount, apiString} {
		for mode, readOnly := range modes() {
			t.Run(fmt.Sprint(a, "/", mode), func(t *testing.T) {
				b := newBench(t)
				b.force(a)
				contents := []tree{{"a": file("1"), "b": file("2")}, {"b": whiteout(), "d": opaqueDir(0o700)}, {"c": file("3")}}
				var layers []*store.Layer
				for i, content := range contents {
					layers = append(layers, b.layer(fmt.Sprint(i), content))
				}
				target := b.target("rootfs")
				for count := range len(layers) + 1 {
					b.mount(Request{Image: imageOf("old"), Layers: layers[:count], Target: target, ReadOnly: readOnly})
					if diff := cmp.Diff(unpack(contents[:count]...), read(t, target)); diff != "" {
						t.Errorf("%d layers, tree (-unpacked +mounted):\n%s", count, diff)
					}
					b.unmount(target)
				}
				b.mount(Request{Image: imageOf("old"), Layers: layers, Target: target, ReadOnly: readOnly})
				b.mount(Request{Image: imageOf("new"), Layers: layers[:1], Target: target, ReadOnly: readOnly, Replace: true})
				b.unmount(target)
				b.wantClean()
			})
		}
	}
}

func TestRootAttributes(t *testing.T) {
	stamp := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	mark := func(l *store.Layer, perm os.FileMode) *store.Layer {
		t.Helper()
		err := errors.Join(
			unix.Lsetxattr(l.FS(), "user.colour", []byte("red"), 0),
			os.Chmod(l.FS(), perm), os.Chtimes(l.FS(), stamp, stamp),
		)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for mode, readOnly := range modes() {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			odd := mark(b.layer("odd", tree{".": dir(0o755)}), 0o555)
			plain := b.layer("plain", tree{"a": file("x")})
			said := b.layer("said", tree{".": dir(0o755), "b": file("y")})
			for _, tt := range []struct {
				name   string
				layers []*store.Layer
				odd    bool
			}{
				{"none", nil, false},
				{"the only layer", []*store.Layer{odd}, true},
				{"below layers that say nothing", []*store.Layer{odd, plain}, true},
				{"above", []*store.Layer{plain, odd}, true},
				{"below one that says something", []*store.Layer{odd, said, plain}, false},
				{"nobody says anything", []*store.Layer{plain}, false},
			} {
				t.Run(tt.name, func(t *testing.T) {
					target := b.target("rootfs")
					b.mount(Request{Image: imageOf(tt.name), Layers: tt.layers, Target: target, ReadOnly: readOnly})
					defer b.unmount(target)
					info, err := os.Stat(target)
					if err != nil {
						t.Fatal(err)
					}
					value := make([]byte, 10)
					n, _ := unix.Lgetxattr(target, "user.colour", value)
					if got := info.Mode().Perm() == 0o555 && info.ModTime().Equal(stamp) && string(value[:max(0, n)]) == "red"; got != tt.odd {
						t.Errorf("mode %v, time %v, attribute %q; want those of the odd layer: %v", info.Mode(), info.ModTime(), value[:max(0, n)], tt.odd)
					}
					if !tt.odd && info.Mode().Perm() != 0o755 {
						t.Errorf("mode %v, want 0755", info.Mode())
					}
				})
			}
			b.wantClean()
		})
	}
}

func TestLayersThatCannotBeStacked(t *testing.T) {
	b := newBench(t)
	good := b.layer("good", tree{})
	for _, change := range []func(*store.Layer){
		func(l *store.Layer) { l.Layout = "unheard-of" },
		func(l *store.Layer) { l.Whiteouts = "other" },
	} {
		bad := *b.layer("bad", tree{})
		change(&bad)
		_, err := b.Mount(t.Context(), Request{Image: imageOf("bad"), Layers: []*store.Layer{good, &bad}, Target: b.target("rootfs")})
		if !errors.Is(err, ErrLayer) {
			t.Errorf("error %v, want ErrLayer", err)
		}
		if _, err := os.Lstat(b.target("rootfs")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("target is left: %v", err)
		}
	}
	_, err := b.Mount(t.Context(), Request{Layers: []*store.Layer{good, {LayerRecord: store.LayerRecord{DiffID: diffIDOf("never"), Layout: store.LayoutDir}}}, Target: b.target("rootfs")})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing layer: error %v, want ErrNotFound", err)
	}
	b.wantClean()
}
