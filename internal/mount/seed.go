package mount

import (
	"fmt"
	"os"

	"dray/internal/erofs"
	"dray/internal/store"
)

// seedPath is [stack.path] of a layer whose tar lies in a seed.
func (s *stack) seedPath(l *store.Layer) (string, error) {
	if fd, ok := s.roots[l.DiffID]; ok {
		return fdPath(fd) + "/.", nil
	}
	fd, err := mountSeed(l)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	s.roots[l.DiffID] = fd
	return fdPath(fd) + "/.", nil
}

// mountSeed mounts a layer's index over a part of a seed, which must be the very file
// that was looked at when the layer was taken from there. That the kernel mounts both
// from files was tried then.
func mountSeed(l *store.Layer) (int, error) {
	index, err := os.Open(l.Index())
	if err != nil {
		return -1, err
	}
	defer func() { _ = index.Close() }()
	tar, err := l.Seed.Open()
	if err != nil {
		return -1, err
	}
	defer func() { _ = tar.Close() }()
	return erofs.Mount(erofs.Files, int(index.Fd()), int(tar.Fd()))
}
