package apply

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// DefaultMaxDifferences is the default of [CheckOptions.MaxDifferences].
const DefaultMaxDifferences = 1000

// CheckOptions of [Check]. The zero value compares everything.
type CheckOptions struct {
	Whiteouts      Form // as when the layer was applied
	SkipContent    bool // compare attributes only: no file is read
	MaxDifferences int  // stop after so many; 0 is [DefaultMaxDifferences]
}

// Difference is one way in which a tree is not what its journal says.
type Difference struct {
	Path      string // from the root; "" is the root
	What      string // "missing", "extra", or what has changed: "mode", "content"
	Want, Got string // of what has changed
}

// String says it in one line.
func (d Difference) String() string {
	if d.Want == "" && d.Got == "" {
		return fmt.Sprintf("%q: %s", d.Path, d.What)
	}
	return fmt.Sprintf("%q: %s is %s instead of %s", d.Path, d.What, d.Got, d.Want)
}

// checker is one run of [Check].
type checker struct {
	applier // for its whiteouts
	o       CheckOptions
	records *records
	found   []Difference
	buf     []byte
}

// Check compares the tree at root, which must not change meanwhile, with what
// the journal of its [Apply] says, and returns the differences by path. Labels
// that security modules give to every file are not compared, nor are access
// times. It holds the journal in memory, about 300 bytes for each entry, and
// reads every file unless told otherwise. Errors: [ErrJournal], the kernel's,
// the cause of ctx.
func Check(ctx context.Context, root *os.File, journal io.Reader, o CheckOptions) ([]Difference, error) {
	const bufBytes = 256 << 10
	orDefault(&o.MaxDifferences, DefaultMaxDifferences)
	all, err := readJournal(journal)
	if err != nil {
		return nil, err
	}
	fd, err := openDir(int(root.Fd()), "", inRoot)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	c := &checker{o: o, records: all, buf: make([]byte, bufBytes)}
	c.applier.o.Whiteouts = o.Whiteouts
	c.xwhiteout = o.Whiteouts == User
	r := all.byPath[""]
	if r == nil {
		return nil, fmt.Errorf("check: no root: %w", ErrJournal)
	}
	r.seen = true
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("check root: %w", err)
	}
	if err := c.compareDir(fd, "", r, &st); err != nil {
		return nil, err
	}
	if err := c.walk(ctx, fd, "", r.cleared); err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	c.missing()
	slices.SortFunc(c.found, func(a, b Difference) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.What, b.What))
	})
	return c.found, nil
}

func orDefault(v *int, value int) {
	if *v <= 0 {
		*v = value
	}
}

// errEnough ends the walk when there are enough differences.
var errEnough = errors.New("enough differences")

func (c *checker) differ(path, what, want, got string) error {
	if want == got && want != "" {
		return nil
	}
	if len(c.found) == c.o.MaxDifferences {
		return errEnough
	}
	c.found = append(c.found, Difference{path, what, want, got})
	return nil
}

// number reports numbers that differ.
func (c *checker) number(path, what string, want, got int64, base int) error {
	if want == got {
		return nil
	}
	return c.differ(path, what, strconv.FormatInt(want, base), strconv.FormatInt(got, base))
}

// walk compares all below dir. Records older than cleared do not hold there.
func (c *checker) walk(ctx context.Context, dir int, path string, cleared int64) error {
	return readNames(dir, func(name string) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		child := join(path, name)
		r := c.records.byPath[child]
		if r == nil || r.seq < cleared || r.kind == kindRemoved {
			return c.differ(child, "extra", "", "")
		}
		r.seen = true
		if err := c.compare(ctx, dir, name, child, r); err != nil {
			return err
		}
		if r.kind != kindDir {
			return nil
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil // said by compare
		}
		if err != nil {
			return fmt.Errorf("check %q: %w", child, err)
		}
		defer func() { _ = unix.Close(fd) }()
		return c.walk(ctx, fd, child, max(cleared, r.cleared))
	})
}

