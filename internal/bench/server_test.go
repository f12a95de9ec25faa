//go:build linux

package bench_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dray/internal/bench"
	"dray/internal/guest/api"
	"dray/internal/testkit"
	"dray/internal/userns"
)

// bad is a server of the right protocol that does what it should not.
type bad struct{ how string }

// PullImage implements api.ImagePullServiceService.
func (b bad) PullImage(_ context.Context, r *api.ImagePullRequest) (*api.ImagePullResponse, error) {
	switch b.how {
	case "refuse":
		return nil, status.Error(codes.NotFound, "no such image here")
	case "die":
		_, _ = os.Stderr.WriteString("out of luck\n")
		os.Exit(3)
	case "killed":
		return nil, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "leave": // mounts, one inside the other, and a process that is in no group of ours any more
		root := filepath.Join(r.GetBundlePath(), "rootfs")
		for _, dir := range []string{root, filepath.Join(root, "inner")} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return nil, err
			}
			if err := unix.Mount("left", dir, "tmpfs", 0, "size=1m"); err != nil {
				return nil, err
			}
		}
		child := exec.Command("/bin/sleep", "1000") //nolint:noctx // it is to stay
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			return nil, err
		}
		return &api.ImagePullResponse{}, os.WriteFile(filepath.Join(root, "file"), []byte("x"), 0o600)
	}
	return &api.ImagePullResponse{}, nil
}

