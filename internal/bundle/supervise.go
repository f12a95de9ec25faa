package bundle

import (
	"context"
	"os"
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
// runtime has written its pid file.
type supervisor struct {
	o       *RunOptions
	path    string
	process *os.Process

	started    bool
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
			if _, err := os.Stat(pidFile); err == nil {
				poll.Stop()
				s.start(ctx)
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

// start does what had to wait for the container's start.
func (s *supervisor) start(ctx context.Context) {
	s.started = true
	if s.expired {
		s.kill(ctx)
	}
	for _, signal := range s.pending {
		_ = s.process.Signal(signal)
	}
	s.pending = nil
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
	case s.started:
		_ = s.process.Signal(signal)
	case len(s.pending) < maxPending:
		s.pending = append(s.pending, signal)
	}
}
