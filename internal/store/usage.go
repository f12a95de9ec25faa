package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"dray/internal/oci"

	"golang.org/x/sys/unix"
)

// Unlimited stands for a number of inodes that the file system does not count.
const Unlimited = -1

// Space is what the store's file system has.
type Space struct {
	TotalBytes  int64 `json:"total_bytes"`
	FreeBytes   int64 `json:"free_bytes"`
	TotalInodes int64 `json:"total_inodes"` // or [Unlimited]
	FreeInodes  int64 `json:"free_inodes"`  // or [Unlimited]
}

// Space asks the file system for its size and what is free for us.
func (s *Store) Space() (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return Space{}, fmt.Errorf("measure free space of %s: %w", s.root, err)
	}
	space := Space{
		TotalBytes:  int64(st.Blocks) * st.Bsize,
		FreeBytes:   int64(st.Bavail) * st.Bsize,
		TotalInodes: int64(st.Files),
		FreeInodes:  int64(st.Ffree),
	}
	if st.Files == 0 {
		space.TotalInodes, space.FreeInodes = Unlimited, Unlimited
	}
	return space, nil
}

// CheckSpace returns a [*SpaceError] when needBytes are more than is free now. It
// reserves nothing.
func (s *Store) CheckSpace(needBytes int64) error {
	space, err := s.Space()
	if err != nil {
		return err
	}
	if needBytes > space.FreeBytes {
		return &SpaceError{Root: s.root, NeedBytes: needBytes, FreeBytes: space.FreeBytes, FreeInodes: space.FreeInodes}
	}
	return nil
}

// Size is how much room a tree takes.
type Size struct {
	ApparentBytes int64 `json:"apparent_bytes"` // of file contents and directories, as ls shows them
	DiskBytes     int64 `json:"disk_bytes"`     // in blocks
	Inodes        int64 `json:"inodes"`         // hard links count once in all three
}

func (a *Size) add(b Size) {
	a.ApparentBytes += b.ApparentBytes
	a.DiskBytes += b.DiskBytes
	a.Inodes += b.Inodes
}

// LayerUsage is the room that one layer takes.
type LayerUsage struct {
	DiffID oci.DiffID `json:"diff_id"`
	Size
	Images int          `json:"images"`            // how many use it; 0 means that the collector takes it
	UsedBy []oci.Digest `json:"used_by,omitempty"` // their manifests
	Seed   string       `json:"seed,omitempty"`    // where its contents are, if not in the store
}

// ImageUsage is the room that one image's layers take, repeated layers once.
type ImageUsage struct {
	Manifest   oci.Digest `json:"manifest"`
	Refs       []string   `json:"refs"`
	Total      Size       `json:"total"`
	Own        Size       `json:"own"`    // of layers that no other image uses: what removing it frees
	Shared     Size       `json:"shared"` // of the others
	SharedWith []Sharer   `json:"shared_with,omitempty"`
}

// Sharer is an image that has layers in common with another.
type Sharer struct {
	Manifest  oci.Digest `json:"manifest"`
	Layers    int        `json:"layers"`
	DiskBytes int64      `json:"disk_bytes"` // of these layers, in the store
	SizeBytes int64      `json:"size_bytes"` // uncompressed, wherever they lie
}

// MountUsage is the room that one mount's own files take.
type MountUsage struct {
	ID     string `json:"id"`
	Target string `json:"target"`
	Size
}

// Usage is the room that the store takes.
type Usage struct {
	Layers     []LayerUsage `json:"layers"`
	Images     []ImageUsage `json:"images"`
	Mounts     []MountUsage `json:"mounts"`
	Merged     Size         `json:"merged"` // indexes over the layers of whole images
	Seeds      []SeedUsage  `json:"seeds"`
	Staging    Size         `json:"staging"`
	Quarantine Size         `json:"quarantine"`
	Total      Size         `json:"total"` // all of the above, and records
	Space      Space        `json:"space"`
}

// Usage measures the store by walking all of it. What changes meanwhile may be
// counted or not.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	usage, err := s.usage(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("measure store %s: %w", s.root, err)
	}
	return usage, nil
}

