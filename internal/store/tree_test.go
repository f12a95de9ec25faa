package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dray/internal/testkit"

	"golang.org/x/sys/unix"
)

// hostile fills dir with what is hard to delete.
func hostile(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "a", "b", "f"), []byte("x"), 0))
	must(os.Link(filepath.Join(dir, "a", "b", "f"), filepath.Join(dir, "a", "link")))
	must(os.Symlink("..", filepath.Join(dir, "a", "up")))
	must(os.Symlink("/nonexistent/x", filepath.Join(dir, "a", "away")))
	must(unix.Mkfifo(filepath.Join(dir, "a", "fifo"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "a", "not-utf8-\xff\xfe\n"), nil, 0o600))
	must(os.WriteFile(filepath.Join(dir, "a", strings.Repeat("n", 255)), nil, 0o600))
	must(os.Mkdir(filepath.Join(dir, "locked"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "locked", "sub"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "locked", "sub", "f"), nil, 0o600))
	must(os.Chmod(filepath.Join(dir, "locked", "sub"), 0))
	must(os.Chmod(filepath.Join(dir, "locked"), 0))
	must(os.Mkdir(filepath.Join(dir, "read-only"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "read-only", "f"), nil, 0o400))
	must(os.Chmod(filepath.Join(dir, "read-only"), 0o555))
}

// deep makes a chain of directories deeper than any path can say.
func deep(t *testing.T, dir string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range levels {
		name := fmt.Sprintf("level-%d", i)
		if err := unix.Mkdirat(fd, name, 0o700); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			if err := unix.Mkdirat(fd, "beside", 0o500); err != nil {
				t.Fatal(err)
			}
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	_ = unix.Close(fd)
}

func TestRemoveTree(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "keep")
	if err := os.MkdirAll(filepath.Join(outside, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, build := range map[string]func(t *testing.T, path string){
		"missing": func(*testing.T, string) {},
		"file": func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, nil, 0); err != nil {
				t.Fatal(err)
			}
		},
		"link to a directory": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Symlink(outside, path); err != nil {
				t.Fatal(err)
			}
		},
		"hostile": func(t *testing.T, path string) {
			t.Helper()
			hostile(t, path)
			if err := os.Symlink(outside, filepath.Join(path, "a", "out")); err != nil {
				t.Fatal(err)
			}
		},
		"deep": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			deep(t, path, 600) // 6 KiB of names
		},
		"wide": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			for i := range namesAtOnce + 100 {
				if err := os.WriteFile(filepath.Join(path, fmt.Sprint(i)), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tree")
			build(t, path)
			if err := removeTree(path); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		if _, err := os.Lstat(filepath.Join(outside, "d")); err != nil {
			t.Errorf("what a link points to: %v", err)
		}
	})
}

// asUser makes the test binary build a hostile tree and remove it, as whoever runs it.
const asUser = "STORE_TEST_AS_USER"

// Without any capability, directories that lock their owner out are removed too.
func TestRemoveTreeAsUser(t *testing.T) {
	t.Parallel()
	if os.Getenv(asUser) != "" {
		t.Skip("already the other user")
	}
	dir, err := os.MkdirTemp("", "store-user-") //nolint:usetesting // open to another user, which TempDir is not
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := os.ReadFile("/proc/self/exe") // the test binary's own directory may be closed to others
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	if err := errors.Join(testkit.WriteProgram(program, binary), os.Mkdir(filepath.Join(dir, "work"), 0o777), os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "work"), 0o777)); err != nil {
		t.Fatal(err)
	}
	run := func(name string, attr *syscall.SysProcAttr) {
		cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestRemoveTreeChild$", "-test.v")
		cmd.Dir = filepath.Join(dir, "work")
		cmd.Env = append(os.Environ(), asUser+"="+filepath.Join(dir, "work", strings.ReplaceAll(name, " ", "-")))
		cmd.SysProcAttr = attr
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		} else if !bytes.Contains(out, []byte("PASS: TestRemoveTreeChild")) {
			t.Errorf("%s: the child did not run:\n%s", name, out)
		}
	}
	if os.Geteuid() == 0 {
		run("other user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
	}
	run("user namespace", &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	})
}

func TestRemoveTreeChild(t *testing.T) {
	t.Parallel()
	path := os.Getenv(asUser)
	if path == "" {
		t.Skip("runs as a child of TestRemoveTreeAsUser")
	}
	hostile(t, path)
	deep(t, path, 400)
	if err := removeTree(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

// Two removers in one tree do not disturb each other.
func TestRemoveTreeTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tree")
	for i := range 10 {
		hostile(t, filepath.Join(path, fmt.Sprint(i)))
	}
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- removeTree(path) }()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

// A mount inside is left alone, with everything in it.
func TestRemoveTreeStopsAtMount(t *testing.T) {
	dir := tmpfs(t, "size=1m")
	path := filepath.Join(t.TempDir(), "tree")
	point := filepath.Join(path, "a", "mnt")
	if err := errors.Join(os.MkdirAll(point, 0o700), os.WriteFile(filepath.Join(dir, "keep"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := removeTree(path)
	if umount := unix.Unmount(point, 0); umount != nil {
		t.Fatal(umount)
	}
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v, want EBUSY", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "keep")); err != nil {
		t.Errorf("what was mounted: %v", err)
	}
}

// tmpfs mounts a file system of its own for the test.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	testkit.Need(t, testkit.Root())
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestTreeSize(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	if err := os.WriteFile(one, make([]byte, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := treeSize(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"two", "three"} {
		if err := os.Link(one, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := treeSize(t.Context(), dir)
	if err != nil || after != before {
		t.Errorf("with hard links %+v, %v, before %+v", after, err, before)
	}
	if before.Inodes != 2 || before.ApparentBytes < 10_000 || before.DiskBytes < 10_000 {
		t.Errorf("got %+v", before)
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(1<<30), sparse.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := treeSize(t.Context(), dir)
	if err != nil || got.ApparentBytes < 1<<30 || got.DiskBytes > 1<<20 {
		t.Errorf("with a sparse file %+v, %v", got, err)
	}
	if got, err := treeSize(t.Context(), filepath.Join(dir, "none")); err != nil || got != (Size{}) {
		t.Errorf("missing tree: %+v, %v", got, err)
	}
}

func BenchmarkRemoveTree(b *testing.B) {
	const dirs, files = 500, 100
	for b.Loop() {
		b.StopTimer()
		path := filepath.Join(b.TempDir(), "tree")
		for d := range dirs {
			dir := filepath.Join(path, fmt.Sprint(d))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			for f := range files {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(f)), nil, 0o644); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.StartTimer()
		if err := removeTree(path); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(dirs*files, "files/op")
}
