package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/testkit"
	"dray/internal/userns"
)

// busybox is a static busybox, as Debian's busybox-static has it.
const busybox = "/usr/bin/busybox"

// unified is where the second cgroup version is mounted beside the first.
const unified = "/sys/fs/cgroup/unified"

// box is a bundle with busybox in it.
type box struct {
	o    RunOptions
	dir  string
	root string // the root file system
}

// newBox makes a bundle for the runtime of a name, "runc" or "crun". All that a test leaves
// in the kernel is asserted to be gone at its end.
func newBox(t *testing.T, name string) *box {
	t.Helper()
	testkit.Need(t, testkit.Root(), testkit.Tool(name), testkit.Tool(busybox))
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}

	// Not t.TempDir: its parents are root's alone, and rootless tests pass here.
	dir, err := os.MkdirTemp("", "dray-bundle-test-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	b := &box{dir: dir, root: filepath.Join(dir, RootfsName)}
	b.o = RunOptions{
		Runtime: path, Bundle: dir, ID: "dray-test-" + filepath.Base(dir)[len("dray-bundle-test-"):],
		Root: filepath.Join(dir, "state"), Grace: 200 * time.Millisecond,
	}
	if name == "crun" {
		b.o.Runtime = crunWithoutHybrid(t, dir, path)
	}
	t.Cleanup(func() { b.close(t) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range users {
		b.put(t, name, content)
	}
	if err := os.MkdirAll(filepath.Join(b.root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := testkit.WriteProgram(filepath.Join(b.root, "bin/busybox"), program); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "id", "cat", "ls", "sleep", "true", "touch", "stat", "stty", "tty", "pwd", "env", "kill", "ip", "mount", "hostname", "grep", "readlink", "mkdir"} {
		if err := os.Symlink("busybox", filepath.Join(b.root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// crunWithoutHybrid returns a crun that does not see the second cgroup version
// where both are mounted, because it refuses to run there.
func crunWithoutHybrid(t *testing.T, dir, path string) string {
	t.Helper()
	if _, err := os.Stat(unified); err != nil {
		return path
	}
	wrapper := filepath.Join(dir, "crun")
	script := "#!/bin/sh\nexec unshare --mount --propagation slave sh -c 'umount " + unified + "; exec " + path + " \"$@\"' crun \"$@\"\n"
	if err := testkit.WriteProgram(wrapper, []byte(script)); err != nil {
		t.Fatal(err)
	}
	return wrapper
}

// withoutHybrid runs a command as crunWithoutHybrid does, for commands that enter
// a user namespace.
func withoutHybrid(cmd *exec.Cmd) error {
	ended := make(chan error)
	go func() {
		// Not unlocked: the thread ends with this goroutine, and its mounts with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			ended <- err
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			ended <- err
			return
		}
		_ = unix.Unmount(unified, 0) // it need not be there
		ended <- cmd.Run()
	}()
	return <-ended
}

func (b *box) put(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(b.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *box) close(t *testing.T) {
	t.Helper()
	if err := Delete(context.WithoutCancel(t.Context()), b.o); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(b.o.Root); len(left) > 0 {
		t.Errorf("containers are left: %v", left)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + b.o.ID); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	if left := b.mounts(t); left != "" {
		t.Errorf("mounts are left: %s", left)
	}
	if left := b.processes(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		t.Error(err)
	}
}

func (b *box) mounts(t *testing.T) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, b.dir) {
			return line
		}
	}
	return ""
}

// processes returns what runs in the box, or has it on its command line.
func (b *box) processes(t *testing.T) []string {
	t.Helper()
	var all []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		// A process may end meanwhile; then it is none of ours.
		line, _ := os.ReadFile(dir + "/cmdline")
		mounts, _ := os.ReadFile(dir + "/mountinfo")
		if strings.Contains(string(line), b.o.ID) || strings.Contains(string(mounts), b.dir) {
			all = append(all, dir+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return all
}

// write makes the bundle's configuration.
func (b *box) write(t *testing.T, c oci.ImageConfig, o Options) {
	t.Helper()
	o.CgroupsPath = "/" + b.o.ID
	spec, err := Spec(newImage(c), openDir(t, b.root), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(b.dir, spec); err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell script in the box and returns what it says.
func (b *box) sh(t *testing.T, script string, c oci.ImageConfig, o Options) (code int, stdout, stderr string) {
	t.Helper()
	c.Cmd = []string{"/bin/sh", "-c", script}
	b.write(t, c, o)
	var out, said bytes.Buffer
	run := b.o
	run.Stdout, run.Stderr = &out, &said
	code, err := Run(limited(t), run)
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	return code, strings.TrimSpace(out.String()), strings.TrimSpace(said.String())
}

// Environment variables that make this test binary a child which runs a box.
const (
	childRun  = "BUNDLE_TEST_RUN"  // RunOptions as JSON
	childSpec = "BUNDLE_TEST_SPEC" // Options as JSON, to make the bundle first; may be empty
)

func TestMain(m *testing.M) {
	if os.Getenv(childRun) != "" {
		os.Exit(child())
	}
	if err := userns.Isolate(unix.MS_SHARED); err != nil { // others' tests make namespaces
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child runs a box with its own standard streams and signals, as the command does.
func child() int {
	code, err := runChild()
	if err != nil {
		_, _ = os.Stderr.WriteString("child: " + err.Error() + "\n")
		return 99
	}
	return code
}

func runChild() (int, error) {
	var run RunOptions
	if err := json.Unmarshal([]byte(os.Getenv(childRun)), &run); err != nil {
		return 0, err
	}
	if text := os.Getenv(childSpec); text != "" {
		var o Options
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			return 0, err
		}
		rootfs, err := os.Open(filepath.Join(run.Bundle, RootfsName))
		if err != nil {
			return 0, err
		}
		defer func() { _ = rootfs.Close() }()
		spec, err := Spec(newImage(oci.ImageConfig{}), rootfs, o)
		if err != nil {
			return 0, err
		}
		if err := Write(run.Bundle, spec); err != nil {
			return 0, err
		}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, Signals()...)
	run.Stdin, run.Stdout, run.Stderr, run.Signals = os.Stdin, os.Stdout, os.Stderr, signals
	return Run(context.Background(), run)
}

// command returns the child process that runs the box.
func (b *box) command(t *testing.T, spec *Options) *exec.Cmd {
	t.Helper()
	run := b.o
	run.Signals = nil
	cmd := exec.CommandContext(limited(t), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childRun+"="+encoded(t, struct {
		Runtime, Bundle, ID, Root string
		Rootless, Terminal        bool
		Grace                     time.Duration
	}{run.Runtime, run.Bundle, run.ID, run.Root, run.Rootless, run.Terminal, run.Grace}))
	if spec != nil {
		cmd.Env = append(cmd.Env, childSpec+"="+encoded(t, struct {
			Args, Env []string
			Net       NetMode
			Rootless  bool
			Mounts    []Mount
			User      string
		}{spec.Args, spec.Env, spec.Net, spec.Rootless, spec.Mounts, spec.User}))
	}
	return cmd
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// patience bounds what would hang, on a machine as slow as it may be.
const patience = 5 * time.Minute

// limited returns a context that ends a container which a test waits for in vain.
func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// until waits for a condition that another process brings about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// has tells whether a file of the box's exists: how scripts say where they are.
func (b *box) has(name string) bool {
	_, err := os.Stat(filepath.Join(b.root, name))
	return err == nil
}

// runtimes runs a test for both.
func runtimes(t *testing.T, test func(t *testing.T, runtime string)) {
	t.Helper()
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

// pty returns both ends of a new pseudo terminal.
func pty(t *testing.T) (control, terminal *os.File) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = control.Close() })
	fd := int(control.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Fatal(errno)
	}
	terminal = os.NewFile(peer, "terminal")
	t.Cleanup(func() { _ = terminal.Close() })
	return control, terminal
}
