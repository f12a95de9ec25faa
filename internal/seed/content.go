package seed

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dray/internal/oci"
	"dray/internal/store"
)

// Modes of what is in a seed: it is made to be shared.
const (
	dirPerm  = 0o755
	filePerm = 0o644
)

// Content is what a seed is to hold. The same content gives the same bytes, in
// whatever order it was gathered.
type Content struct {
	Images    []*store.Image
	Names     map[string]oci.Digest // by reference: of an index in Documents, or of an image
	Layers    []*store.Layer        // whole, in a store: tar and, unless it is [store.LayoutTar], index
	Documents map[oci.Digest][]byte // indexes
	Created   time.Time
	Prefix    string // the path at which the seed will live; "" for anywhere
	Layout    string // [store.LayoutEROFS], or [store.LayoutDir] or [Both], for which each layer has a tree beside its tar
}

// Both is the layout of a seed with tars, indexes and trees.
const Both = "both"

// record returns the record of a layer as the seed has it, and the names of its files
// and of its tree.
func (c *Content) record(l *store.Layer) (record store.LayerRecord, files []string, tree bool) {
	record = l.LayerRecord
	record.Version, record.Created, record.DiskBytes, record.UnsyncedBoot, record.Seed = 1, c.Created.UTC(), 0, "", nil
	record.TarVerity, record.IndexVerity = "", ""
	record.Blob.Annotations, record.Blob.URLs = nil, nil
	tree = c.Layout == store.LayoutDir || c.Layout == Both
	if c.Layout != store.LayoutDir {
		files = append(files, store.TarName)
		if l.Layout == store.LayoutEROFS {
			files = append(files, store.IndexName)
		}
	}
	if tree {
		files = append(files, store.JournalName)
	}
	if tree && (c.Layout == store.LayoutDir || l.Layout == store.LayoutTar) {
		record.Layout, record.Whiteouts = store.LayoutDir, store.WhiteoutsTrusted
	}
	return record, files, tree
}

// entry is a name in a seed.
type entry struct {
	name    string
	dir     bool
	tree    bool // a directory that is moved as it is
	content []byte
	path    string // of the file with the content, if that is not nil
	size    int64
}

// Manifest returns the list of what is in the seed.
func (c *Content) Manifest() *Manifest {
	m := &Manifest{Version: manifestVersion, Needs: "0.2", Created: c.Created.UTC().Format(time.RFC3339), Prefix: c.Prefix, Layout: cmp.Or(c.Layout, store.LayoutEROFS), Images: []Image{}, Layers: []Entry{}}
	for _, i := range c.Images {
		names := []string{i.Reference}
		for name, digest := range c.Names {
			if name != i.Reference && (digest == i.Manifest.Digest || i.Index != nil && digest == i.Index.Digest) {
				names = append(names, name)
			}
		}
		for _, name := range names {
			image := Image{Reference: name, Manifest: i.Manifest.Digest, Config: i.Config.Digest, Platform: i.Platform.String(), DiffIDs: i.DiffIDs}
			if i.Index != nil {
				image.Index = i.Index.Digest
			}
			m.Images = append(m.Images, image)
		}
	}
	slices.SortFunc(m.Images, func(a, b Image) int {
		return cmp.Or(cmp.Compare(a.Reference, b.Reference), cmp.Compare(a.Platform, b.Platform), cmp.Compare(a.Manifest, b.Manifest))
	})
	for _, l := range c.Layers {
		record, _, _ := c.record(l)
		m.Layers = append(m.Layers, Entry{DiffID: l.DiffID, Blob: l.Blob.Digest, SizeBytes: l.SizeBytes, Entries: l.Entries, Layout: record.Layout, Notes: l.Notes})
		m.Bytes += l.SizeBytes
	}
	slices.SortFunc(m.Layers, func(a, b Entry) int { return cmp.Compare(a.DiffID, b.DiffID) })
	return m
}

// entries lists the seed: what is small first, and by name.
func (c *Content) entries() ([]entry, error) {
	var small, large []entry
	add := func(name string, v any) error {
		raw, err := encode(v)
		small = append(small, entry{name: name, content: raw, size: int64(len(raw))})
		return err
	}
	err := add(versionName, map[string]any{"version": 1, "dray": "0.1"})
	for _, i := range c.Images {
		image := *i
		image.Version, image.Pulled, image.Evidence, image.UnsyncedBoot = 1, c.Created.UTC(), nil, ""
		if err == nil {
			err = add(path.Join("images", image.Manifest.Digest.Algorithm(), image.Manifest.Digest.Hex()+".json"), &image)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Names)) {
		if err == nil {
			err = add(path.Join("refs", oci.DigestBytes([]byte(name)).Hex()+".json"),
				store.Ref{Version: 1, Name: name, Digest: c.Names[name], Updated: c.Created.UTC()})
		}
	}
	for digest, raw := range c.Documents {
		small = append(small, entry{name: path.Join(blobsName, digest.Algorithm(), digest.Hex()), content: raw, size: int64(len(raw))})
	}
	for _, l := range c.Layers {
		dir := path.Join("layers", l.DiffID.Digest().Algorithm(), l.DiffID.Hex())
		record, files, tree := c.record(l)
		if err == nil {
			err = add(path.Join(dir, "layer.json"), &record)
		}
		for _, name := range files {
			size, statErr := fileSize(filepath.Join(l.Path, name))
			err = cmp.Or(err, statErr)
			large = append(large, entry{name: path.Join(dir, name), path: filepath.Join(l.Path, name), size: size})
		}
		if tree {
			large = append(large, entry{name: path.Join(dir, store.FSName), path: filepath.Join(l.Path, store.FSName), tree: true})
		}
	}
	if err != nil {
		return nil, err
	}
	raw, err := encode(c.Manifest())
	if err != nil {
		return nil, err
	}
	byName := func(a, b entry) int { return cmp.Compare(a.name, b.name) }
	slices.SortFunc(small, byName)
	slices.SortFunc(large, byName)
	all := append([]entry{{name: ManifestName, content: raw, size: int64(len(raw))}}, small...)
	return withDirs(append(all, large...)), nil
}

// withDirs puts each directory before what is in it.
func withDirs(files []entry) []entry {
	var all []entry
	made := map[string]bool{".": true}
	for _, f := range files {
		var above []entry
		for dir := path.Dir(f.name); !made[dir]; dir = path.Dir(dir) {
			made[dir] = true
			above = append(above, entry{name: dir, dir: true})
		}
		slices.Reverse(above)
		all = append(append(all, above...), f)
	}
	return all
}

// encode returns v as JSON that people can read, the same each time.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}

// prefixed puts the entries below the seed's prefix, as an archive has them.
func (c *Content) prefixed(entries []entry) []entry {
	below := strings.Trim(path.Clean("/"+c.Prefix), "/")
	if below == "" {
		return entries
	}
	var dirs []entry
	for dir := below; dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, entry{name: dir, dir: true})
	}
	slices.Reverse(dirs)
	for _, e := range entries {
		e.name = path.Join(below, e.name)
		dirs = append(dirs, e)
	}
	return dirs
}

// header returns the tar header of an entry, as bytes.
func (c *Content) header(e entry) ([]byte, error) {
	h := &tar.Header{Name: e.name, Mode: filePerm, Size: e.size, Typeflag: tar.TypeReg, ModTime: c.Created.UTC().Truncate(time.Second)}
	if e.dir {
		h.Name, h.Mode, h.Typeflag = e.name+"/", dirPerm, tar.TypeDir
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("write %s: %w", e.name, err)
	}
	return b.Bytes(), nil
}
