package bundle

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// impatience is how many SIGINT and SIGTERM end a container that does not heed
// them, as Docker's command line has it.
const impatience = 3

// maxPending bounds the signals that wait for a container's start.
const maxPending = 16

// supervisor passes signals on to a runtime, and ends its container.
//
// A runtime hands signals to its container only once that runs; before, they
// would kill it half way and leave what it has made by then. They wait until the
// runtime has written its pid file and handles signals.
type supervisor struct {
	o       *RunOptions
	path    string
	process *os.Process

	started    bool // the container's process runs
	ready      bool // and its runtime passes signals on
	pending    []os.Signal
	interrupts int
	forced     bool // the user lost patience
	expired    bool // the grace time has passed
}

// supervise runs until done is closed.
func (s *supervisor) supervise(ctx context.Context, pidFile string, done <-chan struct{}) {
	poll := time.NewTicker(startPoll)
	defer poll.Stop()
	cancelled, signals := ctx.Done(), s.o.Signals
	var grace, force <-chan time.Time
	for {
		select {
		case <-done:
			return
		case <-poll.C:
			if s.look(ctx, pidFile); s.ready {
				poll.Stop()
			}
		case signal, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			s.send(signal)
			if s.forced && !s.expired {
				grace = time.After(0)
			}
		case <-cancelled:
			cancelled = nil
			s.send(s.o.StopSignal)
			grace = time.After(s.o.Grace)
		case <-grace:
			s.expired = true
			if s.started {
				s.kill(ctx)
			}
			grace, force = nil, time.After(forceDelay)
		case <-force:
			_ = s.process.Kill()
			force = nil
		}
	}
}

// look does what had to wait for the container's start.
func (s *supervisor) look(ctx context.Context, pidFile string) {
	if _, err := os.Stat(pidFile); err != nil {
		return
	}
	if !s.started && s.expired {
		s.kill(ctx)
	}
	s.started = true
	if s.ready = handles(s.process.Pid, unix.SIGTERM); s.ready {
		for _, signal := range s.pending {
			_ = s.process.Signal(signal)
		}
		s.pending = nil
	}
}

// handles tells whether a process catches a signal, or blocks it to read it from
// a signalfd.
func handles(pid int, signal syscall.Signal) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		name, mask, _ := strings.Cut(line, ":")
		if name != "SigBlk" && name != "SigCgt" {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		if err == nil && bits&(1<<(signal-1)) != 0 {
			return true
		}
	}
	return false
}

// kill ends the container: its runtime sees that, tidies up and ends too. What
// fails here is left to force.
func (s *supervisor) kill(ctx context.Context) {
	_ = command(context.WithoutCancel(ctx), s.path, s.o, "kill", s.o.ID, "KILL")
}

// send passes a signal on, now or at the start. It fails when the process has
// just ended, and then nobody waits for it.
func (s *supervisor) send(signal os.Signal) {
	if signal == unix.SIGINT || signal == unix.SIGTERM {
		s.interrupts++
		s.forced = s.forced || s.interrupts >= impatience
	}
	switch {
	case s.ready:
		_ = s.process.Signal(signal)
	case len(s.pending) < maxPending:
		s.pending = append(s.pending, signal)
	}
}
