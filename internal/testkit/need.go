package testkit

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireVariable is the environment variable that, set to "all", makes a missing
// capability a failure: continuous integration sets it.
const RequireVariable = "DRAY_REQUIRE"

// Cap is something that a test needs of the machine.
type Cap struct {
	name  string
	probe func(ctx context.Context, dir string) string // why it is missing, or ""; dir is to try in
}

// Need skips the test where one of the capabilities is missing, and says which and
// why.
//
//	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Tool("umoci"))
func Need(tb testing.TB, caps ...Cap) {
	tb.Helper()
	for _, c := range caps {
		why := c.probe(tb.Context(), tb.TempDir())
		if why == "" {
			continue
		}
		Lacking(tb, c.name, why)
	}
}

// Lacking skips the test for want of something, or fails it where all is required.
func Lacking(tb testing.TB, name, why string) {
	tb.Helper()
	if os.Getenv(RequireVariable) == "all" {
		tb.Fatalf("%s is required by %s=all: %s", name, RequireVariable, why)
	}
	tb.Skipf("needs %s: %s", name, why)
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Root is user 0 of the initial user namespace, or of one that maps all users.
func Root() Cap {
	return Cap{"root", func(context.Context, string) string {
		if os.Geteuid() != 0 {
			return "the tests run as an ordinary user"
		}
		return ""
	}}
}

// Tool is a program in PATH.
func Tool(name string) Cap {
	return Cap{name, func(context.Context, string) string {
		_, err := exec.LookPath(name)
		return reason(err)
	}}
}

// Mknod is the right to make devices in the test's directory.
func Mknod() Cap {
	return Cap{"mknod", func(_ context.Context, dir string) string {
		return reason(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	}}
}

// Xattr is a directory for tests that takes attributes of these names
// ("user.x", "trusted.x", "security.capability", "system.posix_acl_access").
func Xattr(names ...string) Cap {
	return Cap{"extended attributes " + strings.Join(names, ", "), func(_ context.Context, dir string) string {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err.Error()
		}
		for _, name := range names {
			value := "x"
			switch name {
			case "security.capability":
				value = Capability(1)
			case "system.posix_acl_access":
				value = ACL(0o600, 1, 4)
			}
			if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
				return name + ": " + err.Error()
			}
		}
		return ""
	}}
}
