package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"dray/internal/stream"
)

// Limits of what an image may say about its users.
const (
	maxUserFileBytes = 4 << 20 // of etc/passwd and etc/group
	maxGroupCount    = 65536   // NGROUPS_MAX of the kernel
)

// Files that users are looked up in.
const (
	passwdName = "etc/passwd"
	groupName  = "etc/group"
)

// IDRange is the user or group IDs from First on.
type IDRange struct{ First, Count uint32 }

// fillIDs reads the IDs of the caller's user namespace where none are given.
func (o *Options) fillIDs() error {
	for _, m := range []struct {
		file   string
		ranges *[]IDRange
	}{{"/proc/self/uid_map", &o.UIDs}, {"/proc/self/gid_map", &o.GIDs}} {
		if *m.ranges != nil {
			continue
		}
		mapped, err := user.ParseIDMapFile(m.file)
		if err != nil {
			return fmt.Errorf("read user namespace: %w", err)
		}
		*m.ranges = []IDRange{}
		for _, r := range mapped {
			*m.ranges = append(*m.ranges, IDRange{First: uint32(r.ID), Count: uint32(r.Count)})
		}
	}
	return nil
}

// hasID tells whether id exists in a user namespace; nil is the first one, which
// has all.
func hasID(ranges []IDRange, id uint32) bool {
	return ranges == nil || slices.ContainsFunc(ranges, func(r IDRange) bool { return id >= r.First && id-r.First < r.Count })
}

// foundUser is a user as the image knows it.
type foundUser struct {
	user specs.User
	home string
}

// lookUpUser finds who ("", user, user:group; names or numbers) in the image's
// own files. A number needs no entry there.
func lookUpUser(rootfs *os.File, who string, o *Options) (foundUser, error) {
	// A reader that is nil says that there is no file.
	passwd, err := readUserFile(rootfs, passwdName)
	if err != nil {
		return foundUser{}, fmt.Errorf("find user %q: %w", who, err)
	}
	group, err := readUserFile(rootfs, groupName)
	if err != nil {
		return foundUser{}, fmt.Errorf("find user %q: %w", who, err)
	}
	if name, _, _ := strings.Cut(who, ":"); name == "" {
		who = "0" + who
	}
	found, err := user.GetExecUser(who, &user.ExecUser{Home: "/"}, passwd, group)
	switch {
	case errors.Is(err, user.ErrNoPasswdEntries):
		return foundUser{}, fmt.Errorf("find user %q: no such name in the image's %s: %w", who, passwdName, ErrUser)
	case errors.Is(err, user.ErrNoGroupEntries):
		return foundUser{}, fmt.Errorf("find user %q: no such group in the image's %s: %w", who, groupName, ErrUser)
	case err != nil:
		return foundUser{}, fmt.Errorf("find user %q: %w: %w", who, ErrUser, err)
	}
	result := foundUser{home: found.Home}
	if result.home == "" || strings.ContainsRune(result.home, 0) {
		result.home = "/"
	}
	if result.user.UID, err = mappedID("user", found.Uid, o.UIDs); err != nil {
		return foundUser{}, fmt.Errorf("find user %q: %w", who, err)
	}
	if result.user.GID, err = mappedID("group", found.Gid, o.GIDs); err != nil {
		return foundUser{}, fmt.Errorf("find user %q: %w", who, err)
	}
	result.user.AdditionalGids, err = additionalGroups(result.user.GID, found.Sgids, o)
	if err != nil {
		return foundUser{}, fmt.Errorf("find user %q: %w", who, err)
	}
	return result, nil
}

// additionalGroups returns the process's own group and those it is a member of.
// Its own is among them, so that a setgid program does not lose it, as a login
// has it. Groups that a user namespace lacks cannot be had there.
func additionalGroups(own uint32, member []int, o *Options) ([]uint32, error) {
	groups := []uint32{own}
	for _, id := range member {
		if id < 0 || int64(id) > maxID {
			return nil, fmt.Errorf("%s has group %d: want 0 to %d: %w", groupName, id, maxID, ErrUser)
		}
		if hasID(o.GIDs, uint32(id)) {
			groups = append(groups, uint32(id))
		}
	}
	slices.Sort(groups)
	if groups = slices.Compact(groups); len(groups) > maxGroupCount {
		return nil, fmt.Errorf("%s has %d groups of the user: want at most %d: %w", groupName, len(groups), maxGroupCount, ErrUser)
	}
	return groups, nil
}

// maxID is the greatest ID that the parser of user specifications takes.
const maxID = 1<<31 - 1

func mappedID(kind string, id int, ranges []IDRange) (uint32, error) {
	if id < 0 || int64(id) > maxID {
		return 0, fmt.Errorf("%s ID %d: want 0 to %d: %w", kind, id, maxID, ErrUser)
	}
	if !hasID(ranges, uint32(id)) {
		return 0, fmt.Errorf("%s ID %d does not exist in this user namespace: add subordinate IDs to /etc/subuid and /etc/subgid, or choose another user: %w", kind, id, ErrUser)
	}
	return uint32(id), nil
}

// readUserFile returns a file of the image, or nil when it has none.
func readUserFile(rootfs *os.File, name string) (io.Reader, error) {
	f, err := openRegular(rootfs, name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil //nolint:nilnil // a missing file is not an error, and nil is what the parser takes for it
	}
	if err != nil {
		return nil, fmt.Errorf("open the image's %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	content, err := stream.ReadAll(f, maxUserFileBytes)
	if err != nil {
		return nil, fmt.Errorf("read the image's %s: %w", name, err)
	}
	return bytes.NewReader(entries(content, name == passwdName)), nil
}

// entries returns the lines that are entries of a passwd or a group file. The
// parser would take a comment, or a line without a number where one belongs, for
// user 0.
func entries(content []byte, passwd bool) []byte {
	kept := make([]byte, 0, len(content))
	for line := range bytes.Lines(content) {
		fields := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), 5)
		if len(fields) < 3 || !isNumber(fields[2]) || passwd && (len(fields) < 4 || !isNumber(fields[3])) {
			continue
		}
		kept = append(kept, line...)
	}
	return kept
}

func isNumber(field []byte) bool {
	return len(field) > 0 && len(bytes.Trim(field, "0123456789")) == 0
}

// errNotRegular reports something else where a file was expected.
var errNotRegular = errors.New("not a regular file")

// openRegular opens a file below root for reading. What it is gets looked at
// before it is opened: opening a FIFO blocks, opening a device acts.
func openRegular(root *os.File, name string) (*os.File, error) {
	stat, err := statBelow(root, name)
	if err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errNotRegular
	}
	fd, err := openBelow(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// statBelow returns the attributes of a file below root, symbolic links followed
// as a process whose root it is would.
func statBelow(root *os.File, name string) (stat unix.Stat_t, err error) {
	fd, err := openBelow(root, name, unix.O_PATH)
	if err != nil {
		return stat, err
	}
	defer func() { _ = unix.Close(fd) }()
	return stat, unix.Fstat(fd, &stat)
}

func openBelow(root *os.File, name string, flags int) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	// EAGAIN: something on the way was renamed meanwhile.
	const attempts = 32
	fd, err := -1, error(unix.EAGAIN)
	for i := 0; i < attempts && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)); i++ {
		fd, err = unix.Openat2(int(root.Fd()), name, how)
	}
	return fd, err
}
