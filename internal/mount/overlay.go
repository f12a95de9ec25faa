package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"dray/internal/userns"
)

const overlay = "overlay"

// spec is an overlay to be made.
type spec struct {
	id        string // of its record
	lowers    int
	lower     func(i int) (int, error) // opens one: from the top, i below lowers
	upper     string                   // "" when read-only
	work      string
	userXattr bool
}

// options are set whatever the system's defaults are, which some distributions
// change: what an image's bytes mean must not depend on them.
func options() [][2]string {
	return [][2]string{
		{"redirect_dir", "nofollow"}, // a layer cannot name directories of other layers
		{"metacopy", "off"},
		{"index", "off"},
	}
}

// maxNamedLowers is how many lower directories appear in /proc/self/mountinfo with
// their paths. Many readers of that file, runc's among them, give up at lines of
// 64 KiB. Above, a directory is given as /proc/self/fd/N, which is what appears.
const maxNamedLowers = 100

// detached is an overlay that is not yet attached to a directory.
type detached interface {
	// attach makes it visible at dir, once.
	attach(dir *os.File) error
	// close lets go of it; one that was not attached is gone then.
	close()
}

// api says how the kernel takes overlays.
type api int

const (
	apiMount  api = iota // mount(2), with all lower directories in one string
	apiString            // Linux 6.8: one by one, by path
	apiFD                // Linux 6.13: one by one, by file descriptor
)

// probe finds out which api the kernel has, and why not the next better one.
func probe() (found api, why error) {
	fs, err := unix.Fsopen(overlay, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return apiMount, fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	// Kernels before 6.5 take everything here and look at it later.
	if unix.FsconfigSetString(fs, "no-such-option", "") == nil {
		return apiMount, errors.New("the kernel's overlayfs has no file system context (Linux 6.5)")
	}
	dir, err := openDir("/")
	if err != nil {
		return apiMount, err
	}
	defer func() { _ = unix.Close(dir) }()
	if unix.FsconfigSetFd(fs, "lowerdir+", dir) == nil {
		return apiFD, nil
	}
	if err := unix.FsconfigSetString(fs, "lowerdir+", fdPath(dir)); err != nil {
		return apiMount, fmt.Errorf("overlayfs takes no single lower directories (Linux 6.8): %w", err)
	}
	return apiString, nil
}

// kernel remembers the answer of probe, and says once what is missing.
type kernel struct {
	once  sync.Once
	found api
	why   error
}

func (k *kernel) api(ctx context.Context, to *slog.Logger) api {
	k.once.Do(func() {
		if k.found, k.why = probe(); k.found == apiMount {
			to.LogAttrs(ctx, slog.LevelWarn, "overlays are made with mount(2): images of more than some 200 layers do not fit", slog.Any("reason", k.why))
		}
	})
	return k.found
}

// build makes the overlay in the best way that the kernel has.
func build(a api, s spec) (detached, error) {
	if a == apiMount {
		return newStringMount(s)
	}
	if s.lowers > maxNamedLowers {
		a = apiString
	}
	fd, err := unix.Fsopen(overlay, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	fs := &fsContext{fd: fd, api: a}
	defer fs.close()
	if err := fs.configure(s); err != nil {
		return nil, err
	}
	flags := 0
	if s.upper == "" {
		flags = unix.MOUNT_ATTR_RDONLY
	}
	mount, err := unix.Fsmount(fs.fd, unix.FSMOUNT_CLOEXEC, flags)
	if err != nil {
		return nil, fs.explain("mount overlay", err)
	}
	return detachedFD(mount), nil
}

// fsContext is a file system that is being configured (fsopen(2)).
type fsContext struct {
	fd  int
	api api
}

func (c *fsContext) close() { _ = unix.Close(c.fd) }

func (c *fsContext) configure(s spec) error {
	if err := unix.FsconfigSetString(c.fd, "source", userns.MountSource+s.id); err != nil {
		return c.explain("set source", err)
	}
	for _, o := range options() {
		if err := unix.FsconfigSetString(c.fd, o[0], o[1]); err != nil {
			return c.explain("set "+o[0], err)
		}
	}
	if s.userXattr {
		if err := unix.FsconfigSetFlag(c.fd, "userxattr"); err != nil {
			return c.explain("set userxattr", err)
		}
	}
	for i := range s.lowers {
		dir, err := s.lower(i)
		if err != nil {
			return err
		}
		if err := c.setDir("lowerdir+", dir); err != nil {
			return err
		}
	}
	if s.upper == "" {
		if err := unix.FsconfigSetFlag(c.fd, "ro"); err != nil {
			return c.explain("set ro", err)
		}
	} else if err := c.setUpper(s); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(c.fd); err != nil {
		return c.explain("make overlay", err)
	}
	return nil
}

func (c *fsContext) setUpper(s spec) error {
	for _, d := range [...][2]string{{"upperdir", s.upper}, {"workdir", s.work}} {
		dir, err := openDir(d[1])
		if err != nil {
			return err
		}
		if err := c.setDir(d[0], dir); err != nil {
			return err
		}
	}
	if err := unix.FsconfigSetFlag(c.fd, "volatile"); err != nil {
		return c.explain("set volatile", err)
	}
	return nil
}

// setDir gives the kernel a directory, and closes it: the kernel holds it now.
func (c *fsContext) setDir(key string, dir int) error {
	defer func() { _ = unix.Close(dir) }()
	var err error
	if c.api == apiFD {
		err = unix.FsconfigSetFd(c.fd, key, dir)
	} else {
		err = unix.FsconfigSetString(c.fd, key, fdPath(dir))
	}
	if err != nil {
		return c.explain("set "+key, err)
	}
	return nil
}

// explain adds to an error what the kernel says of it.
func (c *fsContext) explain(what string, err error) error {
	var said []string
	line := make([]byte, 1024) // one message at a time; longer ones are the kernel's own limit
	for {
		n, readErr := unix.Read(c.fd, line)
		if readErr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(line[:n])))
	}
	if len(said) == 0 {
		return fmt.Errorf("%s: %w (the kernel's log may say why)", what, err)
	}
	return fmt.Errorf("%s: %w (kernel: %s)", what, err, strings.Join(said, "; "))
}

