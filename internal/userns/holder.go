package userns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"dray/internal/durable"
)

// ErrNoHolder reports that no namespace of dray's is alive for the user.
var ErrNoHolder = errors.New("no user namespace of dray's is alive")

// MountSource begins the source of every mount that dray makes, as
// /proc/PID/mountinfo shows it. A namespace with such a mount is kept.
const MountSource = "dray:"

// stopTime limits how long a killed holder is waited for.
const stopTime = 30 * time.Second

// holder is the process that keeps the namespaces open, as its record names it.
type holder struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, proc_pid_stat(5)
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
}

// home is the runtime directory of one user.
type home string

// openHome returns the user's runtime directory, made when it is missing. One
// that another user owns, or may write to, is refused: who writes there chooses
// the namespace that the user's commands join.
func openHome(dir string) (home, error) {
	if dir == "" {
		dir = fmt.Sprintf("/tmp/dray-%d", callerUID())
		if xdg := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(xdg) {
			dir = filepath.Join(xdg, "dray")
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // the user's own choice, checked below
		return "", fmt.Errorf("make runtime directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("check runtime directory %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Getuid()) || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("check runtime directory %s: not a directory that only its user can write", dir)
	}
	return home(dir), nil
}

// RuntimeDir returns the caller's own directory for what does not outlive a boot,
// $XDG_RUNTIME_DIR/dray or /tmp/dray-UID, and makes it. Inside and outside of
// dray's user namespace it is the same.
func RuntimeDir() (string, error) {
	h, err := openHome("")
	return string(h), err
}

// callerUID returns the user ID that the process's user has outside of dray's
// user namespace.
func callerUID() int64 {
	uid := int64(os.Getuid())
	ranges, err := user.ParseIDMapFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	for _, r := range ranges {
		if uid >= r.ID && uid < r.ID+r.Count {
			return r.ParentID + uid - r.ID
		}
	}
	return uid
}

func (h home) record() string { return filepath.Join(string(h), "ns") }

func (h home) lockNS(ctx context.Context) (*durable.Lock, error) {
	return durable.Acquire(ctx, filepath.Join(string(h), "ns.lock"), durable.Exclusive)
}

func (h home) users() string { return filepath.Join(string(h), "users.lock") }

// find returns the living holder, or [ErrNoHolder]. A record whose process is
// gone is as good as none. The caller holds ns.lock.
func (h home) find() (holder, error) {
	raw, err := os.ReadFile(h.record())
	if errors.Is(err, fs.ErrNotExist) {
		return holder{}, ErrNoHolder
	}
	if err != nil {
		return holder{}, fmt.Errorf("read namespace record: %w", err)
	}
	var found holder
	if err := json.Unmarshal(raw, &found); err != nil {
		return holder{}, fmt.Errorf("read namespace record %s: %w", h.record(), err)
	}
	if !found.alive() {
		return holder{}, ErrNoHolder
	}
	return found, nil
}

// start makes new namespaces and records their holder. The caller holds ns.lock.
func (h home) start(ctx context.Context, t tools, to *slog.Logger) (_ holder, err error) {
	// The holder outlives ctx, as it is to outlive this process.
	//nolint:gosec // found on the caller's PATH, run with the caller's rights
	cmd := exec.CommandContext(context.WithoutCancel(ctx), t.sleep, "infinity")
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		Setsid:     true, // the terminal's signals are not for it
	}
	if err := cmd.Start(); err != nil {
		return holder{}, fmt.Errorf("%w: %s", ErrUnavailable, explain(err))
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	why, err := mapIDs(ctx, cmd.Process.Pid)
	if err != nil {
		return holder{}, err
	}
	if why != nil {
		to.LogAttrs(ctx, slog.LevelWarn, "user namespace has one user and one group: owners in images are lost; "+
			"install uidmap and give the user ranges in /etc/subuid and /etc/subgid", slog.Any("reason", why))
	}
	made := holder{PID: cmd.Process.Pid}
	if made.Start, err = startTime(made.PID); err != nil {
		return holder{}, err
	}
	if made.Boot, err = bootID(); err != nil {
		return holder{}, err
	}
	raw, err := json.Marshal(made)
	if err != nil {
		return holder{}, err
	}
	if err := durable.WriteFile(h.record(), raw, 0o600); err != nil {
		return holder{}, err
	}
	return made, cmd.Process.Release()
}

// stop kills the holder and removes its record. The caller holds ns.lock.
func (h home) stop(ctx context.Context, held holder) error {
	fd, err := unix.PidfdOpen(held.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return durable.Remove(h.record())
	}
	if err != nil {
		return fmt.Errorf("stop namespace holder: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if held.alive() { // asked again: from here on the number cannot become another's
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop namespace holder: %w", err)
		}
		if err := waitExit(ctx, fd); err != nil {
			return err
		}
	}
	return durable.Remove(h.record())
}

// waitExit waits until the process of a pidfd has ended.
func waitExit(ctx context.Context, fd int) error {
	deadline := time.Now().Add(stopTime)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for namespace holder: %w", err)
		case ctx.Err() != nil:
			return fmt.Errorf("wait for namespace holder: %w", context.Cause(ctx))
		case time.Now().After(deadline):
			return fmt.Errorf("wait for namespace holder: not gone after %s", stopTime)
		}
	}
}

// alive tells whether the process still runs: same number, same start, same boot.
func (h holder) alive() bool {
	boot, err := bootID()
	if err != nil || boot != h.Boot {
		return false
	}
	start, err := startTime(h.PID)
	return err == nil && start == h.Start
}

// mounted tells whether a mount of dray's is in the holder's mount namespace.
func (h holder) mounted() (bool, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", h.PID))
	if err != nil {
		return false, fmt.Errorf("read mounts of namespace: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadString('\n') // an overlay of 500 layers has a long one
		// After the separator: type, source, options (proc_pid_mountinfo(5)).
		_, tail, _ := strings.Cut(line, " - ")
		kind, rest, _ := strings.Cut(tail, " ")
		source, options, _ := strings.Cut(rest, " ")
		// One of root's, copied when the namespace was made, has no "user." whiteouts.
		inherited := kind == "overlay" && !strings.Contains(","+strings.TrimSpace(options)+",", ",userxattr,")
		if strings.HasPrefix(source, MountSource) && !inherited {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read mounts of namespace: %w", err)
		}
	}
}

// startTime returns when a process started, in clock ticks since boot. A process
// that has ended and waits for its parent counts as gone.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start time: %w", err)
	}
	// The name in parentheses may hold anything; state is the first field after
	// it, the start time the twentieth.
	const state, start = 0, 19
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) <= start {
		return 0, fmt.Errorf("read start time of process %d: short line", pid)
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, unix.ESRCH)
	}
	return strconv.ParseUint(fields[start], 10, 64)
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
