package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/oci"
	"dray/internal/store"
)

// MaxLayers is how many different layers an image may have: overlayfs takes no
// more (OVL_MAX_STACK).
const MaxLayers = 500

const defaultRootPerm = 0o755

// distinct drops all but the topmost occurrence of each layer; see the package
// comment for why that is exact.
func distinct(layers []*store.Layer) []*store.Layer {
	var kept []*store.Layer
	seen := map[string]bool{}
	for _, l := range slices.Backward(layers) {
		if !seen[string(l.DiffID)] {
			seen[string(l.DiffID)] = true
			kept = append(kept, l)
		}
	}
	slices.Reverse(kept)
	return kept
}

// stack is what overlayfs is to be given of an image.
type stack struct {
	layers []*store.Layer     // bottom first, each once
	root   *rootAttr          // of the merged root directory; nil without layers
	atTop  bool               // root is what the top layer's directory has
	roots  map[oci.DiffID]int // of layers that are file systems: mounted, attached nowhere
}

// open returns the root directory of a layer as overlayfs is to see it. The caller
// closes it.
func (s *stack) open(l *store.Layer) (int, error) {
	if fd, ok := s.roots[l.DiffID]; ok {
		// Ours stays open: the mount is gone with its last descriptor, and the overlay
		// takes it when it is made, not when it is told of it.
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	fd, err := openDir(l.FS())
	if err != nil {
		return -1, fmt.Errorf("open layer %s: %w", l.DiffID, err)
	}
	return fd, nil
}

// close lets go of the layers' file systems, which are unmounted then but for what
// an overlay has of them.
func (s *stack) close() {
	for _, fd := range s.roots {
		_ = unix.Close(fd)
	}
}

// path returns a path of a layer's root directory, mounted if need be.
func (s *stack) path(l *store.Layer) (string, error) {
	switch l.Layout {
	case store.LayoutDir:
		return l.FS(), nil
	case store.LayoutSeed:
		return s.seedPath(l)
	case store.LayoutEROFS:
		if fd, ok := s.roots[l.DiffID]; ok {
			return fdPath(fd) + "/.", nil
		}
		fd, err := mountLayer(l)
		if errors.Is(err, erofs.ErrDamaged) || errors.Is(err, erofs.ErrChanged) {
			err = fmt.Errorf("%w: %w", store.ErrCorrupt, err)
		}
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
		s.roots[l.DiffID] = fd
		return fdPath(fd) + "/.", nil
	}
	return "", fmt.Errorf("%w: layer %s has layout %q", ErrLayer, l.DiffID, l.Layout)
}

// mountLayer mounts a tar and its index.
func mountLayer(l *store.Layer) (int, error) { return mountIndex(l.Index(), l.IndexVerity, l) }

// mountIndex mounts an index and the tars of its layers, and attaches them nowhere:
// through loop devices where the kernel does not take files, as in a store in memory.
// What the file system measured of the files when they were stored is compared with what
// it measures of those that are mounted.
func mountIndex(path, measured string, layers ...*store.Layer) (int, error) {
	index, err := openSealed(path, measured)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(index) }()
	tars := make([]int, 0, len(layers))
	defer func() {
		for _, tar := range tars {
			_ = unix.Close(tar)
		}
	}()
	for _, l := range layers {
		tar, err := openTar(l)
		if err != nil {
			return -1, err
		}
		tars = append(tars, tar)
	}
	fd, err := erofs.Mount(erofs.Files, index, tars...)
	if errors.Is(err, unix.ENOTBLK) {
		var loopErr error
		if fd, loopErr = erofs.Mount(erofs.Loop, index, tars...); loopErr == nil {
			return fd, nil
		}
		err = errors.Join(err, loopErr)
	}
	return fd, err
}

