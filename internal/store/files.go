package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/layer"
)

// Files are the regular files of a layer: what they hold, not verified. [Files.Open] is
// safe for concurrent use.
type Files struct {
	index *os.File // nil if the layer is a tree
	tar   *os.File
	tree  *os.Root
}

// FileAt is where a layer has a file.
type FileAt struct {
	Name   string // without a slash at either end
	Size   int64
	offset int64 // in the tar
}

// Files opens the layer's files. The error is [ErrNotFound] for one that is a tar
// alone, or gone. The caller closes them; until then they can be read, whatever becomes
// of the layer, if it is kept as a tar.
func (l *Layer) Files() (*Files, error) {
	f := &Files{}
	var err error
	switch l.Layout {
	case LayoutDir:
		f.tree, err = os.OpenRoot(l.FS())
	case LayoutEROFS, LayoutSeed:
		if f.index, err = os.Open(l.Index()); err == nil {
			f.tar, _, err = l.OpenTar()
		}
	default:
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open files of layer %s: %w", l.DiffID, err)
	}
	return f, nil
}

// Close closes them.
func (f *Files) Close() {
	for _, open := range []*os.File{f.index, f.tar} {
		if open != nil {
			_ = open.Close() // read only
		}
	}
	if f.tree != nil {
		_ = f.tree.Close()
	}
}

// Find calls found with each file that has one of the sizes; of a tree, with those
// of names alone, which it tries one by one. found's error ends it.
func (f *Files) Find(ctx context.Context, sizes map[int64]bool, names []string, found func(FileAt) error) error {
	if f.tree == nil {
		return erofs.Walk(ctx, f.index, func(e *layer.Entry, offset int64) error {
			if e.Type != layer.Reg || !sizes[e.Size] {
				return nil
			}
			return found(FileAt{Name: e.Name, Size: e.Size, offset: offset})
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		info, err := f.tree.Lstat(name)
		if err != nil || !info.Mode().IsRegular() || !sizes[info.Size()] {
			continue // it has no such file
		}
		if err := found(FileAt{Name: name, Size: info.Size()}); err != nil {
			return err
		}
	}
	return nil
}

// Open returns the first size bytes of a file. That there are fewer is
// [io.ErrUnexpectedEOF]. The caller closes it.
func (f *Files) Open(at FileAt, size int64) (io.ReadCloser, error) {
	if f.tree == nil {
		return io.NopCloser(&exactReader{io.NewSectionReader(f.tar, at.offset, size), size}), nil
	}
	// Not to be kept waiting by a FIFO that has come into its place.
	file, err := f.tree.OpenFile(at.Name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&exactReader{file, size}, file}, nil
}

// exactReader reads as many bytes as it has left, no more and no fewer.
type exactReader struct {
	src  io.Reader
	left int64
}

// Read implements [io.Reader].
func (r *exactReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.src.Read(p[:min(int64(len(p)), r.left)])
	if r.left -= int64(n); r.left > 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if r.left == 0 {
		err = nil
	}
	return n, err
}
