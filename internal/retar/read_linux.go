package retar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxExtents bounds the map of a file with holes; what lies behind is taken for one.
const maxExtents = 32 << 10

// openat opens a name of a directory to read it, without following links or
// entering mounts, and without waiting for a FIFO's writer.
func openat(dir int, name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return nil, fmt.Errorf("%w: a mount, or changed meanwhile: %w", ErrTree, err)
		case err != nil:
			return nil, gone(err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// gone makes a name that was there a moment ago the tree's fault.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("it went away meanwhile: %w", ErrTree)
	}
	return err
}

// file writes the entry of a file and its content.
func (w *walker) file(dir int, name string, n *node) (err error) {
	f, err := openat(dir, name, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", n.path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%q: %w", n.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%q changed while it was read: %w", n.path, ErrTree)
	}
	n.size = st.Size
	if w.form.encode == exactPAX && st.Blocks*blockBytes < st.Size {
		if n.sparse, err = extents(fd, st.Size); err != nil {
			return fmt.Errorf("holes of %q: %w", n.path, err)
		}
	}
	if err := w.header(n); err != nil {
		return err
	}
	all := n.sparse
	if all == nil {
		all = []extent{{0, n.size}}
	}
	for _, x := range all {
		if err := w.content(fd, n.path, x); err != nil {
			return err
		}
	}
	return w.zeros(padding(n.stored()))
}

func (w *walker) content(fd int, where string, x extent) error {
	for x.size > 0 {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		got, err := unix.Pread(fd, w.buf[:min(int64(len(w.buf)), x.size)], x.offset)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && got == 0:
			return fmt.Errorf("%q became shorter while it was read: %w", where, ErrTree)
		case err != nil:
			return fmt.Errorf("read %q at %d: %w", where, x.offset, err)
		}
		if err := w.write(w.buf[:got]); err != nil {
			return err
		}
		x.offset += int64(got)
		x.size -= int64(got)
	}
	return nil
}

// extents returns what is stored of a file with holes; nil if the file system does
// not tell.
func extents(fd int, size int64) ([]extent, error) {
	const seekData, seekHole = 3, 4 // SEEK_DATA, SEEK_HOLE
	all := []extent{}
	for offset := int64(0); offset < size; {
		data, err := unix.Seek(fd, offset, seekData)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if errors.Is(err, unix.EINVAL) {
			return nil, nil
		}
		if err != nil {
			return nil, os.NewSyscallError("lseek", err)
		}
		if data >= size {
			break
		}
		if len(all) == maxExtents-1 {
			return append(all, extent{data, size - data}), nil
		}
		if offset, err = unix.Seek(fd, data, seekHole); err != nil {
			return nil, os.NewSyscallError("lseek", err)
		}
		offset = min(offset, size)
		all = append(all, extent{data, offset - data})
	}
	return all, nil
}

// xattrs returns the attributes that the form may need, by name: none of overlayfs
// and of security modules.
func (w *walker) xattrs(dir int, name string) ([]xattr, error) {
	if w.form.encode == gnu {
		return nil, nil
	}
	var all []xattr
	names, err := w.listxattr(dir, name)
	for _, attribute := range names {
		if !wanted(attribute) || w.form.encode == goPAX && attribute != capability {
			continue
		}
		value, err := w.getxattr(dir, name, attribute)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", attribute, err)
		}
		all = append(all, xattr{attribute, value})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	return all, err
}

func wanted(attribute string) bool {
	namespace, rest, _ := strings.Cut(attribute, ".")
	if (namespace == "trusted" || namespace == "user") && strings.HasPrefix(rest, overlayPrefix) {
		return false
	}
	switch attribute {
	case "security.selinux", "security.SMACK64", "security.ima", "security.evm": // the kernel sets them anew
		return false
	}
	return true
}

// procPath returns a path that leads to a name of dir and through no link but the
// descriptor.
func procPath(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

func (w *walker) listxattr(dir int, name string) ([]string, error) {
	size, err := unix.Llistxattr(procPath(dir, name), w.text)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil || size == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(w.text[:size]), "\x00"), "\x00"), nil
}

func (w *walker) getxattr(dir int, name, attribute string) (string, error) {
	size, err := unix.Lgetxattr(procPath(dir, name), attribute, w.text)
	if err != nil {
		return "", err
	}
	return string(w.text[:size]), nil
}

func (w *walker) readlink(dir int, name string) (string, error) {
	size, err := unix.Readlinkat(dir, name, w.text)
	if err != nil {
		return "", err
	}
	return string(w.text[:size]), nil
}
