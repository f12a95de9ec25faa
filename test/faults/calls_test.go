package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// call is one system call that changes something.
type call struct {
	name string
	what string // on which path, or with which key
	at   int    // the how manieth of its name
}

func (c call) String() string { return fmt.Sprintf("%s(%s) %d", c.name, c.what, c.at) }

// shape says which arguments of a call name what it changes.
type shape struct {
	name string
	fds  []int    // arguments that are descriptors
	at   [][2]int // arguments that are a directory's descriptor and a name in it; -1: no descriptor
	text int      // argument that is a string, 0 for none
	flag int      // argument of flags that must have O_CREAT, 0 for none; negative: in a struct open_how
}

// shapes are the calls that a gate stops, by number.
var shapes = gated()

func gated() map[int]shape {
	calls := map[int]shape{
		unix.SYS_WRITE:           {name: "write", fds: []int{0}},
		unix.SYS_PWRITE64:        {name: "pwrite64", fds: []int{0}},
		unix.SYS_WRITEV:          {name: "writev", fds: []int{0}},
		unix.SYS_PWRITEV:         {name: "pwritev", fds: []int{0}},
		unix.SYS_PWRITEV2:        {name: "pwritev2", fds: []int{0}},
		unix.SYS_COPY_FILE_RANGE: {name: "copy_file_range", fds: []int{2}},
		unix.SYS_SENDFILE:        {name: "sendfile", fds: []int{0}},
		unix.SYS_SPLICE:          {name: "splice", fds: []int{2}},
		unix.SYS_FTRUNCATE:       {name: "ftruncate", fds: []int{0}},
		unix.SYS_FALLOCATE:       {name: "fallocate", fds: []int{0}},
		unix.SYS_FSYNC:           {name: "fsync", fds: []int{0}},
		unix.SYS_FDATASYNC:       {name: "fdatasync", fds: []int{0}},
		unix.SYS_SYNCFS:          {name: "syncfs", fds: []int{0}},
		unix.SYS_SYNC_FILE_RANGE: {name: "sync_file_range", fds: []int{0}},
		unix.SYS_FCHOWN:          {name: "fchown", fds: []int{0}},
		unix.SYS_FCHMOD:          {name: "fchmod", fds: []int{0}},
		unix.SYS_FSETXATTR:       {name: "fsetxattr", fds: []int{0}, text: 1},
		unix.SYS_FREMOVEXATTR:    {name: "fremovexattr", fds: []int{0}, text: 1},
		unix.SYS_SETXATTR:        {name: "setxattr", at: [][2]int{{-1, 0}}, text: 1},
		unix.SYS_LSETXATTR:       {name: "lsetxattr", at: [][2]int{{-1, 0}}, text: 1},
		unix.SYS_LREMOVEXATTR:    {name: "lremovexattr", at: [][2]int{{-1, 0}}, text: 1},
		unix.SYS_OPENAT:          {name: "openat", at: [][2]int{{0, 1}}, flag: 2},
		unix.SYS_OPENAT2:         {name: "openat2", at: [][2]int{{0, 1}}, flag: -2},
		unix.SYS_MKDIRAT:         {name: "mkdirat", at: [][2]int{{0, 1}}},
		unix.SYS_MKNODAT:         {name: "mknodat", at: [][2]int{{0, 1}}},
		unix.SYS_SYMLINKAT:       {name: "symlinkat", at: [][2]int{{1, 2}}},
		unix.SYS_LINKAT:          {name: "linkat", at: [][2]int{{0, 1}, {2, 3}}},
		unix.SYS_UNLINKAT:        {name: "unlinkat", at: [][2]int{{0, 1}}},
		unix.SYS_RENAMEAT:        {name: "renameat", at: [][2]int{{0, 1}, {2, 3}}},
		unix.SYS_RENAMEAT2:       {name: "renameat2", at: [][2]int{{0, 1}, {2, 3}}},
		unix.SYS_FCHOWNAT:        {name: "fchownat", at: [][2]int{{0, 1}}},
		unix.SYS_FCHMODAT:        {name: "fchmodat", at: [][2]int{{0, 1}}},
		unix.SYS_FCHMODAT2:       {name: "fchmodat2", at: [][2]int{{0, 1}}},
		unix.SYS_UTIMENSAT:       {name: "utimensat", at: [][2]int{{0, 1}}},
		unix.SYS_MOUNT:           {name: "mount", at: [][2]int{{-1, 1}}},
		unix.SYS_UMOUNT2:         {name: "umount2", at: [][2]int{{-1, 0}}},
		unix.SYS_FSOPEN:          {name: "fsopen", text: -1},
		unix.SYS_FSCONFIG:        {name: "fsconfig", text: 2},
		unix.SYS_FSMOUNT:         {name: "fsmount"},
		unix.SYS_MOVE_MOUNT:      {name: "move_mount", at: [][2]int{{2, 3}}},
		unix.SYS_OPEN_TREE:       {name: "open_tree", at: [][2]int{{0, 1}}},
		unix.SYS_MOUNT_SETATTR:   {name: "mount_setattr", at: [][2]int{{0, 1}}},
	}
	addOld(calls)
	return calls
}

