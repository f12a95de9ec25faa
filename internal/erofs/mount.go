package erofs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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

// Mount mounts an image and its tar, read-only, without attaching it to a
// directory, and returns a descriptor of its root. The mount is gone when that and
// everything that was made of it is closed. index and tar are not needed any more
// when Mount has returned. What was opened is what is mounted: no path is
// followed.
func Mount(index, tar *os.File, b Backing) (fd int, err error) {
	fd, err = mount(index, tar, b)
	if err != nil {
		return -1, fmt.Errorf("mount erofs: %w", err)
	}
	return fd, nil
}

func mount(index, tar *os.File, b Backing) (int, error) {
	devices, err := countDevices(index)
	if err != nil {
		return -1, err
	}
	files := []*os.File{index, tar}[:1+devices]
	if b == Loop {
		for i, f := range files {
			loop, err := attachLoop(f)
			if err != nil {
				return -1, err
			}
			defer func() { _ = loop.Close() }() // the mount holds it
			files[i] = loop
		}
	}
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for i, key := range []string{"source", "device"}[:len(files)] {
		if err := unix.FsconfigSetString(fs, key, backingPath(files[i], b)); err != nil {
			return -1, explain(fs, "set "+key, err)
		}
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

// countDevices tells whether an image has the tar as a device: it has none if no
// file has contents.
func countDevices(index *os.File) (int, error) {
	const at = superOffset + 86
	var count [2]byte
	if _, err := index.ReadAt(count[:], at); err != nil {
		return 0, fmt.Errorf("read superblock: %w", err)
	}
	if count[0] > 1 || count[1] != 0 {
		return 0, errors.New("read superblock: more than one device")
	}
	return int(count[0]), nil
}

// backingPath names an open file to the kernel. Loop devices have a name of their
// own, which nobody can take from them.
func backingPath(f *os.File, b Backing) string {
	if b == Loop {
		return f.Name()
	}
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
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

// attachLoop returns a read-only loop device over f, which ends with its last
// user.
func attachLoop(f *os.File) (*os.File, error) {
	const attempts = 64 // others take devices too
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	for range attempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get a free loop device: %w", err)
		}
		loop, err := os.Open("/dev/loop" + strconv.Itoa(n))
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: blockBytes, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", loop.Name(), err)
		}
	}
	return nil, fmt.Errorf("get a free loop device: %w", unix.EBUSY)
}
