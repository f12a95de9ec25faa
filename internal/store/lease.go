package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"dray/internal/durable"
	"dray/internal/oci"
)

const leasePrefix = "lease-"

// Lease keeps layers and images from the collector while a pull or a mount needs
// them and nothing in the store refers to them yet. It ends with [Lease.Release]
// or with the process. It is safe for concurrent use.
//
// On disk it is a locked file in the staging area, one line per layer or image.
type Lease struct {
	store   *Store
	scratch *scratch // nil in a read-only store, from which nothing is collected
}

// Lease starts an empty lease.
func (s *Store) Lease(ctx context.Context) (*Lease, error) {
	if s.readOnly {
		return &Lease{store: s}, nil
	}
	c, err := s.claim(ctx, leasePrefix+randomName())
	if err != nil {
		return nil, fmt.Errorf("start lease: %w", err)
	}
	return &Lease{store: s, scratch: c}, nil
}

// Add puts layers under the lease, whether they are there or not. From its return
// on they are not collected.
func (l *Lease) Add(ctx context.Context, ids ...oci.DiffID) error {
	return l.add(ctx, layerLines(ids))
}

func layerLines(ids []oci.DiffID) []string {
	lines := make([]string, len(ids))
	for i, id := range ids {
		lines[i] = "layer " + string(id) + "\n"
	}
	return lines
}

// AddImage puts an image and its layers under the lease, whether they are there or not:
// the record stays without a reference, and with it the merged index.
func (l *Lease) AddImage(ctx context.Context, manifest oci.Digest, layers ...oci.DiffID) error {
	return l.add(ctx, append(layerLines(layers), "image "+string(manifest)+"\n"))
}

func (l *Lease) add(ctx context.Context, lines []string) error {
	if l.scratch == nil || len(lines) == 0 {
		return nil
	}
	lock, err := l.store.lock(ctx, durable.Shared) // the collector reads leases while it is alone
	if err != nil {
		return fmt.Errorf("extend lease: %w", err)
	}
	defer func() { _ = lock.Release() }()
	if _, err := l.scratch.lock.File().WriteString(strings.Join(lines, "")); err != nil {
		return fmt.Errorf("extend lease: %w", l.store.Explain(err))
	}
	return nil
}

// Release ends the lease. It is called once.
func (l *Lease) Release() error {
	if l.scratch == nil {
		return nil
	}
	if err := l.scratch.release(); err != nil {
		return fmt.Errorf("end lease: %w", err)
	}
	return nil
}

// leased collects what live leases name. The caller holds ROOT/lock exclusively.
func (s *Store) leased() (layers map[oci.DiffID]bool, images map[oci.Digest]bool, err error) {
	names, err := readNames(s.path(dirStaging))
	if err != nil {
		return nil, nil, err
	}
	layers, images = map[oci.DiffID]bool{}, map[oci.Digest]bool{}
	for _, name := range names {
		if !strings.HasPrefix(name, leasePrefix) {
			continue
		}
		path := s.path(dirStaging, name)
		dead, err := durable.TryAcquire(path, durable.Exclusive)
		if err == nil {
			err = errors.Join(ignoreMissing(os.Remove(path)), dead.Release())
		} else if errors.Is(err, durable.ErrLocked) {
			err = readLease(path, layers, images)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return layers, images, nil
}

func readLease(path string, layers map[oci.DiffID]bool, images map[oci.Digest]bool) error {
	f, err := os.Open(path) //nolint:gosec // in the store
	if err != nil {
		return ignoreMissing(err) // released meanwhile
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		kind, digest, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "layer":
			layers[oci.DiffID(digest)] = true
		case "image":
			images[oci.Digest(digest)] = true
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read lease %s: %w", path, err)
	}
	return nil
}
