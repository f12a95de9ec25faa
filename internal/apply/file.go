package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// file makes a regular file.
func (a *applier) file(ctx context.Context, d *openedDir, base string, e *layer.Entry) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL
	fd, err := a.openat(d.fd, base, flags, e.Mode&0o777)
	if errors.Is(err, unix.EEXIST) {
		if d, err = a.remove(d, base); err == nil {
			fd, err = a.openat(d.fd, base, flags, e.Mode&0o777)
		}
	}
	if err != nil {
		return err
	}
	d.changed = true
	left, leaves := a.leavesToFiller(d, e), false
	if left {
		err = a.leaveToFiller(ctx, fd, e)
	} else {
		leaves, err = a.fill(ctx, d, fd, e)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	switch {
	case left:
	case leaves:
		if err := a.leaving.add(fd, e.Name, e.Size); err != nil {
			return err
		}
	default:
		// Some file systems report here what they could not write.
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
	}
	a.result.Files++
	a.result.FileBytes += e.Size
	a.result.StoredBytes += e.StoredSize
	a.result.DiskBytes += (e.StoredSize + BlockBytes - 1) / BlockBytes * BlockBytes
	return a.journal.file(d.path, base, e)
}

// fill writes a new file's body and sets its attributes, to what e says then. It tells
// whether the file is to leave the page cache.
func (a *applier) fill(ctx context.Context, d *openedDir, fd int, e *layer.Entry) (leaves bool, err error) {
	a.journal.beginContent()
	if e.Sparse != nil {
		err = a.writeSparse(ctx, fd, e)
	} else {
		leaves, err = a.write(ctx, fd, e.Size)
	}
	if err != nil {
		return false, err
	}
	return leaves, a.setAttributes(d, fd, e)
}

// setAttributes gives a new file what e says, but for what it was made with.
func (a *applier) setAttributes(d *openedDir, fd int, e *layer.Entry) error {
	chowned, err := a.chownFile(d, fd, e)
	if err != nil {
		return err
	}
	if len(e.Xattrs) > 0 {
		if err := a.setXattrs(d, "", fd, e); err != nil {
			return err
		}
	}
	// The mode was given when the file was made, except for what the umask took,
	// chown removed or an ACL changed.
	if e.Mode&0o7000 != 0 || e.Mode&a.umask != 0 || len(e.Xattrs) > 0 || chowned {
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
		if err := chmodded(e, fdXattr(fd)); err != nil {
			return err
		}
	}
	t := fileTime{e.MTimeSec, e.MTimeNsec}
	if err := futimes(fd, t); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return a.checkTime(e, func(st *unix.Stat_t) error { return unix.Fstat(fd, st) })
}

// chownFile sets a new file's owner if it is not the right one already.
func (a *applier) chownFile(d *openedDir, fd int, e *layer.Entry) (bool, error) {
	if a.owned(d, e.UID, e.GID) {
		return false, nil
	}
	return true, a.ignoreOwner(e, unix.Fchown(fd, int(e.UID), int(e.GID)))
}

// owned tells whether what is made in d has this owner by itself. Its group may
// be inherited: from a directory with setgid, or always, by mount option.
func (a *applier) owned(d *openedDir, uid, gid uint32) bool {
	return uid == a.uid && gid == a.gid && d.gid == a.gid
}

// ignoreOwner forgives a failed chown if the options say so.
func (a *applier) ignoreOwner(e *layer.Entry, err error) error {
	switch {
	case err == nil:
		return nil
	case a.o.IgnoreChownErrors && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM)):
		a.result.OwnersIgnored++
		e.UID, e.GID = a.uid, a.gid
		return nil
	}
	return fmt.Errorf("change owner to %d:%d: %w", e.UID, e.GID, err)
}

// write writes a body, and tells whether the file is to leave the page cache.
func (a *applier) write(ctx context.Context, fd int, size int64) (leaves bool, err error) {
	out := NewBulk(fd, size, a.o.Cache)
	for {
		part, err := a.tar.Body()
		if err == io.EOF { //nolint:errorlint // the body's own mark of its end
			return out.leaves(), out.Close()
		}
		if err != nil {
			return false, err
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		a.journal.content(part)
		if _, err := out.Write(part); err != nil {
			return false, err
		}
	}
}

// writeSparse writes what is stored of a sparse file and leaves holes between.
func (a *applier) writeSparse(ctx context.Context, fd int, e *layer.Entry) error {
	var part []byte
	for _, x := range e.Sparse {
		if _, err := unix.Seek(fd, x.Offset, io.SeekStart); err != nil {
			return fmt.Errorf("seek to %d: %w", x.Offset, err)
		}
		for left := x.Size; left > 0; {
			if len(part) == 0 {
				var err error
				if part, err = a.tar.Body(); err != nil {
					return err // package layer has compared the map with the body
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				a.journal.content(part)
			}
			n := min(left, int64(len(part)))
			if err := writeAll(fd, part[:n]); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			part, left = part[n:], left-n
		}
	}
	if err := unix.Ftruncate(fd, e.Size); err != nil {
		return fmt.Errorf("set size to %d: %w", e.Size, err)
	}
	return nil
}

// storable tells whether any file system can store the time; fractions of
// seconds, once this one has been seen to.
func (a *applier) storable(e *layer.Entry) bool {
	return e.MTimeSec >= 0 && e.MTimeSec <= math.MaxInt32 && (e.MTimeNsec == 0 || a.fractions)
}

// checkTime counts a time that the file system cannot store, and puts the one
// that it stored into e.
func (a *applier) checkTime(e *layer.Entry, stat func(*unix.Stat_t) error) error {
	if a.storable(e) {
		return nil
	}
	var st unix.Stat_t
	if err := stat(&st); err != nil {
		return err
	}
	if st.Mtim.Sec != e.MTimeSec || uint32(st.Mtim.Nsec) != e.MTimeNsec {
		a.result.TimesClamped++
		e.MTimeSec, e.MTimeNsec = st.Mtim.Sec, uint32(st.Mtim.Nsec)
	}
	a.fractions = a.fractions || st.Mtim.Nsec != 0
	return nil
}
