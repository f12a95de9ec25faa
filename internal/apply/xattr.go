package apply

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// Names that speak to overlayfs.
const (
	trustedOverlay = "trusted.overlay."
	userOverlay    = "user.overlay."
)

// setXattrs sets the xattrs of an entry and leaves in e those that were set. fd
// is open on a file or a directory; if it is -1, the entry is base in d.
func (a *applier) setXattrs(d *openedDir, base string, fd int, e *layer.Entry) error {
	set := e.Xattrs[:0]
	for _, x := range e.Xattrs {
		ok, err := a.setXattr(d, base, fd, e, x)
		if err != nil {
			return fmt.Errorf("set xattr %q of %d bytes: %w", x.Name, len(x.Value), err)
		}
		if ok {
			set = append(set, x)
		}
	}
	e.Xattrs = set
	return nil
}

// setXattr tells whether the xattr was set; if not, it is counted.
func (a *applier) setXattr(d *openedDir, base string, fd int, e *layer.Entry, x layer.Xattr) (bool, error) {
	switch {
	case strings.HasPrefix(x.Name, trustedOverlay), strings.HasPrefix(x.Name, userOverlay):
		a.result.OverlayXattrsDropped++
		return false, nil
	case !possible(x.Name, e.Type):
		a.result.XattrsImpossible++
		return false, nil
	case x.Name == defaultACL && e.Type == layer.Dir:
		// Checked by setting it, then withheld.
		if ok, err := a.allowed(x.Name, unix.Fsetxattr(fd, x.Name, x.Value, 0)); !ok || err != nil {
			return false, err
		}
		a.hasACLs = true
		d.acl = bytes.Clone(x.Value)
		return true, unix.Fremovexattr(fd, x.Name)
	case fd >= 0:
		return a.allowed(x.Name, unix.Fsetxattr(fd, x.Name, x.Value, 0))
	}
	return a.allowed(x.Name, unix.Lsetxattr(procPath(d.fd, base), x.Name, x.Value, 0))
}

// allowed sorts the outcome of setting an xattr: set, denied by the user
// namespace and counted, or failed.
func (a *applier) allowed(name string, err error) (bool, error) {
	unmapped := errors.Is(err, unix.EINVAL) && (name == accessACL || name == defaultACL)
	if a.o.UserNS && (errors.Is(err, unix.EPERM) || unmapped) {
		a.result.XattrsDenied++
		return false, nil
	}
	return err == nil, a.xattrError(err)
}

// chmodded puts into e what chmod made of an access ACL: its owner, mask and
// others follow the mode. get reads an xattr of the entry.
func chmodded(e *layer.Entry, get func(name string, buf []byte) (int, error)) error {
	for i := range e.Xattrs {
		x := &e.Xattrs[i]
		if x.Name != accessACL {
			continue
		}
		buf := make([]byte, len(x.Value))
		n, err := get(accessACL, buf)
		switch {
		case errors.Is(err, unix.ENODATA):
			n = 0 // it said no more than the mode
		case err != nil:
			return fmt.Errorf("read acl: %w", err)
		}
		x.Value = buf[:n]
		if n == 0 {
			e.Xattrs = append(e.Xattrs[:i], e.Xattrs[i+1:]...)
		}
		return nil
	}
	return nil
}

func fdXattr(fd int) func(name string, buf []byte) (int, error) {
	return func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) }
}

func (a *applier) xattrError(err error) error {
	if errors.Is(err, unix.ENOTSUP) {
		return ErrNoXattrs
	}
	return err
}

// possible tells whether Linux has a place for the xattr (xattr(7)).
func possible(name string, t layer.EntryType) bool {
	const maxNameBytes = 255
	namespace, rest, _ := strings.Cut(name, ".")
	if rest == "" || len(name) > maxNameBytes {
		return false
	}
	switch namespace {
	case "trusted", "security":
		return true
	case "system":
		// ACLs are all that the system namespace holds of what an image says.
		return name == accessACL && t != layer.Symlink || name == defaultACL && t == layer.Dir
	case "user":
		return t == layer.Reg || t == layer.Dir
	}
	return false
}

// clearXattrs removes what an earlier entry of the same directory has set.
func (a *applier) clearXattrs(d *openedDir) error {
	d.acl = nil
	names, err := listXattrs(func(buf []byte) (int, error) { return unix.Flistxattr(d.fd, buf) })
	if err != nil {
		return fmt.Errorf("list xattrs: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, trustedOverlay) || strings.HasPrefix(name, userOverlay) || setByKernel(name) {
			continue
		}
		err := unix.Fremovexattr(d.fd, name)
		denied := errors.Is(err, unix.EPERM) && a.o.UserNS
		if err != nil && !denied && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove xattr %q: %w", name, err)
		}
	}
	return nil
}

// setByKernel names the labels that security modules give to every file.
func setByKernel(name string) bool {
	switch name {
	case "security.selinux", "security.SMACK64", "security.ima", "security.evm":
		return true
	}
	return false
}

// listXattrs returns the names that list gives, none where there are no xattrs.
func listXattrs(list func(buf []byte) (int, error)) ([]string, error) {
	const (
		firstBytes = 1 << 10
		mostBytes  = 64 << 10 // XATTR_LIST_MAX
	)
	buf := make([]byte, firstBytes)
	n, err := list(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, mostBytes)
		n, err = list(buf)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}
