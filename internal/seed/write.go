package seed

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dray/internal/erofs"
	"dray/internal/layer"
)

// Form is what a seed is written as.
type Form uint8

// Forms of a seed.
const (
	AsDir   Form = iota
	AsTar        // one tar file of the directory, for initrds and root file systems
	AsEROFS      // a file system of the directory, in a file or on a device
)

const (
	tarBlockBytes = 512
	endBytes      = 2 * tarBlockBytes // of a tar
	pageBytes     = 4 << 10           // what the size of a file for a device is a multiple of
)

// WriteDir writes the seed into an empty directory. Files of layers are moved there
// where they can be, trees always, so that the store that they are in is of no use
// afterwards.
func (c *Content) WriteDir(ctx context.Context, dir string) error {
	entries, err := c.entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := c.putFile(filepath.Join(dir, e.name), e); err != nil {
			return err
		}
	}
	// Times last, and of what is inside first: each new name changes its directory's.
	for _, e := range slices.Backward(append([]entry{{name: ".", dir: true}}, entries...)) {
		if e.tree {
			continue // its attributes are the layer's
		}
		at := filepath.Join(dir, e.name)
		perm := os.FileMode(filePerm)
		if e.dir {
			perm = dirPerm
		}
		if err := errors.Join(os.Chmod(at, perm), os.Chtimes(at, c.stamp(), c.stamp())); err != nil {
			return err
		}
	}
	return nil
}

func (c *Content) stamp() time.Time { return c.Created.UTC().Truncate(time.Second) }

func (c *Content) putFile(at string, e entry) error {
	switch {
	case e.tree:
		return os.Rename(e.path, at)
	case e.dir:
		return os.Mkdir(at, dirPerm)
	case e.path == "":
		return os.WriteFile(at, e.content, filePerm)
	}
	if err := os.Rename(e.path, at); err == nil {
		return nil
	}
	from, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, filePerm) //nolint:gosec // made to be shared
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from) // by the kernel, where it can
	return errors.Join(err, to.Close())
}

// WriteFile writes the seed as an archive. Files of layers are removed when they are
// in it, so that there is room for them once.
func (c *Content) WriteFile(ctx context.Context, to *os.File, form Form) error {
	entries, err := c.entries()
	if err != nil {
		return err
	}
	entries = c.prefixed(entries)
	headers := make([][]byte, len(entries))
	offsets := make([]int64, len(entries)) // of the contents, in the tar
	end := int64(0)
	for i, e := range entries {
		if headers[i], err = c.header(e); err != nil {
			return err
		}
		offsets[i] = end + int64(len(headers[i]))
		end = offsets[i] + padded(e.size)
	}
	end += endBytes
	if form == AsEROFS {
		indexBytes, err := c.writeIndex(to, entries, offsets, (end+pageBytes-1)/pageBytes*pageBytes)
		if err != nil {
			return err
		}
		end = (indexBytes+end+pageBytes-1)/pageBytes*pageBytes - indexBytes
	}
	written := int64(0)
	for i, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if _, err := to.Write(headers[i]); err != nil {
			return err
		}
		if err := copyContent(to, e); err != nil {
			return fmt.Errorf("write %s: %w", e.name, err)
		}
		if _, err := to.Write(make([]byte, padded(e.size)-e.size)); err != nil {
			return err
		}
		written = offsets[i] + padded(e.size)
	}
	_, err = to.Write(make([]byte, end-written))
	return err
}

func padded(size int64) int64 { return (size + tarBlockBytes - 1) / tarBlockBytes * tarBlockBytes }

// writeIndex writes what makes a file system of the tar that will follow.
func (c *Content) writeIndex(to io.Writer, entries []entry, offsets []int64, contentBytes int64) (indexBytes int64, err error) {
	var uuid [16]byte
	sum := sha256.Sum256(entries[slices.IndexFunc(entries, func(e entry) bool { return filepath.Base(e.name) == ManifestName })].content)
	copy(uuid[:], sum[:])
	image, err := erofs.NewImage(uuid, erofs.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	root := &layer.Entry{Name: "./", Type: layer.Dir, Mode: dirPerm, MTimeSec: c.stamp().Unix()}
	if err := image.Add(root, 0); err != nil {
		return 0, err
	}
	for i, e := range entries {
		file := &layer.Entry{Name: e.name, Type: layer.Reg, Mode: filePerm, Size: e.size, MTimeSec: c.stamp().Unix()}
		if e.dir {
			file.Type, file.Mode = layer.Dir, dirPerm
		}
		if err := image.Add(file, offsets[i]); err != nil {
			return 0, err
		}
	}
	if _, err := image.End(contentBytes); err != nil {
		return 0, err
	}
	w := bufio.NewWriter(to)
	indexBytes, err = image.WriteTo(w)
	return indexBytes, errors.Join(err, w.Flush())
}

// copyContent writes what is in an entry, which must not have changed its size, and
// removes the file that it was in.
func copyContent(to *os.File, e entry) error {
	if e.path == "" {
		_, err := to.Write(e.content)
		return err
	}
	from, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	n, err := io.Copy(to, io.LimitReader(from, e.size)) // by the kernel, where it can
	if err == nil && n != e.size {
		err = io.ErrUnexpectedEOF
	}
	// What has not reached the disk yet need not any more.
	return errors.Join(err, os.Remove(e.path))
}

func fileSize(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
