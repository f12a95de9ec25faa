package erofs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoVerity reports a file system, or a kernel, that does not measure files.
var ErrNoVerity = errors.New("fs-verity is not possible here")

// ErrChanged reports a file that is not measured as it was.
var ErrChanged = errors.New("file is not the one that was stored")

// Algorithms of fs-verity (linux/fsverity.h).
const (
	veritySHA256 = 1
	veritySHA512 = 2
)

// Seal makes the file system hold the file at path against a digest at each read from
// now on, for good, and refuse to change it (fs-verity). It returns the digest, as
// [Measure] does. Nobody may have the file open to write. Where that is not possible
// the error is an [ErrNoVerity].
func Seal(path string) (measured string, err error) {
	f, err := os.Open(path) //nolint:gosec // a path of the caller's
	if err != nil {
		return "", fmt.Errorf("seal: %w", err)
	}
	defer func() { _ = f.Close() }()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: veritySHA256, Block_size: uint32(os.Getpagesize())} // Linux before 6.3 takes no other size
	err = ioctl(int(f.Fd()), unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))                                     //nolint:gosec // the kernel reads the struct, which is its own
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("seal %s: %w", path, verityError(err))
	}
	return Measure(int(f.Fd()))
}

// Measure returns the digest of an open file that the file system holds it against, as
// "ALGORITHM:HEX". It reads nothing of the file. The error is an [ErrNoVerity] for one
// that was not sealed.
func Measure(fd int) (string, error) {
	const largest = 64
	var b struct {
		unix.FsverityDigest

		digest [largest]byte
	}
	b.Size = largest
	if err := ioctl(fd, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&b)); err != nil { //nolint:gosec // the kernel writes no more than b.Size bytes
		return "", fmt.Errorf("measure: %w", verityError(err))
	}
	names := map[uint16]string{veritySHA256: "sha256", veritySHA512: "sha512"}
	name, ok := names[b.Algorithm]
	if !ok || b.Size > largest {
		return "", fmt.Errorf("measure: algorithm %d with %d bytes is unknown", b.Algorithm, b.Size)
	}
	return name + ":" + hex.EncodeToString(b.digest[:b.Size]), nil
}

// CheckSealed compares an open file with what was measured when it was stored. measure
// is [Measure] but in tests. "" was not measured, and anything goes. The error is an
// [ErrChanged], or that of measuring.
func CheckSealed(fd int, want string, measure func(fd int) (string, error)) error {
	if want == "" {
		return nil
	}
	got, err := measure(fd)
	if errors.Is(err, ErrNoVerity) {
		return fmt.Errorf("was measured as %s, and is not sealed now (%w): %w", want, err, ErrChanged)
	}
	if err == nil && got != want {
		err = fmt.Errorf("is measured as %s, was %s: %w", got, want, ErrChanged)
	}
	return err
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// verityError marks the errors that say that there is no such thing: a kernel or a file
// system that does not know it (ENOTTY), a file system made without it (EOPNOTSUPP), a
// file that has none (ENODATA), blocks that are not of a page's size (EINVAL).
func verityError(err error) error {
	for _, none := range []error{unix.ENOTTY, unix.EOPNOTSUPP, unix.ENODATA, unix.EINVAL} {
		if errors.Is(err, none) {
			return fmt.Errorf("%w: %w", ErrNoVerity, err)
		}
	}
	return err
}
