package seed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/retar"
	"dray/internal/store"
	"dray/internal/stream"
)

// Layer is what one seed has of a layer. Nothing of it is verified.
type Layer struct {
	Seed   *Seed
	Record store.LayerRecord
	from   files
	dir    string // of the layer, below the seed
	tree   string // of its tree
}

// Layers returns what the seeds have of a layer, in their order. What is wrong with
// some of it comes second: as [ErrRefused], naming the seed.
func (s *Set) Layers(id oci.DiffID) (found []*Layer, refused []error) {
	for _, one := range s.Seeds() {
		layer, err := one.layer(id)
		switch {
		case err == nil:
			found = append(found, layer)
		case !errors.Is(err, fs.ErrNotExist):
			refused = append(refused, one.refuse(id, err))
		}
	}
	return found, refused
}

// refuse says of what in which seed an error is.
func (s *Seed) refuse(id oci.DiffID, err error) error {
	return &RefusedError{Seed: s.path, DiffID: id, Cause: err}
}

// RefusedError says what is wrong with a layer of a seed. It is an [ErrRefused].
type RefusedError struct {
	Seed   string
	DiffID oci.DiffID
	Cause  error
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("seed %s: layer %s refused: %v", e.Seed, e.DiffID, e.Cause)
}

// Is makes every RefusedError an [ErrRefused].
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// layer looks a layer up. It is [fs.ErrNotExist] where the seed has none.
func (s *Seed) layer(id oci.DiffID) (*Layer, error) {
	from, err := s.files()
	if err != nil {
		return nil, problem("it is gone or changed: %v", err) // not to be taken for a layer that is not there
	}
	l := &Layer{Seed: s, from: from, dir: layerDir(id)}
	path := filepath.Join(l.dir, recordName)
	raw, err := readFile(from, path, maxRecordBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return s.foreignLayer(l, id, err)
	}
	if err != nil {
		return nil, err
	}
	record, err := store.DecodeLayer(path, raw)
	if err != nil {
		return nil, err
	}
	l.Record = *record
	if l.Record.DiffID != id {
		return nil, fmt.Errorf("its record is of %q", l.Record.DiffID)
	}
	l.tree = filepath.Join(l.dir, store.FSName)
	return l, nil
}

// foreignLayer looks for the layer in a work directory of image-rs; missing is the
// error if this is none.
func (s *Seed) foreignLayer(l *Layer, id oci.DiffID, missing error) (*Layer, error) {
	document, err := s.metaStore(l.from)
	if err != nil {
		return nil, err
	}
	for i := range document.Layers {
		if document.Layers[i].DiffID == id {
			l.tree = filepath.Join("layers", document.Layers[i].Name)
			l.Record = store.LayerRecord{DiffID: id, Layout: store.LayoutDir, Whiteouts: store.WhiteoutsTrusted}
			return l, nil
		}
	}
	return nil, missing
}

// Tar is the uncompressed bytes of a layer, as a seed has them.
type Tar struct {
	io.Reader
	Size int64

	part *part // nil: they are made of a tree
	done func() error
}

// Close gives the bytes up.
func (t *Tar) Close() error { return t.done() }

// OpenTar opens the bytes: those of the tar, or what a tree becomes that has lost its
// tar (package retar). The error is an [ErrRefused]. The caller closes it.
func (l *Layer) OpenTar(ctx context.Context) (*Tar, error) {
	tar, err := l.openTar(ctx)
	if err != nil {
		return nil, problem("%w", err)
	}
	return tar, nil
}

func (l *Layer) openTar(ctx context.Context) (*Tar, error) {
	p, err := l.from.open(filepath.Join(l.dir, store.TarName))
	if errors.Is(err, fs.ErrNotExist) {
		return l.retar(ctx)
	}
	if err != nil {
		return nil, err
	}
	if p.size != l.Record.SizeBytes {
		_ = p.Close()
		return nil, fmt.Errorf("%s has %d bytes instead of %d", store.TarName, p.size, l.Record.SizeBytes)
	}
	return &Tar{Reader: p.reader(), Size: p.size, part: p, done: p.Close}, nil
}

func (l *Layer) retar(ctx context.Context) (*Tar, error) {
	root, err := l.from.tree(l.tree)
	_, file := l.from.(*archive)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file && l.Record.Layout == store.LayoutDir:
		return nil, fmt.Errorf("it is a tree without its tar, of no use in a file: unpack %s as root, or make it with --layout both", l.Seed.path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("it has neither a %s nor a tree", store.TarName)
	case err != nil:
		return nil, err
	}
	o := retar.Options{UserXattrs: l.Record.Whiteouts == store.WhiteoutsUser}
	form, size, err := retar.Find(ctx, root, l.Record.DiffID, o)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	tar := retar.Open(ctx, root, form, o)
	return &Tar{Reader: tar, Size: size, done: func() error { return errors.Join(tar.Close(), root.Close()) }}, nil
}

