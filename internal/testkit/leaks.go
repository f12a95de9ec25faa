package testkit

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long what a test has stopped may take to end, on a machine as slow
// as it may be.
const leakPatience = time.Minute

// NoLeaks fails the test if it ends with goroutines, open files, mounts or child
// processes that were not there when NoLeaks was called. Call it first, so that it
// looks last; not in tests that run in parallel, which see each other's.
//
//	func TestPull(t *testing.T) {
//		testkit.NoLeaks(t)
func NoLeaks(tb testing.TB) {
	tb.Helper()
	noLeaks(tb, leakPatience)
}

func noLeaks(tb testing.TB, patience time.Duration) {
	tb.Helper()
	before := census()
	tb.Cleanup(func() {
		var left []string
		poll(patience, func() bool {
			http.DefaultClient.CloseIdleConnections()
			left = slices.Concat(
				missing("goroutine", before.goroutines, goroutines()), missing("open file", before.files, openFiles()),
				missing("mount", before.mounts, mounts()), missing("process", before.children, children()))
			return len(left) == 0
		})
		for _, thing := range left {
			tb.Errorf("left behind: %s", thing)
		}
	})
}

// poll asks until done says true or patience ends.
func poll(patience time.Duration, done func() bool) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return done()
		}
	}
	return true
}

// things are what there is, by an identity that is not used twice.
type things map[string]string

type inventory struct{ goroutines, files, mounts, children things }

func census() inventory { return inventory{goroutines(), openFiles(), mounts(), children()} }

func missing(kind string, before, after things) []string {
	var left []string
	for _, id := range slices.Sorted(maps.Keys(after)) {
		if _, old := before[id]; !old {
			left = append(left, fmt.Sprintf("%s %s: %s", kind, id, after[id]))
		}
	}
	return left
}

// goroutines lists stacks, but for those of the testing package and the runtime.
func goroutines() things {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	found := things{}
	for i, stack := range strings.Split(string(stacks), "\n\n") {
		head, body, _ := strings.Cut(stack, "\n")
		own := i == 0 // the one that asks comes first
		if own || strings.Contains(body, "testing.(*T).Run(") || strings.Contains(body, "testing.(*M).") ||
			strings.HasPrefix(body, "testing.tRunner(") || strings.HasPrefix(body, "os/signal.") || strings.Contains(body, "runtime.ensureSigM") {
			continue
		}
		fields := strings.Fields(head)
		found[fields[1]] = stack
	}
	return found
}

// openFiles lists descriptors, but for those that the runtime opens once.
func openFiles() things {
	found := things{}
	for _, link := range glob("/proc/self/fd/*") {
		target, err := os.Readlink(link)
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") || target == "/proc/self/fd" || strings.HasSuffix(target, "/fd") {
			continue
		}
		found[filepath.Base(link)+" "+target] = target
	}
	return found
}

// mounts lists the mount namespace by mount ID.
func mounts() things {
	found := things{}
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return found
	}
	for line := range strings.Lines(string(raw)) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[id] = rest
	}
	return found
}

// children lists child processes, dead ones that nobody waits for included.
func children() things {
	found := things{}
	for _, name := range glob("/proc/self/task/*/children") {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for pid := range strings.FieldsSeq(string(raw)) {
			command, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err == nil {
				found[pid] = strings.ReplaceAll(string(command), "\x00", " ")
			}
		}
	}
	return found
}

func glob(pattern string) []string {
	names, err := filepath.Glob(pattern)
	if err != nil {
		panic("testkit: " + err.Error()) // the pattern is bad
	}
	return names
}
