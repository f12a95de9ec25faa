package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Times that [Run] and [Delete] wait.
const (
	DefaultGrace   = 10 * time.Second     // between the stop signal and the end, as Docker's
	startPoll      = 5 * time.Millisecond // between two looks whether the process runs
	forceDelay     = 5 * time.Second      // for a runtime to notice that its container was killed
	drainDelay     = 10 * time.Second     // for Stdout and Stderr to take what is left at the end
	commandTimeout = 30 * time.Second     // for a runtime's kill or delete
)

// scratchName is the directory in a bundle where a runtime writes to [Run].
const scratchName = ".run"

// idPattern is what runc and crun both take, and no flag.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// RunOptions say how a bundle is run.
type RunOptions struct {
	Runtime  string // path or name; "" is runc, else crun
	Bundle   string // directory with config.json and rootfs; Run writes below .run in it
	ID       string // letters, digits, '_', '.', '-'; unique below Root
	Root     string // directory for the runtime's state, made when missing
	Rootless bool   // as in [Options]

	Stdin  *os.File // nil is empty
	Stdout io.Writer
	Stderr io.Writer // may be written to after an error before start, see [StartError]

	// Terminal must be what the bundle's process.terminal is. The runtime then
	// puts a pseudo terminal between the container and Stdin, which must be a
	// terminal itself; Stdout should be one.
	Terminal bool

	// Signals are passed on to the container's first process, see [Signals]; nil
	// passes none. The third interrupt or termination ends the container.
	Signals <-chan os.Signal

	StopSignal syscall.Signal // sent when ctx ends, see [ParseSignal]; 0 is SIGTERM
	Grace      time.Duration  // from StopSignal to SIGKILL; 0 is DefaultGrace
}

// Signals returns the signals that concern a container rather than who runs it,
// for [os/signal.Notify].
func Signals() []os.Signal {
	return []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}
}

// Run runs a bundle to its end and returns the exit code of the container's
// process, 128+n after signal n. The container is gone when Run returns.
//
// A process that never ran is a [*StartError]. When ctx ends, the container gets
// its stop signal, and after the grace time is killed; the error is then ctx's
// cause, beside the exit code.
//
// When the caller itself is killed, the runtime sends the container SIGTERM; what
// is left is for [Delete], at the next start. Run keeps its operating system
// thread, because the kernel ties that to the thread that made the child.
func Run(ctx context.Context, o RunOptions) (exitCode int, err error) {
	path, err := FindRuntime(o.Runtime)
	if err != nil {
		return -1, err
	}
	if err := o.check(); err != nil {
		return -1, fmt.Errorf("run container %q: %w", o.ID, err)
	}
	scratch := filepath.Join(o.Bundle, scratchName)
	// An earlier Run that was killed may have left one.
	if err := errors.Join(os.RemoveAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
		return -1, fmt.Errorf("run container %s: %w", o.ID, err)
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	pidFile, logFile := o.pidFile(), filepath.Join(scratch, "log")

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	args := append(globalFlags(path, &o), "--log", logFile, "--log-format", "json",
		"run", "--bundle", o.Bundle, "--pid-file", pidFile, o.ID)
	// The end of ctx is supervise's: a runtime that is killed leaves its container.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), path, args...) //nolint:gosec // the runtime that the user named
	cmd.Env = runtimeEnv()
	if o.Stdin != nil { // a nil *os.File is not a nil io.Reader
		cmd.Stdin = o.Stdin
	}
	cmd.Stdout, cmd.Stderr = o.Stdout, o.Stderr
	cmd.WaitDelay = drainDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if o.Terminal {
		// The runtime must be in the terminal's foreground group to read it; its
		// own messages are in the log.
		cmd.Stderr = nil
	} else {
		// A terminal's interrupt reaches its whole foreground group: alone in its
		// group, the runtime hears of it once, from here.
		cmd.SysProcAttr.Setpgid = true
	}
	ended, forced := ctx.Err(), false
	if ended == nil {
		ended, forced = o.wait(ctx, cmd, path, pidFile)
	}
	code, signaled := exitStatus(cmd.ProcessState)
	_, pidErr := os.Stat(pidFile)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case forced:
	case signaled:
		err = fmt.Errorf("runtime was killed: %w", ended)
	case errors.As(ended, &exit) && pidErr != nil:
		err = &StartError{Runtime: path, Message: startMessage(path, logFile, code), Printed: !o.Terminal}
		return code, errors.Join(err, deleteContainer(ctx, path, &o))
	case exit == nil:
		err = ended
	}
	remove := deleteContainer
	if signaled {
		remove = func(ctx context.Context, path string, o *RunOptions) error { return o.remove(ctx, path) }
	}
	if err = errors.Join(err, remove(context.WithoutCancel(ctx), path, &o)); err != nil {
		return code, fmt.Errorf("run container %s: %w", o.ID, err)
	}
	return code, nil
}

