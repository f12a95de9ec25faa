package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

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
	mounts, err := readTable(ownTable)
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
	if e := mounts.atTarget(record); e.id != 0 {
		ended, err := e.unmount(unix.MNT_DETACH)
		if err != nil {
			return err
		}
		if ended {
			*trash = append(*trash, record)
			return nil
		}
	}
	return m.release(ctx, record, trash)
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
	mounts, err := readTable(ownTable)
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
