package seed

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/store"
)

// Hold says why bytes of a seed stay what they were when they were hashed.
type Hold uint8

// Holds, from the weakest on.
const (
	Loose   Hold = iota // they may not: what is used is a copy
	Held                // nobody but root and this user can write them, on a file system of this machine
	Sealed              // the kernel checks each read: fs-verity or dm-verity
	Trusted             // the user vouches for the seed
)

// String returns the word for it.
func (h Hold) String() string {
	switch h {
	case Loose:
		return "copied"
	case Held:
		return "held"
	case Sealed:
		return "sealed"
	case Trusted:
		return "trusted"
	}
	return fmt.Sprintf("Hold(%d)", uint8(h))
}

// machine is what holds depend on.
type machine struct {
	sysfs        string // "/sys"
	foreignDisks bool   // whoever provides the disks is not trusted: a guest's host
	inUserNS     bool
}

// judge finds out what holds an open file, and says why.
func (m *machine) judge(f *os.File) (Hold, string) {
	if m.inUserNS {
		return Loose, "a user namespace uses copies"
	}
	id, err := store.IdentifyFile(f)
	if err != nil {
		return Loose, err.Error()
	}
	if id.Verity != "" {
		return Sealed, "fs-verity guards it"
	}
	if m.verityDevice(id.Dev) {
		return Sealed, "it is on a dm-verity device"
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Loose, err.Error()
	}
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return Loose, err.Error()
	}
	const othersWrite = 0o022
	switch {
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()), st.Mode&othersWrite != 0:
		return Loose, "others than root and this user may write it"
	case isMemory(fs.Type):
		return Held, "it is in this machine's memory"
	case m.foreignDisks:
		return Loose, "the disks of this machine are not trusted"
	case m.loopDevice(id.Dev):
		return Loose, "it is on a loop device, and its file may be anybody's"
	case !isDisk(fs.Type):
		return Loose, fmt.Sprintf("its file system (type %#x) is not known to be this machine's alone", fs.Type)
	}
	return Held, "only root and this user may write it"
}

func isMemory(fsType int64) bool {
	return fsType == unix.TMPFS_MAGIC || fsType == unix.RAMFS_MAGIC
}

// isDisk tells file systems that nobody beside this kernel changes. What is not
// among them, as network, shared and stacked file systems and FUSE, may be one.
func isDisk(fsType int64) bool {
	const bcachefs, zfs = 0xca451a4e, 0x2fc12fc1
	return slices.Contains([]int64{
		unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
		unix.EROFS_SUPER_MAGIC_V1, unix.SQUASHFS_MAGIC, unix.ISOFS_SUPER_MAGIC, bcachefs, zfs,
	}, fsType)
}

// loopDevice tells whether a file system is in a file.
func (m *machine) loopDevice(dev uint64) bool {
	_, err := os.Lstat(fmt.Sprintf("%s/dev/block/%d:%d/loop", m.sysfs, unix.Major(dev), unix.Minor(dev)))
	return err == nil
}

// verityDevice tells whether a file system is on a device of dm-verity.
func (m *machine) verityDevice(dev uint64) bool {
	uuid, err := os.ReadFile(fmt.Sprintf("%s/dev/block/%d:%d/dm/uuid", m.sysfs, unix.Major(dev), unix.Minor(dev)))
	return err == nil && strings.HasPrefix(string(uuid), "CRYPT-VERITY-")
}
