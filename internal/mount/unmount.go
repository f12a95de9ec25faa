package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/store"
)

// maxHolders is how many processes a [BusyError] names.
const maxHolders = 5

// Unmount takes away the root file system at target, which is the path of its
// directory or the ID of its record, and removes its files. A mount that is gone
// already is only tidied up after. Errors: [ErrNotMounted], [ErrNamespace], and a
// [*BusyError], after which the mount is as it was.
func (m *Mounter) Unmount(ctx context.Context, target string) error {
	return m.unmount(ctx, target, 0)
}

// Detach is [Mounter.Unmount] for a mount in use: the directory is free at once,
// and the files are removed when nobody uses them any more, by [Mounter.Recover].
func (m *Mounter) Detach(ctx context.Context, target string) error {
	return m.unmount(ctx, target, unix.MNT_DETACH)
}

func (m *Mounter) unmount(ctx context.Context, target string, flags int) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return fmt.Errorf("unmount %q: %w", target, err)
	}
	var trash []*store.Mount
	err = m.unmountLocked(ctx, target, flags, &trash)
	unlock()
	m.discard(ctx, trash)
	if busy := (&BusyError{}); err == nil || errors.As(err, &busy) {
		return err
	}
	return fmt.Errorf("unmount %q: %w", target, err)
}

func (m *Mounter) unmountLocked(ctx context.Context, target string, flags int, trash *[]*store.Mount) error {
	mounts, err := readTable(ownTable)
	if err != nil {
		return err
	}
	record, err := m.find(target, mounts)
	if err != nil {
		return err
	}
	if e := mounts.own(record); e.id != 0 {
		ended, err := e.unmount(flags)
		if err != nil {
			return err
		}
		m.log.LogAttrs(ctx, slog.LevelInfo, "unmounted", slog.String("target", e.point), slog.String("mount", record.ID))
		if ended {
			*trash = append(*trash, record)
			return nil
		}
	}
	return m.release(ctx, record, trash)
}

// find returns the record that target means: an ID, a mount that is there, or the
// target of one that is gone.
func (m *Mounter) find(target string, mounts table) (*store.Mount, error) {
	record, err := m.store.Mount(target)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return record, err
	}
	at, err := openPlace(target)
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrNotMounted
	}
	if err != nil {
		return nil, err
	}
	defer at.close()
	id, ok, err := at.mountID()
	if err != nil {
		return nil, err
	}
	if ok {
		e := mounts.byID(id)
		record, err := m.store.Mount(e.recordID())
		if errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("%w: %s %q is mounted there", ErrNotMounted, e.fsType, e.source)
		}
		if err == nil && mounts.own(record) != e {
			return nil, fmt.Errorf("%w: this is a copy of mount %s at %q", ErrNotMounted, record.ID, record.Target)
		}
		return record, err
	}
	records, err := m.store.Mounts()
	for _, record := range records {
		if record.Target == recorded(at.path) && m.here(record) {
			return record, nil
		}
	}
	return nil, errors.Join(ErrNotMounted, err)
}

// recorded returns a path as records have it: JSON has no bytes that are not
// UTF-8, each becomes U+FFFD.
func recorded(path string) string { return string([]rune(path)) }

// here tells whether a record belongs to this mount namespace.
func (m *Mounter) here(record *store.Mount) bool {
	return m.store.ThisBoot(record) && record.MountNS == namespace()
}

func namespace() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/mnt", &st) != nil {
		return 0
	}
	return st.Ino
}

// own returns the mount of a record that is dray's to take away: the one at its
// target or, if that was moved, where it is now; the zero entry when there is
// none. Bind mounts that others made of it are theirs.
func (t table) own(record *store.Mount) entry {
	if e := t.atTarget(record); e.id != 0 {
		return e
	}
	for _, e := range t.ofRecord(record.ID) {
		if e.root == "/" && record.State == store.MountMounted {
			return e
		}
	}
	return entry{}
}

// atTarget returns the mount of a record at its target, or the zero entry.
func (t table) atTarget(record *store.Mount) entry {
	for _, e := range t.ofRecord(record.ID) {
		if recorded(e.point) == recorded(record.Target) {
			return e
		}
	}
	return entry{}
}

// release gives a record up whose mount is gone from this namespace, unless its
// files are, or may be, in use elsewhere.
func (m *Mounter) release(ctx context.Context, record *store.Mount, trash *[]*store.Mount) error {
	if !m.store.ThisBoot(record) {
		*trash = append(*trash, record)
		return nil
	}
	here := m.here(record)
	answer, why := m.inUse(record)
	switch {
	case answer == unused, answer == unknown && here && record.State != store.MountUnmounting:
		*trash = append(*trash, record)
		return nil
	case !here:
		return errors.Join(fmt.Errorf("%w (mnt:[%d])", ErrNamespace, record.MountNS), why)
	case record.State == store.MountUnmounting:
		return nil // told before
	}
	record.State = store.MountUnmounting
	m.log.LogAttrs(ctx, slog.LevelWarn, "files of a mount are kept: somebody still uses it", slog.String("mount", record.ID))
	return m.store.UpdateMount(ctx, record)
}

// holders names what keeps a mount busy: mounts on it, and processes with a file
// or directory open on it, as far as this process may see them.
func holders(e *entry) []string {
	var found []string
	if mounts, err := readTable(ownTable); err == nil {
		for _, point := range mounts.below(e.id) {
			found = append(found, fmt.Sprintf("mount %q", point))
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		if len(found) >= maxHolders {
			break
		}
		if holds(dir, e.point) {
			name, _ := os.ReadFile(filepath.Join(dir, "comm")) //nolint:gosec // below /proc
			pid, _ := strconv.Atoi(filepath.Base(dir))
			found = append(found, fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name))))
		}
	}
	return found
}

// holds tells whether a process uses something at or below point.
func holds(process, point string) bool {
	links := []string{"cwd", "root", "exe"}
	if open, err := os.ReadDir(filepath.Join(process, "fd")); err == nil {
		for _, f := range open {
			links = append(links, filepath.Join("fd", f.Name()))
		}
	}
	for _, link := range links {
		path, err := os.Readlink(filepath.Join(process, link))
		if err == nil && (path == point || strings.HasPrefix(path, point+"/")) {
			return true
		}
	}
	return false
}
