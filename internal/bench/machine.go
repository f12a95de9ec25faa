//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/durable"
)

// describeMachine says where the bench runs; dir is on the file system that is measured.
func describeMachine(dir string) Machine {
	m := Machine{CPUs: runtime.NumCPU(), Root: os.Geteuid() == 0}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	m.Memory = field("/proc/meminfo", "MemTotal") << 10
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		for i, f := range strings.Fields(string(raw)) {
			if i < len(m.Load) {
				m.Load[i], _ = strconv.ParseFloat(f, 64) // 0 is unknown
			}
		}
	}
	m.FileSystem = fileSystem(dir)
	return m
}

// fileSystem returns the type of the file system that holds dir.
func fileSystem(dir string) string {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "unknown"
	}
	found, longest := "unknown", -1
	for line := range strings.Lines(string(raw)) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kinds := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kinds) < 1 {
			continue
		}
		target := strings.TrimSuffix(fields[4], "/") + "/"
		if strings.HasPrefix(dir+"/", target) && len(target) >= longest {
			found, longest = kinds[0], len(target)
		}
	}
	return found
}

// dropCaches writes what is dirty to the disk and drops the page cache.
func dropCaches(what int) error {
	if what == 0 {
		return nil
	}
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte(strconv.Itoa(what)), 0); err != nil {
		return fmt.Errorf("drop page cache: %w", err)
	}
	return nil
}

// selfSeconds returns the CPU time of this process: the registry and the sampler.
func selfSeconds() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// workPrefix begins the names of directories below --work.
const workPrefix = "dray-bench-"

// workDirectory makes a directory for this bench, and sweeps those whose bench was
// killed: their processes, mounts, groups and files. Another bench that still runs
// holds a lock, and is left alone. What could not be swept stands in no one's way.
func workDirectory(ctx context.Context, parent string) (dir string, release func() error, unswept, err error) {
	if parent, err = filepath.Abs(parent); err != nil {
		return "", nil, nil, fmt.Errorf("make work directory: %w", err)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil { //nolint:gosec // as /var/tmp
		return "", nil, nil, fmt.Errorf("make work directory: %w", err)
	}
	unswept = sweep(ctx, parent)
	dir = filepath.Join(parent, workPrefix+strconv.Itoa(os.Getpid()))
	lock, err := lockedDirectory(ctx, dir)
	if err != nil {
		return "", nil, nil, fmt.Errorf("lock work directory: %w", err)
	}
	return dir, func() error {
		return errors.Join(unmountBelow(dir), removeAll(dir), lock.Release())
	}, unswept, nil
}

// lockedDirectory makes dir and locks it. A bench that sweeps may take the directory
// for a dead one's before it is locked: then it is made anew.
func lockedDirectory(ctx context.Context, dir string) (*durable.Lock, error) {
	const patience = 30 * time.Second // a sweep of an empty directory is short
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		name := filepath.Join(dir, "lock")
		lock, err := durable.TryAcquire(name, durable.Exclusive)
		if err == nil {
			if _, err = os.Stat(name); err == nil {
				return lock, nil
			}
			err = errors.Join(err, lock.Release())
		}
		if !errors.Is(err, durable.ErrLocked) && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// sweep removes what killed benches left below parent.
func sweep(ctx context.Context, parent string) error {
	left, err := filepath.Glob(filepath.Join(parent, workPrefix+"*"))
	if err != nil {
		return fmt.Errorf("sweep work directory: %w", err)
	}
	var problems []error
	for _, dir := range left {
		lock, err := durable.TryAcquire(filepath.Join(dir, "lock"), durable.Exclusive)
		if errors.Is(err, durable.ErrLocked) || errors.Is(err, os.ErrPermission) {
			continue // another bench is at work, or was, as another user
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("sweep %s: %w", dir, err))
			continue
		}
		owner := strings.TrimPrefix(filepath.Base(dir), workPrefix)
		err = errors.Join(sweepGroups(ctx, owner), killAll(ctx, func() []int { return strays(dir) }), unmountBelow(dir), removeAll(dir), lock.Release())
		if err != nil {
			problems = append(problems, fmt.Errorf("sweep %s: %w", dir, err))
		}
	}
	return errors.Join(problems...)
}

// sweepGroups kills who is left in the control groups of a bench, and removes them.
func sweepGroups(ctx context.Context, owner string) error {
	if _, err := strconv.Atoi(owner); err != nil {
		return nil //nolint:nilerr // not a directory of ours
	}
	var problems []error
	for _, parent := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpuacct"} {
		found, _ := filepath.Glob(filepath.Join(parent, groupPrefix+owner+"-*")) // the pattern is well-formed
		for _, dir := range found {
			g := &groups{memory: dir}
			problems = append(problems, killAll(ctx, g.processes), removeGroup(dir))
		}
	}
	return errors.Join(problems...)
}
