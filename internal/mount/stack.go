package mount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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

// visible drops the layers below one whose root directory is opaque, which
// overlayfs would not heed, and refuses what cannot be stacked.
func (m *Mounter) visible(layers []*store.Layer) ([]*store.Layer, error) {
	whiteouts := store.WhiteoutsTrusted
	if m.userXattr {
		whiteouts = store.WhiteoutsUser
	}
	for i, l := range slices.Backward(layers) {
		if l.Layout != store.LayoutDir {
			return nil, fmt.Errorf("%w: layer %s has layout %q", ErrLayer, l.DiffID, l.Layout)
		}
		if l.Whiteouts != "" && l.Whiteouts != whiteouts {
			return nil, fmt.Errorf("%w: layer %s has whiteouts in %q form, this mount needs %q: remove the image and pull it as this user",
				ErrLayer, l.DiffID, l.Whiteouts, whiteouts)
		}
		opaque := make([]byte, 1)
		n, err := unix.Lgetxattr(l.FS(), whiteouts+".overlay.opaque", opaque)
		if err == nil && n == 1 && opaque[0] == 'y' {
			layers = layers[i:]
			break
		}
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return nil, fmt.Errorf("read root of layer %s: %w", l.DiffID, err)
		}
	}
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("%w: image has %d different layers, overlayfs stacks at most %d", ErrTooManyLayers, len(layers), MaxLayers)
	}
	return layers, nil
}

// openLower opens the root directory of a layer as overlayfs is to see it. Other
// layouts than directories will be mounted here, and their root returned.
func openLower(l *store.Layer) (*os.File, error) {
	f, err := os.OpenFile(l.FS(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", l.DiffID, err)
	}
	return f, nil
}

// rootAttr is what an inode says of itself, but for its content.
type rootAttr struct {
	perm         uint32
	uid, gid     int
	atime, mtime unix.Timespec
	xattrs       map[string][]byte
}

// plain tells whether the attributes are those of a root directory of which the
// layer's tar said nothing (package apply).
func (a *rootAttr) plain() bool {
	return a.perm == defaultRootPerm && a.uid == 0 && a.gid == 0 && len(a.xattrs) == 0 && a.mtime == unix.Timespec{}
}

func readRootAttr(l *store.Layer) (*rootAttr, error) {
	f, err := openLower(l)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("read root of layer %s: %w", l.DiffID, err)
	}
	a := &rootAttr{perm: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid), atime: st.Atim, mtime: st.Mtim}
	if a.xattrs, err = readXattrs(fdPath(f)); err != nil {
		return nil, fmt.Errorf("read root of layer %s: %w", l.DiffID, err)
	}
	return a, nil
}

// rootLayer returns the layer that decides what the image's root directory is
// like, and its attributes: the topmost that says something of it, as most do not,
// and the top layer if none does. Without layers it returns nil.
func rootLayer(layers []*store.Layer) (decides *store.Layer, attr *rootAttr, err error) {
	for _, l := range slices.Backward(layers) {
		a, err := readRootAttr(l)
		if err != nil {
			return nil, nil, err
		}
		if !a.plain() {
			return l, a, nil
		}
		if decides == nil {
			decides, attr = l, a
		}
	}
	return decides, attr, nil
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

// readXattrs returns the extended attributes of the directory that path leads to,
// without those that speak to overlayfs or to the host's security modules.
func readXattrs(path string) (map[string][]byte, error) {
	names, err := sized(func(b []byte) (int, error) { return unix.Listxattr(path, b) })
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	xattrs := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "security.") {
			continue
		}
		value, err := sized(func(b []byte) (int, error) { return unix.Getxattr(path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		xattrs[name] = value
	}
	return xattrs, nil
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