// mounting tells whether a call is of the family that makes mounts: what it says
// has nothing to do with the disk, ENOSPC included, which means that a namespace
// has its full number of mounts.
func mounting(name string) bool {
	return slices.Contains([]string{"mount", "umount2", "fsopen", "fsconfig", "fsmount", "move_mount", "open_tree", "mount_setattr"}, name)
}

// describe says what a call changes; false for nothing on a disk, in a mount table
// or on standard output: sockets, the runtime's own descriptors, files that are only
// opened.
func (g *gate) describe(n *notice) (call, bool) {
	s := shapes[int(n.number)]
	c := call{name: s.name}
	switch {
	case s.flag > 0 && n.args[s.flag]&unix.O_CREAT == 0,
		s.flag < 0 && openHowFlags(n.pid, n.args[-s.flag])&unix.O_CREAT == 0:
		return c, false
	}
	var parts []string
	for _, arg := range s.fds {
		path := descriptor(n.pid, int32(n.args[arg]))
		fd := int32(n.args[arg])
		switch {
		case strings.HasPrefix(path, "/dev/"), strings.HasPrefix(path, "/proc/"), strings.HasPrefix(path, "/sys/"):
			return c, false
		case strings.HasPrefix(path, "/"):
		case fd == 1:
			path = "stdout"
		case fd == 2:
			path = "stderr"
		default:
			return c, false
		}
		parts = append(parts, path)
	}
	for _, pair := range s.at {
		dir := int32(unix.AT_FDCWD)
		if pair[0] >= 0 {
			dir = int32(n.args[pair[0]])
		}
		parts = append(parts, resolve(n.pid, dir, text(n.pid, n.args[pair[1]])))
	}
	switch {
	case s.text > 0:
		parts = append(parts, text(n.pid, n.args[s.text]))
	case s.text < 0:
		parts = append(parts, text(n.pid, n.args[0]))
	}
	for i, part := range parts {
		parts[i] = g.shorten(part)
	}
	c.what = strings.Join(parts, ", ")
	return c, true
}

func descriptor(pid uint32, fd int32) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return ""
	}
	return path
}

// resolve returns the path that a name in a directory means.
func resolve(pid uint32, dir int32, name string) string {
	if rest, ok := strings.CutPrefix(name, "/proc/self/fd/"); ok {
		number, below, _ := strings.Cut(rest, "/")
		if fd, err := strconv.Atoi(number); err == nil {
			return filepath.Join(descriptor(pid, int32(fd)), below)
		}
	}
	if filepath.IsAbs(name) || dir == unix.AT_FDCWD {
		return name
	}
	return filepath.Join(descriptor(pid, dir), name)
}

// Names that differ from run to run.
var (
	reDigest = regexp.MustCompile(`[0-9a-f]{64}`)
	reBoot   = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	reMount  = regexp.MustCompile(`\b[0-9a-f]{8}-[a-z2-7]{16}\b`)
	reRandom = regexp.MustCompile(`-([a-z2-7]{16}|[A-Z2-7]{26})\b`)
)

// shorten makes a path readable and the same in each run.
func (g *gate) shorten(path string) string {
	path = strings.TrimPrefix(path, g.home+"/")
	path = reBoot.ReplaceAllString(path, "BOOT")
	path = reDigest.ReplaceAllString(path, "DIGEST")
	path = reMount.ReplaceAllString(path, "MOUNT")
	return reRandom.ReplaceAllString(path, "-RANDOM")
}
