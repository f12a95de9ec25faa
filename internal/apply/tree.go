package apply

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// readNames calls each with the names in dir, a few at a time and in no order.
// Names that are added or removed meanwhile may be missed.
func readNames(dir int, each func(name string) error) error {
	const bufBytes = 16 << 10
	buf := make([]byte, bufBytes)
	for {
		n, err := unix.Getdents(dir, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return os.NewSyscallError("getdents", err)
		}
		var names []string
		for rest := buf[:n]; len(rest) > 0; {
			var used int
			used, _, names = unix.ParseDirent(rest, -1, names)
			rest = rest[used:]
		}
		for _, name := range names {
			if err := each(name); err != nil {
				return err
			}
		}
	}
}

// removeTree removes base from dir, and all below it if it is a directory. It
// follows no links. It holds a descriptor for each level, of which there are at
// most half as many as a name may have bytes.
func removeTree(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove %q: %w", base, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Removing entries may make the kernel pass over others: read until none are left.
	for {
		count := 0
		err := readNames(fd, func(name string) error {
			count++
			return removeTree(fd, name)
		})
		if err != nil {
			return fmt.Errorf("remove %q: %w", base, err)
		}
		if count == 0 {
			break
		}
		if _, err := unix.Seek(fd, 0, 0); err != nil {
			return fmt.Errorf("remove %q: %w", base, err)
		}
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}
