package userns_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/testkit"
	"dray/internal/userns"
)

// Mounts of an isolated process are seen by its children alone, and go from these when
// it unmounts them.
func TestIsolate(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.Tool("unshare"))
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "isolate", dir)
	cmd.Env = append(os.Environ(), programEnv+"=1", "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// isolate is the process of [TestIsolate].
func isolate(dir string) error {
	if err := userns.Isolate(unix.MS_SHARED); err != nil {
		return err
	}
	if err := unix.Mount("isolated", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	child := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", //nolint:noctx // ends with its input
		`grep -c "$0" /proc/self/mounts; read -r x; ! grep "$0" /proc/self/mounts`, dir)
	child.Stderr = os.Stderr
	in, inErr := child.StdinPipe()
	out, outErr := child.StdoutPipe()
	if err := errors.Join(inErr, outErr, child.Start()); err != nil {
		return err
	}
	had := make([]byte, 2)
	if _, err := io.ReadFull(out, had); err != nil || string(had) != "1\n" {
		return errors.Join(err, errors.New("a child does not see the mount"))
	}
	parent, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", os.Getppid()))
	if err == nil && strings.Contains(string(parent), dir) {
		err = errors.New("the parent sees the mount")
	}
	if err := errors.Join(err, unix.Unmount(dir, 0), in.Close()); err != nil {
		return err
	}
	if err := child.Wait(); err != nil {
		return errors.New("a child has a copy of what was unmounted")
	}
	return nil
}
