package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"dray/internal/durable"
	"dray/internal/testkit"

	"golang.org/x/sys/unix"
)

// On a read-only file system a lock can be taken, if its file is there.
func TestLockReadOnly(t *testing.T) {
	testkit.Need(t, testkit.Root())
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "lock")
	if err := durable.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=1m"); err != nil {
		t.Fatal(err)
	}
	lock, err := durable.TryAcquire(path, durable.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
	if _, err := durable.TryAcquire(path+"2", durable.Exclusive); !errors.Is(err, unix.EROFS) {
		t.Errorf("lock that is not there: %v, want EROFS", err)
	}
	if err := durable.WriteFile(path, nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want EROFS", err)
	}
}

// A full disk leaves the old content and no temporary file.
func TestWriteFileOnFullDisk(t *testing.T) {
	testkit.Need(t, testkit.Root())
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "f")
	if err := durable.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("left %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadDir(dir); err != nil || len(got) != 1 {
		t.Errorf("left %v, %v", got, err)
	}
}

func TestSyncFS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := durable.SyncFS(dir); err != nil {
		t.Error(err)
	}
	if durable.SyncFS(filepath.Join(dir, "none")) == nil {
		t.Error("synced what is not there")
	}
}
