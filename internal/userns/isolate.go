package userns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// isolated names the mount namespace that [Isolate] made, in the environment of the
// program that it started.
const isolated = "DRAY_ISOLATED_IN"

// Isolate gives root's process a mount namespace of its own, for which it starts its
// program anew, with the same number: nothing that was done before is kept, so it comes
// first. What is mounted there is then in no namespace that somebody else on the machine
// makes meanwhile, who would keep its files in use, and nothing stays mounted when the
// process is killed. What others unmount goes here too. Propagation is MS_SLAVE or, if what
// is unmounted here is to go from the namespaces of its children as well, MS_SHARED: then
// copies of a mount within the namespace follow each other, too.
//
// It does nothing for others than root.
func Isolate(propagation uintptr) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if ours, err := os.Readlink("/proc/self/ns/mnt"); err != nil || ours == os.Getenv(isolated) {
		return errors.Join(err, os.Unsetenv(isolated)) // children need not know
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // for good: the thread is not like the others any more
	err = unix.Unshare(unix.CLONE_NEWNS)
	if errors.Is(err, unix.EPERM) {
		runtime.UnlockOSThread()
		return nil // who may not do that can't mount either, which whoever mounts will say
	}
	if err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	for _, p := range []uintptr{unix.MS_SLAVE, propagation} {
		if err := unix.Mount("", "/", "", unix.MS_REC|p, ""); err != nil {
			return fmt.Errorf("keep mounts from the machine: %w", err)
		}
	}
	made, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	err = unix.Exec(program, os.Args, append(os.Environ(), isolated+"="+made))
	return fmt.Errorf("start %s anew: %w", program, err)
}
