package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dray/internal/store"
)

// use says whether an overlay of a mount's exists anywhere.
type use int

const (
	unknown use = iota // not here; elsewhere cannot be looked
	unused
	used
)

// inUse finds out whether the overlay of a record that is not mounted here exists
// somewhere else: in other mount namespaces or, when it can be written, unmounted
// from every directory and still open. Why is set when the answer is unknown.
func (m *Mounter) inUse(record *store.Mount) (_ use, why error) {
	if !record.ReadOnly {
		answer, err := m.upperInUse(record)
		if answer != unknown {
			return answer, nil
		}
		why = err
	}
	found, complete := mountedElsewhere(record.ID)
	switch {
	case found:
		return used, nil
	case complete && why == nil:
		return unused, nil
	}
	return unknown, why
}

// upperInUse asks the kernel. It lends an upper directory to one overlay at a
// time, and with index=on it refuses the second (Documentation/filesystems/
// overlayfs.rst, "Sharing and copying layers"). The second is made, if it can be,
// without a mount.
func (m *Mounter) upperInUse(record *store.Mount) (use, error) {
	if _, err := os.Lstat(record.Upper()); errors.Is(err, os.ErrNotExist) {
		return unused, nil // deleted half-way
	}
	fs, err := unix.Fsopen(overlay, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, err)
	}
	defer func() { _ = unix.Close(fs) }()
	// The work directory is another: that of the mount has the mark of volatile,
	// on which every mount fails.
	lower, work := filepath.Join(record.Path, "probe-lower"), filepath.Join(record.Path, "probe-work")
	for _, dir := range []string{lower, work} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, err)
		}
	}
	err = errors.Join(
		unix.FsconfigSetString(fs, "index", "on"),
		unix.FsconfigSetFlag(fs, "ro"), // nothing to be synced when it goes
	)
	if m.userXattr {
		err = errors.Join(err, unix.FsconfigSetFlag(fs, "userxattr"))
	}
	// By the paths of descriptors, which hold nothing that overlayfs takes for a
	// separator. Kernels before 6.5 look them up at the end only.
	for _, d := range [...][2]string{{"lowerdir", lower}, {"upperdir", record.Upper()}, {"workdir", work}} {
		dir, openErr := openDir(d[1])
		if openErr != nil {
			return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, openErr)
		}
		defer func() { _ = unix.Close(dir) }()
		err = errors.Join(err, unix.FsconfigSetString(fs, d[0], fdPath(dir)))
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	switch {
	case err == nil:
		return unused, nil
	case errors.Is(err, unix.EBUSY):
		return used, nil
	}
	return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, err)
}

// mountedElsewhere looks for a record's mount in the mount namespaces of all
// processes. Complete tells whether all could be looked at. Namespaces without
// processes, held open by a file, are not seen; dray makes no such.
func mountedElsewhere(id string) (found, complete bool) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	complete = err == nil && len(processes) > 0 && inFirstPIDNamespace()
	seen := map[string]bool{}
	for _, dir := range processes {
		ns, err := os.Readlink(filepath.Join(dir, "ns", "mnt"))
		if err == nil && seen[ns] {
			continue
		}
		var mounts table
		if err == nil {
			mounts, err = readTable(filepath.Join(dir, "mountinfo"))
		}
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
			continue // ended, or ending
		case err != nil:
			complete = false
		case len(mounts.ofRecord(id)) > 0:
			return true, complete
		default:
			seen[ns] = true
		}
	}
	return false, complete
}

// inFirstPIDNamespace tells whether all processes of the machine are in /proc.
func inFirstPIDNamespace() bool {
	const initial = 0xEFFFFFFC // PROC_PID_INIT_INO, include/uapi/linux/nsfs.h
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == initial
}

// ending is a watch on the root of a file system, for its end: the kernel tells
// it when the last mount of it, in any namespace, and the last open file are gone.
// The watch itself keeps nothing.
type ending int

func watchEnd(path string) (ending, bool) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1, false // too many, for instance
	}
	// IN_UNMOUNT comes whatever is asked for.
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_DELETE_SELF|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW); err != nil {
		_ = unix.Close(fd)
		return -1, false
	}
	return ending(fd), true
}

func (e ending) close() { _ = unix.Close(int(e)) }

// seen tells whether the file system has ended.
func (e ending) seen() bool {
	event := make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)
	n, err := unix.Read(int(e), event)
	const mask = 4 // offset in struct inotify_event, after the watch's number
	return err == nil && n >= unix.SizeofInotifyEvent && binary.NativeEndian.Uint32(event[mask:])&unix.IN_UNMOUNT != 0
}
