package seed

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"dray/internal/apply"
	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/store"
)

// The tree of a layer, in an archive: owners, devices, attributes and whiteouts are
// headers or inodes there, so that nobody need be root. It is read of the layer's
// index, which is the tree that package apply makes of the same tar.

// walkTree calls each with all in the tree of a layer that is whole in a store. The
// tar holds the contents.
func walkTree(ctx context.Context, l *store.Layer, each func(tar *os.File, e *layer.Entry, offset int64) error) error {
	index, err := os.Open(filepath.Join(l.Path, store.IndexName))
	if err != nil {
		return err
	}
	defer func() { _ = index.Close() }()
	contents, err := os.Open(filepath.Join(l.Path, store.TarName))
	if err != nil {
		return err
	}
	defer func() { _ = contents.Close() }()
	return erofs.Walk(ctx, index, func(e *layer.Entry, offset int64) error { return each(contents, e, offset) })
}

// writeJournal writes what the tree is to be held against beside the tar.
func writeJournal(ctx context.Context, l *store.Layer) (err error) {
	f, err := os.OpenFile(filepath.Join(l.Path, store.JournalName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, filePerm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	journal, err := apply.NewJournal(f, apply.SHA256)
	if err != nil {
		return err
	}
	err = walkTree(ctx, l, func(tar *os.File, e *layer.Entry, offset int64) error {
		return journal.Add(e, io.NewSectionReader(tar, offset, e.Size))
	})
	return errors.Join(err, journal.Close())
}

// tree writes the tree of a layer, of which the tar is at tarOffset of the file, if
// that has it.
func (w *Writer) tree(ctx context.Context, l *store.Layer, tarOffset int64) error {
	root := path.Join(w.content.below(), layerDir(l.DiffID), store.FSName)
	return walkTree(ctx, l, func(contents *os.File, e *layer.Entry, offset int64) error {
		e.Name = path.Join(root, e.Name)
		if e.Type == layer.HardLink {
			e.Linkname = path.Join(root, e.Linkname)
		}
		if w.image != nil {
			return addTo(w.image, e, tarOffset+offset)
		}
		header, err := treeHeader(e)
		if err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
		if err := w.bytes(header); err != nil || e.Type != layer.Reg {
			return err
		}
		if err := w.part(contents, offset, e.Size); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
		return w.pad()
	})
}

// addTo adds an entry of a tree to an image, which makes overlayfs's attributes itself.
func addTo(image *erofs.Image, e *layer.Entry, offset int64) error {
	const overlay, opaque, opaqueEntry = "trusted.overlay.", "trusted.overlay.opaque", ".wh..wh..opq"
	all, isOpaque := e.Xattrs, false
	e.Xattrs = nil
	for _, x := range all {
		isOpaque = isOpaque || x.Name == opaque
		if !strings.HasPrefix(x.Name, overlay) {
			e.Xattrs = append(e.Xattrs, x)
		}
	}
	if e.Type != layer.Reg || e.Size == 0 {
		offset = 0
	}
	if err := image.Add(e, offset); err != nil || !isOpaque {
		return err
	}
	return image.Add(&layer.Entry{Name: path.Join(e.Name, opaqueEntry)}, 0)
}

// treeHeader returns the tar header of an entry of a tree, as bytes: POSIX pax, with
// attributes as the usual programs have them.
func treeHeader(e *layer.Entry) ([]byte, error) {
	h := &tar.Header{
		Name: e.Name, Linkname: e.Linkname, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), Size: e.Size,
		ModTime: time.Unix(e.MTimeSec, int64(e.MTimeNsec)), Devmajor: int64(e.Major), Devminor: int64(e.Minor), Format: tar.FormatPAX,
	}
	switch e.Type {
	case layer.Reg:
		h.Typeflag = tar.TypeReg
	case layer.Dir:
		h.Typeflag, h.Name = tar.TypeDir, e.Name+"/"
	case layer.Symlink:
		h.Typeflag = tar.TypeSymlink
	case layer.HardLink:
		h.Typeflag, h.ModTime = tar.TypeLink, time.Time{}
	case layer.Char:
		h.Typeflag = tar.TypeChar
	case layer.Block:
		h.Typeflag = tar.TypeBlock
	case layer.FIFO:
		h.Typeflag = tar.TypeFifo
	}
	for _, x := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
