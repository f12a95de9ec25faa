package ocidir

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"dray/internal/oci"
)

// directory is a layout's directory. [os.Root] keeps every name inside.
type directory struct{ root *os.Root }

// openAttempts bounds how often a file may be replaced by rename while it is opened.
const openAttempts = 100

func (d directory) open(name string) (io.ReadSeekCloser, int64, error) {
	for range openAttempts {
		f, size, err := d.tryOpen(name)
		if err != nil {
			return nil, 0, err
		}
		if f != nil {
			return f, size, nil
		}
	}
	return nil, 0, fmt.Errorf("open %s: it is replaced all the time", name)
}

// tryOpen looks before it opens, since opening a device may do something, and
// looks again at what it has got: nil if that is another file. A symbolic link is
// refused, wherever it leads.
func (d directory) tryOpen(name string) (*os.File, int64, error) {
	named, err := d.root.Lstat(name)
	if err != nil {
		return nil, 0, err
	}
	if !named.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("open %s: not a regular file: %w", name, ErrNotLayout)
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be a FIFO by now
	if err != nil {
		return nil, 0, err
	}
	opened, err := f.Stat()
	if err == nil && os.SameFile(named, opened) {
		return f, opened.Size(), nil
	}
	_ = f.Close()
	return nil, 0, err
}

func (d directory) close() error { return d.root.Close() }

// archive is a layout in a tar file: where each of its files lies.
type archive struct {
	f       *os.File
	entries map[string]extent
}

type extent struct{ offset, size int64 } // bytes

// maxArchiveEntries bounds what the index of a hostile archive can take: about
// 150 bytes each.
const maxArchiveEntries = 1 << 20

func openArchive(ctx context.Context, path string) (*Layout, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the path is the user's
	if err != nil {
		return nil, err
	}
	a, err := scan(ctx, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Layout{path: path, files: a}, nil
}

// scan walks over the headers of the archive. Of two entries of one name the
// later counts, as it does for tar.
func scan(ctx context.Context, f *os.File) (*archive, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("it is a directory; write local://%s: %w", f.Name(), ErrNotLayout)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file: %w", ErrNotLayout)
	}
	if err := refuseCompressed(f); err != nil {
		return nil, err
	}
	a := &archive{f: f, entries: map[string]extent{}}
	r := tar.NewReader(f)
	for count := 0; ; count++ {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w: %w", ErrNotLayout, err)
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if count == maxArchiveEntries {
			return nil, fmt.Errorf("read tar: more than %d entries: %w", maxArchiveEntries, ErrNotLayout)
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if !layoutName(name) {
			continue
		}
		if header.Typeflag != tar.TypeReg || sparse(header) {
			return nil, fmt.Errorf("read tar: %q is not a regular file: %w", name, ErrNotLayout)
		}
		// The reader has consumed whole header blocks and nothing of the body.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if header.Size > info.Size()-offset {
			return nil, fmt.Errorf("read tar: %q is cut short: %w", name, io.ErrUnexpectedEOF)
		}
		a.entries[name] = extent{offset, header.Size}
	}
}

// layoutName tells whether an archive's entry is of interest: everything else is
// neither remembered nor judged.
func layoutName(name string) bool {
	switch name {
	case markerName, indexName, dockerName:
		return true
	}
	blob, ok := strings.CutPrefix(name, blobsName+"/")
	if !ok {
		return false
	}
	_, err := oci.ParseDigest(strings.Replace(blob, "/", ":", 1))
	return err == nil
}

func sparse(header *tar.Header) bool {
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// refuseCompressed names the compression of an archive: blobs are read at random
// places, which a compressed archive does not allow.
func refuseCompressed(f *os.File) error {
	var start [6]byte
	n, err := f.ReadAt(start[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, format := range []struct{ magic, tool string }{
		{"\x1f\x8b", "gunzip"},
		{"\x28\xb5\x2f\xfd", "zstd -d"},
		{"BZh", "bunzip2"},
		{"\xfd7zXZ", "unxz"},
	} {
		if bytes.HasPrefix(start[:n], []byte(format.magic)) {
			return fmt.Errorf("the archive is compressed; decompress it with %s first: %w", format.tool, ErrNotLayout)
		}
	}
	return nil
}

func (a *archive) open(name string) (io.ReadSeekCloser, int64, error) {
	e, ok := a.entries[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return section{io.NewSectionReader(a.f, e.offset, e.size)}, e.size, nil
}

func (a *archive) close() error { return a.f.Close() }

// section is a part of an archive; the archive closes the file.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }
