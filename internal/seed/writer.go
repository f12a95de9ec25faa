package seed

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/store"

	"golang.org/x/sys/unix"
)

// Writer writes a seed as an archive. Layers are written as they come, so that they
// can be while others are pulled; the same layers in the same order give the same
// bytes. Not safe for concurrent use.
type Writer struct {
	content *Content
	to      *os.File
	out     *bufio.Writer // on to
	buf     []byte
	at      int64 // where out is in the file
	made    dirs
	image   *erofs.Image // nil for a tar
}

// NewWriter begins to write c as an archive to an empty file. Of c it looks at what is
// no map, slice or layer; the others are looked at in [Writer.End]. It is to be closed.
func NewWriter(to *os.File, c *Content) (*Writer, error) {
	w := &Writer{content: c, to: to, out: bufio.NewWriterSize(to, smallBytes), buf: make([]byte, copyBytes), made: dirs{}}
	if c.Form != AsEROFS {
		return w, nil
	}
	var err error
	if w.image, err = erofs.NewImage(erofs.Options{Dir: filepath.Dir(to.Name())}); err != nil {
		return nil, err
	}
	err = w.image.Add(&layer.Entry{Name: "./", Type: layer.Dir, Mode: dirPerm, MTimeSec: c.stamp().Unix()}, 0)
	if err == nil {
		err = w.zeros(erofs.ImageHeadBytes) // until it is known
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// How much is written at once: of what is small, and of what is copied, which goes past
// the buffer of the other.
const (
	smallBytes = 64 << 10
	copyBytes  = 1 << 20
)

// Close frees what the writer holds. It does not close the file.
func (w *Writer) Close() error {
	if w.image == nil {
		return nil
	}
	return w.image.Close()
}

// Layer writes a layer of a store, whole, and removes its files: what has not reached
// the disk yet need not any more, and there need be room for them once only.
func (w *Writer) Layer(ctx context.Context, l *store.Layer) error {
	if err := w.layer(ctx, l); err != nil {
		return fmt.Errorf("write layer %s: %w", l.DiffID, err)
	}
	return nil
}

func (w *Writer) layer(ctx context.Context, l *store.Layer) error {
	if _, _, tree := w.content.record(l); tree {
		if err := writeJournal(ctx, l); err != nil {
			return err
		}
	}
	files, err := w.content.files(l)
	if err != nil {
		return err
	}
	tarOffset := int64(0)
	for _, e := range files {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		offset, err := w.put(e)
		if err != nil {
			return err
		}
		if path.Base(e.name) == store.TarName {
			tarOffset = offset
		}
	}
	if _, _, tree := w.content.record(l); tree {
		if err := w.tree(ctx, l, tarOffset); err != nil {
			return err
		}
	}
	for _, name := range []string{store.TarName, store.IndexName, store.JournalName} {
		if err := os.Remove(filepath.Join(l.Path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// End writes the records of what was written, which c has by now, and what is left of
// the archive.
func (w *Writer) End(ctx context.Context) error {
	records, err := w.content.records()
	if err != nil {
		return err
	}
	for _, e := range records {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if _, err := w.put(e); err != nil {
			return err
		}
	}
	if err := w.zeros(endBytes); err != nil {
		return err
	}
	if w.image == nil {
		return w.out.Flush()
	}
	return w.endImage(sha256.Sum256(records[len(records)-1].content)) // of the list
}

// endImage writes what makes a file system of the tar that was written.
func (w *Writer) endImage(list [sha256.Size]byte) error {
	if err := w.zeros(-w.at & (pageBytes - 1)); err != nil {
		return err
	}
	size, head, err := w.image.WriteTree(w.out, [16]byte(list[:]), w.at)
	if err != nil {
		return err
	}
	w.at += size
	if err := w.zeros(-w.at & (pageBytes - 1)); err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	_, err = w.to.WriteAt(head, 0)
	return err
}

// put writes an entry, and those of directories on its way. It returns where the
// content begins.
func (w *Writer) put(e entry) (offset int64, err error) {
	e.name = path.Join(w.content.below(), e.name)
	for _, dir := range w.made.above(e.name) {
		if _, err := w.putOne(entry{name: dir, dir: true}); err != nil {
			return 0, err
		}
	}
	return w.putOne(e)
}

func (w *Writer) putOne(e entry) (offset int64, err error) {
	header, err := w.content.header(e)
	if err != nil {
		return 0, err
	}
	if err := w.bytes(header); err != nil {
		return 0, err
	}
	offset = w.at
	if w.image != nil {
		file := &layer.Entry{Name: e.name, Type: layer.Reg, Mode: filePerm, Size: e.size, MTimeSec: w.content.stamp().Unix()}
		if e.dir {
			file.Type, file.Mode = layer.Dir, dirPerm
		}
		if err := w.image.Add(file, offset); err != nil {
			return 0, err
		}
	}
	if e.path == "" {
		err = w.bytes(e.content)
	} else {
		err = w.file(e)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", e.name, err)
	}
	return offset, w.pad()
}

// file copies a file, which must not have changed its size.
func (w *Writer) file(e entry) error {
	from, err := os.Open(e.path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	return w.part(from, 0, e.size)
}

// part copies a part of a file, through this program: copy_file_range(2) goes page by
// page where no blocks can be shared, as here, where offsets are those of a tar. Room is
// made for it first and each write ends where a buffer's worth of the file does, so that
// the kernel has few, large pages to account for: half the time of the same without.
func (w *Writer) part(from io.ReaderAt, offset, size int64) error {
	if size <= smallBytes {
		n, err := io.CopyBuffer(struct{ io.Writer }{w.out}, io.NewSectionReader(from, offset, size), w.buf)
		w.at += n
		return whole(n, size, err)
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	if err := makeRoom(w.to, w.at, size); err != nil {
		return err
	}
	for size > 0 {
		buf := w.buf[:min(copyBytes-w.at%copyBytes, size)]
		n, err := from.ReadAt(buf, offset)
		if err := whole(int64(n), int64(len(buf)), err); err != nil {
			return err
		}
		if _, err := w.to.Write(buf); err != nil {
			return err
		}
		offset, size, w.at = offset+int64(n), size-int64(n), w.at+int64(n)
	}
	return nil
}

// whole is the error of having read n bytes where there should be size.
func whole(n, size int64, err error) error {
	if n == size {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// makeRoom takes blocks for what will be written, where the file system does that. That
// there are none is known before anything is copied then.
func makeRoom(f *os.File, offset, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, offset, size)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return &os.PathError{Op: "make room in", Path: f.Name(), Err: err}
		}
		return nil
	}
}

func (w *Writer) bytes(b []byte) error {
	n, err := w.out.Write(b)
	w.at += int64(n)
	return err
}

func (w *Writer) zeros(count int64) error {
	var zero [tarBlockBytes]byte
	for ; count > 0; count -= int64(len(zero)) {
		if err := w.bytes(zero[:min(count, int64(len(zero)))]); err != nil {
			return err
		}
	}
	return nil
}

// pad goes to the end of a block of the tar.
func (w *Writer) pad() error { return w.zeros(-w.at & (tarBlockBytes - 1)) }