// Place is where a layer lies that is used where it is.
type Place struct {
	Ref  store.SeedRef // without Boot
	File *os.File      // what Ref is about: the file of the tar. The caller closes it
	Hold Hold
}

// Place returns where the tar lies, and what holds it there.
func (t *Tar) Place(of *Seed) (*Place, string, error) {
	if t.part == nil {
		return nil, "it is made of a tree", nil
	}
	hold, why := Trusted, ""
	if !of.trusted {
		hold, why = of.machine.judge(t.part.File)
	}
	id, err := store.IdentifyFile(t.part.File)
	if err != nil {
		return nil, "", err
	}
	path, err := filepath.Abs(t.part.Name())
	if err != nil {
		return nil, "", err
	}
	return &Place{
		Ref:  store.SeedRef{Seed: of.path, Path: path, Offset: t.part.offset, Trusted: of.trusted, File: id},
		File: t.part.File, Hold: hold,
	}, why, nil
}

// Blob is a compressed blob of a layer, as a seed has it.
type Blob struct {
	io.Reader
	io.Closer
	Seed *Seed
}

// Blobs returns the blobs of that digest and size.
func (s *Set) Blobs(d oci.Descriptor) []*Blob {
	var found []*Blob
	for _, one := range s.Seeds() {
		from, err := one.files()
		if err != nil {
			continue
		}
		p, err := from.open(filepath.Join(blobsName, d.Digest.Algorithm(), d.Digest.Hex()))
		if err != nil {
			continue
		}
		if p.size != d.Size {
			_ = p.Close()
			continue
		}
		found = append(found, &Blob{Reader: p.reader(), Closer: p, Seed: one})
	}
	return found
}

// Index is what a seed has as the index over a tar that begins its file.
type Index struct {
	*io.SectionReader
	io.Closer
	Path string // "" if the index is a part of a larger file
}

// OpenIndex opens the index of a layer. The caller closes it.
func (l *Layer) OpenIndex() (*Index, error) {
	p, err := l.from.open(filepath.Join(l.dir, store.IndexName))
	if err != nil {
		return nil, err
	}
	index := &Index{SectionReader: p.reader(), Closer: p}
	if p.alone {
		if index.Path, err = filepath.Abs(p.Name()); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return index, nil
}

// Tree returns where the unpacked tree of a trusted seed's layer lies, to be used
// there.
func (l *Layer) Tree() (*store.SeedRef, error) {
	f, err := l.from.tree(l.tree)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if l.Seed.machine.inUserNS {
		if err := checkMapped(f); err != nil {
			return nil, err
		}
	}
	id, err := store.IdentifyFile(f)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(f.Name())
	if err != nil {
		return nil, err
	}
	return &store.SeedRef{Seed: l.Seed.path, Path: path, Trusted: true, File: id}, nil
}

// checkMapped refuses a tree whose root directory is nobody's, as seen from a user
// namespace: it was made in the namespace of somebody else.
func checkMapped(root *os.File) error {
	const overflowUID = 65534 // what the kernel shows of owners that are not mapped
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: root.Name(), Err: err}
	}
	if st.Uid == overflowUID {
		return problem("%s: its owners are not mapped in this user namespace", root.Name())
	}
	return nil
}

// LayerIDs lists the layers that the seed has, as it says.
func (s *Seed) LayerIDs() ([]oci.DiffID, error) {
	from, err := s.files()
	if err != nil {
		return nil, err
	}
	var ids []oci.DiffID
	for _, algorithm := range []string{oci.SHA256, oci.SHA384, oci.SHA512} {
		names, err := from.names(filepath.Join("layers", algorithm))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if id, err := oci.ParseDiffID(algorithm + ":" + name); err == nil {
				ids = append(ids, id)
			}
		}
	}
	document, err := s.metaStore(from)
	if err != nil {
		return nil, err
	}
	for i := range document.Layers {
		ids = append(ids, document.Layers[i].DiffID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Verify reads all of a layer, wherever it would be used, and returns what is wrong
// with it: an [ErrRefused], or the cause of ctx.
func (s *Seed) Verify(ctx context.Context, id oci.DiffID) error {
	l, err := s.layer(id)
	if err != nil {
		return s.refuse(id, err)
	}
	tar, err := l.OpenTar(ctx)
	if err != nil {
		return s.refuse(id, err)
	}
	defer func() { _ = tar.Close() }()
	const blockBytes = 128 << 10
	blocks := stream.NewBlockVerifier(stream.NewSlicer(tar, blockBytes), "layer", id.Digest(), tar.Size)
	for err == nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err = blocks.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return s.refuse(id, err)
}