// detachedFD is the result of fsmount(2) or open_tree(2).
type detachedFD int

func (d detachedFD) attach(dir *os.File) error {
	err := unix.MoveMount(int(d), "", int(dir.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach overlay: %w", err)
	}
	return nil
}

func (d detachedFD) close() { _ = unix.Close(int(d)) }

// stringMount is an overlay for mount(2): it is made when it is attached.
type stringMount struct {
	source string
	data   string
	flags  uintptr
	dirs   []int // descriptors that data names
}

// newStringMount opens everything: the kernel gets paths of open files in one
// string, which have no characters that it would take for separators.
func newStringMount(s spec) (detached, error) {
	m := &stringMount{source: userns.MountSource + s.id}
	var text strings.Builder
	add := func(key string, dir int, err error) error {
		if err != nil {
			m.close()
			return err
		}
		m.dirs = append(m.dirs, dir)
		text.WriteString(key + fdPath(dir))
		return nil
	}
	for i := range s.lowers {
		key := ":"
		if i == 0 {
			key = "lowerdir="
		}
		dir, err := s.lower(i)
		if err := add(key, dir, err); err != nil {
			return nil, err
		}
	}
	if s.upper == "" {
		m.flags = unix.MS_RDONLY
	} else {
		for _, d := range [...][2]string{{",upperdir=", s.upper}, {",workdir=", s.work}} {
			dir, err := openDir(d[1])
			if err := add(d[0], dir, err); err != nil {
				return nil, err
			}
		}
		text.WriteString(",volatile")
	}
	for _, o := range options() {
		text.WriteString("," + o[0] + "=" + o[1])
	}
	if s.userXattr {
		text.WriteString(",userxattr")
	}
	m.data = text.String()
	if limit := os.Getpagesize(); len(m.data) >= limit {
		m.close()
		return nil, fmt.Errorf("%w: %d layers need %d bytes of options, mount(2) takes %d; Linux 6.8 has no such limit",
			ErrTooManyLayers, s.lowers, len(m.data), limit-1)
	}
	return m, nil
}

func (m *stringMount) attach(dir *os.File) error {
	if err := unix.Mount(m.source, fdPath(int(dir.Fd())), overlay, m.flags, m.data); err != nil {
		return fmt.Errorf("mount overlay of %d directories: %w", len(m.dirs), err)
	}
	return nil
}

func (m *stringMount) close() {
	for _, d := range m.dirs {
		_ = unix.Close(d)
	}
	m.dirs = nil
}