// pidFile is where the runtime says that the container's process runs.
func (o *RunOptions) pidFile() string { return filepath.Join(o.Bundle, scratchName, "pid") }

// check validates the options and fills in their defaults.
func (o *RunOptions) check() (err error) {
	if !idPattern.MatchString(o.ID) {
		return fmt.Errorf("ID must be letters, digits, '_', '.' and '-', at most 128: %w", ErrOption)
	}
	if o.Bundle == "" || o.Root == "" {
		return fmt.Errorf("no bundle or no directory for the runtime's state given: %w", ErrOption)
	}
	if o.Terminal && (o.Stdin == nil || !term.IsTerminal(int(o.Stdin.Fd()))) {
		return fmt.Errorf("a terminal is wanted, but standard input is none: %w", ErrOption)
	}
	if o.Bundle, err = filepath.Abs(o.Bundle); err != nil {
		return err
	}
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return err
	}
	if o.StopSignal == 0 {
		o.StopSignal = unix.SIGTERM
	}
	if o.Grace <= 0 {
		o.Grace = DefaultGrace
	}
	return nil
}

// wait runs cmd to its end, supervised. The terminal is put back as it was: a
// runtime that is killed leaves it raw.
func (o *RunOptions) wait(ctx context.Context, cmd *exec.Cmd, path, pidFile string) (err error, forced bool) { //nolint:revive // the error is how cmd ended, not a failure of wait
	if o.Terminal {
		if before, err := term.GetState(int(o.Stdin.Fd())); err == nil {
			defer func() { _ = term.Restore(int(o.Stdin.Fd()), before) }()
		}
	}
	if err := cmd.Start(); err != nil {
		return err, false
	}
	s := supervisor{o: o, path: path, process: cmd.Process}
	done := make(chan struct{}) // closed here when cmd has ended
	var running sync.WaitGroup
	running.Go(func() { s.supervise(ctx, pidFile, done) })
	err = cmd.Wait()
	close(done)
	running.Wait()
	return err, s.forced
}

// deleteContainer removes what the runtime has not removed itself, if anything. A
// runtime that outlived its caller may be removing it too, and be the first.
func deleteContainer(ctx context.Context, path string, o *RunOptions) error {
	if !o.hasState() {
		return nil
	}
	if err := command(ctx, path, o, "delete", "--force", o.ID); err != nil && o.hasState() {
		return fmt.Errorf("delete container %s: %w", o.ID, err)
	}
	return nil
}

// state is where the runtime keeps what it knows of the container.
func (o *RunOptions) state() string { return filepath.Join(o.Root, o.ID) }

func (o *RunOptions) hasState() bool {
	_, err := os.Lstat(o.state())
	return !errors.Is(err, os.ErrNotExist)
}

// command runs a short command of the runtime's.
func command(ctx context.Context, path string, o *RunOptions, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(globalFlags(path, o), args...)...) //nolint:gosec // the runtime that the user named
	cmd.Env = runtimeEnv()
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// exitStatus returns the exit code of a runtime, which is the container's, and
// whether the runtime itself was killed; -1 when it was not started.
func exitStatus(state *os.ProcessState) (code int, signaled bool) {
	if state == nil {
		return -1, false
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), true
	}
	return state.ExitCode(), false
}

// startMessage says why a container did not start.
func startMessage(path, logFile string, code int) string {
	message := lastError(logFile)
	if message == "" {
		return fmt.Sprintf("the runtime ended with code %d and said nothing", code)
	}
	if isCrun(path) && strings.Contains(message, "hybrid mode") {
		message += " (crun does not run where controllers of both cgroup versions are in use; runc does)"
	}
	return message
}
