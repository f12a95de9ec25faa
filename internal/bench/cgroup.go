//go:build linux

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// groupPrefix begins the name of every control group of the bench; the process
// identifier of its owner follows.
const groupPrefix = "dray-bench-"

// groups are the control groups of one run: of version 2, or of each of version
// 1's hierarchies that counts something.
type groups struct {
	version int
	memory  string // directory, "" without one
	cpu     string
}

// newGroups makes the groups of a run. Without the right to, it returns none and
// the reason.
func newGroups(id string, memoryLimit int64) (*groups, error) {
	return newGroupsIn("/sys/fs/cgroup", id, memoryLimit)
}

func newGroupsIn(root, id string, memoryLimit int64) (*groups, error) {
	g := &groups{}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		g.version, g.memory = 2, filepath.Join(root, id)
		g.cpu = g.memory
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory +cpu"), 0) // when refused, the files are missing, which is said below
	} else {
		g.version, g.memory, g.cpu = 1, filepath.Join(root, "memory", id), filepath.Join(root, "cpuacct", id)
	}
	for _, dir := range []string{g.memory, g.cpu} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) { //nolint:gosec // as the kernel has them
			return &groups{}, fmt.Errorf("make control group: %w", err)
		}
	}
	if memoryLimit > 0 {
		name := "memory.limit_in_bytes"
		if g.version == 2 {
			name = "memory.max"
		}
		if err := os.WriteFile(filepath.Join(g.memory, name), []byte(strconv.FormatInt(memoryLimit, 10)), 0); err != nil {
			return g, fmt.Errorf("limit memory: %w", err)
		}
	}
	return g, nil
}

// lacks says what the groups do not count on this machine, "" when nothing is missing.
func (g *groups) lacks() string {
	peak := "memory.max_usage_in_bytes"
	if g.version == 2 {
		peak = "memory.peak" // Linux 5.19
	}
	if _, err := os.Stat(filepath.Join(g.memory, peak)); err != nil {
		return "memory: " + err.Error()
	}
	return ""
}

// joinFiles are the files into which a process writes its identifier to belong.
func (g *groups) joinFiles() (files []string) {
	if g.memory != "" {
		files = append(files, filepath.Join(g.memory, "cgroup.procs"))
	}
	if g.cpu != "" && g.cpu != g.memory {
		files = append(files, filepath.Join(g.cpu, "cgroup.procs"))
	}
	return files
}

// processes returns who is in the group now.
func (g *groups) processes() (pids []int) {
	if g.memory == "" {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(g.memory, "cgroup.procs"))
	if err != nil {
		return nil // it is gone
	}
	for field := range strings.FieldsSeq(string(raw)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// peakBytes returns the most that the group was charged for, page cache and the
// kernel's own memory included; 0 is unknown.
func (g *groups) peakBytes() int64 {
	if g.version == 2 {
		return number(filepath.Join(g.memory, "memory.peak"))
	}
	return number(filepath.Join(g.memory, "memory.max_usage_in_bytes"))
}

// anonymousBytes returns what the group holds now without page cache.
func (g *groups) anonymousBytes() int64 {
	if g.version == 2 {
		return field(filepath.Join(g.memory, "memory.stat"), "anon")
	}
	return field(filepath.Join(g.memory, "memory.stat"), "total_rss")
}

// oomKills returns how many of the group's processes the kernel has killed for
// want of memory.
func (g *groups) oomKills() int64 {
	if g.version == 2 {
		return field(filepath.Join(g.memory, "memory.events"), "oom_kill")
	}
	return field(filepath.Join(g.memory, "memory.oom_control"), "oom_kill")
}

// cpuSeconds returns the CPU time that the group has used.
func (g *groups) cpuSeconds() float64 {
	switch {
	case g.cpu == "":
		return 0
	case g.version == 2:
		return float64(field(filepath.Join(g.cpu, "cpu.stat"), "usage_usec")) / 1e6
	default:
		return float64(number(filepath.Join(g.cpu, "cpuacct.usage"))) / 1e9
	}
}

// remove removes the groups; nobody may be in them any more.
func (g *groups) remove() error {
	var err error
	for _, dir := range []string{g.memory, g.cpu} {
		if dir == "" {
			continue
		}
		if e := removeGroup(dir); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// removeGroup removes a control group. One whose last process has ended is busy until
// somebody has taken note of that.
func removeGroup(dir string) error {
	deadline := time.NewTimer(killTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := os.Remove(dir)
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return err
		}
	}
}

// number reads a file of one number; 0 when it cannot be read.
func number(path string) int64 {
	raw, err := os.ReadFile(path) //nolint:gosec // a file of the kernel
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64) // 0 is unknown
	return n
}

// field reads the number behind a name in a file of such lines; 0 when there is none.
func field(path, name string) int64 {
	raw, err := os.ReadFile(path) //nolint:gosec // a file of the kernel
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && strings.TrimSuffix(fields[0], ":") == name {
			n, _ := strconv.ParseInt(fields[1], 10, 64) // 0 is unknown
			return n
		}
	}
	return 0
}
