package userns_test

import (
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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/testkit"
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
	case "isolate":
		return report(isolate(args[0]))
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
	if err := testkit.WriteProgram(w.program, binary); err != nil {
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

// gone tells whether a process has ended; one whose parent has not looked counts.
func gone(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(raw), ") Z ")
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
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
