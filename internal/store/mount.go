package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dray/internal/durable"
	"dray/internal/oci"

	"golang.org/x/sys/unix"
)

const (
	stateName = "state.json"
	upperName = "upper"
	workName  = "work"

	upperPerm = 0o755 // the merged root takes it over

	bootPrefixChars = 8 // of a mount's ID: how much of the boot ID it starts with
)

// MountState says how far a mount has come.
type MountState string

// States of a mount.
const (
	MountPreparing  MountState = "preparing"  // the record is there, the mount may be
	MountMounted    MountState = "mounted"    // it was there when the record was written
	MountUnmounting MountState = "unmounting" // it may be gone, the directories may not
)

// Mount is the record of a root file system. While it is there its layers are not
// collected. It is not synced: a mount does not survive its kernel either.
type Mount struct {
	Version  int          `json:"version"`
	ID       string       `json:"id"` // begins with the boot's
	Image    oci.Digest   `json:"image,omitempty"`
	Layers   []oci.DiffID `json:"layers"` // bottom first
	Target   string       `json:"target"`
	ReadOnly bool         `json:"read_only"`
	Merged   bool         `json:"merged,omitempty"` // one merged index is mounted in the place of all layers
	BootID   string       `json:"boot_id"`
	MountNS  uint64       `json:"mount_ns"` // inode of the mount namespace of who prepared it
	State    MountState   `json:"state"`
	Created  time.Time    `json:"created"`
	PID      int          `json:"pid"` // of who prepared it

	Path string `json:"-"` // its directory in the store
}

// Upper returns the upper directory of a mount that can be written.
func (m *Mount) Upper() string { return filepath.Join(m.Path, upperName) }

// Work returns the work directory that belongs to [Mount.Upper].
func (m *Mount) Work() string { return filepath.Join(m.Path, workName) }

// NewMount registers a mount whose layers are all in the store, a missing one
// being an [ErrNotFound], and makes its directories: upper and work unless
// m.ReadOnly. The store fills in Version, ID, BootID, MountNS, State, Created and
// PID. From its return on the layers and the image stay until [Store.RemoveMount].
func (s *Store) NewMount(ctx context.Context, m Mount) (*Mount, error) {
	if s.readOnly {
		return nil, fmt.Errorf("register mount: store %s: %w", s.root, ErrReadOnly)
	}
	m.Version, m.BootID, m.State, m.PID, m.Created = formatVersion, s.boot, MountPreparing, os.Getpid(), s.now().UTC()
	m.ID = s.boot[:bootPrefixChars] + "-" + randomName()
	m.Path = s.path(dirMounts, m.ID)
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/mnt", &ns); err == nil {
		m.MountNS = ns.Ino
	}
	c, err := s.claim(ctx, "mount-"+m.ID)
	if err != nil {
		return nil, fmt.Errorf("register mount: %w", err)
	}
	if err := s.fillMount(ctx, c, &m); err != nil {
		return nil, errors.Join(fmt.Errorf("register mount: %w", s.Explain(err)), c.discard())
	}
	return &m, c.release()
}

func (s *Store) fillMount(ctx context.Context, c *scratch, m *Mount) error {
	if err := c.mkdir(); err != nil {
		return err
	}
	if !m.ReadOnly {
		for _, name := range []string{upperName, workName} {
			path := filepath.Join(c.path, name)
			if err := os.Mkdir(path, upperPerm); err != nil {
				return err
			}
			if err := os.Chmod(path, upperPerm); err != nil { // whatever the umask
				return err
			}
		}
	}
	if err := writeRecord(filepath.Join(c.path, stateName), m, unsynced); err != nil {
		return err
	}
	lock, err := s.lock(ctx, durable.Shared) // from the look at the layers to the record
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	for _, id := range m.Layers {
		// Records were read when the layers were looked up: names are enough.
		if _, recorded, err := s.layerNames(id); err != nil {
			return err
		} else if !recorded {
			return fmt.Errorf("layer %s: %w", id, ErrNotFound)
		}
	}
	return os.Rename(c.path, m.Path)
}

// UpdateMount replaces the record of a registered mount. ID, BootID and Path stay.
func (s *Store) UpdateMount(ctx context.Context, m *Mount) error {
	lock, err := s.lock(ctx, durable.Shared)
	if err != nil {
		return fmt.Errorf("update mount %s: %w", m.ID, err)
	}
	defer func() { _ = lock.Release() }()
	if _, err := os.Lstat(filepath.Join(m.Path, stateName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotFound
		}
		return fmt.Errorf("update mount %s: %w", m.ID, err)
	}
	if err := writeRecord(filepath.Join(m.Path, stateName), m, unsynced); err != nil {
		return fmt.Errorf("update mount %s: %w", m.ID, s.Explain(err))
	}
	return nil
}

// ThisBoot tells whether the mount was made since the machine started: if not, the
// mount is gone, and only its directories are left.
func (s *Store) ThisBoot(m *Mount) bool { return m.BootID == s.boot }

// Mount returns the record of a mount, or [ErrNotFound]. One that was damaged by
// power loss, like everything of another boot, comes without layers and target.
func (s *Store) Mount(id string) (*Mount, error) {
	if !validMountID(id) {
		return nil, fmt.Errorf("look up mount %q: not the ID of a mount: %w", id, ErrNotFound)
	}
	m := &Mount{}
	path := s.path(dirMounts, id)
	err := readRecord(filepath.Join(path, stateName), m)
	if err == nil {
		err = checkFormat(path, m.Version)
	}
	if err == nil && m.ID != id {
		err = fmt.Errorf("record of mount %q: %w", m.ID, ErrCorrupt)
	}
	if errors.Is(err, ErrNotFound) {
		if _, statErr := os.Lstat(path); statErr == nil {
			err = fmt.Errorf("%s has no %s: %w", path, stateName, ErrCorrupt)
		}
	}
	if errors.Is(err, ErrCorrupt) && !strings.HasPrefix(s.boot, id[:bootPrefixChars]) {
		m, err = &Mount{Version: formatVersion, ID: id, State: MountUnmounting}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up mount %s: %w", id, err)
	}
	m.Path = path
	return m, nil
}

func validMountID(id string) bool {
	return len(id) > bootPrefixChars+1 && id[bootPrefixChars] == '-' && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == ""
}

// Mounts returns all records of mounts, of this boot and of others. Those that
// cannot be understood are in the error, which is then an [ErrCorrupt]; the others
// are returned all the same.
func (s *Store) Mounts() ([]*Mount, error) {
	ids, err := readNames(s.path(dirMounts))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var mounts []*Mount
	var broken []error
	for _, id := range ids {
		m, err := s.Mount(id)
		switch {
		case errors.Is(err, ErrNotFound): // just removed
		case err != nil:
			broken = append(broken, err)
		default:
			mounts = append(mounts, m)
		}
	}
	return mounts, errors.Join(broken...)
}

// RemoveMount removes the record of a mount and its directories. The file system
// has been unmounted. A missing one is an [ErrNotFound].
func (s *Store) RemoveMount(_ context.Context, id string) error {
	if s.readOnly {
		return fmt.Errorf("remove mount %s: store %s: %w", id, s.root, ErrReadOnly)
	}
	path := s.path(dirMounts, id)
	if _, err := os.Lstat(path); !validMountID(id) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove mount %q: %w", id, ErrNotFound)
	}
	gone, err := s.throw(path)
	if err = errors.Join(err, gone.empty()); err != nil {
		return fmt.Errorf("remove mount %s: %w", id, s.Explain(err))
	}
	return nil
}
