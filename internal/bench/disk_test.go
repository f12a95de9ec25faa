//go:build linux

package bench_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/bench"
	"dray/internal/testkit"
)

// Mounts, processes and stores of a bench that was interrupted are gone with it; those
// of a bench that was killed, with the next.
func TestNothingIsLeftOfABenchThatWasStopped(t *testing.T) {
	testkit.Need(t, testkit.Root())
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			program, corpusDir, work := openDir(t)
			mark := "left-by-" + filepath.Base(filepath.Dir(work))
			cmd := exec.CommandContext(t.Context(), program, "measure", corpusDir, work)
			cmd.Env = append(os.Environ(), "BENCH_TEST_PROGRAM=mount -t tmpfs "+mark+" {dir}; setsid sleep 1234 & sleep 1234")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "it was never mounted", func() bool { return strings.Contains(mountsOf(cmd.Process.Pid), mark) })
			if strings.Contains(mounts(t), mark) {
				t.Error("mounted for others too")
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it ended well")
			}
			if sig == syscall.SIGKILL {
				if err := bench.Sweep(t.Context(), work); err != nil {
					t.Error(err)
				}
			}
			until(t, "a mount is left", func() bool { return !strings.Contains(everybodysMounts(t), mark) })
			reports(t, work) // and nothing else
			devices(t, work)
			groups, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/dray-bench-%d-*", cmd.Process.Pid))
			if err != nil || len(groups) > 0 {
				t.Errorf("control groups are left: %v, %v", groups, err)
			}
		})
	}
}

// What one run leaves on its file system is not there for the next, and no device stays.
func TestEachRunHasAFileSystem(t *testing.T) {
	testkit.Need(t, testkit.Root())
	const look = `test $(df --output=iused {store} | tail -1) -lt 40 && mkdir {store}/many && (cd {store}/many && touch $(seq 500)) && stat -f -c %T {store} | grep -q `
	for name, same := range map[string]bool{"fresh": false, "same": true} {
		t.Run(name, func(t *testing.T) {
			command := rival(t, "look@command:"+look+"ext && echo x >{dir}/x")
			report := measure(t, bench.Options{Rivals: []*bench.Rival{command}, Modes: []string{bench.Individual}, Repetitions: 3, SameFS: same})
			if (report.Machine.FreshFS != "") == same || len(report.Notes) > 0 {
				t.Errorf("in a file on %q, notes %q", report.Machine.FreshFS, report.Notes)
			}
			if same {
				return // what is below /tmp is not ours to know
			}
			for _, r := range report.Runs {
				if r.Error != "" || r.Cleanup != "" || r.Storage.Files < 500 {
					t.Errorf("%q, %q, %d files", r.Error, r.Cleanup, r.Storage.Files)
				}
			}
			devices(t, filepath.Join(os.TempDir(), "b"))
		})
	}
}

// Whoever keeps a run's file system busy is named and, where it is the run's own, ended;
// the other runs have one as before.
func TestFileSystemInUse(t *testing.T) {
	testkit.Need(t, testkit.Root())
	dir := shortDir(t)
	question, answer := filepath.Join(dir, "question"), filepath.Join(dir, "answer")
	for _, name := range []string{question, answer} {
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := exec.CommandContext(t.Context(), "/bin/sh", "-c", `read -r store <"$1" && cd "$store" && exec 3>held && echo done >"$2" && exec sleep 1000`, "other", question, answer)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait() // it was killed
	}()
	const left = `left@command:setsid -f env -i sh -c "for f in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/cgroup.procs; do test -e \$f && echo \$\$ >\$f; done; cd '$BENCH_STORE' && exec 3>held && touch up && exec sleep 1000"; ` +
		`until test -e {store}/up; do :; done; echo x >{dir}/x`
	report := measure(t, bench.Options{
		Rivals: []*bench.Rival{
			rival(t, "held@command:echo {store} >"+question+"; read x <"+answer+"; echo x >{dir}/x"),
			rival(t, left), rival(t, "good@command:stat -f -c %T {store} | grep -q ext && echo x >{dir}/x"),
		},
		Modes: []string{bench.Individual},
	})
	named := fmt.Sprintf("process %d (sleep)", other.Process.Pid)
	for _, r := range report.Runs {
		if r.Error != "" || strings.Contains(r.Cleanup, named) != (r.Rival == "held") || (r.Cleanup != "") != (r.Rival == "held") {
			t.Errorf("%s: %q, %q; want %s named once", r.Rival, r.Error, r.Cleanup, named)
		}
	}
	if err := errors.Join(other.Process.Kill(), other.Wait()); err == nil {
		t.Error("it ended well")
	}
	devices(t, filepath.Join(os.TempDir(), "b"))
}

// Whoever makes a mount namespace of his own while a run goes on is in nobody's way.
func TestMountNamespaceOfSomebodyElse(t *testing.T) {
	testkit.Need(t, testkit.Root())
	program, corpusDir, work := openDir(t)
	question, answer := filepath.Join(work, "question"), filepath.Join(work, "answer")
	for _, name := range []string{question, answer} {
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := exec.CommandContext(t.Context(), "/bin/sh", "-c", `read -r x <"$1" && exec unshare --mount --propagation private sh -c 'echo done >"$1"; exec sleep 1000' sh "$2"`, "other", question, answer)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait() // it was killed
	}()
	cmd := exec.CommandContext(t.Context(), program, "measure", corpusDir, work)
	cmd.Env = append(os.Environ(), "BENCH_TEST_PROGRAM=test ! -p "+question+" || { echo x >"+question+"; read x <"+answer+"; rm "+question+"; }; echo x >{dir}/x")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Remove(answer); err != nil {
		t.Error(err)
	}
	wantClean(t, reports(t, work))
}

// devices makes sure that no loop device has a file below dir.
func devices(t *testing.T, dir string) {
	t.Helper()
	until(t, "a device is left", func() bool {
		found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(found, func(name string) bool {
			raw, err := os.ReadFile(name)
			return err == nil && strings.HasPrefix(string(raw), dir)
		})
	})
}

// patience bounds what would hang, on a machine that is as slow as it may be.
const patience = 5 * time.Minute

// until waits for what comes by itself: the kernel ends what a killed process had a
// little later.
func until(t *testing.T, problem string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(problem)
		}
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	return mountsOf(os.Getpid())
}

// mountsOf returns what is mounted in the namespace of a process; "" when it has ended.
func mountsOf(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return string(raw)
}

// everybodysMounts returns what is mounted in any process's namespace.
func everybodysMounts(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range names {
		raw, _ := os.ReadFile(name) // none of who has ended
		all.Write(raw)
	}
	return all.String()
}
