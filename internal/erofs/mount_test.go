package erofs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/testkit"
)

func TestLoopDevices(t *testing.T) {
	testkit.Need(t, testkit.Root())
	raw := testkit.Tar(testkit.File("f", strings.Repeat("content", 1000)), testkit.Symlink("l", "f"))
	s, err := store(t, t.TempDir(), bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		testkit.Lacking(t, "loop devices", err.Error())
	}
	want := testkit.Tree(t, mounted(t, s))
	fd, err := erofs.Mount(erofs.Loop, int(s.index.Fd()), int(s.tar.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	got := testkit.Tree(t, fdDir(fd))
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	if diff := testkit.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{s.index.Name(), s.tar.Name()} {
		backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, b := range backing {
			if text, _ := os.ReadFile(b); strings.TrimSpace(string(text)) == name {
				t.Errorf("%s is left over %s", b, name)
			}
		}
	}
}

func TestDamagedImageIsNotMounted(t *testing.T) {
	testkit.Need(t, testkit.Root())
	s, err := store(t, t.TempDir(), bytes.NewReader(testkit.Tar(testkit.File("f", "x"))))
	if err != nil {
		t.Fatal(err)
	}
	// Within what the superblock's checksum covers.
	if _, err := s.index.WriteAt([]byte{0x55}, 1024+48); err != nil {
		t.Fatal(err)
	}
	if fd, err := erofs.Mount(erofs.Files, int(s.index.Fd()), int(s.tar.Fd())); err == nil {
		_ = unix.Close(fd)
		t.Error("an image with a wrong checksum was mounted")
	}
}

func TestProbe(t *testing.T) {
	testkit.Need(t, testkit.Root())
	dir := t.TempDir()
	got, err := erofs.Probe(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", got)
	if !got.Mounts && got.Reason == "" {
		t.Error("no reason")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := erofs.Probe(t.Context(), filepath.Join(dir, "missing")); err == nil {
		t.Error("no error for a directory that is not there")
	}
	got, err = erofs.Probe(t.Context(), "/dev/shm")
	if err != nil || got.Mounts || !strings.Contains(got.Reason, "twice") {
		t.Errorf("on tmpfs: %+v, %v", got, err)
	}
}
