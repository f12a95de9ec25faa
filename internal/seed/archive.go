package seed

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"dray/internal/erofs"
	"dray/internal/store"

	"golang.org/x/sys/unix"
)

// archive is a seed in one file: a tar, or an EROFS image that ends with one. Its
// table is read once and good as long as the file is the same.
type archive struct {
	path  string
	file  store.FileID
	parts map[string]extent // by the name below the seed's directory
}

// extent is where in the archive a file lies.
type extent struct{ offset, size int64 }

// openArchive walks the headers of an archive.
func openArchive(f *os.File) (*archive, error) {
	id, err := store.IdentifyFile(f)
	if err != nil {
		return nil, err
	}
	end, err := f.Seek(0, io.SeekEnd) // of a block device too
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", f.Name(), ErrNotSeed, err)
	}
	start, _, err := erofs.FindContents(f)
	if err != nil {
		return nil, problem("%s: %w", f.Name(), err)
	}
	a := &archive{path: f.Name(), file: id, parts: map[string]extent{}}
	if err := a.walk(io.NewSectionReader(f, start, max(end-start, 0)), start, end); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return a, nil
}

// walk reads the table. The seed's directory is where its seed.json is: the first
// file of that name.
func (a *archive) walk(r *io.SectionReader, start, end int64) error {
	t := tar.NewReader(r)
	all := map[string]extent{}
	root, found := "", false
	for count := 0; ; count++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if !found {
				return fmt.Errorf("%w: %w", ErrNotSeed, err)
			}
			return problem("read tar: %w", err)
		}
		if count == maxNames {
			return problem("more than %d entries", maxNames)
		}
		at, err := r.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)[1:]
		if h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			continue // what is asked for by that name is not there then
		}
		if start+at > end || h.Size > end-start-at {
			return problem("cut off in %q", name)
		}
		if path.Base(name) == ManifestName && !found {
			root, found = strings.TrimSuffix(name, ManifestName), true
		}
		all[name] = extent{start + at, h.Size}
	}
	if !found {
		return fmt.Errorf("no %s in it: %w", ManifestName, ErrNotSeed)
	}
	for name, e := range all {
		if below, ok := strings.CutPrefix(name, root); ok {
			a.parts[below] = e
		}
	}
	return nil
}

// open implements [files].
func (a *archive) open(name string) (*part, error) {
	e, ok := a.parts[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: a.path + ":" + name, Err: fs.ErrNotExist}
	}
	f, err := os.OpenFile(a.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if id, err := store.IdentifyFile(f); err != nil || id != a.file {
		_ = f.Close()
		return nil, errors.Join(problem("%s: changed while it was used", a.path), err)
	}
	return &part{File: f, offset: e.offset, size: e.size}, nil
}

// names implements [files].
func (a *archive) names(dir string) ([]string, error) {
	var names []string
	for name := range a.parts {
		below, ok := strings.CutPrefix(name, dir+"/")
		first, _, _ := strings.Cut(below, "/")
		if ok {
			names = append(names, first)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// tree implements [files]: an archive has no directory that could be used.
func (a *archive) tree(name string) (*os.File, error) {
	return nil, &fs.PathError{Op: "open", Path: a.path + ":" + name, Err: fs.ErrNotExist}
}
