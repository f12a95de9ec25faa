package cli

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// execve replaces this process by the command.
func execve(args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("run %s: %w", args[0], err)
	}
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, args, os.Environ()))
}
