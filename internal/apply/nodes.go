package apply

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// replace calls create, which makes base in d, and if base is there already
// removes it and calls create again. It returns d, opened anew if need be.
func (a *applier) replace(d *openedDir, base string, create func(dir int) error) (*openedDir, error) {
	err := create(d.fd)
	if errors.Is(err, unix.EEXIST) {
		if d, err = a.remove(d, base); err == nil {
			err = create(d.fd)
		}
	}
	if err == nil {
		d.changed = true
	}
	return d, err
}

// directory makes a directory, or gives one that is there new attributes.
func (a *applier) directory(d *openedDir, base string, e *layer.Entry) error {
	path := join(d.path, base)
	var made *openedDir
	opaque, existed := false, false
	err := a.mkdirat(d.fd, base, e.Mode&0o777)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if st, err = lstat(d.fd, base); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			existed = true
		} else {
			opaque = true
			if !a.isWhiteout(d.fd, base, &st) {
				a.result.Replaced++
			}
			if err = unix.Unlinkat(d.fd, base, 0); err == nil {
				err = a.mkdirat(d.fd, base, e.Mode&0o777)
			}
		}
	}
	if err != nil && !existed {
		return err
	}
	if existed {
		if made, err = a.existing(path); err == nil {
			made.changed = true
			err = a.clearXattrs(made)
		}
	} else {
		d.changed = true
		made, err = a.openNew(d, base)
	}
	if err != nil {
		return err
	}
	if existed {
		// d may have been closed, and nothing is known about the owner.
		d = nil
	}
	if err := a.entryAttributes(d, made, e); err != nil {
		return err
	}
	a.result.Dirs++
	a.result.DiskBytes += BlockBytes
	if err := a.journal.dirEntry(made.path, e); err != nil {
		return err
	}
	if opaque {
		return a.markOpaque(made)
	}
	return nil
}

// rootEntry applies an entry "./".
func (a *applier) rootEntry(e *layer.Entry) error {
	if err := a.clearXattrs(a.root); err != nil {
		return err
	}
	if err := a.entryAttributes(nil, a.root, e); err != nil {
		return err
	}
	a.result.Dirs++
	a.result.DiskBytes += BlockBytes
	return a.journal.dirEntry("", e)
}

