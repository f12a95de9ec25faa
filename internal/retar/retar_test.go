package retar_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/retar"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// unpack makes a tar's tree and opens it.
func unpack(t *testing.T, tar io.Reader, form apply.Form) *os.File {
	t.Helper()
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	const blockBytes = 64 << 10
	entries := layer.NewTar(stream.NewSlicer(tar, blockBytes), layer.Limits{})
	if _, err := apply.Apply(t.Context(), root, entries, apply.Options{Whiteouts: form}); err != nil {
		t.Fatal(err)
	}
	return root
}

// remake returns the tar of a tree in a form.
func remake(t *testing.T, root *os.File, f retar.Form, o retar.Options) []byte {
	t.Helper()
	tar := retar.Open(t.Context(), root, f, o)
	got, err := io.ReadAll(tar)
	if err := errors.Join(err, tar.Close()); err != nil {
		t.Fatal(err)
	}
	return got
}

// source makes a tree as programs find it, and not only what is easy: names that
// sort differently by path, long ones, links, owners, devices, times.
func source(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("long-", 30)
	for _, name := range []string{"a/b/file", "a-b/file", "a.b", "etc/" + long, "etc/100" + strings.Repeat("x", 90)} {
		must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), 40), 0o644))
	}
	must(os.Chmod(filepath.Join(dir, "a.b"), 0o755|os.ModeSetuid))
	must(os.Link(filepath.Join(dir, "a.b"), filepath.Join(dir, "etc/hard")))
	must(os.Symlink("../a.b", filepath.Join(dir, "etc/soft")))
	must(os.Symlink(long, filepath.Join(dir, "etc/softer")))
	must(os.Lchown(filepath.Join(dir, "etc/soft"), 1234, 5678))
	must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(dir, "pipe"), unix.S_IFIFO|0o600, 0))
	return dir
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return out
}

// Layers of the programs themselves are found, and come out again byte for byte.
func TestFind(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.Mknod())
	for _, tt := range []struct {
		name string
		tool string
		make func(t *testing.T, dir string) []byte
		want string
	}{
		{"GNU tar", "tar", gnuTar(), "GNU tar"},
		{"GNU tar, numeric", "tar", gnuTar("--numeric-owner"), "GNU tar, numeric owners"},
		{"GNU tar, without dots", "tar", gnuTar("--numeric-owner", "--transform=s,^\\./,,S"), "debuerreotype"},
		{"buildah", "buildah", buildah, "docker, podman, buildah"},
		{"containerd", "", recorded("testdata/containerd-1.6.20.tar"), "containerd, BuildKit"}, // ctr snapshots diff
		{"umoci", "umoci", umoci, "umoci"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.tool != "" {
				testkit.Need(t, testkit.Tool(tt.tool))
			}
			tar := tt.make(t, source(t))
			root := unpack(t, bytes.NewReader(tar), apply.Trusted)
			form, size, err := retar.Find(t.Context(), root, oci.DiffID(oci.DigestBytes(tar)), retar.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if tt.want != form.String() || size != int64(len(tar)) {
				t.Errorf("got form %q, %d bytes, want %q, %d", form, size, tt.want, len(tar))
			}
			if !bytes.Equal(remake(t, root, form, retar.Options{}), tar) {
				t.Error("what was found comes out differently")
			}
		})
	}
}

func recorded(path string) func(*testing.T, string) []byte {
	return func(t *testing.T, _ string) []byte {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
}

func gnuTar(flags ...string) func(*testing.T, string) []byte {
	return func(t *testing.T, dir string) []byte {
		t.Helper()
		return run(t, "tar", append(flags, "--create", "--sort=name", "--directory="+dir, ".")...)
	}
}

func buildah(t *testing.T, dir string) []byte {
	t.Helper()
	scratch := t.TempDir()
	global := []string{"--root", filepath.Join(scratch, "root"), "--runroot", filepath.Join(scratch, "run"), "--storage-driver", "vfs"}
	buildah := func(args ...string) string {
		return strings.TrimSpace(string(run(t, "buildah", append(global, args...)...)))
	}
	container := buildah("from", "scratch")
	buildah("copy", container, dir, "/")
	layout := filepath.Join(scratch, "layout")
	buildah("commit", "--quiet", "--disable-compression", container, "oci:"+layout+":x")
	buildah("rm", container)
	return topLayer(t, layout)
}

func umoci(t *testing.T, dir string) []byte {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "layout")
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", layout+":x")
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", layout+":x", bundle)
	run(t, "cp", "-a", dir+"/.", filepath.Join(bundle, "rootfs"))
	run(t, "umoci", "repack", "--image", layout+":x", bundle)
	return topLayer(t, layout)
}