// missing reports the records that hold and were not seen. Of a directory that
// is missing with all below it, only the directory.
func (c *checker) missing() {
	for path, r := range c.records.byPath {
		if r.seen || r.kind == kindRemoved || !c.records.holds(path, r) {
			continue
		}
		above, _ := split(path)
		if parent := c.records.byPath[above]; parent != nil && !parent.seen && parent.kind == kindDir {
			continue
		}
		if c.differ(path, "missing", "", "") != nil {
			return
		}
	}
}

// compare compares name in dir with its record.
func (c *checker) compare(ctx context.Context, dir int, name, path string, r *record) error {
	st, err := lstat(dir, name)
	if err != nil {
		return fmt.Errorf("check %q: %w", path, err)
	}
	if got := c.kind(dir, name, &st); got != r.kind {
		return c.differ(path, "type", string(r.kind), string(got))
	}
	if r.kind == kindWhiteout {
		return nil
	}
	if r.kind == kindDir {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("check %q: %w", path, err)
		}
		defer func() { _ = unix.Close(fd) }()
		return c.compareDir(fd, path, r, &st)
	}
	if r.ino != 0 {
		if r.ino != st.Ino || r.dev != st.Dev {
			return c.differ(path, "hard link", "the same file as in the image", "another one")
		}
		return nil
	}
	r.ino, r.dev = st.Ino, st.Dev
	if err := c.attributes(path, r, &st); err != nil {
		return err
	}
	proc := procPath(dir, name)
	err = c.compareXattrs(path, r,
		func(buf []byte) (int, error) { return unix.Llistxattr(proc, buf) },
		func(name string, buf []byte) (int, error) { return unix.Lgetxattr(proc, name, buf) })
	if err != nil {
		return err
	}
	switch r.kind {
	case kindFile:
		return c.file(ctx, dir, name, path, r, &st)
	case kindSymlink:
		target, err := readlinkat(dir, name)
		if err != nil {
			return fmt.Errorf("check %q: %w", path, err)
		}
		if target != r.target {
			return c.differ(path, "target", strconv.Quote(r.target), strconv.Quote(target))
		}
	case kindChar, kindBlock:
		return c.number(path, "device", int64(unix.Mkdev(r.major, r.minor)), int64(st.Rdev), 10)
	}
	return nil
}

func (c *checker) kind(dir int, name string, st *unix.Stat_t) byte {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && c.isWhiteout(dir, name, st) {
		return kindWhiteout
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return kindFile
	case unix.S_IFDIR:
		return kindDir
	case unix.S_IFLNK:
		return kindSymlink
	case unix.S_IFCHR:
		return kindChar
	case unix.S_IFBLK:
		return kindBlock
	case unix.S_IFIFO:
		return kindFIFO
	}
	return '?'
}

func (c *checker) compareDir(fd int, path string, r *record, st *unix.Stat_t) error {
	if err := c.attributes(path, r, st); err != nil {
		return err
	}
	if opaque := c.isOpaque(fd); opaque != r.opaque {
		if err := c.differ(path, "opaque mark", strconv.FormatBool(r.opaque), strconv.FormatBool(opaque)); err != nil {
			return err
		}
	}
	return c.compareXattrs(path, r,
		func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) })
}

func (c *checker) attributes(path string, r *record, st *unix.Stat_t) error {
	if r.kind != kindSymlink {
		if err := c.number(path, "mode", int64(r.mode), int64(st.Mode&0o7777), 8); err != nil {
			return err
		}
	}
	if err := c.number(path, "owner", int64(r.uid), int64(st.Uid), 10); err != nil {
		return err
	}
	if err := c.number(path, "group", int64(r.gid), int64(st.Gid), 10); err != nil {
		return err
	}
	got := fileTime{st.Mtim.Sec, uint32(st.Mtim.Nsec)}
	if got == r.time {
		return nil
	}
	return c.differ(path, "time", r.time.String(), got.String())
}

