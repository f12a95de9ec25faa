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
	start, whole, image, err := erofs.FindContents(f)
	if err != nil {
		return nil, problem("%s: %w", f.Name(), err)
	}
	if image && end < whole {
		return nil, problem("%s: cut off: it has %d bytes of %d", f.Name(), end, whole)
	}
	a := &archive{path: f.Name(), file: id, parts: map[string]extent{}}
	if err := a.walk(io.NewSectionReader(f, start, max(end-start, 0)), start, end); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return a, nil
}

// walk reads the table. The seed's directory is where its seed.json is: of the files of
// that name, the one with the fewest directories above it.
func (a *archive) walk(r *io.SectionReader, start, end int64) error {
	t := tar.NewReader(r)
	all := map[string]extent{}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if len(all) == 0 {
				return fmt.Errorf("%w: %w", ErrNotSeed, err)
			}
			return problem("cut off, or no tar: %w", err)
		}
		at, err := r.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)[1:]
		sparse := h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != ""
		if h.Typeflag != tar.TypeReg || sparse || inTree(name) {
			continue // what is asked for by that name is not there then
		}
		if len(all) == maxNames {
			return problem("more than %d files", maxNames)
		}
		if start+at > end || h.Size > end-start-at {
			return problem("cut off in %q", name)
		}
		all[name] = extent{start + at, h.Size}
	}
	root, ok := rootOf(all)
	if !ok {
		return fmt.Errorf("no %s in it: it is cut off, or none; other file systems are to be mounted first: %w", ManifestName, ErrNotSeed)
	}
	for name, e := range all {
		if below, ok := strings.CutPrefix(name, root); ok {
			a.parts[below] = e
		}
	}
	return nil
}

// rootOf returns where the seed is among the names of an archive.
func rootOf(names map[string]extent) (root string, ok bool) {
	for name := range names {
		if path.Base(name) != ManifestName {
			continue
		}
		dir := strings.TrimSuffix(name, ManifestName)
		depth, least := strings.Count(dir, "/"), strings.Count(root, "/")
		if !ok || depth < least || depth == least && dir < root {
			root, ok = dir, true
		}
	}
	return root, ok
}

// inTree tells whether a name is in the tree of a layer, which is of no use in an
// archive.
func inTree(name string) bool {
	const above = 3 // directories between "layers" and the tree, which is one
	parts := strings.Split(name, "/")
	for i := range parts {
		if parts[i] == "layers" && i+above < len(parts)-1 && parts[i+above] == store.FSName {
			return true
		}
	}
	return false
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