// openTar opens what the contents of a layer are in.
func openTar(l *store.Layer) (int, error) {
	if l.Seed == nil {
		return openSealed(l.Tar(), l.TarVerity)
	}
	f, err := l.Seed.Open()
	if err != nil {
		return -1, err
	}
	defer func() { _ = f.Close() }()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// openSealed opens a file of the store for the kernel, and compares it with what was
// measured when it was stored: a plain descriptor, see openDir.
func openSealed(path, measured string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := erofs.CheckSealed(fd, measured, erofs.Measure); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

// openStack returns the stack for a request: of the merged index, or of the layers one
// by one. After an error too it is to be closed.
func (m *Mounter) openStack(ctx context.Context, r *Request) (*stack, error) {
	if r.merged == nil {
		return m.newStack(r.Layers)
	}
	s, err := m.mergedStack(r)
	if err != nil {
		s.close()
		m.stackOneByOne(ctx, fmt.Errorf("%w: dray store verify --repair removes it if it is damaged", err))
		r.merged = nil
		return m.newStack(r.Layers)
	}
	return s, nil
}

// mergedStack is newStack with a single layer: the merged index.
func (m *Mounter) mergedStack(r *Request) (*stack, error) {
	fd, err := mountIndex(r.merged.Index(), r.merged.Verity, distinct(r.Layers)...)
	if err != nil {
		return &stack{}, fmt.Errorf("merged index %s: %w", r.merged.ChainID, err)
	}
	whole := &store.Layer{LayerRecord: store.LayerRecord{DiffID: oci.DiffID(r.merged.ChainID), Layout: store.LayoutEROFS}}
	return m.fillStack(&stack{layers: []*store.Layer{whole}, roots: map[oci.DiffID]int{whole.DiffID: fd}})
}

// newStack decides what of an image's layers is visible and what its root directory
// is like: as the topmost layer has it that says something of it, as most do not,
// and as the top layer has it if none does. It refuses what cannot be stacked.
// After an error too it is to be closed.
func (m *Mounter) newStack(layers []*store.Layer) (*stack, error) {
	return m.fillStack(&stack{layers: distinct(layers), roots: map[oci.DiffID]int{}})
}

func (m *Mounter) fillStack(s *stack) (*stack, error) {
	whiteouts := store.WhiteoutsTrusted
	if m.userXattr {
		whiteouts = store.WhiteoutsUser
	}
	lowest, said := 0, false
	for i, l := range slices.Backward(s.layers) {
		if l.Whiteouts != "" && l.Whiteouts != whiteouts {
			return s, fmt.Errorf("%w: layer %s has whiteouts in %q form, this mount needs %q: remove the image and pull it as this user",
				ErrLayer, l.DiffID, l.Whiteouts, whiteouts)
		}
		path, err := s.path(l)
		if err != nil {
			return s, err
		}
		root, err := readRootAttr(path, whiteouts)
		if err != nil {
			return s, fmt.Errorf("read root of layer %s: %w", l.DiffID, err)
		}
		// What is below an opaque root is hidden, but for the root's attributes.
		// overlayfs would not heed it.
		if root.opaque && lowest == 0 {
			lowest = i
		}
		if s.root == nil || !said && !root.plain() {
			s.root, s.atTop, said = root, i == len(s.layers)-1, !root.plain()
		}
	}
	s.layers = s.layers[lowest:]
	if len(s.layers) > MaxLayers {
		return s, fmt.Errorf("%w: image has %d different layers, overlayfs stacks at most %d", ErrTooManyLayers, len(s.layers), MaxLayers)
	}
	return s, nil
}

// openDir opens a directory of the store for the kernel. A plain descriptor: there
// may be hundreds, and an os.File costs three times as much.
func openDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// rootAttr is what a layer's root directory says of itself, but for its content.
type rootAttr struct {
	perm         uint32
	uid, gid     int
	atime, mtime unix.Timespec
	xattrs       map[string][]byte
	opaque       bool
}

// plain tells whether the attributes are those of a root directory of which the
// layer's tar said nothing (package apply).
func (a *rootAttr) plain() bool {
	return a.perm == defaultRootPerm && a.uid == 0 && a.gid == 0 && len(a.xattrs) == 0 && a.mtime == unix.Timespec{}
}

func readRootAttr(path, whiteouts string) (*rootAttr, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	a := &rootAttr{perm: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid), atime: st.Atim, mtime: st.Mtim}
	names, err := sized(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(string(names), "\x00") {
		opaque := name == whiteouts+".overlay.opaque"
		// The others that speak to overlayfs, or to the host's security modules, stay.
		if name == "" || !opaque && (strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "security.")) {
			continue
		}
		value, err := sized(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		if opaque {
			a.opaque = string(value) == "y" // "x" says that whiteouts below are attributes
			continue
		}
		if a.xattrs == nil {
			a.xattrs = map[string][]byte{}
		}
		a.xattrs[name] = value
	}
	return a, nil
}

// apply gives a directory the attributes.
func (a *rootAttr) apply(path string) error {
	if a == nil {
		return nil // no layers: the directory is as it should be
	}
	err := os.Lchown(path, a.uid, a.gid)
	if err == nil {
		err = unix.Chmod(path, a.perm)
	}
	for name, value := range a.xattrs {
		if err == nil {
			err = unix.Lsetxattr(path, name, value, 0)
		}
	}
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{a.atime, a.mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("set attributes of root directory: %w", err)
	}
	return nil
}

// sized calls a function that fills a buffer with one that is large enough.
func sized(fill func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := fill(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n) // at most 64 KiB, the kernel's limit for either
		n, err = fill(b)
		if !errors.Is(err, unix.ERANGE) {
			return b[:max(0, n)], err
		}
	}
}
