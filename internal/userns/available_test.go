package userns_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/userns"
)

func TestOneIDWithoutRanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if !w.show().Single {
		t.Skip("the user has subordinate IDs")
	}
	out := w.must("show")
	if !strings.Contains(out, "owners in images are lost") {
		t.Errorf("the loss is not said: %s", out)
	}
	if out, code := w.run("chown", filepath.Join(w.dir("work"), "file")); code == 0 {
		t.Errorf("chown to another ID works: %s", out)
	}
}

func TestOverlayProbe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("overlay", w.dir("work"))
	left, err := os.ReadDir(w.dir("work"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if out, code := w.run("overlay", "/proc"); code == 0 || !strings.Contains(out, "probe overlay") {
		t.Errorf("on /proc: code %d: %s", code, out)
	}
}

func TestAvailable(t *testing.T) {
	if err := userns.Available(); err != nil && !errors.Is(err, userns.ErrUnavailable) {
		t.Errorf("error %v does not wrap ErrUnavailable", err)
	}
	t.Setenv("PATH", t.TempDir())
	err := userns.Available()
	if !errors.Is(err, userns.ErrUnavailable) || !strings.Contains(err.Error(), "install util-linux") {
		t.Errorf("without tools: %v", err)
	}
}

// TestFullRange gives the user subordinate IDs, in a mount namespace of the
// test's own: it runs itself there.
func TestFullRange(t *testing.T) {
	const again = "DRAY_USERNS_TEST_AGAIN"
	if os.Getuid() != 0 || userns.Needed() {
		t.Skip("root lends the user subordinate IDs")
	}
	for _, name := range []string{"newuidmap", "newgidmap", "/etc/subuid", "/etc/subgid"} {
		if _, err := exec.LookPath(name); err != nil && !errors.Is(err, os.ErrPermission) {
			t.Skip(err)
		}
	}
	if os.Getenv(again) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestFullRange$", "-test.v")
		cmd.Env = append(os.Environ(), again+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	ranges := filepath.Join(t.TempDir(), "ranges")
	if err := os.WriteFile(ranges, []byte("other:1:1\nnobody:300000:1000\n65534:400000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		if err := unix.Mount(ranges, path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	got := w.show()
	if got.Single || fmt.Sprint(got.UIDs) != "[0 65534 1 1 300000 1000 1001 400000 65536]" {
		t.Errorf("single %v, map %v", got.Single, got.UIDs)
	}
	file := filepath.Join(w.dir("work"), "file")
	w.must("chown", file)
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Uid != 300011 || st.Gid != 300033 {
		t.Errorf("owner outside %d:%d, want 300011:300033 (%v)", st.Uid, st.Gid, err)
	}
	w.wantNoHolder()
}