func serveBadly(how, socket string) error {
	signal.Ignore(syscall.SIGTERM)
	l, err := net.Listen("unix", socket) //nolint:noctx // a test's server
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	api.RegisterImagePullServiceService(server, bad{how})
	return server.Serve(context.Background(), l)
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBadServers(t *testing.T) {
	testkit.Need(t, testkit.Root())
	bad := func(how string) *bench.Rival { return bench.ServerRival(how, self(t), "serve", how, "{socket}") }
	runs := measure(t, bench.Options{Rivals: []*bench.Rival{bad("die"), bad("killed"), rival(t, "floor")}, Modes: []string{bench.Individual}}).Runs
	runs = append(runs, measure(t, bench.Options{ // who does not end when asked to
		Rivals: []*bench.Rival{bad("refuse"), bad("leave")}, Grace: 100 * time.Millisecond, Modes: []string{bench.Individual},
	}).Runs...)
	runs = append(runs, measure(t, bench.Options{
		Rivals: []*bench.Rival{bench.ServerRival("never", "/bin/sleep", "1000")}, Timeout: 2 * time.Second, Modes: []string{bench.Individual},
	}).Runs...)
	want := map[string]struct{ failure, cleanup string }{
		"refuse": {"no such image here", "did not stop"},
		"die":    {"(the server had ended: exit status 3) (the server's log ends: out of luck", ""},
		"killed": {"(the server had ended: signal: killed)", ""},
		"leave":  {"", "did not stop"},
		"never":  {"not ready in time", ""},
		"floor":  {"", ""},
	}
	for _, r := range runs {
		w := want[r.Rival]
		if (w.failure == "") != (r.Error == "") || !strings.Contains(r.Error, w.failure) {
			t.Errorf("%s: error %q, want %q", r.Rival, r.Error, w.failure)
		}
		if (w.cleanup == "") != (r.Cleanup == "") || !strings.Contains(r.Cleanup, w.cleanup) {
			t.Errorf("%s: cleanup %q, want %q", r.Rival, r.Cleanup, w.cleanup)
		}
	}
	if strings.Contains(mounts(t), "- tmpfs left ") {
		t.Error("mounts are left")
	}
}

// What listens on the socket that imagepuller has to use would be measured instead.
func TestSocketInUse(t *testing.T) {
	testkit.Need(t, testkit.Root())
	if err := os.MkdirAll(filepath.Dir(pullerSocket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", pullerSocket) //nolint:noctx // a test's listener
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = l.Close()
		_ = os.Remove(filepath.Dir(pullerSocket)) // unless others use it
	}()
	path := filepath.Join(t.TempDir(), "imagepuller")
	if err := os.Symlink(self(t), path); err != nil {
		t.Fatal(err)
	}
	report := measure(t, bench.Options{Rivals: []*bench.Rival{rival(t, path)}, Modes: []string{bench.Individual}})
	if !strings.Contains(report.Runs[0].Error, "stop it first") {
		t.Errorf("got %q", report.Runs[0].Error)
	}
}

// A program of Go's that does not tell its version has one all the same.
func TestVersionFromTheProgram(t *testing.T) {
	t.Parallel()
	if version := rival(t, "dray-guest="+self(t)).Version; !strings.HasPrefix(version, "dray ") || !strings.Contains(version, runtime.Version()) {
		t.Errorf("got %q", version)
	}
}

// Nobody waits for what a program leaves behind when it is asked for its version.
func TestVersionOfAProgramThatForks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dray-guest")
	left := filepath.Join(t.TempDir(), "left")
	script := "#!/bin/sh\necho version 7\nsetsid sleep 1000 &\necho $! >" + left + "\n"
	if err := testkit.WriteProgram(path, []byte(script)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		raw, err := os.ReadFile(left)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err := errors.Join(err, syscall.Kill(pid, syscall.SIGKILL)); err != nil {
			t.Errorf("nothing was left: %v", err)
		}
	}()
	if version := rival(t, path).Version; !strings.HasPrefix(version, "version 7, ") {
		t.Errorf("got %q", version)
	}
}

// A run that its limit kills says so; one that stays below it does not.
func TestMemoryLimit(t *testing.T) {
	testkit.Need(t, testkit.Root())
	report := measure(t, bench.Options{Rivals: []*bench.Rival{
		rival(t, "small@command:echo x >{dir}/x"), rival(t, "large@command:dd if=/dev/zero of=/dev/null bs=64M count=1"),
	}, Modes: []string{bench.Individual}, MemoryLimit: 24 << 20})
	for _, r := range report.Runs {
		if killed := strings.Contains(r.Error, "for want of memory"); killed != (r.Rival == "large") || killed != (r.OOMKills > 0) || !killed && r.Error != "" {
			t.Errorf("%s: %q, %d kills", r.Rival, r.Error, r.OOMKills)
		}
	}
}

func TestDiskFull(t *testing.T) {
	testkit.Need(t, testkit.Root())
	c, dir := corpus(t), shortDir(t)
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	report, err := bench.Bench(t.Context(), bench.Options{
		Corpus: c, Rivals: []*bench.Rival{rival(t, "command:dd if=/dev/zero of={store}/x bs=1M count=64"), rival(t, "floor")},
		Modes: []string{bench.Individual}, Repetitions: 1, Work: dir, Say: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Runs {
		if full := strings.Contains(r.Error, "No space left"); full != strings.HasPrefix(r.Rival, "command:") || !full && r.Error != "" {
			t.Errorf("%s: %q", r.Rival, r.Error)
		}
	}
}

// measureAlone is a bench in a process of its own, of the corpus, with work as its
// directory; the report goes to work as well.
func measureAlone(corpusDir, work string) error {
	if err := userns.Isolate(unix.MS_SLAVE); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	c, err := bench.OpenCorpus(corpusDir)
	if err != nil {
		return err
	}
	var rivals []*bench.Rival
	programs := []string{"floor", "command:x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 1; echo x > {dir}/f"}
	if program := os.Getenv("BENCH_TEST_PROGRAM"); program != "" {
		programs = []string{"command:" + program}
	}
	for _, s := range programs {
		r, err := bench.ParseRival(ctx, s)
		if err != nil {
			return err
		}
		rivals = append(rivals, r)
	}
	report, err := bench.Bench(ctx, bench.Options{
		Corpus: c, Rivals: rivals, Repetitions: 2, DropCaches: 3, Work: work, Say: func(string, ...any) {},
	})
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(work, "report-*.json")
	if err != nil {
		return err
	}
	return errors.Join(file.Close(), report.Write(file.Name()))
}

// openDir returns a directory that everybody may enter, with a corpus, this program,
// and a directory for work.
func openDir(t *testing.T) (program, corpusDir, work string) {
	t.Helper()
	dir := shortDir(t)
	program, corpusDir, work = filepath.Join(dir, "program"), filepath.Join(dir, "c"), filepath.Join(dir, "w")
	raw, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(work, 0o755), os.Chmod(work, 0o777), testkit.WriteProgram(program, raw)); err != nil {
		t.Fatal(err)
	}
	if _, err := bench.BuildRecipe(t.Context(), corpusDir, "generated", 1, 256<<10); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "chmod", "-R", "a+rX", corpusDir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program, corpusDir, work
}

// reports reads the reports in work, and makes sure that nothing else is there.
func reports(t *testing.T, work string) (found []*bench.Report) {
	t.Helper()
	entries, err := os.ReadDir(work)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "report-") {
			t.Errorf("left: %s", e.Name())
			continue
		}
		r, err := bench.ReadReport(filepath.Join(work, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, r)
	}
	return found
}

// wantClean makes sure that no run failed or left anything.
func wantClean(t *testing.T, found []*bench.Report) {
	t.Helper()
	for _, report := range found {
		for _, r := range report.Runs {
			if r.Error != "" || r.Cleanup != "" {
				t.Errorf("%s: %q, %q", r.Rival, r.Error, r.Cleanup)
			}
		}
	}
}

func TestWithoutRoot(t *testing.T) {
	testkit.Need(t, testkit.Root()) // to become somebody else
	program, corpusDir, work := openDir(t)
	cmd := exec.CommandContext(t.Context(), program, "measure", corpusDir, work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	found := reports(t, work)
	if len(found) != 1 || len(found[0].Runs) != 8 {
		t.Fatalf("reports: %v", found)
	}
	notes := strings.Join(found[0].Notes, "\n")
	for _, want := range []string{"not root", "no control groups"} {
		if !strings.Contains(notes, want) {
			t.Errorf("it is not said: %s", want)
		}
	}
	for _, r := range found[0].Runs {
		if r.Error != "" || r.Seconds == 0 || r.Rival == "floor" && r.NetworkBytes == 0 || r.Rival != "floor" && (r.PeakRSS < 16<<20 || r.CPUSeconds == 0) {
			t.Errorf("%s: %q, %+v", r.Rival, r.Error, r)
		}
	}
}

// What an ordinary user may not write to is removed, what leaves its parent is ended, and
// what another user's bench has left is in nobody's way.
func TestLeftoversWithoutRoot(t *testing.T) {
	testkit.Need(t, testkit.Root()) // to become somebody else
	program, corpusDir, work := openDir(t)
	theirs := filepath.Join(work, "dray-bench-999999")
	if err := errors.Join(os.Mkdir(theirs, 0o700), os.WriteFile(filepath.Join(theirs, "lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "measure", corpusDir, work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = work
	mark := "4321" + filepath.Base(filepath.Dir(work))[1:]
	cmd.Env = append(os.Environ(), "BENCH_TEST_PROGRAM=mkdir {store}/sealed && echo x >{store}/sealed/x && chmod 500 {store}/sealed && echo x >{dir}/x; sleep "+mark+
		" & setsid -f env -i sh -c 'sleep "+mark+" & exec setsid sleep "+mark+"'")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.RemoveAll(theirs); err != nil {
		t.Error(err)
	}
	wantClean(t, reports(t, work))
	found, err := exec.CommandContext(t.Context(), "pgrep", "-f", "sleep "+mark).Output()
	if err == nil {
		t.Errorf("processes are left: %s", found)
	}
}

// What a killed bench of an ordinary user has left running is ended by the next.
func TestKilledBenchWithoutRootIsSwept(t *testing.T) {
	testkit.Need(t, testkit.Root()) // to become somebody else
	program, corpusDir, work := openDir(t)
	cmd := exec.CommandContext(t.Context(), program, "measure", corpusDir, work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = work
	mark := "5432" + filepath.Base(filepath.Dir(work))[1:]
	cmd.Env = append(os.Environ(), "BENCH_TEST_PROGRAM=setsid sleep "+mark+" & touch {store}/begun; sleep "+mark)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() bool { return exec.CommandContext(t.Context(), "pgrep", "-f", "^sleep "+mark).Run() == nil }
	for !running() {
		if t.Context().Err() != nil {
			t.Fatal("the program was never started")
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	if !running() {
		t.Error("nothing was left to be swept")
	}
	if err := bench.Sweep(t.Context(), work); err != nil {
		t.Error(err)
	}
	if running() {
		t.Error("processes are left")
	}
	reports(t, work) // and nothing else
}

// Two benches in one directory leave each other alone.
func TestTwoBenchesAtOnce(t *testing.T) {
	program, corpusDir, work := openDir(t)
	var running []*exec.Cmd
	for range 2 {
		cmd := exec.CommandContext(t.Context(), program, "measure", corpusDir, work)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	found := reports(t, work)
	if len(found) != 2 {
		t.Fatalf("%d reports", len(found))
	}
	wantClean(t, found)
}
