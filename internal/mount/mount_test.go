package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/store"
	"dray/internal/testkit"
	"dray/internal/userns"
)

func TestMountIsIdempotent(t *testing.T) {
	b := newBench(t)
	layers := []*store.Layer{b.layer("a", tree{"a": file("1")}), b.layer("b", tree{"b": file("2")})}
	r := Request{Image: imageOf("one"), Layers: layers, Target: b.target("rootfs")}
	first := b.mount(r)
	if first.State != store.MountMounted || first.Target != r.Target || first.Image != r.Image {
		t.Errorf("record %+v", first)
	}
	if err := os.WriteFile(filepath.Join(r.Target, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again := b.mount(r); again.ID != first.ID {
		t.Errorf("mounted a second time as %s", again.ID)
	}
	if got := b.points(); len(got) != 1 {
		t.Errorf("mounts %q, want one", got)
	}
	for name, change := range map[string]func(*Request){
		"image":  func(r *Request) { r.Image = imageOf("two") },
		"mode":   func(r *Request) { r.ReadOnly = true },
		"layers": func(r *Request) { r.Layers = layers[:1] },
	} {
		other := r
		change(&other)
		if _, err := b.Mount(t.Context(), other); !errors.Is(err, ErrTargetBusy) {
			t.Errorf("other %s: error %v, want ErrTargetBusy", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.Target, "kept")); err != nil {
		t.Error(err)
	}
	b.unmount(r.Target)
	b.wantClean()
}

func TestReplace(t *testing.T) {
	b := newBench(t)
	target := b.target("rootfs")
	one := Request{Image: imageOf("one"), Layers: []*store.Layer{b.layer("a", tree{"a": file("1")})}, Target: target, Replace: true}
	two := Request{Image: imageOf("two"), Layers: []*store.Layer{b.layer("b", tree{"b": file("2")})}, Target: target, Replace: true}
	b.mount(one)
	b.mount(two)
	if diff := cmp.Diff(map[string]string{".": "dir 0755", "b": "file 2"}, read(t, target)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 1 || !list[0].Live {
		t.Errorf("list %v, %v", list, err)
	}
	t.Run("the old one is in use", func(t *testing.T) {
		held, err := os.Open(target)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Mount(t.Context(), one)
		_ = held.Close()
		if !errors.Is(err, ErrBusy) {
			t.Errorf("error %v, want ErrBusy", err)
		}
		if _, err := os.Stat(filepath.Join(target, "b")); err != nil {
			t.Errorf("the old one is gone: %v", err)
		}
	})
	t.Run("the new one cannot be made", func(t *testing.T) {
		bad := one
		bad.Layers = []*store.Layer{{LayerRecord: store.LayerRecord{DiffID: diffIDOf("never")}}}
		if _, err := b.Mount(t.Context(), bad); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
		if _, err := os.Stat(filepath.Join(target, "b")); err != nil {
			t.Errorf("the old one is gone: %v", err)
		}
	})
	t.Run("the new one cannot be recorded", func(t *testing.T) {
		at, err := openPlace(target)
		if err != nil {
			t.Fatal(err)
		}
		defer at.close()
		old, err := b.occupant(t.Context(), at, nil)
		if err != nil {
			t.Fatal(err)
		}
		record, err := b.store.NewMount(t.Context(), store.Mount{Target: target})
		if err != nil {
			t.Fatal(err)
		}
		image, err := b.newStack(one.Layers)
		defer image.close()
		if err != nil {
			t.Fatal(err)
		}
		s, err := b.plan(t.Context(), record, image)
		if err != nil {
			t.Fatal(err)
		}
		made, err := build(b.kernel.api(t.Context(), b.log), s)
		if err != nil {
			t.Fatal(err)
		}
		defer made.close()
		if err := os.Remove(filepath.Join(record.Path, "state.json")); err != nil {
			t.Fatal(err)
		}
		if err := b.replace(t.Context(), record, made, at, old); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
		if diff := cmp.Diff(map[string]string{".": "dir 0755", "b": "file 2"}, read(t, target)); diff != "" {
			t.Errorf("the old one is not back (-want +got):\n%s", diff)
		}
		if err := b.store.RemoveMount(t.Context(), record.ID); err != nil {
			t.Error(err)
		}
	})
	b.unmount(target)
	b.wantClean()
}

func TestTargets(t *testing.T) {
	b := newBench(t)
	layer := b.layer("a", tree{"a": file("1")})
	for name, make := range map[string]func(path string) error{
		"file":         func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"symlink":      func(path string) error { return os.Symlink(b.base, path) },
		"dead symlink": func(path string) error { return os.Symlink("nowhere", path) },
		"socket":       func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
	} {
		if err := make(b.target(name)); err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", "/", "/."} {
			_, err := b.Mount(t.Context(), Request{Image: imageOf("one"), Layers: []*store.Layer{layer}, Target: b.target(name) + suffix})
			if !errors.Is(err, ErrTarget) {
				t.Errorf("%s%s: error %v, want ErrTarget", name, suffix, err)
			}
		}
	}
	for _, bad := range []string{"", "relative", "./x", b.target("missing/rootfs"), b.target("file/rootfs"), b.target("nul\x00byte")} {
		_, err := b.Mount(t.Context(), Request{Image: imageOf("one"), Layers: []*store.Layer{layer}, Target: bad})
		if !errors.Is(err, ErrTarget) {
			t.Errorf("%q: error %v, want ErrTarget", bad, err)
		}
	}
	if _, err := b.Mount(t.Context(), Request{Image: imageOf("one"), Layers: []*store.Layer{layer}, Target: "/"}); !errors.Is(err, ErrTargetBusy) {
		t.Errorf("/: error %v, want ErrTargetBusy", err)
	}
	b.wantClean()

	// A parent that is a symbolic link is followed, and the record has the real path.
	if err := errors.Join(os.Mkdir(b.target("real"), 0o700), os.Symlink("real", b.target("link"))); err != nil {
		t.Fatal(err)
	}
	mounted := b.mount(Request{Image: imageOf("one"), Layers: []*store.Layer{layer}, Target: b.target("link/x/../rootfs")})
	if mounted.Target != b.target("real/rootfs") {
		t.Errorf("target %q", mounted.Target)
	}
	b.unmount(b.target("link/rootfs"))
	if _, err := os.Stat(b.target("real/rootfs")); err != nil {
		t.Errorf("the directory is gone: %v", err)
	}
	b.wantClean()
}

func TestForeignMounts(t *testing.T) {
	b := newBench(t)
	target, other := b.target("rootfs"), b.target("other")
	r := Request{Image: imageOf("one"), Layers: []*store.Layer{b.layer("a", tree{"a": file("1")})}, Target: target}
	if err := errors.Join(os.Mkdir(target, 0o755), os.Mkdir(other, 0o755)); err != nil {
		t.Fatal(err)
	}
	tmpfs := func() {
		t.Helper()
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	tmpfs()
	if _, err := b.Mount(t.Context(), r); !errors.Is(err, ErrTargetBusy) {
		t.Errorf("over a tmpfs: error %v, want ErrTargetBusy", err)
	}
	if err := b.Unmount(t.Context(), target); !errors.Is(err, ErrNotMounted) {
		t.Errorf("unmount a tmpfs: error %v, want ErrNotMounted", err)
	}
	b.umount(target)

	t.Run("of another store", func(t *testing.T) {
		stranger := newMounter(t, openStore(t, b.target("second")))
		b.mount(r)
		if _, err := stranger.Mount(t.Context(), Request{Image: r.Image, Target: target, Replace: true}); !errors.Is(err, ErrTargetBusy) {
			t.Errorf("error %v, want ErrTargetBusy", err)
		}
		if err := stranger.Unmount(t.Context(), target); !errors.Is(err, ErrNotMounted) {
			t.Errorf("error %v, want ErrNotMounted", err)
		}
		b.unmount(target)
	})
	t.Run("on top of ours", func(t *testing.T) {
		mounted := b.mount(r)
		tmpfs()
		if _, err := b.Mount(t.Context(), r); !errors.Is(err, ErrTargetBusy) {
			t.Errorf("mount: error %v, want ErrTargetBusy", err)
		}
		if err := b.Unmount(t.Context(), target); !errors.Is(err, ErrNotMounted) {
			t.Errorf("unmount: error %v, want ErrNotMounted", err)
		}
		if err := b.Unmount(t.Context(), mounted.ID); !errors.Is(err, ErrBusy) {
			t.Errorf("unmount by ID: error %v, want ErrBusy", err)
		}
		b.umount(target)
		b.unmount(target)
	})
	t.Run("bind mount of ours", func(t *testing.T) {
		mounted := b.mount(r)
		if err := unix.Mount(target, other, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		elsewhere := r
		elsewhere.Target = other
		if _, err := b.Mount(t.Context(), elsewhere); !errors.Is(err, ErrTargetBusy) {
			t.Errorf("mount on the copy: error %v, want ErrTargetBusy", err)
		}
		if err := b.Unmount(t.Context(), other); !errors.Is(err, ErrNotMounted) {
			t.Errorf("unmount the copy: error %v, want ErrNotMounted", err)
		}
		b.unmount(target) // the copy still has the files
		if _, err := os.Stat(mounted.Upper()); err != nil {
			t.Errorf("files of the copy are gone: %v", err)
		}
		if report, err := b.Recover(t.Context()); err != nil || len(report.Removed) > 0 {
			t.Errorf("recover: %+v, %v", report, err)
		}
	})
	for _, point := range b.points() {
		b.umount(point)
	}
	if _, err := b.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	b.wantClean()
}

func (b *bench) umount(point string) {
	b.t.Helper()
	if err := unix.Unmount(point, 0); err != nil {
		b.t.Fatalf("umount %s: %v", point, err)
	}
}

func TestUnmount(t *testing.T) {
	b := newBench(t)
	target := b.target("rootfs")
	r := Request{Image: imageOf("one"), Layers: []*store.Layer{b.layer("a", tree{"d": dir(0o755)})}, Target: target}
	for _, nothing := range []string{target, b.target("missing/rootfs"), "00000000-abcdefghijklmnop"} {
		if err := b.Unmount(t.Context(), nothing); err == nil || !errors.Is(err, ErrNotMounted) && !errors.Is(err, ErrTarget) {
			t.Errorf("%s: error %v, want ErrNotMounted", nothing, err)
		}
	}
	t.Run("by ID", func(*testing.T) {
		b.unmount(b.mount(r).ID)
	})
	t.Run("twice", func(t *testing.T) {
		b.mount(r)
		b.unmount(target)
		if err := b.Unmount(t.Context(), target); !errors.Is(err, ErrNotMounted) {
			t.Errorf("error %v, want ErrNotMounted", err)
		}
	})
	t.Run("gone already", func(*testing.T) {
		b.mount(r)
		b.umount(target)
		b.unmount(target)
	})
	t.Run("moved", func(t *testing.T) {
		// A mount can only be moved from a private place (mount(2), EINVAL).
		if err := unix.Mount("tmpfs", b.mkdir("private"), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer b.umount(b.target("private"))
		moved := r
		moved.Target = b.target("private/from")
		mounted := b.mount(moved)
		if err := unix.Mount(moved.Target, b.mkdir("private/to"), "", unix.MS_MOVE, ""); err != nil {
			t.Fatal(err)
		}
		b.unmount(mounted.ID)
	})
	t.Run("in use", func(t *testing.T) {
		b.mount(r)
		sleep := exec.CommandContext(t.Context(), "sleep", "60")
		sleep.Dir = filepath.Join(target, "d")
		if err := sleep.Start(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", filepath.Join(target, "d"), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		err := b.Unmount(t.Context(), target)
		busy, ok := errors.AsType[*BusyError](err)
		if !errors.Is(err, ErrBusy) || !ok {
			t.Fatalf("error %v, want a BusyError", err)
		}
		want := []string{fmt.Sprintf("mount %q", filepath.Join(target, "d")), fmt.Sprintf("process %d (sleep)", sleep.Process.Pid)}
		if diff := cmp.Diff(want, busy.Holders); diff != "" {
			t.Errorf("holders (-want +got):\n%s", diff)
		}
		if b.mount(r).State != store.MountMounted {
			t.Error("not mounted after a failed unmount")
		}
		if err := b.Detach(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		if got := b.points(); len(got) > 0 {
			t.Errorf("still mounted: %q", got)
		}
		list, err := b.List(t.Context())
		if err != nil || len(list) != 1 || list[0].Live || list[0].State != store.MountUnmounting {
			t.Errorf("list %+v, %v: want the record, as long as its files are in use", list, err)
		}
		// The target is free, whatever becomes of the old mount.
		b.mount(r)
		b.unmount(target)
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
		if report, err := b.Recover(t.Context()); err != nil || len(report.Removed) != 1 {
			t.Errorf("recover: %+v, %v", report, err)
		}
	})
	b.wantClean()
}

func (b *bench) mkdir(name string) string {
	b.t.Helper()
	if err := os.MkdirAll(b.target(name), 0o755); err != nil {
		b.t.Fatal(err)
	}
	return b.target(name)
}

func TestMountsOfOneImageAreIndependent(t *testing.T) {
	b := newBench(t)
	layers := []*store.Layer{b.layer("a", tree{"shared": file("original")})}
	var first, second, third string
	for name, to := range map[string]*string{"first": &first, "second": &second, "third": &third} {
		*to = b.target(name)
		b.mount(Request{Image: imageOf("one"), Layers: layers, Target: *to, ReadOnly: name == "third"})
	}
	err := errors.Join(
		os.WriteFile(filepath.Join(first, "shared"), []byte("changed"), 0o600),
		os.WriteFile(filepath.Join(first, "new"), nil, 0o600),
		os.Remove(filepath.Join(second, "shared")),
	)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]map[string]string{
		first:          {".": "dir 0755", "shared": "file changed", "new": "file "},
		second:         {".": "dir 0755"},
		third:          {".": "dir 0755", "shared": "file original"},
		layers[0].FS(): {".": "dir 0755", "shared": "file original"},
	} {
		if diff := cmp.Diff(want, read(t, target)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", target, diff)
		}
	}
	for _, target := range []string{first, second, third} {
		b.unmount(target)
	}
	b.mount(Request{Image: imageOf("one"), Layers: layers, Target: first})
	if diff := cmp.Diff(map[string]string{".": "dir 0755", "shared": "file original"}, read(t, first)); diff != "" {
		t.Errorf("mounted anew (-want +got):\n%s", diff)
	}
	b.unmount(first)
	b.wantClean()
}

func TestPropagation(t *testing.T) {
	b := newBench(t)
	shared := b.mkdir("shared")
	if err := unix.Mount("tmpfs", shared, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	peer := b.mkdir("peer")
	if err := unix.Mount(shared, peer, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	r := Request{Image: imageOf("one"), Layers: []*store.Layer{b.layer("a", tree{"a": file("1")})}, Target: filepath.Join(shared, "rootfs")}
	b.mount(r)
	if _, err := os.Stat(filepath.Join(peer, "rootfs", "a")); err != nil {
		t.Errorf("the peer does not see the mount: %v", err)
	}
	r.Image, r.Replace = imageOf("two"), true
	b.mount(r)
	b.unmount(r.Target)
	if _, err := os.Stat(filepath.Join(peer, "rootfs", "a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the peer still sees the mount: %v", err)
	}
	b.umount(peer)
	b.umount(shared)
	b.wantClean()
}

func TestMountsAtOnce(t *testing.T) {
	b := newBench(t)
	var layers []*store.Layer
	for i := range 5 {
		layers = append(layers, b.layer(fmt.Sprint(i), tree{"f": file(fmt.Sprint(i))}))
	}
	second := newMounter(t, openStore(t, b.store.Root())) // as another process would have it
	var wg sync.WaitGroup
	for i := range 40 {
		m := []*Mounter{b.Mounter, second}[i%2]
		target := b.target(fmt.Sprint("rootfs-", i%10))
		wg.Go(func() {
			_, err := m.Mount(t.Context(), Request{Image: imageOf("one"), Layers: layers, Target: target})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := b.points(); len(got) != 10 {
		t.Errorf("%d mounts, want 10", len(got))
	}
	for i := range 40 {
		wg.Go(func() {
			err := b.Unmount(t.Context(), b.target(fmt.Sprint("rootfs-", i%10)))
			if err != nil && !errors.Is(err, ErrNotMounted) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.wantClean()
}

func TestCancelledMountLeavesNothing(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Mount(ctx, Request{Image: imageOf("one"), Target: b.target("rootfs")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
	if _, err := os.Lstat(b.target("rootfs")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("target is left: %v", err)
	}
	b.wantClean()
}

func TestNoDescriptorsLeak(t *testing.T) {
	b := newBench(t)
	var layers []*store.Layer
	for i := range 10 {
		layers = append(layers, b.layer(fmt.Sprint(i), tree{"f": file("x")}))
	}
	round := func() {
		b.mount(Request{Image: imageOf("one"), Layers: layers, Target: b.target("rootfs")})
		b.mount(Request{Image: imageOf("one"), Layers: layers, Target: b.target("rootfs")})
		b.mount(Request{Image: imageOf("two"), Layers: layers, Target: b.target("rootfs"), Replace: true, ReadOnly: true})
		_, _ = b.Mount(t.Context(), Request{Image: imageOf("three"), Layers: layers, Target: b.target("rootfs")})
		b.unmount(b.target("rootfs"))
		if _, err := b.Recover(t.Context()); err != nil {
			t.Error(err)
		}
		_, _ = b.Mount(t.Context(), Request{Image: imageOf("one"), Layers: layers, Target: b.target("store/version")})
	}
	round()
	before := descriptors(t)
	for range 10 {
		round()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d open files, %d before", after, before)
	}
	for _, a := range []api{apiMount, apiString} {
		old := newBench(t)
		old.force(a)
		before := descriptors(t)
		for range 5 {
			old.mount(Request{Image: imageOf("one"), Layers: []*store.Layer{old.layer("x", tree{})}, Target: old.target("rootfs")})
			old.unmount(old.target("rootfs"))
		}
		if after := descriptors(t); after > before {
			t.Errorf("api %d: %d open files, %d before", a, after, before)
		}
	}
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(open)
}

// TestRootless runs tests of this package as an ordinary user, in a user namespace
// with one ID.
func TestRootless(t *testing.T) {
	if userns.Inside() {
		t.Skip("these are the tests")
	}
	if err := userns.Available(); err != nil {
		testkit.Lacking(t, "user namespaces", err.Error())
	}
	const nobody = 65534
	base := t.TempDir()
	program := filepath.Join(base, "program")
	binary, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(testkit.WriteProgram(program, binary), os.Chmod(filepath.Dir(base), 0o755), os.Chmod(base, 0o755), os.Mkdir(filepath.Join(base, "tmp"), 0o700), os.Chown(filepath.Join(base, "tmp"), nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.short", "-test.v",
		"-test.run=^(TestContent|TestRepeatedLayers|TestOlderKernels|TestReplace|TestUnmount|TestRootAttributes|TestRecover|TestNamespaces)")
	cmd.Dir = base
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + filepath.Join(base, "tmp"), "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestContent") {
		t.Fatalf("%v\n%s", err, out)
	}
}
