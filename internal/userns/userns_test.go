package userns_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/userns"
)

// nobody is the user that the tests run programs as when they are root.
const nobody = 65534

// programEnv makes the test binary behave as a program that uses the package.
const programEnv = "DRAY_USERNS_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		os.Exit(program())
	}
	os.Exit(m.Run())
}

// program is what a main function does with this package, and then what its
// arguments say.
func program() int {
	if len(os.Args) > 1 && os.Args[1] == "stop" {
		return report(userns.Stop(context.Background(), userns.Options{}))
	}
	if userns.Needed() {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		code, err := userns.Reexec(context.Background(), userns.Options{Log: log})
		if err != nil {
			return report(err)
		}
		return code
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "show":
		dir, _ := os.Getwd()
		uids, _ := os.ReadFile("/proc/self/uid_map")
		mounts, _ := os.Readlink("/proc/self/ns/mnt")
		_ = json.NewEncoder(os.Stdout).Encode(shown{
			Args: os.Args, Dir: dir, UIDs: strings.Fields(string(uids)), Mounts: mounts, Home: os.Getenv("HOME"),
			Inside: userns.Inside(), Single: userns.SingleID(), UID: os.Getuid(),
		})
	case "mount":
		return report(unix.Mount(userns.MountSource+"test", args[0], "tmpfs", 0, ""))
	case "unmount":
		return report(unix.Unmount(args[0], 0))
	case "touch":
		return report(os.WriteFile(args[0], nil, 0o600))
	case "chown":
		return report(errors.Join(os.WriteFile(args[0], nil, 0o600), os.Chown(args[0], 12, 34)))
	case "overlay":
		return report(userns.OverlayInUserNS(args[0]))
	case "exit":
		code, _ := strconv.Atoi(args[0])
		return code
	case "kill":
		number, _ := strconv.Atoi(args[0])
		_ = syscall.Kill(os.Getpid(), syscall.Signal(number))
		select {}
	case "wait":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("ready", os.Getpid())
		fmt.Println("got", <-signals)
	}
	return 0
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

type shown struct {
	Args   []string
	Dir    string
	UIDs   []string
	Mounts string
	Home   string
	Inside bool
	Single bool
	UID    int
}

// world is a user's surroundings: runtime directory, home, and the program.
type world struct {
	t       *testing.T
	base    string
	program string
}

// newWorld makes them; a test that is not root runs the program as itself.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() == 0 && userns.Needed() {
		t.Skip("root without CAP_SYS_ADMIN")
	}
	base := t.TempDir()
	w := &world{t: t, base: base, program: filepath.Join(base, "program")}
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run", "home", "work", "mnt"} {
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := os.Chown(dir, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(os.Chmod(filepath.Dir(base), 0o755), os.Chmod(base, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, code := w.run("show"); code != 0 {
		if strings.Contains(out, userns.ErrUnavailable.Error()) {
			t.Skip(out)
		}
		t.Fatalf("show: code %d: %s", code, out)
	}
	t.Cleanup(func() { // when a test fails half-way
		_ = w.command("stop").Run()
	})
	return w
}

func (w *world) dir(name string) string { return filepath.Join(w.base, name) }

func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), w.program, args...)
	if w.t.Context().Err() != nil {
		cmd = exec.Command(w.program, args...) //nolint:noctx // in cleanup
	}
	cmd.Dir = w.dir("work")
	// The race detector lingers a second at each exit unless told not to.
	cmd.Env = []string{"GORACE=atexit_sleep_ms=0", programEnv + "=1", "PATH=" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=" + w.dir("run"), "HOME=" + w.dir("home")}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// run returns what the program wrote, both streams, and its exit code.
func (w *world) run(args ...string) (string, int) {
	w.t.Helper()
	out, err := w.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

func (w *world) must(args ...string) string {
	w.t.Helper()
	out, code := w.run(args...)
	if code != 0 {
		w.t.Fatalf("%q: code %d: %s", args, code, out)
	}
	return out
}

func (w *world) show(args ...string) shown {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := w.command(append([]string{"show"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		w.t.Fatalf("show: %v: %s", err, stderr.String())
	}
	var s shown
	if err := json.Unmarshal(stdout.Bytes(), &s); err != nil {
		w.t.Fatalf("show: %v: %q", err, stdout.String())
	}
	return s
}

// write makes a file of the user's.
func (w *world) write(path string, data []byte) {
	w.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, nobody, nobody); err != nil {
			w.t.Fatal(err)
		}
	}
}

// holder returns the recorded holder, 0 when there is no record.
func (w *world) holder() int {
	w.t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.dir("run"), "dray", "ns"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var record struct{ PID int }
	if err := json.Unmarshal(raw, &record); err != nil {
		w.t.Fatal(err)
	}
	return record.PID
}

func (w *world) wantNoHolder() {
	w.t.Helper()
	if pid := w.holder(); pid != 0 {
		w.t.Errorf("holder %d is still recorded", pid)
	}
}

func TestReexecKeepsTheProgramsSurroundings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	odd := []string{"a b", "", "-x", "--", "$HOME", "*\n'\"", "\xff"}
	got := w.show(odd...)
	if got.UID != 0 || !got.Inside {
		t.Errorf("uid %d, inside %v: want root of a user namespace", got.UID, got.Inside)
	}
	if got.Dir != w.dir("work") || got.Home != w.dir("home") {
		t.Errorf("dir %q, home %q", got.Dir, got.Home)
	}
	want := append([]string{w.program, "show"}, odd...)
	want[len(want)-1] = "\ufffd" // as JSON has it
	if fmt.Sprintf("%q", got.Args) != fmt.Sprintf("%q", want) {
		t.Errorf("args\n%q, want\n%q", got.Args, want)
	}
	w.wantNoHolder()
}

func TestReexecKeepsTheNameItWasCalledBy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.dir("other-name")
	if err := os.Symlink(w.program, other); err != nil {
		t.Fatal(err)
	}
	cmd := w.command("show")
	cmd.Path, cmd.Args[0] = other, other
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got shown
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Args[0] != other {
		t.Errorf("called as %q, want %q", got.Args[0], other)
	}
}

func TestReexecExitCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tt := range []struct {
		name string
		args []string
		want int
	}{
		{"zero", []string{"exit", "0"}, 0},
		{"of the program", []string{"exit", "17"}, 17},
		{"of a signal", []string{"kill", "9"}, 128 + 9},
	} {
		if out, got := w.run(tt.args...); got != tt.want {
			t.Errorf("%s: code %d, want %d: %s", tt.name, got, tt.want, out)
		}
	}
	w.wantNoHolder()
}

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

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := w.command("wait")
	cmd.SysProcAttr = withSession(cmd.SysProcAttr)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if got, want := lines.Text(), "got "+syscall.SIGUSR1.String(); got != want {
		t.Errorf("program says %q, want %q", got, want)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	w.wantNoHolder()
}

func TestProgramInsideDiesWithItsParent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := w.command("wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	inside, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "ready "))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitGone(t, inside)
	w.must("show") // joins the holder that was left, and stops it
	w.wantNoHolder()
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
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
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

// withSession gives a process a session without a terminal, so that no signal is
// taken for the terminal's.
func withSession(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setsid = true
	return attr
}

// gone tells whether a process has ended; one whose parent has not looked counts.
func gone(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(raw), ") Z ")
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !gone(pid) {
		select {
		case <-ctx.Done():
			t.Fatalf("process %d is still there", pid)
		case <-tick.C:
		}
	}
}
