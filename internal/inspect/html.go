package inspect

import (
	"bytes"
	"cmp"
	_ "embed" // the page
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"path"
	"slices"
	"strings"

	"dray/internal/estargz"
)

// Parts of the page.
var (
	//go:embed page/page.html
	pageHTML string
	//go:embed page/page.css
	pageCSS string
	//go:embed page/page.js
	pageScript string
)

const (
	maxSegments = 4000 // that a layer's map is drawn of
	maxFolders  = 16
	maxListed   = 500 // files to be fetched first
)

// Kinds of segments, as the page has them.
const (
	kindFirst  = "first"
	kindFile   = "file"
	kindChunk  = "chunk"
	kindShared = "shared"
	kindMeta   = "meta"
	kindTOC    = "toc"
)

// segment is a part of a blob that holds one kind of thing.
type segment struct {
	From    int64  `json:"from"`
	To      int64  `json:"to"`
	Kind    string `json:"kind"`
	Label   string `json:"label"`
	Raw     int64  `json:"raw,omitempty"`     // uncompressed, of files
	Members int    `json:"members,omitempty"` // that were put together
}

// folder is what a directory takes of a layer.
type folder struct {
	Name   string `json:"name"`
	Files  int    `json:"files"`
	Raw    int64  `json:"raw"`
	Stored int64  `json:"stored"` // what members hold, shared by the size of their files
	First  int64  `json:"first"`  // of Stored
}

// drawn is a layer as the page draws it: without its entries.
type drawn struct {
	*Layer

	Entries       []Entry   `json:"entries,omitempty"` // nil: hides the layer's
	Prefetch      []string  `json:"prefetch,omitempty"`
	PrefetchCount int       `json:"prefetch_count"`
	Segments      []segment `json:"segments"`
	Folders       []folder  `json:"folders"`
}

// HTML writes a page that needs nothing else and shows which bytes of the layers
// hold what. The report must have its entries.
func (r *Report) HTML(w io.Writer) error {
	page, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return fmt.Errorf("draw layers: %w", err)
	}
	layers := make([]drawn, len(r.Layers))
	for i, l := range r.Layers {
		members := l.members()
		layers[i] = drawn{
			Layer: l, Prefetch: l.Prefetch[:min(len(l.Prefetch), maxListed)], PrefetchCount: len(l.Prefetch),
			Segments: l.segments(members), Folders: l.folders(members),
		}
	}
	data, err := json.Marshal(struct {
		*Report

		Layers []drawn `json:"layers"`
	}{r, layers})
	if err != nil {
		return fmt.Errorf("draw layers: %w", err)
	}
	var text bytes.Buffer
	err = page.Execute(&text, map[string]any{
		"Reference": r.Reference, "Manifest": r.Manifest, "Platform": r.Platform,
		"CSS": template.CSS(pageCSS), "Data": template.JS(data), "Script": template.JS(pageScript), //nolint:gosec // ours; json.Marshal escapes what a script must not have
	})
	if err == nil {
		_, err = w.Write(text.Bytes())
	}
	if err != nil {
		return fmt.Errorf("draw layers: %w", err)
	}
	return nil
}

// member is one member of a blob and what it holds.
type member struct {
	from, to int64
	parts    []part
	several  bool // its file has other chunks, too
}

// part is a file's chunk in a member.
type part struct {
	name string
	size int64
	meta bool
}

// members returns the blob's members that hold files, in their order.
func (l *Layer) members() []member {
	byOffset := map[int64]int{}
	var all []member
	for i := range l.Entries {
		e := &l.Entries[i]
		for _, c := range e.Chunks {
			if c.Zeros {
				continue
			}
			at, ok := byOffset[c.Offset]
			if !ok {
				at = len(all)
				byOffset[c.Offset] = at
				all = append(all, member{from: c.Offset, to: c.EndOffset})
			}
			all[at].parts = append(all[at].parts, part{name: e.Name, size: c.Size, meta: estargz.IsMeta(e.Name)})
			all[at].several = all[at].several || len(e.Chunks) > 1
		}
	}
	slices.SortFunc(all, func(a, b member) int { return cmp.Compare(a.from, b.from) })
	return all
}

// segments covers the blob from its start to its end.
func (l *Layer) segments(members []member) []segment {
	first := l.firstNames()
	var all []segment
	at := int64(0)
	add := func(s segment) {
		if s.From > at {
			all = append(all, segment{From: at, To: s.From, Kind: kindMeta, Label: "headers of directories, links and the like"})
		}
		if s.To > s.From {
			all = append(all, s)
			at = s.To
		}
	}
	for _, m := range members {
		s := segment{From: m.from, To: min(m.to, l.payloadEnd()), Kind: l.kind(&m, first), Label: m.parts[0].name, Members: 1}
		if len(m.parts) > 1 {
			s.Label = fmt.Sprintf("%s and %d more", s.Label, len(m.parts)-1)
		}
		for _, p := range m.parts {
			s.Raw += p.size
		}
		add(s)
	}
	for _, s := range l.added() {
		add(s)
	}
	return condense(all, l.SizeBytes/maxSegments)
}

