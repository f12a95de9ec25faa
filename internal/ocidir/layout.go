package ocidir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/stream"
)

// Errors of this package.
var (
	// ErrNotLayout reports a path that holds no OCI image layout.
	ErrNotLayout = errors.New("not an OCI image layout")
	// ErrNotFound reports an image or a blob that the layout does not have.
	ErrNotFound = errors.New("not found in image layout")
	// ErrReadOnly reports a change to a layout in an archive.
	ErrReadOnly = errors.New("an image archive cannot be changed")
)

// AnnotationRefName is the annotation that names an image in index.json: a tag,
// or a full reference (image-spec, annotations.md).
const AnnotationRefName = "org.opencontainers.image.ref.name"

// Limits of what is read into memory, in bytes.
const (
	MaxManifestBytes = 4 << 20  // what registries take (distribution-spec, "Pushing Manifests")
	maxIndexBytes    = 32 << 20 // index.json: about 100,000 tags
	maxMarkerBytes   = 4 << 10  // oci-layout
)

// names of the files in a layout.
const (
	markerName = "oci-layout"
	indexName  = "index.json"
	blobsName  = "blobs"
	dockerName = "manifest.json" // of docker save
)

const layoutVersion = "1.0.0"

// Layout is an opened OCI image layout.
type Layout struct {
	path  string // as given, for messages
	dir   string // absolute; "" for an archive
	files files
}

// files is where a layout's files are: a directory or an archive.
type files interface {
	// open returns the regular file of that name, positioned at its start, and
	// its size. Errors match [fs.ErrNotExist] when there is none.
	open(name string) (io.ReadSeekCloser, int64, error)
	// close releases what the layout holds; files that were opened stay usable
	// if they come from a directory.
	close() error
}

// Open opens the layout at path: a directory for [oci.LayoutDir], an
// uncompressed tar file for [oci.OCIArchive]. Errors wrap [ErrNotLayout] when
// something else is there, and [fs.ErrNotExist] when nothing is.
func Open(ctx context.Context, path string, transport oci.Transport) (*Layout, error) {
	var l *Layout
	var err error
	switch transport {
	case oci.LayoutDir:
		l, err = openDir(path)
	case oci.OCIArchive:
		l, err = openArchive(ctx, path)
	default:
		return nil, fmt.Errorf("open image layout %s: a registry is not a file: %w", path, ErrNotLayout)
	}
	if err != nil {
		return nil, fmt.Errorf("open image layout %s: %w", path, err)
	}
	if err := l.check(); err != nil {
		_ = l.files.close()
		return nil, fmt.Errorf("open image layout %s: %w", path, err)
	}
	return l, nil
}

func openDir(path string) (*Layout, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("it is a file; for an archive write oci-archive:%s: %w", path, ErrNotLayout)
	}
	dir, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Layout{path: path, dir: dir, files: directory{root}}, nil
}

// Create opens the layout in directory dir and makes it first where it is
// missing. Files of another kind in the directory are left alone.
func Create(ctx context.Context, dir string) (*Layout, error) {
	if err := create(ctx, dir); err != nil {
		return nil, fmt.Errorf("create image layout %s: %w", dir, err)
	}
	return Open(ctx, dir, oci.LayoutDir)
}

// create makes what is missing. The marker comes last, by rename: it is the file
// that is locked, and from then on the lock is that of another file.
func create(ctx context.Context, dir string) (err error) {
	if err := os.MkdirAll(filepath.Join(dir, blobsName, oci.SHA256), 0o755); err != nil { //nolint:gosec // readable by all, as other tools make them
		return err
	}
	marker := filepath.Join(dir, markerName)
	lock, err := durable.Acquire(ctx, marker, durable.Exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := errors.Join(sweep(dir), durable.SyncDir(filepath.Join(dir, blobsName))); err != nil {
		return err
	}
	index := filepath.Join(dir, indexName)
	if _, err := os.Lstat(index); errors.Is(err, fs.ErrNotExist) {
		if err := writeIndex(index, &oci.Index{}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	info, err := lock.File().Stat()
	if err != nil || info.Size() > 0 {
		return err
	}
	return durable.WriteFile(marker, []byte(`{"imageLayoutVersion":"`+layoutVersion+`"}`), 0o644)
}

// sweep removes what killed writers left. The caller holds the marker's lock,
// which keeps writers of index.json away; writers of blobs lock their files.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		temp := durable.IsTemp(entry.Name()) || strings.HasPrefix(entry.Name(), stagedPrefix)
		if !temp || !entry.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		lock, err := durable.TryAcquire(path, durable.Exclusive)
		if errors.Is(err, durable.ErrLocked) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(os.Remove(path), lock.Release()); err != nil {
			return err
		}
	}
	return nil
}

// Close releases the layout. Readers of blobs must be closed before.
func (l *Layout) Close() error { return l.files.close() }

// check tells whether the files make a layout.
func (l *Layout) check() error {
	raw, err := l.read(markerName, maxMarkerBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return l.explain()
	}
	if err != nil {
		return err
	}
	var marker struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(raw, &marker); err != nil {
		return fmt.Errorf("decode %s: %w: %w", markerName, ErrNotLayout, err)
	}
	if !strings.HasPrefix(marker.Version, "1.") {
		return fmt.Errorf("layout has version %q, want %s: %w", marker.Version, layoutVersion, ErrNotLayout)
	}
	f, _, err := l.files.open(indexName)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it has no %s: %w", indexName, ErrNotLayout)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// explain says what is there instead of a layout.
func (l *Layout) explain() error {
	if f, _, err := l.files.open(dockerName); err == nil {
		_ = f.Close()
		return fmt.Errorf("it has the older form of docker save (%s and no %s); convert it with skopeo copy docker-archive:FILE oci-archive:FILE: %w", dockerName, markerName, ErrNotLayout)
	}
	return fmt.Errorf("it has no %s: %w", markerName, ErrNotLayout)
}

// read returns all of a file of at most limit bytes.
func (l *Layout) read(name string, limit int64) ([]byte, error) {
	f, size, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if size > limit {
		return nil, fmt.Errorf("read %s: %d bytes, the limit is %d: %w", name, size, limit, stream.ErrTooLarge)
	}
	raw, err := stream.ReadAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
}

// blobName returns where a digest's bytes are. Only digests that were parsed come
// here, so that no name can leave the layout.
func blobName(d oci.Digest) string {
	return blobsName + "/" + d.Algorithm() + "/" + d.Hex()
}
