package apply

import (
	"bufio"
	"errors"
	"os"
	"path"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// names holds the NUL-terminated names of system calls, so that those of every
// entry allocate nothing.
type names struct {
	buf []byte
}

func (n *names) pointer(s string) unsafe.Pointer {
	n.buf = append(append(n.buf[:0], s...), 0)
	return unsafe.Pointer(&n.buf[0]) //nolint:gosec // the kernel reads up to the NUL
}

// openat opens base in dir. Names of images never hold a NUL: package layer
// refuses them.
func (n *names) openat(dir int, base string, flags int, mode uint32) (int, error) {
	for {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(n.pointer(base)),
			uintptr(flags|unix.O_CLOEXEC|unix.O_NOFOLLOW), uintptr(mode), 0, 0)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}

func (n *names) mkdirat(dir int, base string, mode uint32) error {
	_, _, errno := unix.Syscall(unix.SYS_MKDIRAT, uintptr(dir), uintptr(n.pointer(base)), uintptr(mode))
	if errno != 0 {
		return errno
	}
	return nil
}

// utimesat sets both times of base in dir, not following it.
func (n *names) utimesat(dir int, base string, t fileTime) error {
	return utimes(dir, n.pointer(base), t, unix.AT_SYMLINK_NOFOLLOW)
}

// futimes sets both times of fd.
func futimes(fd int, t fileTime) error { return utimes(fd, nil, t, 0) }

func utimes(fd int, name unsafe.Pointer, t fileTime, flags int) error {
	spec := unix.Timespec{Sec: t.sec, Nsec: int64(t.nsec)}
	times := [2]unix.Timespec{spec, spec}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(name),
		uintptr(unsafe.Pointer(&times)), uintptr(flags), 0, 0) //nolint:gosec // the kernel reads two timespecs
	if errno != 0 {
		return errno
	}
	return nil
}

// fileTime is a time as system calls take it.
type fileTime struct {
	sec  int64
	nsec uint32
}

// Resolutions of [openat2].
const (
	realDirs = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	inRoot   = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
)

// openDir opens the directory at path below root.
func openDir(root int, path string, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve}
	if path == "" {
		path = "."
	}
	// The kernel gives up with EAGAIN when something is renamed meanwhile.
	const attempts = 100
	for i := 0; ; i++ {
		fd, err := unix.Openat2(root, path, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && i < attempts:
		default:
			return fd, err
		}
	}
}

// lstat returns the status of base in dir, not following it.
func lstat(dir int, base string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// writeAll writes all of p at the file's position.
func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// procPath names base in dir for the calls that have no *at form; they must not
// follow links.
func procPath(dir int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + base
}

// readUmask returns the process's umask without changing it, or all of it if it
// cannot be read, so that every mode is set explicitly.
func readUmask() uint32 {
	const all = 0o777
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return all
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "Umask:"); ok {
			if mask, err := strconv.ParseUint(strings.TrimSpace(text), 8, 32); err == nil {
				return uint32(mask)
			}
		}
	}
	return all
}

// cleanPath resolves "." and ".." lexically, never above the root.
func cleanPath(name string) string { return path.Clean("/" + name)[1:] }
