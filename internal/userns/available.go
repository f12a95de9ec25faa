package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// ErrUnavailable reports that dray cannot make a user namespace here; the text
// says why and what to do.
var ErrUnavailable = errors.New("user namespace unavailable")

// trialTime limits how long the trial in [Available] may take.
const trialTime = 30 * time.Second

// tools are the programs without which nothing can run inside.
type tools struct{ nsenter, setpriv, sh, sleep string }

func findTools() (tools, error) {
	var t tools
	for _, want := range []struct {
		to            *string
		name, Package string
	}{
		{&t.nsenter, "nsenter", "util-linux"},
		{&t.setpriv, "setpriv", "util-linux"},
		{&t.sh, "sh", "dash"},
		{&t.sleep, "sleep", "coreutils"},
	} {
		path, err := exec.LookPath(want.name)
		if err != nil {
			return t, fmt.Errorf("%w: %s is not on the PATH: install %s", ErrUnavailable, want.name, want.Package)
		}
		*want.to = path
	}
	return t, nil
}

// Available returns nil when a user namespace with a mount namespace can be made,
// found out by making one, and otherwise an error that wraps [ErrUnavailable]
// and says what to change.
func Available() error {
	t, err := findTools()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), trialTime)
	defer cancel()
	trial := exec.CommandContext(ctx, t.sleep, "0") //nolint:gosec // found on the caller's PATH, run with the caller's rights
	trial.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER,
		// Made in a second step, after the map: AppArmor grants the first and
		// takes the rights for the second.
		Unshareflags: syscall.CLONE_NEWNS,
		UidMappings:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if err := trial.Run(); err != nil {
		return fmt.Errorf("%w: %s", ErrUnavailable, explain(err))
	}
	return nil
}

// explain says what stands behind a refused namespace.
func explain(err error) string {
	sysctl := func(name string) string {
		text, err := os.ReadFile("/proc/sys/" + name) //nolint:gosec // names below
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(text))
	}
	_, missing := os.Stat("/proc/self/ns/user")
	switch {
	case missing != nil:
		return "the kernel has no user namespaces (CONFIG_USER_NS): run as root"
	case sysctl("user/max_user_namespaces") == "0":
		return "user.max_user_namespaces is 0: set it with sysctl, or run as root"
	case sysctl("kernel/unprivileged_userns_clone") == "0":
		return "kernel.unprivileged_userns_clone is 0: set it to 1 with sysctl, or run as root"
	case sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor takes the rights of user namespaces away: install a profile for dray that allows userns, " +
			"set kernel.apparmor_restrict_unprivileged_userns to 0 with sysctl, or run as root"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
		return "the limit of user namespaces is reached (user.max_user_namespaces, or 32 inside each other)"
	case errors.Is(err, syscall.EPERM):
		return "the system refuses it (" + err.Error() + "): inside a container its seccomp profile has to allow it, in a chroot it cannot be made; otherwise run as root"
	}
	return err.Error()
}
