// Package loopdev gives files block devices. It hides how a free device is found while
// others look for one too.
package loopdev

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Attach returns a loop device over an open file, which ends with its last user: what is
// returned, or a mount. flags are LO_FLAGS of the kernel; with LO_FLAGS_READ_ONLY the
// device is opened for reading only. blockBytes is the device's sector, 0 the kernel's
// choice. The caller closes it.
func Attach(file int, blockBytes, flags uint32) (*os.File, error) {
	const attempts = 64 // others take devices too
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	config := unix.LoopConfig{Fd: uint32(file), Size: blockBytes, Info: unix.LoopInfo64{Flags: flags | unix.LO_FLAGS_AUTOCLEAR}}
	for range attempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get a free loop device: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", loop.Name(), err)
		}
	}
	return nil, fmt.Errorf("get a free loop device: %w", unix.EBUSY)
}
