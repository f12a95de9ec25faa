package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

// Support says what the kernel makes of images that lie in some directory.
type Support struct {
	Mounts  bool   `json:"mounts"`  // and stacks them with overlayfs
	Backing string `json:"backing"` // through what: [Backing.String]
	Reason  string `json:"reason"`  // why not, or why not through files

	Verity   bool   `json:"verity"`              // files of the directory can be sealed: [Seal]
	NoVerity string `json:"no_verity,omitempty"` // why not

	// Passing tells that the reason lies in the moment, not in the kernel: the answer
	// is not to be remembered.
	Passing bool `json:"-"`
}

// Through returns the backing that was found.
func (s Support) Through() Backing {
	if s.Backing == Loop.String() {
		return Loop
	}
	return Files
}

// Probe finds out by mounting a tiny image in dir, reading it, and stacking it. It
// changes nothing that anybody sees. The error is about dir itself.
func Probe(ctx context.Context, dir string) (Support, error) {
	scratch, err := os.MkdirTemp(dir, "probe-*")
	if err != nil {
		return Support{}, fmt.Errorf("probe erofs: %w", err)
	}
	s, err := probe(ctx, scratch)
	if err == nil {
		err = s.probeVerity(filepath.Join(scratch, "sealed"))
	}
	if err = errors.Join(err, os.RemoveAll(scratch)); err != nil {
		return Support{}, fmt.Errorf("probe erofs: %w", err)
	}
	return s, nil
}

func probe(ctx context.Context, dir string) (Support, error) {
	index, stored, err := tinyImage(ctx, dir)
	if err != nil {
		return Support{}, err
	}
	defer func() { _, _ = index.Close(), stored.Close() }()
	why := try(index, stored, Files)
	if why == nil {
		return Support{Mounts: true, Backing: Files.String()}, nil
	}
	passing := isPassing(why)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Support{}, err
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return Support{Reason: fmt.Sprintf("%v; through loop devices, a file system in memory would hold every page twice", why), Passing: passing}, nil
	}
	if err := try(index, stored, Loop); err != nil {
		return Support{Reason: fmt.Sprintf("%v; through loop devices: %v", why, err), Passing: passing || isPassing(err)}, nil
	}
	return Support{Mounts: true, Backing: Loop.String(), Reason: why.Error(), Passing: passing}, nil
}

// probeVerity finds out whether files can be sealed.
func (s *Support) probeVerity(path string) error {
	if err := os.WriteFile(path, []byte(probeText), 0o600); err != nil {
		return err
	}
	if _, err := Seal(path); err != nil {
		s.NoVerity = err.Error()
		s.Passing = s.Passing || isPassing(err)
		return nil
	}
	s.Verity = true
	return nil
}

// isPassing tells whether an error says nothing of what the kernel can do.
func isPassing(err error) bool {
	for _, cause := range []error{unix.EIO, unix.ENOSPC, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.EINTR} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

const (
	probeDir  = "dir"
	probeFile = "dir/file"
	emptyDir  = "empty"
	probeText = "dray"
)

// tinyImage stores a layer of one file and two directories.
func tinyImage(ctx context.Context, dir string) (index, stored *os.File, err error) {
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: emptyDir, Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: probeFile, Mode: 0o644, Size: int64(len(probeText))}),
	)
	if err == nil {
		_, err = w.Write([]byte(probeText))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_, _ = index.Close(), stored.Close()
		}
	}()
	if stored, err = os.Create(filepath.Join(dir, "tar")); err != nil { //nolint:gosec // a path of ours
		return nil, nil, err
	}
	if index, err = os.Create(filepath.Join(dir, "index")); err != nil { //nolint:gosec // a path of ours
		return index, stored, err
	}
	const blockBytes = 4 << 10
	id := oci.DiffID(oci.DigestBytes(raw.Bytes()))
	x, err := Copy(ctx, id, stream.NewSlicer(&raw, blockBytes), stored, layer.Limits{}, Options{Dir: dir})
	if err != nil {
		return index, stored, err
	}
	_, err = x.WriteTo(index)
	return index, stored, errors.Join(err, x.Close())
}

// try mounts the image, stacks it, and reads the file through all of it.
func try(index, stored *os.File, b Backing) error {
	fd, err := Mount(b, int(index.Fd()), int(stored.Fd()))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := readProbe(fd, probeFile); err != nil {
		return err
	}
	stack, err := overlay(fd, probeDir, emptyDir)
	if err != nil {
		return fmt.Errorf("stack erofs: %w", err)
	}
	defer func() { _ = unix.Close(stack) }()
	return readProbe(stack, filepath.Base(probeFile))
}

func readProbe(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("read a file of erofs: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var text [2 * len(probeText)]byte
	n, err := unix.Read(fd, text[:])
	if err != nil || string(text[:n]) != probeText {
		return fmt.Errorf("read a file of erofs: got %q, %w", text[:max(n, 0)], errors.Join(err, unix.EIO))
	}
	return nil
}

// overlay stacks directories of a mount that is attached nowhere, as package mount
// does.
func overlay(mount int, lowers ...string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, name := range lowers {
		dir, err := unix.Openat(mount, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		err = unix.FsconfigSetFd(fs, "lowerdir+", dir)
		if err != nil {
			err = unix.FsconfigSetString(fs, "lowerdir+", "/proc/self/fd/"+strconv.Itoa(dir))
		}
		_ = unix.Close(dir)
		if err != nil {
			return -1, explain(fs, "set lowerdir+", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, "make overlay", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return -1, explain(fs, "fsmount", err)
	}
	return fd, nil
}
