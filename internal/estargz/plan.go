package estargz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	"dray/internal/layer"
)

// plan is what comes before the landmark, read ahead of the rest. A record may name all
// files of a layer, so that little is held of each.
type plan struct {
	files   []*planned
	found   map[string]*planned // what was looked for; nil: it is not there, or not yet
	want    map[string]bool     // in the next reading; nil: all of it
	spool   spool
	matched []string
	missed  []string
}

// planned is a file that was read ahead. In the spool are its entry, its header and its
// content.
type planned struct {
	at, header, body int64  // where these start
	target           string // of a hard link
	placed           bool   // in files
}

// moved tells whether a file is written before the rest.
func (p *plan) moved(name string) bool {
	f := p.found[name]
	return f != nil && f.placed
}

func (p *plan) close() { p.spool.close() }

// newPlan reads what the options prioritize.
func newPlan(ctx context.Context, open func(context.Context) (io.ReadCloser, error), o *Options) (*plan, error) {
	p := &plan{found: map[string]*planned{}, spool: spool{memory: o.SpillMemory, dir: o.TempDir}}
	var wanted []string
	for _, name := range o.Prioritized {
		clean, err := cleanName(name)
		if err != nil || clean == "" || IsMeta(clean) {
			p.missed = append(p.missed, name)
			continue
		}
		wanted = append(wanted, clean)
		p.ask(clean)
	}
	if err := p.readAll(ctx, open, o); err != nil {
		p.close()
		return nil, err
	}
	p.matched = wanted[:0]
	for _, name := range wanted {
		if p.found[name] == nil {
			p.missed = append(p.missed, name)
			continue
		}
		p.matched = append(p.matched, name)
		if !o.Lossless {
			p.place(name)
		}
	}
	return p, nil
}

// ask asks for a name and its parents.
func (p *plan) ask(name string) {
	for ; name != "" && name != "."; name = path.Dir(name) {
		if _, asked := p.found[name]; asked || IsMeta(name) {
			continue
		}
		p.found[name] = nil
		if p.want != nil {
			p.want[name] = true
		}
	}
}

// wanted tells whether a name is looked for in this reading.
func (p *plan) wanted(name string) bool {
	if p.want != nil {
		return p.want[name]
	}
	_, asked := p.found[name]
	return asked
}

// readAll reads the layer until no hard link's target is missing.
func (p *plan) readAll(ctx context.Context, open func(context.Context) (io.ReadCloser, error), o *Options) error {
	const maxReads = 16 // chains of hard links to links are short
	for reads := 0; len(p.found) > 0 && (p.want == nil || len(p.want) > 0); reads++ {
		if reads == maxReads {
			return malformed("hard links of prioritized files are nested too deeply")
		}
		var links []string // targets of hard links
		err := p.read(ctx, open, o)
		if err != nil {
			return err
		}
		for name, f := range p.found {
			if f != nil && f.target != "" && p.wanted(name) {
				links = append(links, f.target)
			}
		}
		p.want = map[string]bool{}
		for _, target := range links {
			p.ask(target)
		}
	}
	return nil
}

// place appends a file behind its parents and its target.
func (p *plan) place(name string) {
	if name == "" || name == "." || p.moved(name) {
		return
	}
	p.place(parent(name))
	f := p.found[name]
	if f == nil || f.placed {
		return // a directory that has no entry
	}
	f.placed = true
	p.place(f.target)
	p.files = append(p.files, f)
}

func parent(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// read reads the layer and keeps the last entry of each name that is wanted.
func (p *plan) read(ctx context.Context, open func(context.Context) (io.ReadCloser, error), o *Options) error {
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
		if !p.wanted(name) {
			continue
		}
		f := &planned{}
		p.found[name] = f
		if e.Type == layer.HardLink {
			f.target, _ = cleanName(e.Linkname) // of one that climbs nothing comes first
		}
		if o.Lossless {
			continue // nothing is moved
		}
		if err := p.keep(f, newTOCEntry(e), header); err != nil {
			return err
		}
		if e.Type == layer.Reg {
			if err := t.body(e, p.spool.write); err != nil {
				return err
			}
		}
	}
}

// keep puts what is known of a file into the spool. The entry is kept as it will be in
// the TOC.
func (p *plan) keep(f *planned, e *tocEntry, header []byte) error {
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("keep entry of %q: %w", clip(e.Name), err)
	}
	f.at = p.spool.size
	f.header = f.at + int64(len(text))
	f.body = f.header + int64(len(header))
	return errors.Join(p.spool.write(text), p.spool.write(header))
}

// kept returns what was kept of a file; buf is used, and has the header at its end.
func (p *plan) kept(f *planned, buf []byte) (*tocEntry, []byte, error) {
	buf = buf[:0]
	err := p.spool.read(f.at, f.body-f.at, func(part []byte) error {
		buf = append(buf, part...)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	e := &tocEntry{}
	if err := json.Unmarshal(buf[:f.header-f.at], e); err != nil {
		return nil, nil, fmt.Errorf("read temporary file: %w", err)
	}
	e.clean, err = cleanName(e.Name)
	return e, buf, err
}