// topLayer returns the uncompressed last layer of the image x.
func topLayer(t *testing.T, layout string) []byte {
	t.Helper()
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	decode := func(path string, into any) {
		raw, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index oci.Index
	decode(filepath.Join(layout, "index.json"), &index)
	var manifest oci.Manifest
	decode(blob(string(index.Manifests[0].Digest)), &manifest)
	f, err := os.Open(blob(string(manifest.Layers[len(manifest.Layers)-1].Digest)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	opened, err := layer.Decompress(f, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	raw, err := io.ReadAll(opened)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What a layer becomes, and what its copy in the exact form becomes, are the same:
// for every layer that ever broke a puller, with either kind of whiteouts.
func TestExact(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.Mknod())
	for _, odd := range testkit.Odd() {
		if odd.Verdict != testkit.Good || odd.Large {
			continue
		}
		t.Run(odd.Name, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, odd.Needs...)
			for i, entries := range odd.Layers {
				tar := testkit.Tar(entries...)
				for _, form := range []apply.Form{apply.Trusted, apply.User} {
					root := unpack(t, bytes.NewReader(tar), form)
					exact := remake(t, root, retar.Exact(), retar.Options{UserXattrs: form == apply.User})
					again := unpack(t, bytes.NewReader(exact), form)
					if diff := testkit.Diff(tree(t, root), tree(t, again)); diff != "" {
						t.Errorf("layer %d, form %d: %s", i, form, diff)
					}
				}
			}
		})
	}
}

// tree lists a tree without overlayfs's bookkeeping: apply marks a directory when a
// whiteout comes, which may be gone later.
func tree(t *testing.T, root *os.File) testkit.Nodes {
	t.Helper()
	nodes := testkit.Tree(t, root.Name())
	for path, n := range nodes {
		delete(n.Xattrs, "trusted.overlay.origin")
		delete(n.Xattrs, "user.overlay.origin")
		if len(n.Xattrs) == 0 {
			n.Xattrs = nil
		}
		nodes[path] = n
	}
	return nodes
}

// Holes are kept: a tar of a large empty file is small.
func TestExactSparse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 40
	for _, at := range []int64{1 << 20, 1 << 30} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	tar := remake(t, open(t, dir), retar.Exact(), retar.Options{MaxBytes: 1 << 20})
	again := filepath.Join(unpack(t, bytes.NewReader(tar), apply.Trusted).Name(), "holes")
	info, err := os.Stat(again)
	if err != nil || info.Size() != size {
		t.Fatalf("got %v, %v", info, err)
	}
	var got [4]byte
	copied, err := os.Open(again)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = copied.Close() }()
	for _, at := range []int64{1 << 20, 1 << 30} {
		if _, err := copied.ReadAt(got[:], at); err != nil || string(got[:]) != "data" {
			t.Errorf("got %q, %v at %d", got, err, at)
		}
	}
}

func open(t *testing.T, dir string) *os.File {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// A tree that somebody changed is not the layer any more.
func TestFindChanged(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.Mknod(), testkit.Tool("tar"))
	tar := gnuTar()(t, source(t))
	id := oci.DiffID(oci.DigestBytes(tar))
	for _, tt := range []struct {
		name   string
		change func(dir string) error
	}{
		{"content", func(dir string) error { return os.WriteFile(filepath.Join(dir, "a.b"), []byte("other"), 0o600) }},
		{"mode", func(dir string) error { return os.Chmod(filepath.Join(dir, "a/b/file"), 0o4755) }},
		{"owner", func(dir string) error { return os.Chown(filepath.Join(dir, "a"), 1, 0) }},
		{"time", func(dir string) error { return os.Chtimes(filepath.Join(dir, "a"), time.Unix(1, 0), time.Unix(1, 0)) }},
		{"one more", func(dir string) error { return os.WriteFile(filepath.Join(dir, "a/c"), nil, 0o600) }},
		{"one less", func(dir string) error { return os.Remove(filepath.Join(dir, "pipe")) }},
		{"target", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "etc/soft")), os.Symlink("/etc/shadow", filepath.Join(dir, "etc/soft")))
		}},
		{"link cut", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "etc/hard")), os.WriteFile(filepath.Join(dir, "etc/hard"), nil, 0o600))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := unpack(t, bytes.NewReader(tar), apply.Trusted)
			if _, _, err := retar.Find(t.Context(), root, id, retar.Options{}); err != nil {
				t.Fatalf("unchanged: %v", err)
			}
			if err := tt.change(root.Name()); err != nil {
				t.Fatal(err)
			}
			_, _, err := retar.Find(t.Context(), root, id, retar.Options{})
			if !errors.Is(err, retar.ErrUnknown) || !strings.Contains(err.Error(), string(id)) {
				t.Errorf("got %v, want ErrUnknown with the layer's name", err)
			}
		})
	}
}

