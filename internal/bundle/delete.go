package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"dray/internal/stream"
)

// Times that [Delete] takes.
const (
	deletePoll     = 10 * time.Millisecond // between two looks at what is left
	deletePatience = 2 * time.Second       // for a runtime that is making a container to finish
	deleteTimeout  = 10 * time.Second      // in all, beside the runtime's own commands
)

// maxConfigBytes bounds a config.json; [Write] makes about 20 KiB.
const maxConfigBytes = 16 << 20

// Delete kills and removes what an earlier [Run] left because its process was
// killed, wherever it was then: a runtime that still makes the container, the
// container, its cgroups. Runtime, Bundle, ID, Root and Rootless of o are those
// that Run had. When nothing is left, that is not an error. It must not be called beside the
// Run of the same container.
func Delete(ctx context.Context, o RunOptions) error {
	path, err := FindRuntime(o.Runtime)
	if err != nil {
		return err
	}
	o.Terminal = false // Stdin may be another by now
	if err := o.check(); err != nil {
		return fmt.Errorf("delete container %q: %w", o.ID, err)
	}
	return o.remove(ctx, path)
}

// remove waits for a runtime that is at work, because only that knows what it has
// made. One that takes too long is killed, and what it leaves is found by its
// cgroup.
func (o *RunOptions) remove(ctx context.Context, runtime string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	poll := time.NewTicker(deletePoll)
	defer poll.Stop()
	for started := time.Now(); ; {
		err := deleteContainer(ctx, runtime, o)
		running := o.runtimes()
		if len(running) == 0 {
			left := o.removeCgroups(ctx, poll.C)
			if err != nil && left == nil && o.halfDeleted(runtime) {
				err = os.RemoveAll(o.state())
			}
			return errors.Join(err, left, os.RemoveAll(filepath.Join(o.Bundle, scratchName)))
		}
		if time.Since(started) > deletePatience {
			for _, p := range running {
				_ = p.Kill()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("delete container %s: its runtime does not end: %w", o.ID, context.Cause(ctx))
		case <-poll.C:
		}
	}
}

// halfDeleted tells whether crun has left a state that it cannot delete, since the
// configuration is not in it: it was killed before that was there, or one crun deleted
// what another had begun to make. The container has ended with its cgroups.
func (o *RunOptions) halfDeleted(runtime string) bool {
	_, own := o.ownCgroups()
	_, err := os.Lstat(filepath.Join(o.state(), ConfigName))
	return own && isCrun(runtime) && errors.Is(err, fs.ErrNotExist)
}

// runtimes returns the processes that run the container: [Run]'s children have
// the bundle's pid file among their arguments.
func (o *RunOptions) runtimes() []*os.Process {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	var all []*os.Process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// The handle is taken before the look, so that it is of what is looked at.
		process, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(dir + "/cmdline") //nolint:gosec // a process that has ended has no arguments
		args := bytes.Split(line, []byte{0})
		has := func(arg string) bool {
			return slices.ContainsFunc(args, func(b []byte) bool { return string(b) == arg })
		}
		if has(o.pidFile()) && has(o.ID) && !ended(dir) {
			all = append(all, process)
			continue
		}
		_ = process.Release()
	}
	return all
}

// ended tells whether a process only waits for its parent to notice its end.
func ended(dir string) bool {
	stat, _ := os.ReadFile(dir + "/stat") //nolint:gosec // below /proc
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return len(state) == 0 || state[0] == 'Z' || state[0] == 'X'
}

// removeCgroups ends what is left in the cgroups that the bundle's configuration
// names, if these are the container's own, and removes them.
func (o *RunOptions) removeCgroups(ctx context.Context, poll <-chan time.Time) error {
	name, own := o.ownCgroups()
	if !own {
		return nil
	}
	found, _ := filepath.Glob("/sys/fs/cgroup/*") // the first version's hierarchies
	for _, hierarchy := range append(found, "/sys/fs/cgroup") {
		for {
			err := removeCgroup(hierarchy + name)
			if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("delete cgroup of container %s: %w", o.ID, err)
			case <-poll:
			}
		}
	}
	return nil
}

// ownCgroups returns what the bundle's configuration names, and whether nothing but the
// container can be in it.
func (o *RunOptions) ownCgroups() (name string, own bool) {
	name = o.cgroupsPath()
	return name, path.IsAbs(name) && path.Clean(name) == name && strings.HasSuffix(name, o.ID)
}

// removeCgroup kills all processes of a cgroup and those below, and removes them.
// The kernel refuses while one is still ending.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Backward(dirs) {
		procs, err := os.ReadFile(name + "/cgroup.procs") //nolint:gosec // below /sys/fs/cgroup
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(procs)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := unix.Rmdir(name); err != nil {
			return err
		}
	}
	return nil
}

// cgroupsPath returns what the bundle's configuration says, "" when there is none.
func (o *RunOptions) cgroupsPath() string {
	f, err := os.Open(filepath.Join(o.Bundle, ConfigName))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	content, err := stream.ReadAll(f, maxConfigBytes)
	if err != nil {
		return ""
	}
	var spec specs.Spec
	if json.Unmarshal(content, &spec) != nil || spec.Linux == nil {
		return ""
	}
	return spec.Linux.CgroupsPath
}
