package faults

import (
	"maps"

	"golang.org/x/sys/unix"
)

// addOld adds the calls that newer architectures have no more.
func addOld(calls map[int]shape) {
	path := [][2]int{{-1, 0}}
	maps.Copy(calls, map[int]shape{
		unix.SYS_OPEN:    {name: "open", at: path, flag: 1},
		unix.SYS_CREAT:   {name: "creat", at: path},
		unix.SYS_MKDIR:   {name: "mkdir", at: path},
		unix.SYS_RMDIR:   {name: "rmdir", at: path},
		unix.SYS_MKNOD:   {name: "mknod", at: path},
		unix.SYS_SYMLINK: {name: "symlink", at: [][2]int{{-1, 1}}},
		unix.SYS_LINK:    {name: "link", at: [][2]int{{-1, 0}, {-1, 1}}},
		unix.SYS_UNLINK:  {name: "unlink", at: path},
		unix.SYS_RENAME:  {name: "rename", at: [][2]int{{-1, 0}, {-1, 1}}},
		unix.SYS_CHMOD:   {name: "chmod", at: path},
		unix.SYS_CHOWN:   {name: "chown", at: path},
		unix.SYS_LCHOWN:  {name: "lchown", at: path},
	})
}
