package testkit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// Expect returns the tree that the layers, bottom first, become when they are
// stacked: a model in memory, written for clarity, against which the sinks and the
// mounts are held. It knows well-formed entries; names that escape are clipped at
// the root. A directory for which the topmost layer that has something below it
// has no entry is implicit: pullers that unpack layers apart give it attributes of
// their own.
func Expect(layers ...[]Entry) Nodes {
	m := model{nodes: Nodes{".": {Type: "dir", Implicit: true}}, inodes: map[string]string{}}
	for _, entries := range layers {
		m.apply(entries)
	}
	m.link()
	return m.nodes
}

// model is a file tree. Hard links share an inode's name.
type model struct {
	nodes  Nodes
	inodes map[string]string // path of a hard link or its target → inode
	count  int
}

// apply puts one layer on top: first what it deletes, then what it has.
func (m *model) apply(entries []Entry) {
	for _, e := range entries {
		name := clean(e.Name)
		dir, base := path.Split(name)
		hidden, ok := strings.CutPrefix(base, ".wh.")
		switch {
		case e.Raw != nil || !ok:
		case hidden == ".wh..opq":
			m.removeBelow(clean(dir))
		case !strings.HasPrefix(hidden, ".wh."): // the rest is AUFS's
			m.remove(path.Join(dir, hidden))
		}
	}
	explicit := map[string]bool{}
	for _, e := range entries {
		if e.Raw == nil && e.Type == TypeDir {
			explicit[clean(e.Name)] = true
		}
	}
	if !explicit["."] {
		m.nodes["."] = Node{Type: "dir", Implicit: true}
	}
	for _, e := range entries {
		if e.Raw != nil {
			continue
		}
		for parent := path.Dir(clean(e.Name)); parent != "."; parent = path.Dir(parent) {
			if !explicit[parent] && m.nodes[parent].Type == "dir" {
				m.nodes[parent] = Node{Type: "dir", Implicit: true}
			}
		}
		if !strings.HasPrefix(path.Base(clean(e.Name)), ".wh.") {
			m.add(e)
		}
	}
}

// clean returns a name as a path in the tree.
func clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}

func (m *model) remove(name string) {
	delete(m.nodes, name)
	delete(m.inodes, name)
	m.removeBelow(name)
}

func (m *model) removeBelow(name string) {
	for p := range m.nodes {
		if p != "." && (name == "." || strings.HasPrefix(p, name+"/")) {
			delete(m.nodes, p)
			delete(m.inodes, p)
		}
	}
}

func (m *model) add(e Entry) {
	name := clean(e.Name)
	for i := range name {
		parent := name[:i]
		if name[i] == '/' && m.nodes[parent].Type != "dir" {
			m.remove(parent)
			m.nodes[parent] = Node{Type: "dir", Implicit: true}
		}
	}
	if e.Type == TypeHardlink {
		target := clean(e.Link)
		m.remove(name)
		m.nodes[name] = m.nodes[target]
		if m.inodes[target] == "" {
			m.count++
			m.inodes[target] = fmt.Sprint(m.count)
		}
		m.inodes[name] = m.inodes[target]
		return
	}
	if old := m.nodes[name]; old.Type != "dir" || e.Type != TypeDir {
		m.remove(name)
	}
	m.nodes[name] = e.node()
}

// node returns what the entry says of its path.
func (e Entry) node() Node {
	n := Node{Mode: e.Mode, UID: uint32(e.UID), GID: uint32(e.GID), MTime: mtime(e.Sec, e.Nsec)}
	switch e.Type {
	case TypeFile:
		n.Type, n.Size, n.SHA256 = "file", e.Size, e.sum()
	case TypeDir:
		n.Type = "dir"
	case TypeSymlink:
		n.Type, n.Mode, n.Link = "symlink", 0, e.Link
	case TypeChar:
		n.Type, n.Rdev = "char", rdev(e.Major, e.Minor)
	case TypeBlock:
		n.Type, n.Rdev = "block", rdev(e.Major, e.Minor)
	case TypeFifo:
		n.Type = "fifo"
	}
	for _, x := range e.Xattrs {
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[x.Key] = x.Value
	}
	return n
}

// sum returns the digest of the file as it reads, holes included.
func (e Entry) sum() string {
	h := sha256.New()
	if e.Body == nil {
		return hex.EncodeToString(h.Sum(nil))
	}
	body := e.Body()
	extents := e.Sparse
	if e.SparseAs == NotSparse {
		extents = []Extent{{0, e.Size}}
	}
	var at int64
	for _, x := range extents {
		_, _ = io.CopyN(h, zeroReader{}, x.Offset-at) // a hash takes everything
		_, _ = io.CopyN(h, body, x.Size)
		at = x.Offset + x.Size
	}
	_, _ = io.CopyN(h, zeroReader{}, e.Size-at)
	return hex.EncodeToString(h.Sum(nil))
}

// link names the first path of each file that has several.
func (m *model) link() {
	first, count := map[string]string{}, map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(m.inodes)) {
		id := m.inodes[name]
		if count[id]++; first[id] == "" {
			first[id] = name
		}
	}
	for name, id := range m.inodes {
		if count[id] > 1 {
			n := m.nodes[name]
			n.Same = first[id]
			m.nodes[name] = n
		}
	}
}
