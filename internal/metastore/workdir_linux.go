package metastore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dray/internal/stream"
)

// DefaultMaxBytes is how large a document may be: thousands of images. It is held
// in memory, a few times over.
const DefaultMaxBytes = 16 << 20

// ErrNotFound reports that there is no work directory, or no layer where the
// document says so.
var ErrNotFound = errors.New("not in the work directory")

// Options of [Open].
type Options struct {
	MaxBytes int64 // of the document; 0: [DefaultMaxBytes]
}

// WorkDir is a work directory of image-rs, to read. It is safe for concurrent use.
type WorkDir struct {
	*Document
	Path string // as it was given

	dir *os.File
}

// Open reads the document of a work directory. It changes nothing there, whatever
// it finds: errors are [ErrNotFound], [ErrFormat], [stream.ErrTooLarge] or the
// system's.
func Open(path string, o Options) (*WorkDir, error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY, 0) //nolint:gosec // what the caller named
	if err != nil {
		return nil, fmt.Errorf("open work directory: %w", notFound(err))
	}
	document, err := readDocument(dir, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", filepath.Join(path, FileName), err), dir.Close())
	}
	return &WorkDir{Document: document, Path: path, dir: dir}, nil
}

func readDocument(dir *os.File, o Options) (*Document, error) {
	limit := o.MaxBytes
	if limit <= 0 {
		limit = DefaultMaxBytes
	}
	f, err := openBelow(dir, FileName, unix.O_NONBLOCK) // a FIFO does not hold us up
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, malformed("it is no file")
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d: %w", info.Size(), limit, stream.ErrTooLarge)
	}
	raw, err := stream.ReadAll(f, limit)
	if err != nil {
		return nil, err
	}
	return Decode(raw)
}

// OpenLayer opens the directory of a layer of the document, below the work
// directory and through no link. The caller closes it.
func (w *WorkDir) OpenLayer(l *Layer) (*os.File, error) {
	f, err := openBelow(w.dir, filepath.Join(dirLayers, l.Name), unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open layer %s at %s: %w", l.Blob, w.LayerPath(l), err)
	}
	return f, nil
}

// LayerPath returns where a layer lies now, for messages.
func (w *WorkDir) LayerPath(l *Layer) string { return filepath.Join(w.Path, dirLayers, l.Name) }

// Close ends the use of the directory.
func (w *WorkDir) Close() error { return w.dir.Close() }

func openBelow(dir *os.File, name string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_RDONLY | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
			return nil, malformed("%s is a symbolic link, or behind one", name)
		case errors.Is(err, unix.ENOTDIR):
			return nil, malformed("%s is no directory", name)
		case err != nil:
			return nil, notFound(err)
		}
		return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
	}
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
