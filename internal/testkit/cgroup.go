package testkit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Group is a memory cgroup of its own for a test's commands. Page cache counts, as
// it does for a container: the kernel has to reclaim it.
//
//	group := testkit.Cgroup(t, 48<<20)
//	err := group.Command("dray", "pull", ref).Run()
//	if group.OOMKills() > 0 || group.Peak() > …
type Group struct {
	tb      testing.TB
	dir     string
	unified bool
}

// Cgroup makes a cgroup whose processes may use memoryMax bytes together, and
// removes it when the test ends. It skips the test, as [Need] does, where that
// cannot be done.
func Cgroup(tb testing.TB, memoryMax int64) *Group {
	tb.Helper()
	Need(tb, MemoryCgroup())
	parent, unified := memoryHierarchy()
	g := &Group{tb: tb, dir: filepath.Join(parent, "testkit-"+rand.Text()), unified: unified}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if !poll(leakPatience, func() bool { return os.Remove(g.dir) == nil }) {
			tb.Errorf("cgroup %s cannot be removed: its processes still run", g.dir)
		}
	})
	limit := strconv.FormatInt(memoryMax, 10)
	if unified {
		g.write("memory.max", limit)
		g.writeIfThere("memory.swap.max", "0")
	} else {
		g.write("memory.limit_in_bytes", limit)
		g.writeIfThere("memory.swappiness", "0") // a limit with swap would hide the failures of this one
	}
	return g
}

// MemoryCgroup is the right to make a cgroup with a limit of memory.
func MemoryCgroup() Cap {
	return Cap{"memory cgroup", func(context.Context, string) string {
		parent, _ := memoryHierarchy()
		if parent == "" {
			return "no cgroup hierarchy has a memory controller"
		}
		probe := filepath.Join(parent, "testkit-probe-"+rand.Text())
		if err := os.Mkdir(probe, 0o755); err != nil {
			return err.Error()
		}
		return reason(os.Remove(probe))
	}}
}

// memoryHierarchy returns where memory cgroups are made, and whether that is
// version 2.
func memoryHierarchy() (dir string, unified bool) {
	raw, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	if err == nil && slices.Contains(strings.Fields(string(raw)), "memory") {
		return "/sys/fs/cgroup", true
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err == nil {
		return "/sys/fs/cgroup/memory", false
	}
	return "", false
}

// Command returns a command that runs in the cgroup from its first instruction on.
func (g *Group) Command(name string, args ...string) *exec.Cmd {
	const enter = `echo $$ > "$0" && exec "$@"`
	return exec.CommandContext(g.tb.Context(), "/bin/sh", append([]string{"-c", enter, filepath.Join(g.dir, "cgroup.procs"), name}, args...)...)
}

// Peak returns the most bytes that were ever in use at once, page cache included.
func (g *Group) Peak() int64 {
	if g.unified {
		return g.number("memory.peak")
	}
	return g.number("memory.max_usage_in_bytes")
}

// Failures returns how often the limit was hit and the kernel had to reclaim.
func (g *Group) Failures() int64 {
	if g.unified {
		return g.event("memory.events", "max")
	}
	return g.number("memory.failcnt")
}

// OOMKills returns how many processes were killed for want of memory.
func (g *Group) OOMKills() int64 {
	if g.unified {
		return g.event("memory.events", "oom_kill")
	}
	return g.event("memory.oom_control", "oom_kill")
}

func (g *Group) write(name, value string) {
	g.tb.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(value), 0o600); err != nil {
		g.tb.Fatal(err)
	}
}

// writeIfThere is write for files that depend on the kernel's configuration.
func (g *Group) writeIfThere(name, value string) {
	g.tb.Helper()
	if _, err := os.Stat(filepath.Join(g.dir, name)); !errors.Is(err, os.ErrNotExist) {
		g.write(name, value)
	}
}

func (g *Group) number(name string) int64 {
	g.tb.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		g.tb.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		g.tb.Fatal(err)
	}
	return n
}

// event returns a number from a file of names and numbers.
func (g *Group) event(name, key string) int64 {
	g.tb.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		g.tb.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var n int64
		if _, err := fmt.Sscanf(line, key+" %d", &n); err == nil {
			return n
		}
	}
	g.tb.Fatalf("%s has no %s", name, key)
	return 0
}