// Trees that are no layer's are errors, and nothing outside is read.
func TestBadTrees(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(t *testing.T, dir string)
		o    retar.Options
		want string
	}{
		{"socket", func(t *testing.T, dir string) {
			t.Helper()
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Close(fd) })
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "s")}); err != nil {
				t.Fatal(err)
			}
		}, retar.Options{}, "it is a socket"},
		{"too many", func(t *testing.T, dir string) {
			t.Helper()
			for _, name := range []string{"1", "2", "3"} {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, retar.Options{MaxEntries: 3}, "more than 3 entries"},
		{"too large", func(t *testing.T, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 5000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, retar.Options{MaxBytes: 4000}, "more than 4000 bytes"},
		{"too deep", func(t *testing.T, dir string) {
			t.Helper()
			name := strings.Repeat("d", 250)
			at, err := os.Open(dir)
			for range 20 {
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Mkdirat(int(at.Fd()), name, 0o700); err != nil {
					t.Fatal(err)
				}
				fd, openErr := unix.Openat(int(at.Fd()), name, unix.O_RDONLY, 0)
				_ = at.Close()
				at, err = os.NewFile(uintptr(fd), name), openErr
			}
			_ = at.Close()
		}, retar.Options{}, "path has more than 4096 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tt.make(t, dir)
			root := open(t, dir)
			_, _, err := retar.Find(t.Context(), root, oci.DiffID(oci.DigestBytes(nil)), tt.o)
			if !errors.Is(err, retar.ErrTree) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrTree with %q", err, tt.want)
			}
			tar := retar.Open(t.Context(), root, retar.Exact(), tt.o)
			_, err = io.Copy(io.Discard, tar)
			if !errors.Is(err, retar.ErrTree) {
				t.Errorf("reading gives %v, want ErrTree", err)
			}
			if err := tar.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A file that is one huge hole is refused before it is read as zeros.
func TestFindHugeHole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 8 << 40 // most that a file system takes
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	_, _, err = retar.Find(t.Context(), open(t, dir), oci.DiffID(oci.DigestBytes(nil)), retar.Options{})
	if !errors.Is(err, retar.ErrTree) || !strings.Contains(err.Error(), "more than 1099511627776 bytes") {
		t.Errorf("got %v, want ErrTree", err)
	}
}

func TestMountInside(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root())
	dir := t.TempDir()
	inside := filepath.Join(dir, "mnt")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", inside, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(inside, 0); err != nil {
			t.Error(err)
		}
	}()
	_, _, err := retar.Find(t.Context(), open(t, dir), oci.DiffID(oci.DigestBytes(nil)), retar.Options{})
	if !errors.Is(err, retar.ErrTree) || !strings.Contains(err.Error(), `"mnt"`) {
		t.Errorf("got %v, want ErrTree with the name", err)
	}
}

// A reader that is closed half-way leaves nothing running.
func TestCloseEarly(t *testing.T) { //nolint:paralleltest // counts goroutines
	testkit.NoLeaks(t)
	tar := retar.Open(t.Context(), open(t, "/usr/share"), retar.Exact(), retar.Options{})
	if _, err := io.CopyN(io.Discard, tar, 1000); err != nil {
		t.Fatal(err)
	}
	if err := tar.Close(); err != nil {
		t.Error(err)
	}
}
