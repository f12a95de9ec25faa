//go:build linux

package bench_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/bench"
	"dray/internal/testkit"
	"dray/internal/userns"
)

// TestMain lets the test binary be a program under test: "bench do-floor REF" as dray
// has it, "use", which takes usedTime of CPU, servers good and bad, and a bench of its own.
func TestMain(m *testing.M) {
	// the race detector would let each of them wait for a second before it ends
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		exit(err)
	}
	switch filepath.Base(os.Args[0]) {
	case "imagepuller":
		exit(predecessor(imagepuller(pullerSocket)))
	case "imagepuller-2025":
		exit(predecessor(imagepuller(oldPullerSocket)))
	case "ttrpc-cdh":
		exit(predecessor(hub()))
	}
	switch {
	case len(os.Args) == 4 && os.Args[1] == "serve":
		exit(serveBadly(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == "plugin":
		exit(servePlugin(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == "measure":
		exit(measureAlone(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == "bench" && os.Args[2] == "do-floor":
		exit(bench.Floor(context.Background(), os.Args[3]))
	case len(os.Args) == 2 && os.Args[1] == "use":
		exit(use())
	case len(os.Args) == 3 && os.Args[1] == "profile":
		exit(allocate(os.Args[2]))
	}
	if err := userns.Isolate(unix.MS_SLAVE); err != nil { // others' tests make namespaces
		exit(err)
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	usedMemory  = 64 << 20
	usedStorage = 8 << 20
	usedTime    = 300 * time.Millisecond
)

// use is busy until it has had usedTime of CPU.
func use() error {
	for {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			return err
		}
		if time.Duration(u.Utime.Nano()+u.Stime.Nano()) >= usedTime {
			return nil
		}
	}
}

func corpus(t *testing.T) *bench.Corpus {
	t.Helper()
	dir := t.TempDir()
	c, err := bench.BuildRecipe(t.Context(), dir, "generated", 2, 256<<10)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rival(t *testing.T, s string) *bench.Rival {
	t.Helper()
	r, err := bench.ParseRival(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// shortDir returns a directory for work whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b") //nolint:usetesting // a test's own directory has a long name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func measure(t *testing.T, o bench.Options) *bench.Report {
	t.Helper()
	if o.Corpus == nil {
		o.Corpus = corpus(t)
	}
	o.Work, o.Repetitions, o.Seed = shortDir(t), max(o.Repetitions, 1), 1
	o.Say = func(format string, args ...any) { t.Logf(format, args...) }
	report, err := bench.Bench(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(o.Work)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind in the work directory: %v, %v", left, err)
	}
	return report
}

func TestKnownAmountsAreMeasured(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// the second dd has its block from the first byte that it writes until somebody reads the rest
	const memory = "command:dd if=/dev/zero of={store}/a bs=8M count=1 status=none && ln {store}/a {store}/b && dd if=/dev/zero bs=64M count=1 status=none | { head -c 1 >/dev/null; sleep 1; cat >/dev/null; }"
	report := measure(t, bench.Options{
		Rivals: []*bench.Rival{rival(t, memory), rival(t, "command:"+self+" use")}, Modes: []string{bench.Individual},
	})
	for _, r := range report.Runs {
		switch {
		case r.Error != "":
			t.Fatal(r.Error)
		case r.Rival == memory:
			checkMemory(t, report, r)
		case r.Seconds < usedTime.Seconds()/2: // on two cores
			t.Errorf("time %f, used %s of CPU", r.Seconds, usedTime)
		case report.Machine.Cgroup > 0 && (r.CPUSeconds < usedTime.Seconds()*0.95 || r.CPUSeconds > usedTime.Seconds()*1.75): // beside it, a shell
			t.Errorf("CPU %f s, used %s", r.CPUSeconds, usedTime)
		}
	}
}

func checkMemory(t *testing.T, report *bench.Report, r bench.Run) {
	t.Helper()
	if r.PeakRSS < usedMemory || r.PeakRSS > usedMemory*5/4 {
		t.Errorf("peak RSS %d, used %d", r.PeakRSS, usedMemory)
	}
	if r.Storage.Blocks < usedStorage || r.Storage.Blocks > usedStorage+64<<10 {
		t.Errorf("storage %d blocks, used %d with a hard link", r.Storage.Blocks, usedStorage)
	}
	if report.Machine.Cgroup > 0 && (r.PeakCgroup < usedMemory || r.PeakCgroupAnon < usedMemory || r.PeakCgroupAnon > usedMemory*5/4) {
		t.Errorf("control group's peaks %d and %d, used %d", r.PeakCgroup, r.PeakCgroupAnon, usedMemory)
	}
}

// A program that ends before the first sample has been seen all the same.
func TestMemoryOfAShortProgramIsSeen(t *testing.T) {
	if peak, err := bench.PeakWithoutSamples(t.TempDir(), "/bin/sh", "-c"); err != nil || peak == 0 {
		t.Errorf("peak %d, %v", peak, err)
	}
}

func TestFailuresDoNotStopTheOthers(t *testing.T) {
	report := measure(t, bench.Options{
		Rivals: []*bench.Rival{
			rival(t, "command:echo it is broken >&2; exit 3"),
			bench.ServerRival("ends", "/bin/sh", "-c", "echo no store >&2; exit 1"),
			rival(t, "floor"),
			rival(t, "command:sleep 100 & sleep 100 & echo x > {dir}/f"), // leaves processes behind
		},
		Modes: []string{bench.Individual},
	})
	want := map[string]string{
		"command:echo it is broken >&2; exit 3": "it is broken", "ends": "no store", "floor": "",
		"command:sleep 100 & sleep 100 & echo x > {dir}/f": "",
	}
	for _, r := range report.Runs {
		if w := want[r.Rival]; w == "" && r.Error != "" || !strings.Contains(r.Error, w) {
			t.Errorf("%s: got error %q, want %q", r.Rival, r.Error, w)
		}
		if r.Cleanup != "" {
			t.Errorf("%s: %s", r.Rival, r.Cleanup)
		}
	}
	if len(report.Runs) != len(want) || !report.Failed() {
		t.Errorf("%d runs, failed %v", len(report.Runs), report.Failed())
	}
}

// A run that takes too long is ended, and the next one is made.
func TestTimeoutDoesNotStopTheOthers(t *testing.T) {
	report := measure(t, bench.Options{
		Rivals: []*bench.Rival{rival(t, "command:sleep 100")}, Timeout: 500 * time.Millisecond, Modes: []string{bench.Individual}, Repetitions: 2,
	})
	for _, r := range report.Runs {
		if !strings.Contains(r.Error, "longer than 500ms") || r.Cleanup != "" {
			t.Errorf("%q, %q", r.Error, r.Cleanup)
		}
	}
	if len(report.Runs) != 2 {
		t.Errorf("%d runs", len(report.Runs))
	}
}

func TestFloorIsCounted(t *testing.T) {
	c := corpus(t)
	report := measure(t, bench.Options{Corpus: c, Rivals: []*bench.Rival{rival(t, "floor")}, Repetitions: 2, WarmUp: true})
	if len(report.Runs) != 4 { // individual and continuous
		t.Fatalf("%d runs", len(report.Runs))
	}
	size := c.Image("generated").CompressedBytes()
	for _, r := range report.Runs {
		if r.Error != "" {
			t.Fatal(r.Error)
		}
		if r.NetworkRequests != 3 || r.NetworkBytes < size || r.NetworkBytes > size+10_000 {
			t.Errorf("%d bytes in %d requests, the layers have %d", r.NetworkBytes, r.NetworkRequests, size)
		}
	}
}

func TestFaultsReachTheClient(t *testing.T) {
	for _, name := range []string{"503/2", "cut/2"} {
		fault, err := bench.ParseFault(name)
		if err != nil {
			t.Fatal(err)
		}
		report := measure(t, bench.Options{Rivals: []*bench.Rival{rival(t, "floor")}, Modes: []string{bench.Individual}, Faults: []bench.Fault{fault}})
		if report.Runs[0].Error == "" {
			t.Errorf("%s: a client without retries did not notice", name)
		}
	}
}

func TestReportsAreReadBack(t *testing.T) {
	report := measure(t, bench.Options{Rivals: []*bench.Rival{rival(t, "floor")}, Modes: []string{bench.Individual}})
	path := filepath.Join(t.TempDir(), "report.json")
	if err := report.Write(path); err != nil {
		t.Fatal(err)
	}
	read, err := bench.ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	merged := bench.Merge(read, report)
	if len(merged.Runs) != 2 || len(merged.Rivals) != 1 || len(merged.Images) != 1 {
		t.Errorf("merged: %d runs, %d rivals, %d images", len(merged.Runs), len(merged.Rivals), len(merged.Images))
	}
	if err := os.WriteFile(path, []byte(`{"schema": 2, "runs": "a new form"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bench.ReadReport(path); !errors.Is(err, bench.ErrNewerSchema) {
		t.Errorf("a newer schema: %v", err)
	}
}

func TestKilledBenchIsSwept(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "dray-bench-999999", "1", "store")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := bench.Sweep(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// What leaves its parent is a part of the run, and what waits for its end sees it.
func TestOrphansAreReaped(t *testing.T) {
	const waits = `command:setsid -f sh -c 'echo $$ >"$BENCH_STORE"/new; mv "$BENCH_STORE"/new "$BENCH_STORE"/pid; exec sleep 0.05'; ` +
		`until test -e {store}/pid; do :; done; while kill -0 $(cat {store}/pid) 2>/dev/null; do :; done; echo x >{dir}/x`
	report := measure(t, bench.Options{Rivals: []*bench.Rival{rival(t, waits)}, Modes: []string{bench.Individual}, Timeout: patience})
	if r := report.Runs[0]; r.Error != "" || r.Cleanup != "" {
		t.Errorf("%q, %q", r.Error, r.Cleanup)
	}
}

// The number of a process that has ended may be another's by the time it is killed.
func TestReusedNumberIsNotKilled(t *testing.T) {
	testkit.Need(t, testkit.Root()) // to choose a number
	for range 100 {                 // a number may be taken for good by somebody else
		if reuseNumber(t) {
			return
		}
	}
	t.Error("nobody got a number that had been another's")
}

// reuseNumber kills a process whose number became another's meanwhile, and tells whether
// it came to that.
func reuseNumber(t *testing.T) (reused bool) {
	t.Helper()
	first := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	number := first.Process.Pid
	var second *exec.Cmd
	var closing io.Closer
	call := 0
	err := bench.KillAll(t.Context(), func() []int {
		switch call++; call {
		case 1:
			return []int{number}
		case 2:
			_ = errors.Join(first.Process.Kill(), first.Wait()) // that it was killed
			if second, closing = startAs(t, number); second != nil {
				return []int{number}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if second == nil {
		return false
	}
	if err := errors.Join(closing.Close(), second.Wait()); err != nil {
		t.Errorf("another process of the same number was killed: %v", err)
	}
	return true
}

// startAs starts a process that has the number, and ends well when the closer is closed;
// none when others were always first.
func startAs(t *testing.T, number int) (*exec.Cmd, io.Closer) {
	t.Helper()
	for range 10 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(number-1)), 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "cat")
		closing, err := cmd.StdinPipe()
		if err := errors.Join(err, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		if cmd.Process.Pid == number {
			return cmd, closing
		}
		_ = errors.Join(closing.Close(), cmd.Wait())
	}
	return nil, nil
}
