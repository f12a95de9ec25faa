package estargz

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"

	"dray/internal/layer"
)

// plan is what comes before the landmark, read ahead of the rest.
type plan struct {
	files   []*planned
	names   map[string]bool // of files
	spool   spool
	matched []string
	missed  []string
}

// planned is a file that was read ahead.
type planned struct {
	entry  *tocEntry
	header []byte
	at     int64 // in the spool
}

func (p *plan) moved(name string) bool { return p.names[name] }

func (p *plan) close() { p.spool.close() }

// newPlan reads what the options prioritize.
func newPlan(ctx context.Context, open func(context.Context) (io.ReadCloser, error), o *Options) (*plan, error) {
	p := &plan{names: map[string]bool{}, spool: spool{memory: o.SpillMemory, dir: o.TempDir}}
	s := &searchPlan{asked: map[string]bool{}, want: map[string]bool{}, found: map[string]*planned{}}
	var wanted []string
	for _, name := range o.Prioritized {
		clean, err := cleanName(name)
		if err != nil || clean == "" || IsMeta(clean) {
			p.missed = append(p.missed, name)
			continue
		}
		wanted = append(wanted, clean)
		s.add(clean)
	}
	if err := p.readAll(ctx, open, o, s); err != nil {
		p.close()
		return nil, err
	}
	for _, name := range wanted {
		if s.found[name] == nil {
			p.missed = append(p.missed, name)
			continue
		}
		p.matched = append(p.matched, name)
		if !o.Lossless {
			p.place(name, s.found)
		}
	}
	return p, nil
}

// searchPlan is what is looked for in a layer.
type searchPlan struct {
	asked map[string]bool // ever
	want  map[string]bool // in the next reading
	found map[string]*planned
}

// add asks for a name and its parents.
func (s *searchPlan) add(name string) {
	for ; name != "" && name != "."; name = path.Dir(name) {
		if !s.asked[name] && !IsMeta(name) {
			s.asked[name], s.want[name] = true, true
		}
	}
}

// readAll reads the layer until no hard link's target is missing.
func (p *plan) readAll(ctx context.Context, open func(context.Context) (io.ReadCloser, error), o *Options, s *searchPlan) error {
	const maxReads = 16 // chains of hard links to links are short
	for reads := 0; len(s.want) > 0; reads++ {
		if reads == maxReads {
			return malformed("hard links of prioritized files are nested too deeply")
		}
		if err := p.read(ctx, open, o, s.want, s.found); err != nil {
			return err
		}
		last := s.want
		s.want = map[string]bool{}
		for name := range last {
			f := s.found[name]
			if f == nil || f.entry.Type != "hardlink" {
				continue
			}
			if target, err := cleanName(f.entry.LinkName); err == nil {
				s.add(target)
			}
		}
	}
	return nil
}

// place appends a file behind its parents and its target.
func (p *plan) place(name string, found map[string]*planned) {
	if p.names[name] || name == "" || name == "." {
		return
	}
	p.place(parent(name), found)
	f := found[name]
	if f == nil || p.names[name] {
		return // a directory that has no entry
	}
	p.names[name] = true
	if f.entry.Type == "hardlink" {
		if target, err := cleanName(f.entry.LinkName); err == nil {
			p.place(target, found)
		}
	}
	p.files = append(p.files, f)
}

func parent(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// read reads the layer and keeps the last entry of each name in want.
func (p *plan) read(ctx context.Context, open func(context.Context) (io.ReadCloser, error), o *Options, want map[string]bool, found map[string]*planned) error {
	src, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	t := newRawTar(src, o.Limits, false)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e, header, err := t.next()
		if errors.Is(err, io.EOF) {
			_, err = t.tar.Drain()
			return err
		}
		if err != nil {
			return err
		}
		name, err := cleanName(e.Name)
		if err != nil {
			return err
		}
		if !want[name] {
			continue
		}
		f := &planned{entry: newTOCEntry(e), header: slices.Clone(header), at: p.spool.size}
		found[name] = f
		if e.Type == layer.Reg && !o.Lossless {
			if err := t.body(e, p.spool.write); err != nil {
				return err
			}
		}
	}
}
