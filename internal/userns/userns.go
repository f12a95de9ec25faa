package userns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/moby/sys/user"
)

// initialInode is the inode number of the first user namespace in every kernel
// (PROC_USER_INIT_INO; include/uapi/linux/nsfs.h since 6.18).
const initialInode = 0xEFFFFFFD

// marker is set in the environment of the program that runs inside, so that one
// which has no rights even there says so instead of starting itself for ever.
const marker = "DRAY_USERNS"

// Inside tells whether the process is in a user namespace other than the first:
// dray's own, or that of a container. Overlay mounts need whiteouts in "user."
// form there.
func Inside() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino != initialInode
}

// Needed tells whether the process lacks the right to mount: it is not root, or
// root without CAP_SYS_ADMIN.
func Needed() bool {
	return os.Geteuid() != 0 || !effective(unix.CAP_SYS_ADMIN)
}

// SingleID tells whether the process's user namespace has room for one user or
// one group only, so that no file in it can belong to anyone else.
func SingleID() bool {
	return single("/proc/self/uid_map") || single("/proc/self/gid_map")
}

func single(path string) bool {
	ranges, err := user.ParseIDMapFile(path)
	return err == nil && len(ranges) == 1 && ranges[0].Count == 1
}

// effective tells whether the calling thread has the capability in force. All
// threads of a Go process have the same.
func effective(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// OverlayInUserNS tries whether the kernel mounts an overlay with its upper
// directory below dir, with whiteouts in "user." form: Linux 5.11, and a file
// system with user extended attributes. It attaches nothing and leaves nothing.
func OverlayInUserNS(dir string) (err error) {
	base, err := os.MkdirTemp(dir, ".overlay-probe-")
	if err != nil {
		return fmt.Errorf("probe overlay: %w", err)
	}
	defer func() {
		if e := os.RemoveAll(base); err == nil && e != nil {
			err = fmt.Errorf("probe overlay: %w", e)
		}
	}()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("probe overlay: open file system: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.FsconfigSetFlag(fd, "userxattr"); err != nil {
		return fmt.Errorf("probe overlay: option userxattr (Linux 5.11 or newer): %w", err)
	}
	for key, name := range map[string]string{"lowerdir": "/lower", "upperdir": "/upper", "workdir": "/work"} {
		if err := os.Mkdir(base+name, 0o700); err != nil {
			return fmt.Errorf("probe overlay: %w", err)
		}
		if err := unix.FsconfigSetString(fd, key, base+name); err != nil {
			return fmt.Errorf("probe overlay: set %s: %w", key, err)
		}
	}
	if err := unix.Lsetxattr(base+"/upper", "user.dray.probe", []byte("y"), 0); err != nil {
		return fmt.Errorf("probe overlay: file system of %s has no user extended attributes: %w", dir, err)
	}
	if err := unix.Mknod(base+"/upper/whiteout", unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("probe overlay: create whiteout (Linux 5.8 or newer): %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("probe overlay: mount on %s: %w", dir, err)
	}
	return nil
}
