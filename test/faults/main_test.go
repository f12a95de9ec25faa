package faults

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/userns"
)

// nightlyVariable asks for every call on a larger image, and more time.
const nightlyVariable = "DRAY_NIGHTLY"

var (
	// program is the path of dray, under test.
	program string

	layout = flag.String("layout", "", "layout of the stores, for the flag of that name; empty: what the program chooses")
	seed   = flag.Uint64("seed", 1, "of what is left to chance")
)

func TestMain(m *testing.M) {
	if os.Getenv(gateVariable) != "" {
		fmt.Fprintln(os.Stderr, "launch:", launch())
		os.Exit(125)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return m.Run(), nil // each test says what it needs
	}
	if err := userns.Isolate(unix.MS_SHARED); err != nil { // others' tests make namespaces
		return 0, err
	}
	dir, err := os.MkdirTemp("", "faults-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "dray")
	build := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-o", program, "dray/cmd/dray")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build dray: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// environment is what the program gets: no settings of the machine's.
func environment() []string {
	var kept []string
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !strings.HasPrefix(name, "DRAY_") {
			kept = append(kept, v)
		}
	}
	return kept
}

func nightly() bool { return os.Getenv(nightlyVariable) != "" }

// mountsBelow lists what is mounted below dir.
func mountsBelow(tb testing.TB, dir string) []string {
	tb.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	var below []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	return below
}

// unmountBelow takes away what a failed test has left mounted.
func unmountBelow(tb testing.TB, dir string) {
	tb.Helper()
	for _, target := range mountsBelow(tb, dir) {
		_ = unix.Unmount(target, unix.MNT_DETACH) // best effort, after a failure
	}
}

// leftovers lists what is in the store of processes that have ended: scratch,
// temporary files, mounts and their records.
func leftovers(tb testing.TB, home, store string) []string {
	tb.Helper()
	left := mountsBelow(tb, home)
	for _, dir := range []string{"staging", "mounts", "quarantine"} {
		entries, err := os.ReadDir(filepath.Join(store, dir))
		if err != nil {
			tb.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	for _, pattern := range []string{".tmp-*", "*/.tmp-*", "*/*/.tmp-*", "layers/*/*/.tmp-*"} {
		found, err := filepath.Glob(filepath.Join(store, pattern))
		if err != nil {
			tb.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}
