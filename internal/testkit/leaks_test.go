package testkit_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/testkit"
)

// watched is a test that takes notes instead of failing.
type watched struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (w *watched) Cleanup(f func()) { w.cleanups = append(w.cleanups, f) }
func (w *watched) Errorf(format string, args ...any) {
	w.errors = append(w.errors, fmt.Sprintf(format, args...))
}

func (w *watched) end() string {
	for _, f := range w.cleanups {
		f()
	}
	return strings.Join(w.errors, "\n")
}

func TestNoLeaksSees(t *testing.T) {
	testkit.Need(t, testkit.Root())
	w := &watched{TB: t}
	testkit.NoLeaks(w)
	if got := w.end(); got != "" {
		t.Errorf("of nothing: %s", got)
	}
	w = &watched{TB: t}
	testkit.NoLeaksWithin(w, 0)
	stop := make(chan struct{})
	go func() { <-stop }()
	f, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("testkit", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	got := w.end()
	close(stop)
	if err := errors.Join(f.Close(), cmd.Process.Kill(), unix.Unmount(dir, 0)); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	for _, want := range []string{"goroutine", "open file", "mount", "process"} {
		if !strings.Contains(got, "left behind: "+want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

func TestCgroup(t *testing.T) {
	group := testkit.Cgroup(t, 16<<20)
	if out, err := group.Command("true").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if group.OOMKills() != 0 || group.Peak() == 0 {
		t.Errorf("true: %d kills, peak %d", group.OOMKills(), group.Peak())
	}
	// A string of 64 MiB does not fit; the page cache of a file does, reclaimed.
	if err := group.Command("dd", "if=/dev/zero", "of="+t.TempDir()+"/file", "bs=1M", "count=64").Run(); err != nil {
		t.Errorf("64 MiB of file: %v", err)
	}
	if group.Failures() == 0 {
		t.Errorf("the limit was never met; peak is %d", group.Peak())
	}
	if err := group.Command("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1").Run(); err == nil || group.OOMKills() == 0 {
		t.Errorf("64 MiB of memory: %v, %d kills", err, group.OOMKills())
	}
	if group.Peak() > 17<<20 {
		t.Errorf("peak is %d", group.Peak())
	}
}

func TestNeed(t *testing.T) {
	t.Setenv(testkit.RequireVariable, "")
	skipped := true
	t.Run("skips", func(t *testing.T) {
		testkit.Need(t, testkit.Tool("no-such-program"))
		skipped = false
	})
	if !skipped {
		t.Error("a test went on without what it needs")
	}
	testkit.Need(t, testkit.Tool("true"))
}
