package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// erofsLayer puts a layer into the store as a tar and its index.
func (b *bench) erofsLayer(entries ...testkit.Entry) *store.Layer {
	b.t.Helper()
	made, err := b.tryErofsLayer(entries...)
	if err != nil {
		b.t.Fatal(err)
	}
	return made
}

// tryErofsLayer is erofsLayer for layers that may not be possible.
func (b *bench) tryErofsLayer(entries ...testkit.Entry) (*store.Layer, error) {
	b.t.Helper()
	raw := testkit.Tar(entries...)
	id := oci.DiffID(oci.DigestBytes(raw))
	txn, there, err := b.store.Begin(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	if there != nil {
		return there, nil
	}
	var tar, index bytes.Buffer
	const blockBytes = 64 << 10
	x, err := erofs.Copy(b.t.Context(), id, stream.NewSlicer(bytes.NewReader(raw), blockBytes), &tar, layer.Limits{}, erofs.Options{})
	if err == nil {
		_, err = x.WriteTo(&index)
		err = errors.Join(err, x.Close(),
			os.WriteFile(filepath.Join(txn.Path(), store.TarName), tar.Bytes(), 0o600),
			os.WriteFile(filepath.Join(txn.Path(), store.IndexName), index.Bytes(), 0o600))
	}
	if err != nil {
		return nil, errors.Join(err, txn.Abort())
	}
	return txn.Commit(b.t.Context(), store.LayerRecord{Layout: store.LayoutEROFS, Whiteouts: store.WhiteoutsTrusted, SizeBytes: int64(len(raw))})
}

// wantUnused fails while anybody, the kernel included, has a file of the layer
// open.
func wantUnused(tb testing.TB, l *store.Layer) {
	tb.Helper()
	wantClosed(tb, l.Tar(), l.Index())
}

func wantClosed(tb testing.TB, paths ...string) {
	tb.Helper()
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			tb.Fatal(err)
		}
		// A write lease is given for files that nobody else has open. The kernel lets
		// go of what is unmounted a moment later.
		deadline := time.Now().Add(time.Minute)
		for {
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
			if err == nil || time.Now().After(deadline) {
				break
			}
			<-time.After(time.Millisecond)
		}
		if err != nil {
			tb.Errorf("%s is still open: %v", path, err)
		}
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		_ = f.Close()
	}
}

func needEROFS(tb testing.TB) {
	tb.Helper()
	support, err := erofs.Probe(tb.Context(), tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	if !support.Mounts || whiteouts() != store.WhiteoutsTrusted {
		tb.Skipf("EROFS cannot be mounted: %s", support.Reason)
	}
}

func TestEROFSLayersAmongDirectories(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	layers := []*store.Layer{
		b.layer("bottom", tree{"shared": dir(0o755), "shared/old": file("old"), "shared/kept": file("kept"), "gone": file("x")}),
		b.erofsLayer(testkit.Dir("shared"), testkit.Whiteout("shared/old"), testkit.File("shared/new", "new"), testkit.Whiteout("gone"), testkit.Dir("o"), testkit.File("o/below", "x")),
		b.layer("middle", tree{"shared": dir(0o750), "shared/dir": file("dir")}),
		b.erofsLayer(testkit.Dir(".").Chmod(0o711).Chown(3, 4).Setxattr("user.colour", "red"), testkit.Dir("o"), testkit.Opaque("o"), testkit.File("o/above", "x")),
	}
	want := map[string]string{
		".": "dir 0711", "shared": "dir 0750", "shared/kept": "file kept", "shared/new": "file new", "shared/dir": "file dir",
		"o": "dir 0755", "o/above": "file x",
	}
	for mode, readOnly := range modes() {
		t.Run(mode, func(t *testing.T) {
			target := b.target("rootfs-" + mode)
			b.mount(Request{Image: imageOf(mode), Layers: layers, Target: target, ReadOnly: readOnly})
			if diff := cmp.Diff(want, read(t, target)); diff != "" {
				t.Error(diff)
			}
			if !readOnly {
				if err := os.WriteFile(filepath.Join(target, "shared/new"), []byte("written"), 0o600); err != nil {
					t.Error(err)
				}
			}
			b.unmount(target)
		})
	}
	wantUnused(t, layers[1])
	wantUnused(t, layers[3])
}

func TestManyEROFSLayers(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	for _, count := range []int{1, 100, MaxLayers} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			var layers []*store.Layer
			want := map[string]string{".": "dir 0755", "top": "file " + fmt.Sprint(count-1)}
			for i := range count {
				layers = append(layers, b.erofsLayer(testkit.File(fmt.Sprintf("file-%d", i), fmt.Sprint(i)), testkit.File("top", fmt.Sprint(i))))
				want[fmt.Sprintf("file-%d", i)] = "file " + fmt.Sprint(i)
			}
			target := b.target(fmt.Sprintf("rootfs-%d", count))
			b.mount(Request{Image: imageOf(fmt.Sprint(count)), Layers: layers, Target: target})
			if diff := cmp.Diff(want, read(t, target)); diff != "" {
				t.Error(diff)
			}
			b.unmount(target)
			wantUnused(t, layers[0])
			wantUnused(t, layers[count-1])
		})
	}
}

func TestDamagedIndex(t *testing.T) {
	b := newBench(t)
	needEROFS(t)
	good := b.erofsLayer(testkit.File("a", "x"))
	bad := b.erofsLayer(testkit.File("b", "x"))
	if err := os.WriteFile(bad.Index(), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := b.Mount(t.Context(), Request{Image: imageOf("bad"), Layers: []*store.Layer{good, bad}, Target: b.target("rootfs")})
	if !errors.Is(err, erofs.ErrDamaged) || !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("got %v, want that the index is damaged, and the store", err)
	}
	wantUnused(t, good)
	wantUnused(t, bad)
	b.wantClean()
}

// BenchmarkMountEROFS is BenchmarkMount with layers as file systems.
func BenchmarkMountEROFS(b *testing.B) {
	w := newBench(b)
	needEROFS(b)
	var layers []*store.Layer
	for i := range MaxLayers {
		layers = append(layers, w.erofsLayer(testkit.File("file", fmt.Sprint(i))))
	}
	benchmarkMount(b, w, layers)
}
