package userns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/durable"
)

// Options of [Reexec] and [Stop]. The zero value is ready to use.
type Options struct {
	Log        *slog.Logger // nil discards
	RuntimeDir string       // "" is $XDG_RUNTIME_DIR/dray, or /tmp/dray-UID
}

// ErrStillNeeded reports a program that has no right to mount even inside the
// namespace that dray made for it.
var ErrStillNeeded = errors.New("no right to mount inside the user namespace")

const (
	// leaveTime is how long the program inside has to end after its context.
	leaveTime = 10 * time.Second

	// enter is run by the shell inside: joining a mount namespace has moved the
	// process to its root, and sockets from systemd are for one process ID.
	enter = `cd -- "$1" || exit 126
shift
if [ -n "$LISTEN_PID" ]; then LISTEN_PID=$$; export LISTEN_PID; fi
exec "$@"`

	listenFDsStart = 3 // sd_listen_fds(3)
)

// Reexec runs this program again, with the same arguments, environment, working
// directory and standard files, as root of the user's dray namespaces, and
// returns its exit code: 128 and the signal's number when a signal ended it. The
// namespaces are made when none of the user's are alive, and stopped at the end
// when nobody else is inside and no mount of dray's is left.
//
// Signals that this process receives are passed on; those of the terminal reach
// the program inside without that. The program inside dies with this process. It
// is told to stop when ctx ends, and killed after some seconds.
func Reexec(ctx context.Context, o Options) (exitCode int, err error) {
	if os.Getenv(marker) != "" {
		return 0, fmt.Errorf("run in user namespace: %w", ErrStillNeeded)
	}
	t, err := findTools()
	if err != nil {
		return 0, err
	}
	h, err := openHome(o.RuntimeDir)
	if err != nil {
		return 0, err
	}
	held, inside, err := h.enter(ctx, t, o.logger())
	if err != nil {
		return 0, err
	}
	exitCode, err = run(ctx, t, held)
	// Leaving must happen whatever became of ctx.
	leaveCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := h.leave(leaveCtx, held, inside); err != nil {
		// The program has done its work; the next to leave tries again.
		o.logger().LogAttrs(leaveCtx, slog.LevelWarn, "user namespace is kept", slog.Any("error", err))
	}
	return exitCode, err
}

// Stop ends the user's namespaces: every mount in them is gone once the last
// program inside has ended. [ErrNoHolder] when there are none.
func Stop(ctx context.Context, o Options) error {
	h, err := openHome(o.RuntimeDir)
	if err != nil {
		return err
	}
	lock, err := h.lockNS(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	held, err := h.find()
	if err != nil {
		return err
	}
	return h.stop(ctx, held)
}

func (o Options) logger() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// enter finds or starts the holder and joins those who use it.
func (h home) enter(ctx context.Context, t tools, log *slog.Logger) (holder, *durable.Lock, error) {
	lock, err := h.lockNS(ctx)
	if err != nil {
		return holder{}, nil, err
	}
	defer func() { _ = lock.Release() }()
	held, err := h.find()
	if errors.Is(err, ErrNoHolder) {
		held, err = h.start(ctx, t, log)
	}
	if err != nil {
		return holder{}, nil, err
	}
	inside, err := durable.Acquire(ctx, h.users(), durable.Shared)
	return held, inside, err
}

// leave gives up the use of the holder, and stops it when it was the last and no
// mount is left.
func (h home) leave(ctx context.Context, held holder, inside *durable.Lock) error {
	lock, err := h.lockNS(ctx)
	if err != nil {
		return errors.Join(err, inside.Release())
	}
	defer func() { _ = lock.Release() }()
	if err := inside.Release(); err != nil {
		return fmt.Errorf("leave user namespace: %w", err)
	}
	last, err := durable.TryAcquire(h.users(), durable.Exclusive)
	if errors.Is(err, durable.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = last.Release() }()
	if now, err := h.find(); err != nil || now != held {
		return nil // stopped by someone else in the meantime
	}
	if mounted, err := held.mounted(); err != nil || mounted {
		return err
	}
	return h.stop(ctx, held)
}

// run runs the program inside and waits for it.
func run(ctx context.Context, t tools, held holder) (int, error) {
	program, err := self()
	if err != nil {
		return 0, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return 0, fmt.Errorf("run in user namespace: %w", err)
	}
	args := []string{
		"--user", "--mount", "--preserve-credentials", "--target", strconv.Itoa(held.PID), "--",
		t.setpriv, "--pdeathsig", "KILL", "--",
		t.sh, "-c", enter, "sh", dir, program,
	}
	//nolint:gosec // tools found on the caller's PATH and the program itself, with the caller's rights
	cmd := exec.CommandContext(ctx, t.nsenter, append(args, os.Args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.ExtraFiles = activation()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = leaveTime

	// The signal for the parent's death is sent when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16) // more than ever arrive before the loop below takes them
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	if err := cmd.Start(); err != nil {
		signal.Stop(signals)
		return 0, fmt.Errorf("run in user namespace: %w", err)
	}
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for s := range signals {
			if number, ok := s.(syscall.Signal); ok && !fromTerminal(number) {
				_ = cmd.Process.Signal(s) // gone already: Wait says how
			}
		}
	}()
	err = cmd.Wait()
	signal.Stop(signals)
	close(signals)
	<-passed
	return exitCode(cmd, err)
}

// exitCode turns the end of the program inside into an exit code.
func exitCode(cmd *exec.Cmd, err error) (int, error) {
	if cmd.ProcessState == nil {
		return 0, fmt.Errorf("run in user namespace: %w", err)
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// self returns the path under which this program was called, so that one that
// goes by several names keeps its own.
func self() (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	called, err := exec.LookPath(os.Args[0])
	if err != nil {
		return program, nil //nolint:nilerr // called by a name that is not its path
	}
	if called, err = filepath.Abs(called); err != nil {
		return program, nil //nolint:nilerr // no working directory: the other path needs none
	}
	a, errA := os.Stat(program)
	b, errB := os.Stat(called) //nolint:gosec // only compared
	if errA == nil && errB == nil && os.SameFile(a, b) {
		return called, nil
	}
	return program, nil
}

// fromTerminal tells whether a signal was sent by the terminal to the whole
// foreground group, the program inside included: this process is in that group.
func fromTerminal(s syscall.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer func() { _ = tty.Close() }()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

// activation returns the sockets that systemd has opened for this process.
func activation() []*os.File {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || count < 0 || count > 1024 {
		return nil
	}
	files := make([]*os.File, count)
	for i := range files {
		files[i] = os.NewFile(uintptr(listenFDsStart+i), "socket")
	}
	return files
}
