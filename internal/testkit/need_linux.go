package testkit

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Overlay is the right to mount overlayfs over the test's directory.
func Overlay() Cap {
	return Cap{"overlayfs", func(_ context.Context, dir string) string {
		for _, name := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				return err.Error()
			}
		}
		merged := filepath.Join(dir, "merged")
		options := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
		if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
			return err.Error()
		}
		return reason(unix.Unmount(merged, 0))
	}}
}

// UserNS is the right to make a user namespace.
func UserNS() Cap {
	return Cap{"user namespaces", func(ctx context.Context, _ string) string {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^$")
		cmd.SysProcAttr = newUserNS()
		return reason(cmd.Run())
	}}
}

// newUserNS runs a command in a user namespace of its own.
func newUserNS() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
}
