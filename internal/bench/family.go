//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// family is all that runs have started and what that started in turn, whatever sessions
// and groups it went to: this process becomes the parent of those whose own has ended.
// What is started for no run, as mkfs, stays in this process's own group, which tells it
// apart. A process has one family at a time.
type family struct {
	group    int            // this process's
	children chan os.Signal // a child has ended
	done     sync.WaitGroup

	mu      sync.Mutex   // guards the fields below
	waited  map[int]bool // children for whose end somebody waits
	seconds float64      // CPU time of the others that have ended
}

// newFamily begins a family; close ends it.
func newFamily() (*family, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the parent of orphans: %w", err)
	}
	f := &family{group: unix.Getpgrp(), children: make(chan os.Signal, 1), waited: map[int]bool{}}
	signal.Notify(f.children, syscall.SIGCHLD)
	f.done.Go(func() {
		for range f.children {
			f.reap()
		}
	})
	return f, nil
}

// close leaves later orphans to others.
func (f *family) close() error {
	signal.Stop(f.children)
	close(f.children)
	f.done.Wait()
	f.reap()
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
}

// start starts a program that runs in a group of its own.
func (f *family) start(cmd *exec.Cmd) error {
	f.mu.Lock() // until its end is known to be waited for
	defer f.mu.Unlock()
	err := cmd.Start()
	if err == nil {
		f.waited[cmd.Process.Pid] = true
	}
	return err
}

// wait waits for the end of a program that start has started.
func (f *family) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waited, cmd.Process.Pid)
	return err
}

// member is a process of the family.
type member struct {
	pid, parent, group int
	ended              bool // and nobody has taken note
}

// members lists the family.
func (f *family) members() (found []member) {
	children := map[int][]member{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if fields := statFields(pid, 2, 5); fields != nil {
			m := member{pid: pid, ended: fields[0] == "Z" || fields[0] == "X"}
			m.parent, _ = strconv.Atoi(fields[1]) // of the kernel
			m.group, _ = strconv.Atoi(fields[2])
			children[m.parent] = append(children[m.parent], m)
		}
	}
	for _, m := range children[os.Getpid()] {
		if m.group != f.group {
			found = append(found, m)
		}
	}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

// living lists the family's processes that have not ended.
func (f *family) living() (pids []int) {
	for _, m := range f.members() {
		if !m.ended {
			pids = append(pids, m.pid)
		}
	}
	return pids
}

// reap takes note of orphans that have ended: some programs wait until one is gone.
func (f *family) reap() {
	self := os.Getpid()
	for _, m := range f.members() {
		if !m.ended || m.parent != self {
			continue
		}
		f.mu.Lock()
		var used unix.Rusage
		if !f.waited[m.pid] {
			if pid, err := unix.Wait4(m.pid, nil, unix.WNOHANG, &used); err == nil && pid == m.pid {
				f.seconds += time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
			}
		}
		f.mu.Unlock()
	}
}

// orphanSeconds returns the CPU time of orphans that have ended.
func (f *family) orphanSeconds() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seconds
}

// killTimeout bounds how long what was killed may take to be gone.
const killTimeout = 30 * time.Second

// killAll kills the processes that list returns, until it returns none.
func killAll(ctx context.Context, list func() []int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		left := list()
		if len(left) == 0 {
			return nil
		}
		err := kill(left, list)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("kill what is left of the run: processes %v stay", left), err)
		}
	}
}

// kill kills those of pids that list returns once more when they are held by descriptors:
// what such a descriptor names is never another process that got the number later.
func kill(pids []int, list func() []int) error {
	held := map[int]int{}
	defer func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
	}()
	var problems []error
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			held[pid] = fd
		} else if !errors.Is(err, unix.ESRCH) {
			problems = append(problems, fmt.Errorf("hold process %d: %w", pid, err))
		}
	}
	for _, pid := range list() {
		fd, ok := held[pid]
		if !ok {
			continue // the next time
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			problems = append(problems, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	return errors.Join(problems...)
}

// siteVariable is what all programs of a run have in their environment: its directory.
// By it the next bench finds what was left by one that was killed.
const siteVariable = "DRAY_BENCH_SITE"

// strays lists the processes of sites below dir.
func strays(dir string) (pids []int) {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is well-formed
	for _, name := range environments {
		raw, err := os.ReadFile(name) //nolint:gosec // a file of the kernel
		if err != nil {
			continue // another user's, or it has ended
		}
		ours := func(variable string) bool { return strings.HasPrefix(variable, siteVariable+"="+dir+"/") }
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil && slices.ContainsFunc(strings.Split(string(raw), "\x00"), ours) {
			pids = append(pids, pid)
		}
	}
	return pids
}
