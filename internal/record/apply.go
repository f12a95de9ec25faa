package record

import (
	"fmt"
	"iter"
	"maps"
	"path"
	"strings"

	"dray/internal/oci"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Name is an entry of a layer's tar.
type Name struct {
	Path   string // as it is in the tar
	IsDir  bool
	Size   int64      // bytes
	Digest oci.Digest // of a file's content, where it is known
}

// Plan says what of a record is in an image.
type Plan struct {
	Layers  []LayerPlan // bottom first
	Matched int
	Moved   []Move   // those of Matched that have another name in the image
	Missing []string // paths that the image does not show, in the record's order
}

// Move is a file that was found by its content.
type Move struct {
	From string `json:"from"` // in the record
	To   string `json:"to"`   // in the image
}

// LayerPlan is a layer's part.
type LayerPlan struct {
	Paths      []string // to prioritize, in the record's order
	Bytes      int64    // of them
	TotalFiles int
	TotalBytes int64
}

// Share returns the part of the image's bytes that is prioritized, 0 to 1.
func (p *Plan) Share() float64 {
	var some, all int64
	for _, l := range p.Layers {
		some, all = some+l.Bytes, all+l.TotalBytes
	}
	if all == 0 {
		return 0
	}
	return float64(some) / float64(all)
}

// Apply finds, for each path of a record, the one layer whose copy a container
// would see. layers are the names of each, bottom first, read in this order, each
// once; their error ends it. Which manifest and layer the entries name does not
// matter: a record of another build of the image is as good as its paths. A path
// that is not in the image is looked for by its content, where both the entry and
// the names have digests.
func Apply(entries []Entry, layers []iter.Seq2[Name, error]) (*Plan, error) {
	p := &Plan{Layers: make([]LayerPlan, len(layers))}
	s := newSearch(entries)
	for i, names := range layers {
		if err := s.layer(i, names, &p.Layers[i]); err != nil {
			return nil, fmt.Errorf("read names of layer %d: %w", i, err)
		}
	}
	done, taken := map[string]bool{}, map[string]bool{}
	for i := range entries {
		name := entries[i].Path
		if done[name] {
			continue
		}
		done[name] = true
		to, at, ok := s.find(&entries[i])
		if !ok {
			p.Missing = append(p.Missing, name)
			continue
		}
		p.Matched++
		if to != name {
			p.Moved = append(p.Moved, Move{From: name, To: to})
		}
		if taken[to] { // by an entry that has moved there
			continue
		}
		taken[to] = true
		l := &p.Layers[at.layer]
		l.Paths = append(l.Paths, to)
		l.Bytes += at.size
	}
	return p, nil
}

// ContentSizes tells whether a file of some size may have the content of an entry,
// so that nobody computes digests that [Apply] will not look for.
func ContentSizes(entries []Entry) func(sizeBytes int64) bool {
	sizes := map[int64]bool{}
	for i := range entries {
		if e := &entries[i]; e.ContentDigest != "" && e.Size > 0 {
			sizes[e.Size] = true
		}
	}
	return func(size int64) bool { return sizes[size] }
}

// place is where a path was found.
type place struct {
	layer  int
	size   int64
	digest oci.Digest // if it is known
}

// maxCandidates bounds the names that one content is found under.
const maxCandidates = 16

// search goes through the layers from the bottom, and knows after each what a
// container of the layers so far would see.
type search struct {
	wanted   map[string]bool         // names to find, and false for directories above them
	found    map[string]place        // what is visible of them
	contents map[oci.Digest][]string // names of wanted contents, visible or not any more
}

func newSearch(entries []Entry) *search {
	s := &search{wanted: map[string]bool{}, found: map[string]place{}, contents: map[oci.Digest][]string{}}
	for i := range entries {
		e := &entries[i]
		s.want(e.Path)
		if e.ContentDigest != "" && e.Size > 0 {
			s.contents[e.ContentDigest] = nil
		}
	}
	return s
}

func (s *search) want(name string) {
	s.wanted[name] = true
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := s.wanted[dir]; ok {
			break // and what is above it
		}
		s.wanted[dir] = false
	}
}

// find returns where an entry is, by its name or by its content.
func (s *search) find(e *Entry) (string, place, bool) {
	if at, ok := s.found[e.Path]; ok {
		return e.Path, at, true
	}
	for _, name := range s.contents[e.ContentDigest] {
		if at, ok := s.found[name]; ok && at.digest == e.ContentDigest {
			return name, at, true
		}
	}
	return "", place{}, false
}

// content remembers a name whose content is wanted.
func (s *search) content(n *Name, name string) {
	if n.Digest == "" || n.Size == 0 {
		return
	}
	if names, ok := s.contents[n.Digest]; ok && len(names) < maxCandidates {
		s.contents[n.Digest] = append(names, name)
		s.want(name)
	}
}

// cover is what a layer hides of those below it, as far as that is wanted.
type cover struct {
	hidden map[string]bool // names, and what is below them
	opaque map[string]bool // directories: what is below them
}

// layer looks through one layer.
func (s *search) layer(i int, names iter.Seq2[Name, error], l *LayerPlan) error {
	here := map[string]place{}
	c := cover{hidden: map[string]bool{}, opaque: map[string]bool{}}
	for n, err := range names {
		if err != nil {
			return err
		}
		name, ok := cleanPath(n.Path)
		if !ok {
			continue // the root
		}
		dir, base := path.Split(name)
		dir = path.Clean(dir) // "." of what is at the root
		switch {
		case base == opaque:
			if s.concerns(dir) {
				c.opaque[dir] = true
			}
			continue
		case strings.HasPrefix(base, whiteout):
			if hides := path.Join(dir, base[len(whiteout):]); s.concerns(hides) {
				c.hidden[hides] = true
			}
			continue
		case !n.IsDir:
			l.TotalFiles++
			l.TotalBytes += n.Size
			s.content(&n, name)
		}
		wanted, above := s.wanted[name]
		if wanted {
			here[name] = place{layer: i, size: n.Size, digest: n.Digest}
		}
		if above && !n.IsDir {
			c.hidden[name] = true
		}
	}
	s.end(here, c)
	return nil
}

// concerns tells whether anything that is wanted is at or below name.
func (s *search) concerns(name string) bool {
	_, ok := s.wanted[name]
	return ok || name == "."
}

// end takes what a layer hides and has. A layer never hides what is its own.
func (s *search) end(here map[string]place, c cover) {
	if len(c.hidden)+len(c.opaque) > 0 {
		for name := range s.found {
			if c.covers(name) {
				delete(s.found, name)
			}
		}
	}
	maps.Copy(s.found, here)
}

// covers tells whether the layer hides a name of those below it.
func (c *cover) covers(name string) bool {
	if c.hidden[name] {
		return true
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if c.hidden[dir] || c.opaque[dir] {
			return true
		}
		if dir == "." {
			return false
		}
	}
}
