package durable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"first", "", "a longer second"} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("got %q, %v, want %q", got, err, content)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}

func TestWriteFileFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	taken := filepath.Join(dir, "taken") // a directory cannot be replaced by a file
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(taken, []byte("x"), 0o600); err == nil {
		t.Error("replaced a directory")
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}

// Readers see one content or another, in full, and no file is ever missing.
func TestWriteFileIsAtomic(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteFile(path, bytes.Repeat([]byte("0"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := range 30 {
				digit := fmt.Append(nil, (2*i+w)%10)
				if err := WriteFile(path, bytes.Repeat(digit, 1000+i), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	readers.Go(func() {
		for !done.Load() {
			got, err := os.ReadFile(path)
			if err != nil || len(got) < 1000 || len(bytes.Trim(got, string(got[:1]))) != 0 {
				t.Errorf("read %d bytes: %.20q…, %v", len(got), got, err)
				return
			}
		}
	})
	writers.Wait()
	done.Store(true)
	readers.Wait()
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("left %q", got)
	}
}

func TestIsTemp(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{".tmp-x": true, ".tmp-": false, "tmp-x": false, "x.tmp-y": false, "": false} {
		if IsTemp(name) != want {
			t.Errorf("IsTemp(%q) is %v", name, !want)
		}
	}
}

func TestRenameAndRemove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "sub", "b")
	if err := os.Mkdir(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(from, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rename(from, to); err != nil {
		t.Fatal(err)
	}
	if err := Rename(to, filepath.Join(dir, "sub", "c")); err != nil {
		t.Fatal(err)
	}
	if err := Rename(from, to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("rename of nothing: %v", err)
	}
	for range 2 { // a missing file is removed
		if err := Remove(filepath.Join(dir, "sub", "c")); err != nil {
			t.Error(err)
		}
	}
	if err := Remove(filepath.Join(dir)); err == nil {
		t.Error("removed a directory that is not empty")
	}
	if err := SyncDir(dir); err != nil {
		t.Error(err)
	}
	if SyncDir(filepath.Join(dir, "none")) == nil {
		t.Error("synced what is not there")
	}
}

func TestLockModes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TryAcquire(path, Shared)
	if err != nil {
		t.Fatal(err)
	}
	second, err := TryAcquire(path, Shared)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryAcquire(path, Exclusive); !errors.Is(err, ErrLocked) {
		t.Errorf("exclusive beside shared: %v", err)
	}
	if err := errors.Join(first.Release(), second.Release()); err != nil {
		t.Fatal(err)
	}
	alone, err := TryAcquire(path, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []Mode{Shared, Exclusive} {
		if _, err := TryAcquire(path, mode); !errors.Is(err, ErrLocked) {
			t.Errorf("mode %d beside exclusive: %v", mode, err)
		}
	}
	if _, err := alone.File().WriteString("x"); err != nil {
		t.Error(err)
	}
	if err := alone.Release(); err != nil {
		t.Error(err)
	}
	if _, err := TryAcquire(filepath.Join(path, "x"), Shared); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("lock below a file: %v", err)
	}
}

func TestAcquireWaits(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	held, err := Acquire(t.Context(), path, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	errStop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errStop)
	if _, err := Acquire(ctx, path, Shared); !errors.Is(err, errStop) {
		t.Errorf("cancelled: %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	if _, err := Acquire(short, path, Shared); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		lock, err := Acquire(t.Context(), path, Exclusive)
		if err == nil {
			err = lock.Release()
		}
		got <- err
	}()
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// Holders that unlink their lock when they are done still exclude each other.
func TestUnlinkedLocksExclude(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	var holders atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 30 {
				lock, err := Acquire(t.Context(), path, Exclusive)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders at once", n)
				}
				holders.Add(-1)
				if err := os.Remove(path); err != nil { // from here on others may hold it
					t.Error(err)
				}
				if err := lock.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// holderVariable makes the test binary hold the lock it names, for ever.
const holderVariable = "DURABLE_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holderVariable); path != "" {
		if _, err := Acquire(context.Background(), path, Exclusive); err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("held\n")
		select {}
	}
	os.Exit(m.Run())
}

func TestKillReleasesLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), holderVariable+"="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := TryAcquire(path, Shared); !errors.Is(err, ErrLocked) {
		t.Errorf("while another process has it: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	lock, err := Acquire(t.Context(), path, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
	_ = child.Wait()
}
