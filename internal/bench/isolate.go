//go:build linux

package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// isolated names the mount namespace that [Isolate] made, in the environment of the
// program that it started.
const isolated = "DRAY_BENCH_MOUNT_NAMESPACE"

// Isolate gives this process a mount namespace of its own, for which it starts its
// program anew, with the same number: nothing that was done before is kept, so it comes
// first. What is mounted for a run is then in no namespace that somebody else on the
// machine makes meanwhile, who would keep its file system in use, and nothing stays
// mounted when the bench is killed. What others unmount goes here too (MS_SLAVE).
//
// It does nothing without root, where nothing is mounted for a run.
func Isolate() error {
	if os.Geteuid() != 0 {
		return nil
	}
	if ours, err := os.Readlink("/proc/self/ns/mnt"); err != nil || ours == os.Getenv(isolated) {
		return errors.Join(err, os.Unsetenv(isolated)) // servers need not know
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // for good: the thread is not like the others any more
	err = unix.Unshare(unix.CLONE_NEWNS)
	if errors.Is(err, unix.EPERM) {
		runtime.UnlockOSThread()
		return nil // who may not do that can't mount for a run, which the report says
	}
	if err != nil {
		return fmt.Errorf("make a mount namespace for the bench: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep the bench's mounts from the machine: %w", err)
	}
	made, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	err = unix.Exec(program, os.Args, append(os.Environ(), isolated+"="+made))
	return fmt.Errorf("start %s anew: %w", program, err)
}
