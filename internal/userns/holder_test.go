package userns_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dray/internal/userns"
)

func TestMountOutlivesTheCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	target := w.dir("mnt")
	w.must("mount", target)
	if w.holder() == 0 {
		t.Fatal("no holder though a mount is left")
	}
	first := w.show().Mounts
	w.must("touch", filepath.Join(target, "file"))
	if second := w.show().Mounts; second != first {
		t.Errorf("mount namespaces differ: %s, %s", first, second)
	}
	if _, err := os.Stat(filepath.Join(target, "file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount is seen outside: %v", err)
	}
	pid := w.holder()
	w.must("unmount", target)
	w.wantNoHolder()
	if err := syscall.Kill(pid, 0); !gone(pid) {
		t.Errorf("holder %d is still there: %v", pid, err)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out, code := w.run("stop")
	if code != 1 || !strings.Contains(out, userns.ErrNoHolder.Error()) {
		t.Errorf("stop of nothing: code %d: %s", code, out)
	}
	w.must("mount", w.dir("mnt"))
	pid := w.holder()
	w.must("stop")
	w.wantNoHolder()
	if !gone(pid) {
		t.Errorf("holder %d lives", pid)
	}
}

func TestStaleRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("mount", w.dir("mnt"))
	old := w.holder()
	record := filepath.Join(w.dir("run"), "dray", "ns")
	raw, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(old, syscall.SIGKILL) })
	t.Run("another process has the number", func(t *testing.T) {
		var fields map[string]any
		if err := json.Unmarshal(raw, &fields); err != nil {
			t.Fatal(err)
		}
		fields["start"] = 1
		changed, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		w.write(record, changed)
		w.must("show")
		if gone(old) {
			t.Error("a process that is not ours was killed")
		}
	})
	t.Run("killed", func(t *testing.T) {
		w.write(record, raw)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitGone(t, old)
		w.must("show")
		w.wantNoHolder()
	})
	t.Run("not a record", func(t *testing.T) {
		w.write(record, []byte("{"))
		out, code := w.run("show")
		if code != 1 || !strings.Contains(out, "read namespace record") {
			t.Errorf("code %d: %s", code, out)
		}
		if err := os.Remove(record); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCommandsAtOnceShareOneNamespace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("mount", w.dir("mnt"))
	want := w.show().Mounts
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := w.show().Mounts; got != want {
				t.Errorf("mount namespace %s, want %s", got, want)
			}
		})
	}
	wg.Wait()
	w.must("unmount", w.dir("mnt"))
	for range 8 { // nothing keeps the holder: each may find it going
		wg.Go(func() { w.show() })
	}
	wg.Wait()
	w.wantNoHolder()
}

func TestRuntimeDirectoryOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(w.dir("run"), "dray")
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if out, code := w.run("show"); code != 1 || !strings.Contains(out, "only its user can write") {
		t.Errorf("world-writable: code %d: %s", code, out)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", dir); err != nil {
		t.Fatal(err)
	}
	if out, code := w.run("show"); code != 1 || !strings.Contains(out, "only its user can write") {
		t.Errorf("symlink: code %d: %s", code, out)
	}
}