// entryAttributes sets what e says on directory d. parent is nil if d was there
// before.
func (a *applier) entryAttributes(parent, d *openedDir, e *layer.Entry) error {
	if parent == nil || !a.owned(parent, e.UID, e.GID) {
		if err := a.ignoreOwner(e, unix.Fchown(d.fd, int(e.UID), int(e.GID))); err != nil {
			return err
		}
	}
	if len(e.Xattrs) > 0 {
		if err := a.setXattrs(d, "", d.fd, e); err != nil {
			return err
		}
	}
	if parent == nil || parent.sgid || e.Mode&0o7000 != 0 || e.Mode&a.umask != 0 || len(e.Xattrs) > 0 {
		if err := unix.Fchmod(d.fd, e.Mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
		if err := chmodded(e, fdXattr(d.fd)); err != nil {
			return err
		}
	}
	d.gid, d.sgid = e.GID, e.Mode&unix.S_ISGID != 0
	d.time, d.changed = fileTime{e.MTimeSec, e.MTimeNsec}, true
	if a.storable(e) {
		return nil
	}
	if err := futimes(d.fd, d.time); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	err := a.checkTime(e, func(st *unix.Stat_t) error { return unix.Fstat(d.fd, st) })
	d.time = fileTime{e.MTimeSec, e.MTimeNsec}
	return err
}

func (a *applier) symlink(d *openedDir, base string, e *layer.Entry) error {
	if e.Linkname == "" {
		return fmt.Errorf("no target: %w", layer.ErrFormat)
	}
	d, err := a.replace(d, base, func(dir int) error { return unix.Symlinkat(e.Linkname, dir, base) })
	if err != nil {
		return err
	}
	if err := a.nodeAttributes(d, base, e); err != nil {
		return err
	}
	a.result.Symlinks++
	return a.journal.symlink(d.path, base, e)
}

// hardLink links base to another entry of this layer.
func (a *applier) hardLink(d *openedDir, base string, e *layer.Entry) error {
	target := cleanName(e.Linkname)
	if target == "" {
		return fmt.Errorf("target %q is the root: %w", e.Linkname, layer.ErrFormat)
	}
	targetDir, targetBase := split(target)
	from, err := a.existing(targetDir)
	if err != nil {
		return fmt.Errorf("target %q: %w", e.Linkname, err)
	}
	st, err := lstat(from.fd, targetBase)
	if err != nil {
		return fmt.Errorf("target %q: %w", e.Linkname, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || a.isWhiteout(from.fd, targetBase, &st) {
		return fmt.Errorf("target %q is a directory or a whiteout: %w", e.Linkname, layer.ErrFormat)
	}
	// Without AT_SYMLINK_FOLLOW, a link to a link is made.
	link := func() error { return unix.Linkat(from.fd, targetBase, d.fd, base, 0) }
	err = link()
	if errors.Is(err, unix.EEXIST) {
		there, statErr := lstat(d.fd, base)
		if statErr != nil {
			return statErr
		}
		if there.Ino == st.Ino && there.Dev == st.Dev {
			a.result.HardLinks++
			return nil
		}
		if d, err = a.remove(d, base); err != nil {
			return err
		}
		// The target may have been below what was removed.
		if from, err = a.existing(targetDir); err != nil {
			return fmt.Errorf("target %q: %w", e.Linkname, err)
		}
		err = link()
	}
	if err != nil {
		return fmt.Errorf("link to %q: %w", e.Linkname, err)
	}
	d.changed = true
	a.result.HardLinks++
	return a.journal.hardLink(d.path, base, from.path, targetBase)
}

// node makes a device or a FIFO.
func (a *applier) node(d *openedDir, base string, e *layer.Entry) error {
	mode, dev := e.Mode&0o777, 0
	switch e.Type {
	case layer.Char:
		mode |= unix.S_IFCHR
	case layer.Block:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFIFO
	}
	if e.Type != layer.FIFO {
		if e.Major > maxMajor || e.Minor > maxMinor {
			return fmt.Errorf("device %d:%d: %w", e.Major, e.Minor, layer.ErrFormat)
		}
		dev = int(unix.Mkdev(e.Major, e.Minor))
	}
	replaced := a.result.Replaced
	d, err := a.replace(d, base, func(dir int) error { return unix.Mknodat(dir, base, mode, dev) })
	if errors.Is(err, unix.EPERM) && a.o.UserNS && e.Type != layer.FIFO {
		a.result.DevicesOmitted++
		if a.result.Replaced > replaced {
			return a.journal.removed(d.path, base)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.nodeAttributes(d, base, e); err != nil {
		return err
	}
	if e.Type == layer.FIFO {
		a.result.FIFOs++
	} else {
		a.result.Devices++
	}
	if e.Type == layer.Char && e.Major == 0 && e.Minor == 0 {
		a.result.Whiteouts++                                               // overlayfs takes it for one
		if err := a.setOverlayXattr(d.fd, overlayOrigin, ""); err != nil { // as in makeWhiteout
			return err
		}
		return a.journal.whiteout(d.path, base)
	}
	return a.journal.node(d.path, base, e)
}

// Limits of the kernel's device numbers.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// nodeAttributes sets the attributes of what cannot be opened.
func (a *applier) nodeAttributes(d *openedDir, base string, e *layer.Entry) error {
	chowned := false
	if !a.owned(d, e.UID, e.GID) {
		chowned = true
		err := unix.Fchownat(d.fd, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
		if err := a.ignoreOwner(e, err); err != nil {
			return err
		}
	}
	if len(e.Xattrs) > 0 {
		if err := a.setXattrs(d, base, -1, e); err != nil {
			return err
		}
	}
	// Symbolic links have no mode.
	if e.Type != layer.Symlink && (e.Mode&0o7000 != 0 || e.Mode&a.umask != 0 || len(e.Xattrs) > 0 || chowned) {
		if err := a.chmodNode(d, base, e.Mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
		err := chmodded(e, func(name string, buf []byte) (int, error) {
			return unix.Lgetxattr(procPath(d.fd, base), name, buf)
		})
		if err != nil {
			return err
		}
	}
	if err := a.utimesat(d.fd, base, fileTime{e.MTimeSec, e.MTimeNsec}); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return a.checkTime(e, func(st *unix.Stat_t) error {
		return unix.Fstatat(d.fd, base, st, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// chmodNode changes the mode of a device or FIFO by a descriptor that does not
// open it: fchmodat would follow a link.
func (a *applier) chmodNode(d *openedDir, base string, mode uint32) error {
	fd, err := a.openat(d.fd, base, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

// remove removes base from d, with all below it, to make room for another entry,
// and returns d, which it may have to open anew.
func (a *applier) remove(d *openedDir, base string) (*openedDir, error) {
	st, err := lstat(d.fd, base)
	if err != nil {
		return d, err
	}
	if !a.isWhiteout(d.fd, base, &st) {
		a.result.Replaced++
	}
	d.changed = true
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return d, unix.Unlinkat(d.fd, base, 0)
	}
	// Directories below may be open. That d is opened before anything is removed
	// saves its time.
	if err := a.closeOthers(); err != nil {
		return d, err
	}
	reopened, err := a.existing(d.path)
	if err != nil {
		return d, err
	}
	reopened.changed = true
	return reopened, removeTree(reopened.fd, base)
}
