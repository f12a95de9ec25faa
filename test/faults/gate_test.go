package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gateVariable makes the test binary a launcher: it stands in for the program
// until the gate is in place.
const gateVariable = "DRAY_TEST_GATE"

// launch installs the filter on this thread, passes its listener on descriptor 3
// to the test, and becomes the program of os.Args[1:].
func launch() error {
	runtime.LockOSThread()
	filter := filterProgram()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	environment := make([]string, 0, len(os.Environ()))
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, gateVariable+"=") {
			environment = append(environment, v)
		}
	}
	// A call that waits for its answer is only interrupted by what kills: the signals
	// with which Go preempts goroutines would have it counted twice.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install filter: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return fmt.Errorf("pass listener: %w", err)
	}
	unix.CloseOnExec(int(listener))
	unix.CloseOnExec(3)
	return syscall.Exec(os.Args[1], os.Args[1:], environment)
}

// filterProgram stops the calls of shapes and lets all others pass.
func filterProgram() []unix.SockFilter {
	const load, jumpEqual, answer = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	program := []unix.SockFilter{{Code: load, K: 0}} // seccomp_data.nr
	left := uint8(len(shapes))
	for number := range shapes {
		program = append(program, unix.SockFilter{Code: jumpEqual, K: uint32(number), Jt: left})
		left--
	}
	return append(program, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW}, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_USER_NOTIF})
}

// fault is what happens at a call.
type fault struct {
	name string
	err  unix.Errno // 0: SIGKILL
}

// injection makes the at-th call of a name go wrong; the zero value only counts.
type injection struct {
	fault
	call string
	at   int

	// meanwhile is what others do before the call is made, instead of a fault. All calls
	// of the program that a gate stops wait for its end.
	meanwhile func() error
}

func (i injection) String() string { return fmt.Sprintf("%s at %s %d", i.name, i.call, i.at) }

// outcome is how a run of the program ended.
type outcome struct {
	calls          []call
	hit            *call // the one that went wrong, or before which others did something, if it was ever made
	exit           int   // -1: killed
	stdout, stderr string
}

// notice is struct seccomp_notif, reply struct seccomp_notif_resp.
type notice struct {
	id         uint64
	pid, flags uint32
	number     int32
	arch       uint32
	pointer    uint64
	args       [6]uint64
}

type reply struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// runGated runs a command and makes i happen.
func runGated(ctx context.Context, home string, i injection, command ...string) (outcome, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return outcome{}, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "gate"), os.NewFile(uintptr(pair[1]), "gate")
	defer func() { _ = ours.Close() }()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", command...)
	cmd.Env = append(environment(), gateVariable+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return outcome{}, err
	}
	g := gate{home: home, process: cmd.Process, injection: i, seen: map[string]int{}}
	serveErr := g.serve(ours)
	if serveErr != nil {
		_ = cmd.Process.Kill()
	}
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return outcome{}, err
	}
	return outcome{g.calls, g.hit, cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}, serveErr
}

// gate answers for the kernel.
type gate struct {
	home      string // paths are told relative to it
	process   *os.Process
	injection injection
	seen      map[string]int
	calls     []call
	hit       *call
}

// serve takes the listener from the launcher and answers until nobody is left.
func (g *gate) serve(from *os.File) error {
	var one [1]byte
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), one[:], rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("receive listener: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) == 0 {
		return fmt.Errorf("receive listener: the launcher failed: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return fmt.Errorf("receive listener: %w", err)
	}
	listener := fds[0]
	defer func() { _ = unix.Close(listener) }()
	for {
		wait := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(wait, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return err
		}
		if wait[0].Revents&unix.POLLIN == 0 {
			return nil // POLLHUP: all its processes have ended
		}
		if err := g.answer(listener); err != nil {
			return err
		}
	}
}

func (g *gate) answer(listener int) error {
	var n notice
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
		if errno == unix.ENOENT || errno == unix.EINTR {
			return nil // the thread died before it was its turn
		}
		return fmt.Errorf("receive call: %w", errno)
	}
	r := reply{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if c, ok := g.describe(&n); ok && (g.hit == nil || g.injection.meanwhile != nil) {
		g.seen[c.name]++
		c.at = g.seen[c.name]
		g.calls = append(g.calls, c)
		if g.injection.call == c.name && g.injection.at == c.at {
			g.hit = &c
			switch i := g.injection; {
			case i.meanwhile != nil:
				if err := i.meanwhile(); err != nil {
					return fmt.Errorf("before %s: %w", c, err)
				}
			case i.err == 0:
				return g.process.Kill() // in the middle of the call: it is never made
			default:
				r.flags, r.err = 0, -int32(i.err)
			}
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r))); errno != 0 && errno != unix.ENOENT {
		return fmt.Errorf("answer call: %w", errno)
	}
	return nil
}

// memory reads from the stopped process.
func memory(pid uint32, address uint64, into []byte) int {
	local := []unix.Iovec{{Base: &into[0], Len: uint64(len(into))}}
	remote := []unix.RemoteIovec{{Base: uintptr(address), Len: len(into)}}
	n, err := unix.ProcessVMReadv(int(pid), local, remote, 0)
	if err != nil {
		return 0
	}
	return n
}

// text reads a C string of the stopped process.
func text(pid uint32, address uint64) string {
	if address == 0 {
		return ""
	}
	var all []byte
	for len(all) < unix.PathMax {
		piece := make([]byte, 64-address%64) // never across a page that may not be there
		piece = piece[:memory(pid, address, piece)]
		before, _, ok := bytes.Cut(piece, []byte{0})
		if ok {
			return string(append(all, before...))
		}
		if len(piece) == 0 {
			break
		}
		all = append(all, piece...)
		address += uint64(len(piece))
	}
	return string(all)
}

// openHowFlags reads the flags of an openat2.
func openHowFlags(pid uint32, address uint64) uint64 {
	var raw [8]byte
	if memory(pid, address, raw[:]) < len(raw) {
		return 0
	}
	return binary.NativeEndian.Uint64(raw[:])
}
