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
	overlayOrigin   = "overlay.origin"
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

// hide makes a whiteout of base in d, unless this layer has an entry there, or
// d is below an opaque directory: nothing is left to hide there, and overlayfs
// lists the whiteouts of directories that it does not merge.
func (a *applier) hide(d *openedDir, base string, t fileTime) error {
	if a.result.OpaqueDirs > 0 {
		if opaque, err := a.belowOpaque(d.path); opaque || err != nil {
			return err
		}
		var err error
		if d, err = a.existing(d.path); err != nil {
			return err
		}
	}
	err := a.makeWhiteout(d, base)
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
	d.changed = true
	a.result.Whiteouts++
	if err := a.utimesat(d.fd, base, t); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return a.journal.whiteout(d.path, base)
}

// belowOpaque tells whether the directory at path, or one above it, is opaque.
func (a *applier) belowOpaque(path string) (bool, error) {
	for {
		d, err := a.existing(path)
		if err != nil {
			return false, err
		}
		if a.isOpaque(d.fd) {
			return true, nil
		}
		if path == "" {
			return false, nil
		}
		path, _ = split(path)
	}
}

// makeWhiteout makes the device 0:0 or, where that is refused, an empty file.
func (a *applier) makeWhiteout(d *openedDir, base string) error {
	if !a.xwhiteout {
		err := unix.Mknodat(d.fd, base, unix.S_IFCHR, 0)
		if err == nil {
			// Without it overlayfs lists the whiteouts of a directory that only this
			// layer has; empty, it says nothing else.
			return a.setOverlayXattr(d.fd, overlayOrigin, "")
		}
		if a.o.Whiteouts == Trusted || !errors.Is(err, unix.EPERM) {
			return err
		}
		a.xwhiteout = true
	}
	fd, err := a.openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	if err := a.setOverlayXattr(fd, overlayWhiteout, "y"); err != nil {
		return err
	}
	// Tells overlayfs that the directory may hold such files.
	return a.setOverlayXattr(d.fd, overlayOpaque, "x")
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
	if a.isOpaque(d.fd) {
		return nil
	}
	if err := a.setOverlayXattr(d.fd, overlayOpaque, "y"); err != nil {
		return fmt.Errorf("mark %q opaque: %w", d.path, err)
	}
	a.result.OpaqueDirs++
	a.result.OpaqueRoot = a.result.OpaqueRoot || d == a.root
	if err := a.journal.opaque(d.path); err != nil {
		return err
	}
	if a.result.Whiteouts == 0 {
		return nil
	}
	return a.removeWhiteouts(d.path)
}

// removeWhiteouts removes the whiteouts below a directory that has become opaque.
// There are none below those that were opaque before.
func (a *applier) removeWhiteouts(path string) error {
	d, err := a.existing(path)
	if err != nil {
		return err
	}
	// A descriptor with a position of its own, which stays open.
	fd, err := a.openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return readNames(fd, func(name string) error {
		st, err := lstat(fd, name)
		switch {
		case err != nil:
			return err
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			below := join(path, name)
			d, err := a.existing(below)
			if err != nil || a.isOpaque(d.fd) {
				return err
			}
			return a.removeWhiteouts(below)
		case !a.isWhiteout(fd, name, &st):
			return nil
		}
		d, err := a.existing(path) // so that its time is kept
		if err != nil {
			return err
		}
		d.changed = true
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return err
		}
		a.result.Whiteouts--
		return a.journal.removed(path, name)
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

// isOpaque tells whether the directory is marked; "x" marks one that may hold
// whiteouts that are xattrs.
func (a *applier) isOpaque(dir int) bool {
	var buf [1]byte
	n, err := unix.Fgetxattr(dir, a.overlayName(overlayOpaque), buf[:])
	return err == nil && n == len(buf) && buf[0] == 'y'
}