// String returns the time in UTC.
func (t fileTime) String() string {
	return time.Unix(t.sec, int64(t.nsec)).UTC().Format(time.RFC3339Nano)
}

// compareXattrs compares all xattrs but those of overlayfs and security modules.
func (c *checker) compareXattrs(path string, r *record, list func([]byte) (int, error), get func(string, []byte) (int, error)) error {
	names, err := listXattrs(list)
	if err != nil {
		return fmt.Errorf("check xattrs of %q: %w", path, err)
	}
	wanted := func(name string) bool {
		return slices.ContainsFunc(r.xattrs, func(x xattrSum) bool { return x.name == name })
	}
	for _, name := range names {
		if strings.HasPrefix(name, trustedOverlay) || strings.HasPrefix(name, userOverlay) || wanted(name) || setByKernel(name) {
			continue
		}
		if err := c.differ(path, "xattr "+strconv.Quote(name), "absent", "present"); err != nil {
			return err
		}
	}
	for _, x := range r.xattrs {
		n, err := get(x.name, c.buf)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			err = c.differ(path, "xattr "+strconv.Quote(x.name), "present", "absent")
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("check xattr %q of %q: %w", x.name, path, err)
		}
		if err := c.sum(path, "xattr "+strconv.Quote(x.name), x.sum, c.buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) sum(path, what string, want, data []byte) error {
	c.records.sum.Reset()
	_, _ = c.records.sum.Write(data) // hash.Hash never fails
	return c.sums(path, what, want)
}

// sums compares the checksum at hand.
func (c *checker) sums(path, what string, want []byte) error {
	if got := c.records.sum.Sum(nil); !bytes.Equal(got, want) {
		return c.differ(path, what, fmt.Sprintf("checksum %x", want), fmt.Sprintf("%x", got))
	}
	return nil
}

// file compares size and content.
func (c *checker) file(ctx context.Context, dir int, name, path string, r *record, st *unix.Stat_t) error {
	if r.size != st.Size {
		return c.number(path, "size", r.size, st.Size, 10)
	}
	if c.o.SkipContent {
		return nil
	}
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return fmt.Errorf("check %q: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	extents := r.sparse
	if extents == nil {
		extents = []layer.Extent{{Offset: 0, Size: r.size}}
	}
	c.records.sum.Reset()
	end := int64(0)
	for _, x := range extents {
		if err := c.zeros(ctx, fd, path, end, x.Offset); err != nil {
			return err
		}
		end = x.Offset + x.Size
		err := c.read(ctx, fd, path, x.Offset, end, func(part []byte) {
			_, _ = c.records.sum.Write(part) // hash.Hash never fails
		})
		if err != nil {
			return err
		}
	}
	if err := c.zeros(ctx, fd, path, end, r.size); err != nil {
		return err
	}
	return c.sums(path, "content", r.sum)
}

// zeros reports data in what must be a hole between two offsets. Holes of the
// file system are not read.
func (c *checker) zeros(ctx context.Context, fd int, path string, from, to int64) error {
	const seekData = 3 // SEEK_DATA
	for from < to {
		data, err := unix.Seek(fd, from, seekData)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= to {
			return nil
		}
		if err != nil {
			return fmt.Errorf("check %q: %w", path, err)
		}
		from = min(to, data+int64(len(c.buf)))
		clean := true
		err = c.read(ctx, fd, path, data, from, func(part []byte) {
			clean = clean && len(bytes.TrimLeft(part, "\x00")) == 0
		})
		if err != nil {
			return err
		}
		if !clean {
			return c.differ(path, "hole", "empty", "not empty")
		}
	}
	return nil
}

// read hands the bytes between two offsets to use.
func (c *checker) read(ctx context.Context, fd int, path string, from, to int64, use func(part []byte)) error {
	for from < to {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.Pread(fd, c.buf[:min(int64(len(c.buf)), to-from)], from)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil:
			return fmt.Errorf("check %q: read at %d: %w", path, from, err)
		}
		use(c.buf[:n])
		from += int64(n)
	}
	return nil
}
