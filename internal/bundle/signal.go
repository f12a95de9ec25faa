package bundle

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of signal numbers; real-time signals begin where glibc and musl agree
// that programs may use them.
const (
	rtMin     = 34
	rtMax     = 64
	signalMax = rtMax
)

// ParseSignal reads a signal as an image's StopSignal has it: "SIGTERM", "TERM",
// "15", "SIGRTMIN+3", "RTMAX-1". "" is SIGTERM. Errors wrap [ErrOption].
func ParseSignal(s string) (syscall.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	bad := fmt.Errorf("parse signal %q: want a name such as SIGTERM or a number from 1 to %d: %w", s, signalMax, ErrOption)
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		if n < 1 || n > signalMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if signal := unix.SignalNum("SIG" + name); signal != 0 {
		return signal, nil
	}
	base, rest := rtMin, strings.TrimPrefix(name, "RTMIN")
	if after, ok := strings.CutPrefix(name, "RTMAX"); ok {
		base, rest = rtMax, after
	} else if !strings.HasPrefix(name, "RTMIN") {
		return 0, bad
	}
	if rest == "" {
		return syscall.Signal(base), nil
	}
	offset, err := strconv.ParseUint(rest[1:], 10, 8)
	number := base + int(offset)
	if rest[0] == '-' {
		number = base - int(offset)
	}
	if err != nil || rest[0] != '+' && rest[0] != '-' || number < rtMin || number > rtMax {
		return 0, bad
	}
	return syscall.Signal(number), nil
}
