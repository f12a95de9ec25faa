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
	Layout    string // [store.LayoutEROFS], or [store.LayoutDir] or [Both]
	Form      Form   // [AsDir]: with the last two layouts, each layer has a tree beside its tar
}

// Both is the layout of a seed with tars, indexes and trees.
const Both = "both"

// record returns the record of a layer as the seed has it, and the names of its files
// and of its tree. What no index can express has a tree in directories only. A tree that
// lacks something has its tar beside it: nothing else proves what it is.
func (c *Content) record(l *store.Layer) (record store.LayerRecord, files []string, tree bool) {
	record = l.LayerRecord
	record.Version, record.Created, record.DiskBytes, record.UnsyncedBoot, record.Seed = 1, c.Created.UTC(), 0, "", nil
	record.TarVerity, record.IndexVerity = "", ""
	record.Blob.Annotations, record.Blob.URLs = nil, nil
	tree = (c.Layout == store.LayoutDir || c.Layout == Both) && (c.Form == AsDir || l.Layout == store.LayoutEROFS)
	if !tree || c.Layout == Both || c.Form == AsEROFS || len(l.Notes) > 0 { // a file system's trees have their contents there
		files = append(files, store.TarName)
	}
	if l.Layout == store.LayoutEROFS && c.Layout != store.LayoutDir {
		files = append(files, store.IndexName)
	}
	if tree {
		files = append(files, store.JournalName)
	}
	if tree && (c.Layout == store.LayoutDir || l.Layout == store.LayoutTar) {
		record.Layout, record.Whiteouts = store.LayoutDir, cmp.Or(l.Whiteouts, store.WhiteoutsTrusted)
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

// records lists what is small and not a layer's, by name, and the list of it all.
func (c *Content) records() ([]entry, error) {
	var all []entry
	add := func(name string, v any) error {
		raw, err := encode(v)
		all = append(all, entry{name: name, content: raw, size: int64(len(raw))})
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
		all = append(all, entry{name: path.Join(blobsName, digest.Algorithm(), digest.Hex()), content: raw, size: int64(len(raw))})
	}
	for _, l := range c.Layers {
		if record, _, _ := c.record(l); err == nil {
			err = add(path.Join(layerDir(l.DiffID), recordName), &record)
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	if err == nil {
		err = add(ManifestName, c.Manifest())
	}
	return all, err
}

// layerDir returns the directory of a layer.
func layerDir(id oci.DiffID) string { return path.Join("layers", id.Digest().Algorithm(), id.Hex()) }

// files lists the files of a layer.
func (c *Content) files(l *store.Layer) ([]entry, error) {
	_, names, _ := c.record(l)
	var all []entry
	for _, name := range names {
		size, err := fileSize(filepath.Join(l.Path, name))
		if err != nil {
			return nil, err
		}
		all = append(all, entry{name: path.Join(layerDir(l.DiffID), name), path: filepath.Join(l.Path, name), size: size})
	}
	return all, nil
}

// entries lists a directory, each directory before what is in it.
func (c *Content) entries() ([]entry, error) {
	all, err := c.records()
	for _, l := range c.Layers {
		var files []entry
		if err == nil {
			files, err = c.files(l)
		}
		all = append(all, files...)
		if _, _, tree := c.record(l); tree {
			all = append(all, entry{name: path.Join(layerDir(l.DiffID), store.FSName), path: filepath.Join(l.Path, store.FSName), tree: true})
		}
	}
	return withDirs(all), err
}

// withDirs puts each directory before what is in it.
func withDirs(files []entry) []entry {
	var all []entry
	made := dirs{}
	for _, f := range files {
		for _, dir := range made.above(f.name) {
			all = append(all, entry{name: dir, dir: true})
		}
		all = append(all, f)
	}
	return all
}

// dirs is the directories that there are.
type dirs map[string]bool

// above returns those on the way to a name that were not there, outermost first.
func (d dirs) above(name string) []string {
	var missing []string
	for dir := path.Dir(name); dir != "." && !d[dir]; dir = path.Dir(dir) {
		d[dir] = true
		missing = append(missing, dir)
	}
	slices.Reverse(missing)
	return missing
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

// below returns where the seed is in an archive; "" for its top.
func (c *Content) below() string { return strings.Trim(path.Clean("/"+c.Prefix), "/") }

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
