package record

import (
	"fmt"
	"iter"
	"path"
	"strings"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Name is an entry of a layer's tar.
type Name struct {
	Path  string // as it is in the tar
	IsDir bool
	Size  int64 // bytes
}

// Plan says what of a record is in an image.
type Plan struct {
	Layers  []LayerPlan // bottom first
	Matched int
	Missing []string // paths that the image does not show, in the record's order
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
// would see. layers are the names of each, bottom first, read from the top down,
// each once; their error ends it. Which manifest and layer the entries name does
// not matter: a record of another build of the image is as good as its paths.
func Apply(entries []Entry, layers []iter.Seq2[Name, error]) (*Plan, error) {
	p := &Plan{Layers: make([]LayerPlan, len(layers))}
	s := newSearch(entries)
	for i := len(layers) - 1; i >= 0; i-- {
		if err := s.layer(i, layers[i], &p.Layers[i]); err != nil {
			return nil, fmt.Errorf("read names of layer %d: %w", i, err)
		}
	}
	done := map[string]bool{}
	for i := range entries {
		name := entries[i].Path
		if done[name] {
			continue
		}
		done[name] = true
		at, ok := s.found[name]
		if !ok {
			p.Missing = append(p.Missing, name)
			continue
		}
		p.Matched++
		l := &p.Layers[at.layer]
		l.Paths = append(l.Paths, name)
		l.Bytes += at.size
	}
	return p, nil
}

// place is where a path was found.
type place struct {
	layer int
	size  int64
}

// search goes through the layers from the top.
type search struct {
	wanted map[string]bool // paths, and false for directories above them
	found  map[string]place
	hidden map[string]bool // wanted names, and what is below them, in lower layers
	opaque map[string]bool // what is below them, likewise
}

func newSearch(entries []Entry) *search {
	s := &search{wanted: map[string]bool{}, found: map[string]place{}, hidden: map[string]bool{}, opaque: map[string]bool{}}
	for i := range entries {
		s.wanted[entries[i].Path] = true
		for dir := path.Dir(entries[i].Path); dir != "."; dir = path.Dir(dir) {
			if _, ok := s.wanted[dir]; !ok {
				s.wanted[dir] = false
			}
		}
	}
	return s
}

// layer looks through one layer. What it hides is hidden below it only.
func (s *search) layer(i int, names iter.Seq2[Name, error], l *LayerPlan) error {
	here := map[string]place{}
	var hides, opaques []string
	for n, err := range names {
		if err != nil {
			return err
		}
		name, ok := cleanPath(n.Path)
		if !ok {
			if strings.TrimPrefix(path.Clean("/"+n.Path), "/") == opaque {
				opaques = append(opaques, ".")
			}
			continue
		}
		dir, base := path.Split(name)
		dir = path.Clean(dir)
		switch {
		case base == opaque:
			opaques = append(opaques, dir)
			continue
		case strings.HasPrefix(base, whiteout):
			hides = append(hides, path.Join(dir, base[len(whiteout):]))
			continue
		case !n.IsDir:
			l.TotalFiles++
			l.TotalBytes += n.Size
		}
		isPath, above := s.wanted[name]
		if isPath {
			here[name] = place{layer: i, size: n.Size}
		}
		if above && !n.IsDir {
			hides = append(hides, name)
		}
	}
	s.end(here, hides, opaques)
	return nil
}

// end takes what a layer has and hides.
func (s *search) end(here map[string]place, hides, opaques []string) {
	for name, at := range here {
		if _, ok := s.found[name]; !ok && !s.covered(name) {
			s.found[name] = at
		}
	}
	for _, name := range hides {
		if _, ok := s.wanted[name]; ok {
			s.hidden[name] = true
		}
	}
	for _, name := range opaques {
		if _, ok := s.wanted[name]; ok || name == "." {
			s.opaque[name] = true
		}
	}
}

// covered tells whether a layer above has taken name away.
func (s *search) covered(name string) bool {
	if s.hidden[name] {
		return true
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if s.hidden[dir] || s.opaque[dir] {
			return true
		}
		if dir == "." {
			return false
		}
	}
}
