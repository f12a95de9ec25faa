package erofs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/loopdev"
)

// Backing says through what the kernel reads an image.
type Backing uint8

// The ways, the better one first.
const (
	Files Backing = iota // as it is: Linux 6.12
	Loop                 // through loop devices, which are gone with the mount
)

// String returns the word for it.
func (b Backing) String() string {
	if b == Loop {
		return "loop devices"
	}
	return "files"
}

// Mount mounts an image and its tars, in the order in which they were indexed, the
// lowest layer's first, read-only, without attaching it to a directory, and returns a
// descriptor of its root. The mount is gone when that and everything that was made of
// it is closed. All are open descriptors, for there may be hundreds, and are not needed
// any more when Mount has returned. What was opened is what is mounted: no path is
// followed.
func Mount(b Backing, index int, tars ...int) (fd int, err error) {
	fd, err = mount(b, index, tars)
	if err != nil {
		return -1, fmt.Errorf("mount erofs: %w", err)
	}
	return fd, nil
}

func mount(b Backing, index int, tars []int) (int, error) {
	files, err := devices(index, tars)
	if err != nil {
		return -1, err
	}
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	key := "source"
	for _, file := range files {
		path := "/proc/self/fd/" + strconv.Itoa(file)
		if b == Loop {
			loop, err := loopdev.Attach(file, blockBytes, unix.LO_FLAGS_READ_ONLY)
			if err != nil {
				return -1, err
			}
			defer func() { _ = loop.Close() }() // the mount holds it
			path = loop.Name()                  // which nobody can take from it
		}
		if err := unix.FsconfigSetString(fs, key, path); err != nil {
			return -1, explain(fs, "set "+key, err)
		}
		key = "device"
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return -1, explain(fs, "set ro", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, "read superblock", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, explain(fs, "fsmount", err)
	}
	return fd, nil
}

// devices returns what the kernel is given of an image: the index and the tars that
// are devices, which those without a whole block are not.
func devices(index int, tars []int) ([]int, error) {
	const at = superOffset + 86
	var count [2]byte
	if n, err := unix.Pread(index, count[:], at); err != nil || n < len(count) {
		return nil, fmt.Errorf("read superblock: %w", cmp.Or(err, io.ErrUnexpectedEOF))
	}
	files := []int{index}
	for _, tar := range tars {
		var st unix.Stat_t
		if err := unix.Fstat(tar, &st); err != nil {
			return nil, fmt.Errorf("look at a tar: %w", err)
		}
		if st.Size >= blockBytes {
			files = append(files, tar)
		}
	}
	if want := int(binary.LittleEndian.Uint16(count[:])); want != len(files)-1 {
		return nil, fmt.Errorf("index of %d tars with contents, %d are given: %w", want, len(files)-1, ErrDamaged)
	}
	return files, nil
}

// explain adds to an error what the kernel says of it.
func explain(fs int, what string, err error) error {
	const messageBytes = 1024
	var said []string
	line := make([]byte, messageBytes)
	for {
		n, readErr := unix.Read(fs, line)
		if readErr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(line[:n])))
	}
	if len(said) == 0 {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (kernel: %s)", what, err, strings.Join(said, "; "))
}
