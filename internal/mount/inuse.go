package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dray/internal/store"
)

// use says whether an overlay exists anywhere that has a mount's upper directory.
type use int

const (
	unknown use = iota // the mount is read-only, or the kernel could not be asked
	unused
	used
)

// inUse asks the kernel whether an overlay uses the upper directory of a record:
// in other mount namespaces, or unmounted from every directory and still open. The
// kernel lends an upper directory to one overlay at a time; with index=on it
// refuses the second (Documentation/filesystems/overlayfs.rst, "Sharing and
// copying layers"). The second is made, if it can be, without a mount.
func (m *Mounter) inUse(record *store.Mount) (use, error) {
	if record.ReadOnly || record.Path == "" {
		return unknown, nil
	}
	if _, err := os.Lstat(record.Upper()); errors.Is(err, os.ErrNotExist) {
		return unused, nil // deleted half-way
	}
	fs, err := unix.Fsopen(overlay, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, err)
	}
	defer func() { _ = unix.Close(fs) }()
	// The work directory is another: that of the mount has the mark of volatile,
	// on which every mount fails.
	lower, work := filepath.Join(record.Path, "probe-lower"), filepath.Join(record.Path, "probe-work")
	for _, dir := range []string{lower, work} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, err)
		}
	}
	err = errors.Join(
		unix.FsconfigSetString(fs, "index", "on"),
		unix.FsconfigSetFlag(fs, "ro"), // nothing to be synced when it goes
	)
	if m.userXattr {
		err = errors.Join(err, unix.FsconfigSetFlag(fs, "userxattr"))
	}
	// By the paths of descriptors, which hold nothing that overlayfs takes for a
	// separator. Kernels before 6.5 look them up at the end only.
	for _, d := range [...][2]string{{"lowerdir", lower}, {"upperdir", record.Upper()}, {"workdir", work}} {
		dir, openErr := openOwn(d[1])
		if openErr != nil {
			return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, openErr)
		}
		defer func() { _ = dir.Close() }()
		err = errors.Join(err, unix.FsconfigSetString(fs, d[0], fdPath(dir)))
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	switch {
	case err == nil:
		return unused, nil
	case errors.Is(err, unix.EBUSY):
		return used, nil
	}
	return unknown, fmt.Errorf("ask for use of mount %s: %w", record.ID, err)
}
