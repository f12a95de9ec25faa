package apply

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// Names of whiteouts (image-spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// Names of xattrs that overlayfs reads.
const (
	overlayOpaque   = "overlay.opaque"
	overlayWhiteout = "overlay.whiteout"
)

// whiteout applies the entry if its name makes it a whiteout, and tells whether
// that was so. Types do not matter.
func (a *applier) whiteout(e *layer.Entry, name string) (bool, error) {
	above, base := split(name)
	for rest := above; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch {
		case strings.HasPrefix(part, aufsPrefix):
			a.result.AUFSIgnored++
			return true, nil
		case strings.HasPrefix(part, whiteoutPrefix):
			return true, fmt.Errorf("entry below a whiteout: %w", layer.ErrFormat)
		}
	}
	target, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !ok:
		return false, nil
	case base == opaqueName:
		d, err := a.dir(above)
		if err != nil {
			return true, err
		}
		return true, a.markOpaque(d)
	case strings.HasPrefix(base, aufsPrefix):
		a.result.AUFSIgnored++
		return true, nil
	case target == "", target == ".", target == "..":
		return true, fmt.Errorf("whiteout of nothing: %w", layer.ErrFormat)
	}
	d, err := a.dir(above)
	if err != nil {
		return true, err
	}
	return true, a.hide(d, target, fileTime{e.MTimeSec, e.MTimeNsec})
}

// hide makes a whiteout of base in d, unless this layer has an entry there.
func (a *applier) hide(d *openedDir, base string, t fileTime) error {
	made, err := a.makeWhiteout(d, base)
	if errors.Is(err, unix.EEXIST) {
		st, err := lstat(d.fd, base)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil // what is not a directory hides the layers below by itself
		}
		own, err := a.existing(join(d.path, base))
		if err != nil {
			return err
		}
		return a.markOpaque(own)
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	if !made {
		return nil
	}
	d.changed = true
	a.result.Whiteouts++
	if err := a.utimesat(d.fd, base, t); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return a.journal.whiteout(d.path, base)
}

// makeWhiteout makes the device 0:0 or, where that is refused, an empty file,
// and tells whether it did.
func (a *applier) makeWhiteout(d *openedDir, base string) (bool, error) {
	if !a.xwhiteout {
		err := unix.Mknodat(d.fd, base, unix.S_IFCHR, 0)
		if a.o.Whiteouts == Trusted || !errors.Is(err, unix.EPERM) {
			return err == nil, err
		}
		a.xwhiteout = true
	}
	fd, err := a.openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	if a.overlayXattr(d.fd, overlayOpaque) == "y" {
		// Nothing is left to hide, and overlayfs would show the file.
		return false, unix.Unlinkat(d.fd, base, 0)
	}
	if err := a.setOverlayXattr(fd, overlayWhiteout, "y"); err != nil {
		return false, err
	}
	// Tells overlayfs that the directory may hold such files.
	return true, a.setOverlayXattr(d.fd, overlayOpaque, "x")
}

// isWhiteout tells whether base in d, whose status is st, is a whiteout.
func (a *applier) isWhiteout(dir int, base string, st *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT == unix.S_IFCHR {
		return st.Rdev == 0
	}
	if !a.xwhiteout || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != 0 {
		return false
	}
	var buf [1]byte
	n, err := unix.Lgetxattr(procPath(dir, base), userPrefix+overlayWhiteout, buf[:])
	return err == nil && n == len(buf)
}

// markOpaque makes d hide the directories of lower layers with its name.
func (a *applier) markOpaque(d *openedDir) error {
	if a.overlayXattr(d.fd, overlayOpaque) == "y" {
		return nil
	}
	if err := a.setOverlayXattr(d.fd, overlayOpaque, "y"); err != nil {
		return fmt.Errorf("mark %q opaque: %w", d.path, err)
	}
	if a.xwhiteout {
		if err := a.removeWhiteouts(d); err != nil {
			return fmt.Errorf("mark %q opaque: %w", d.path, err)
		}
	}
	a.result.OpaqueDirs++
	a.result.OpaqueRoot = a.result.OpaqueRoot || d == a.root
	return a.journal.opaque(d.path)
}

// removeWhiteouts removes empty files that are whiteouts from a directory that
// has become opaque, where overlayfs would show them.
func (a *applier) removeWhiteouts(d *openedDir) error {
	if _, err := unix.Seek(d.fd, 0, 0); err != nil {
		return err
	}
	d.changed = true
	return readNames(d.fd, func(name string) error {
		st, err := lstat(d.fd, name)
		if err != nil || !a.isWhiteout(d.fd, name, &st) {
			return err
		}
		if err := unix.Unlinkat(d.fd, name, 0); err != nil {
			return err
		}
		a.result.Whiteouts--
		return a.journal.removed(d.path, name)
	})
}

// Namespaces of overlayfs's xattrs.
const (
	trustedPrefix = "trusted."
	userPrefix    = "user."
)

func (a *applier) overlayName(name string) string {
	if a.o.Whiteouts == User {
		return userPrefix + name
	}
	return trustedPrefix + name
}

func (a *applier) setOverlayXattr(fd int, name, value string) error {
	return a.xattrError(unix.Fsetxattr(fd, a.overlayName(name), []byte(value), 0))
}

// overlayXattr returns the value of an xattr of one byte, or "".
func (a *applier) overlayXattr(fd int, name string) string {
	var buf [8]byte
	n, err := unix.Fgetxattr(fd, a.overlayName(name), buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}
