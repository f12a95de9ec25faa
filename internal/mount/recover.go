package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dray/internal/store"
)

// Report is what [Mounter.Recover] found.
type Report struct {
	Live    []string // IDs of mounts that are as they should be
	Removed []string // IDs of what was half done, gone, or of another boot
	InUse   []string // IDs of mounts that are not here and that others use, or may use
}

// Recover clears away what processes left that were killed, and what is gone
// without them: records of another boot, mounts that were being made or taken
// away, and mounts that somebody else unmounted. A mount that was complete and is
// there is not touched. It is meant for the start of a program, and may run beside
// everything else. What cannot be understood or removed is in the error; the rest
// is done all the same.
func (m *Mounter) Recover(ctx context.Context) (Report, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("recover mounts: %w", err)
	}
	var trash []*store.Mount
	report, err := m.recoverLocked(ctx, &trash)
	unlock()
	m.discard(ctx, trash)
	if err != nil {
		return report, fmt.Errorf("recover mounts: %w", err)
	}
	return report, nil
}

func (m *Mounter) recoverLocked(ctx context.Context, trash *[]*store.Mount) (Report, error) {
	var report Report
	records, broken := m.store.Mounts()
	mounts, err := readTable()
	if err != nil {
		return report, errors.Join(broken, err)
	}
	for _, record := range records {
		if err := context.Cause(ctx); err != nil {
			return report, errors.Join(broken, err)
		}
		if record.State == store.MountMounted && len(mounts.ofRecord(record.ID)) > 0 {
			report.Live = append(report.Live, record.ID)
			continue
		}
		count := len(*trash)
		err := m.settle(ctx, record, mounts, trash)
		switch {
		case len(*trash) > count:
			report.Removed = append(report.Removed, record.ID)
		case err == nil, errors.Is(err, ErrNamespace):
			report.InUse = append(report.InUse, record.ID)
		default:
			broken = errors.Join(broken, fmt.Errorf("mount %s: %w", record.ID, err))
		}
	}
	if len(report.Removed) > 0 {
		m.log.LogAttrs(ctx, slog.LevelInfo, "mounts cleared away that were half done or gone", slog.Any("mounts", report.Removed))
	}
	return report, broken
}

// settle takes away what a dead process had begun to make, or tidies up after a
// mount that is gone. Nobody was told of the mount: who uses it loses it.
func (m *Mounter) settle(ctx context.Context, record *store.Mount, mounts table, trash *[]*store.Mount) error {
	if e := m.own(record, mounts); e.id != 0 {
		if err := e.unmount(unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return m.release(ctx, record, trash)
}

// gone tells whether it is certain that no process is in a mount namespace: false
// when processes cannot all be looked at. Namespaces without processes, held open
// by a file, are not seen; dray makes no such.
func gone(ns uint64) bool {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(processes) == 0 || !inFirstPIDNamespace() {
		return false
	}
	want := fmt.Sprintf("mnt:[%d]", ns)
	for _, dir := range processes {
		link, err := os.Readlink(filepath.Join(dir, "ns", "mnt"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended, or ending
		}
		if err != nil || link == want {
			return false
		}
	}
	return true
}

// inFirstPIDNamespace tells whether all processes of the machine are in /proc.
func inFirstPIDNamespace() bool {
	const initial = 0xEFFFFFFC // PROC_PID_INIT_INO, include/uapi/linux/nsfs.h
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == initial
}

// Status is a mount and whether it is there.
type Status struct {
	*store.Mount
	// Live tells whether the mount is visible in this namespace. One that is not
	// may be alive in its own.
	Live bool
}

// List returns all mounts of the store, by ID. Records that cannot be understood
// are in the error, with which the others are returned all the same.
func (m *Mounter) List(ctx context.Context) ([]Status, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	records, broken := m.store.Mounts()
	mounts, err := readTable()
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", errors.Join(broken, err))
	}
	list := make([]Status, len(records))
	for i, record := range records {
		list[i] = Status{Mount: record, Live: len(mounts.ofRecord(record.ID)) > 0}
	}
	if broken != nil {
		return list, fmt.Errorf("list mounts: %w", broken)
	}
	return list, nil
}
