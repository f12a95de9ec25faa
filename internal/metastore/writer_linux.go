package metastore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"dray/internal/durable"
)

// Naming is how the directories of layers are called.
type Naming string

// Namings.
const (
	Numbers Naming = "number" // 0, 1, 2: what image-rs makes, and demands of every name in layers/
	Digests Naming = "digest" // sha256_HEX of the blob: what it made when it first kept the document (2024)
)

const (
	dirPerm  = 0o755
	filePerm = 0o644
)

// ErrBusy reports a directory that is not empty, or that another writer makes.
var ErrBusy = errors.New("in use")

// ErrOption reports [WriterOptions] that make no sense.
var ErrOption = errors.New("invalid option")

// WriterOptions say what a work directory is like.
type WriterOptions struct {
	Prefix string // where it will lie for image-rs; "": where it is made
	Naming Naming // "": [Numbers]
}

// Writer makes a work directory beside its place and moves it there when it is
// complete. Not safe for concurrent use.
type Writer struct {
	out     string
	staging string
	lock    *os.File // the staging directory, locked; nil after the end
	naming  Naming
	doc     Document
}

// Create starts to write the work directory out, which must not be there, or be
// empty. [ErrBusy] says that it is not. What a killed writer left is removed.
func Create(out string, o WriterOptions) (*Writer, error) {
	absolute, err := filepath.Abs(out)
	if err != nil {
		return nil, fmt.Errorf("make work directory %s: %w", out, err)
	}
	w := &Writer{out: absolute, naming: o.Naming}
	if err := w.create(o); err != nil {
		return nil, fmt.Errorf("make work directory %s: %w", out, errors.Join(err, w.Abort()))
	}
	return w, nil
}

func (w *Writer) create(o WriterOptions) error {
	switch w.naming {
	case Numbers, Digests:
	case "":
		w.naming = Numbers
	default:
		return fmt.Errorf("naming %q is neither %s nor %s: %w", w.naming, Numbers, Digests, ErrOption)
	}
	w.doc.Prefix = o.Prefix
	if w.doc.Prefix == "" {
		w.doc.Prefix = w.out
	}
	if !path.IsAbs(w.doc.Prefix) {
		return fmt.Errorf("prefix %q is not an absolute path: %w", w.doc.Prefix, ErrOption)
	}
	w.doc.Prefix = path.Clean(w.doc.Prefix)
	if err := w.free(); err != nil {
		return err
	}
	w.staging = filepath.Join(filepath.Dir(w.out), "."+filepath.Base(w.out)+".dray-export")
	if err := w.claim(); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(w.staging, dirLayers), dirPerm)
}

// free tells whether nothing would be lost at the place of the directory.
func (w *Writer) free() error {
	entries, err := os.ReadDir(w.out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("it is there and not empty; remove it or choose another: %w", ErrBusy)
	}
	return err
}

// claim makes the staging directory and locks it. What is in one that nobody has
// locked is a killed writer's.
func (w *Writer) claim() error {
	for {
		if err := os.Mkdir(w.staging, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		lock, err := os.OpenFile(w.staging, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its writer has just ended
		}
		if err != nil {
			return err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return errors.Join(fmt.Errorf("another process writes it (%w): %w", err, ErrBusy), lock.Close())
		}
		if w.isStaging(lock) {
			if names, _ := lock.Readdirnames(1); len(names) == 0 {
				w.lock = lock
				return nil
			}
			err = os.RemoveAll(w.staging)
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return err
		}
	}
}

// isStaging tells whether dir still has its name.
func (w *Writer) isStaging(dir *os.File) bool {
	named, err := os.Lstat(w.staging)
	if err != nil {
		return false
	}
	opened, err := dir.Stat()
	return err == nil && os.SameFile(named, opened)
}

// Layer adds a layer and returns its directory, empty and open, for the caller to
// fill and close; nil if the blob is there already. The layer's Name is chosen
// here: image-rs stacks no directory twice, so that each blob has its own.
func (w *Writer) Layer(l Layer) (*os.File, error) {
	if w.doc.Layer(l.Blob) != nil {
		return nil, nil //nolint:nilnil // nil: nothing to fill
	}
	l.Name = strconv.Itoa(len(w.doc.Layers))
	if w.naming == Digests {
		l.Name = l.Blob.Algorithm() + "_" + l.Blob.Hex()
	}
	w.doc.insert(l)
	dir := filepath.Join(w.staging, dirLayers, l.Name)
	if err := os.Mkdir(dir, dirPerm); err != nil {
		return nil, fmt.Errorf("make work directory %s: %w", w.out, err)
	}
	return os.Open(dir) //nolint:gosec // ours
}

// Image adds an image whose layers are there. It tells whether the document has
// had an image of this configuration already, which stays then.
func (w *Writer) Image(i Image) (had bool) { return w.doc.insertImage(i) }

// Commit writes the document, makes everything durable and moves the directory to
// its place, in one step. After an error the writer still has to be aborted.
func (w *Writer) Commit() error {
	if err := w.commit(); err != nil {
		return fmt.Errorf("make work directory %s: %w", w.out, err)
	}
	w.lock = nil
	return nil
}

func (w *Writer) commit() error {
	raw, err := w.doc.Encode()
	if err != nil {
		return err
	}
	if _, err := Decode(raw); err != nil { // a configuration that no strict decoder takes, for one
		return fmt.Errorf("what was made of it could not be read: %w", err)
	}
	if err := os.WriteFile(filepath.Join(w.staging, FileName), raw, filePerm); err != nil {
		return err
	}
	if err := durable.SyncFS(w.staging); err != nil {
		return err
	}
	if err := unix.Rename(w.staging, w.out); err != nil { // os.Rename refuses to replace an empty directory
		return os.NewSyscallError("rename", err)
	}
	return errors.Join(durable.SyncDir(filepath.Dir(w.out)), w.lock.Close())
}

// Abort removes what was written. It does nothing after [Writer.Commit].
func (w *Writer) Abort() error {
	if w.lock == nil {
		return nil
	}
	lock := w.lock
	w.lock = nil
	return errors.Join(os.RemoveAll(w.staging), lock.Close())
}