// added returns what the format has put behind the tar, in its order.
func (l *Layer) added() []segment {
	var all []segment
	for label, s := range map[string]*Span{"TOC": l.TOC, "tar-split": l.TarSplit} {
		if s != nil {
			all = append(all, segment{From: s.Offset, To: s.Offset + s.Size, Kind: kindTOC, Label: label, Raw: s.RawSize})
		}
	}
	slices.SortFunc(all, func(a, b segment) int { return cmp.Compare(a.From, b.From) })
	at := l.payloadEnd()
	for i := range all {
		all[i].From = min(all[i].From, at) // with the header of its frame
		at = all[i].To
	}
	return append(all, segment{From: at, To: l.SizeBytes, Kind: kindTOC, Label: "footer"})
}

// payloadEnd is where headers end and what was added to the tar begins.
func (l *Layer) payloadEnd() int64 {
	if l.PayloadBytes > 0 {
		return l.PayloadBytes
	}
	return l.SizeBytes
}

// kind tells what a member holds.
func (l *Layer) kind(m *member, first map[string]bool) string {
	at := slices.IndexFunc(m.parts, func(p part) bool { return !p.meta })
	switch {
	case at < 0:
		return kindMeta
	case m.to <= l.PrefetchBytes && l.Landmark == estargz.PrefetchLandmark || first[m.parts[at].name]:
		return kindFirst
	case len(m.parts)-at > 1:
		return kindShared
	case m.several:
		return kindChunk
	}
	return kindFile
}

func (l *Layer) firstNames() map[string]bool {
	names := map[string]bool{}
	for _, name := range l.Prefetch {
		names[name] = true
	}
	return names
}

// condense puts neighbours of one kind together while they are less than least
// bytes, so that the page of a layer of a million files can be drawn.
func condense(all []segment, least int64) []segment {
	var out []segment
	for _, s := range all {
		if n := len(out) - 1; n >= 0 && out[n].Kind == s.Kind && s.To-out[n].From <= least {
			out[n].To = s.To
			out[n].Raw += s.Raw
			out[n].Members += s.Members
			continue
		}
		out = append(out, s)
	}
	return out
}

// folders returns the directories that take the most, two levels deep.
func (l *Layer) folders(members []member) []folder {
	first := l.firstNames()
	byName := map[string]*folder{}
	var all []*folder
	at := func(name string) *folder {
		f := byName[name]
		if f == nil {
			f = &folder{Name: name}
			byName[name] = f
			all = append(all, f)
		}
		return f
	}
	for i := range l.Entries {
		if e := &l.Entries[i]; len(e.Chunks) > 0 && !estargz.IsMeta(e.Name) {
			f := at(folderOf(e.Name))
			f.Files++
			f.Raw += e.Size
		}
	}
	for _, m := range members {
		raw := int64(0)
		for _, p := range m.parts {
			raw += p.size
		}
		for _, p := range m.parts {
			if p.meta || raw == 0 {
				continue
			}
			stored := int64(float64(m.to-m.from) * float64(p.size) / float64(raw))
			f := at(folderOf(p.name))
			f.Stored += stored
			if l.kind(&member{from: m.from, to: m.to, parts: []part{p}}, first) == kindFirst {
				f.First += stored
			}
		}
	}
	slices.SortFunc(all, func(a, b *folder) int { return cmp.Or(cmp.Compare(b.Stored, a.Stored), cmp.Compare(a.Name, b.Name)) })
	out := make([]folder, 0, maxFolders)
	for i, f := range all {
		if i < maxFolders-1 || len(all) == maxFolders {
			out = append(out, *f)
			continue
		}
		if i == maxFolders-1 {
			out = append(out, folder{Name: fmt.Sprintf("%d others", len(all)-i)})
		}
		rest := &out[maxFolders-1]
		rest.Files, rest.Raw, rest.Stored, rest.First = rest.Files+f.Files, rest.Raw+f.Raw, rest.Stored+f.Stored, rest.First+f.First
	}
	return out
}

// folderOf returns a file's directory, two levels deep.
func folderOf(name string) string {
	const levels = 2
	parts := strings.SplitN(path.Dir(name), "/", levels+1)
	return "/" + strings.TrimPrefix(path.Join(parts[:min(len(parts), levels)]...), ".")
}