func (s *Store) usage(ctx context.Context) (u Usage, err error) {
	if u.Space, err = s.Space(); err != nil {
		return u, err
	}
	layers, err := s.Layers()
	if err != nil {
		return u, err
	}
	sizes := map[oci.DiffID]Size{}
	for _, layer := range layers {
		if sizes[layer.DiffID], err = treeSize(ctx, layer.Path); err != nil {
			return u, err
		}
	}
	users, err := s.imageUsage(&u, layers, sizes)
	if err != nil {
		return u, err
	}
	for _, layer := range layers {
		use := LayerUsage{DiffID: layer.DiffID, Size: sizes[layer.DiffID], Images: len(users[layer.DiffID]), UsedBy: users[layer.DiffID]}
		if layer.Seed != nil {
			use.Seed = layer.Seed.Seed
		}
		u.Layers = append(u.Layers, use)
		u.Total.add(sizes[layer.DiffID])
	}
	if u.Seeds, err = s.seedUsage(layers); err != nil {
		return u, err
	}
	mounts, err := s.Mounts()
	if err != nil {
		return u, err
	}
	for _, m := range mounts {
		size, err := treeSize(ctx, m.Path)
		if err != nil {
			return u, err
		}
		u.Mounts = append(u.Mounts, MountUsage{ID: m.ID, Target: m.Target, Size: size})
		u.Total.add(size)
	}
	for _, part := range []struct {
		dir  string
		into *Size
	}{{dirMerged, &u.Merged}, {dirStaging, &u.Staging}, {dirQuarantine, &u.Quarantine}, {dirImages, &Size{}}, {dirRefs, &Size{}}} {
		if *part.into, err = treeSize(ctx, s.path(part.dir)); err != nil {
			return u, err
		}
		u.Total.add(*part.into)
	}
	return u, nil
}

// imageUsage fills in u.Images and returns the images that use each layer.
func (s *Store) imageUsage(u *Usage, layers []*Layer, sizes map[oci.DiffID]Size) (map[oci.DiffID][]oci.Digest, error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	refs, err := s.Refs()
	if err != nil {
		return nil, err
	}
	names := map[oci.Digest][]string{}
	for _, ref := range refs {
		names[ref.Digest] = append(names[ref.Digest], ref.Name)
	}
	users := map[oci.DiffID][]oci.Digest{}
	for _, image := range images {
		for id := range distinct(image.DiffIDs) {
			users[id] = append(users[id], image.Manifest.Digest)
		}
	}
	byID := map[oci.DiffID]*Layer{}
	for _, layer := range layers {
		byID[layer.DiffID] = layer
	}
	for _, image := range images {
		use := ImageUsage{Manifest: image.Manifest.Digest, Refs: names[image.Manifest.Digest]}
		sharers := map[oci.Digest]*Sharer{}
		for id := range distinct(image.DiffIDs) {
			use.Total.add(sizes[id])
			if len(users[id]) == 1 {
				use.Own.add(sizes[id])
				continue
			}
			use.Shared.add(sizes[id])
			for _, other := range users[id] {
				if sharers[other] == nil {
					sharers[other] = &Sharer{Manifest: other}
				}
				sharers[other].add(byID[id], sizes[id])
			}
		}
		delete(sharers, use.Manifest)
		for _, other := range slices.Sorted(maps.Keys(sharers)) {
			use.SharedWith = append(use.SharedWith, *sharers[other])
		}
		u.Images = append(u.Images, use)
	}
	return users, nil
}

func (s *Sharer) add(l *Layer, size Size) {
	s.Layers++
	s.DiskBytes += size.DiskBytes
	if l != nil { // not missing
		s.SizeBytes += l.SizeBytes
	}
}

func distinct(ids []oci.DiffID) map[oci.DiffID]bool {
	set := make(map[oci.DiffID]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// treeSize measures the tree at path, mounts in it left out. A missing one is
// empty.
func treeSize(ctx context.Context, path string) (Size, error) {
	dir, err := os.Open(path) //nolint:gosec // in the store
	if errors.Is(err, unix.ENOENT) {
		return Size{}, nil
	}
	if err != nil {
		return Size{}, err
	}
	defer func() { _ = dir.Close() }()
	m := measurer{linked: map[[2]uint64]bool{}}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return Size{}, fmt.Errorf("%s: %w", path, err)
	}
	m.count(&st)
	if err := m.walk(ctx, dir); err != nil {
		return Size{}, fmt.Errorf("%s: %w", path, err)
	}
	return m.size, nil
}

// measurer adds up a tree.
type measurer struct {
	size   Size
	linked map[[2]uint64]bool // device and inode of files with several names that were counted
}

func (m *measurer) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := [2]uint64{st.Dev, st.Ino}
		if m.linked[key] {
			return
		}
		m.linked[key] = true
	}
	const blockBytes = 512 // stat(2), whatever the file system's blocks are
	m.size.add(Size{ApparentBytes: st.Size, DiskBytes: st.Blocks * blockBytes, Inodes: 1})
}

func (m *measurer) walk(ctx context.Context, dir *os.File) error {
	fd := int(dir.Fd())
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		names, err := dir.Readdirnames(namesAtOnce)
		for _, name := range names {
			if err := m.visit(ctx, fd, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // the end, or removed by another
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (m *measurer) visit(ctx context.Context, dir int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	m.count(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	how := inTree()
	childFD, err := openat2(dir, name, &how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	child := os.NewFile(uintptr(childFD), name)
	defer func() { _ = child.Close() }()
	return m.walk(ctx, child)
}
