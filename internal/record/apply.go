package record

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"path"
	"slices"
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

// Apply finds, for each path of a record, the one layer whose copy a container
// would see. layers are the names of each, bottom first, read in this order, each
// once; their error ends it. Which manifest and layer the entries name does not
// matter: a record of another build of the image is as good as its paths. A path
// that is not in the image is looked for by its content, where both the entry and
// the names have digests.
//
// Nothing is held of either: what the layers say of paths that are wanted, or of
// what is above them, is put in the order of a walk through the tree, with the paths
// themselves, so that one pass sees who hides whom.
func Apply(ctx context.Context, entries *List, layers []iter.Seq2[Name, error]) (*Plan, error) {
	p := &Plan{Layers: make([]LayerPlan, len(layers)), found: &spool{}}
	s := &search{plan: p}
	defer s.close()
	err := s.want(entries)
	for i, names := range layers {
		if err == nil {
			if err = s.layer(ctx, i, names); err != nil {
				err = fmt.Errorf("read names of layer %d: %w", i, err)
			}
		}
	}
	for _, step := range []func(context.Context) error{s.walk, s.follow, s.choose, s.write} {
		if err == nil {
			err = step(ctx)
		}
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// ContentSizes tells whether a file of some size may have the content of an entry,
// so that nobody computes digests that [Apply] will not look for.
func ContentSizes(entries *List) (func(sizeBytes int64) bool, error) {
	sizes := map[int64]struct{}{}
	many := false
	for e, err := range entries.All() {
		if err != nil {
			return nil, err
		}
		if e.ContentDigest != "" && e.Size > 0 && len(sizes) < maxSizes {
			sizes[e.Size] = struct{}{}
			many = len(sizes) == maxSizes
		}
	}
	return func(size int64) bool {
		_, ok := sizes[size]
		return ok || many && size > 0
	}, nil
}

// maxSizes bounds the sizes that are told apart: of more, every file's digest is
// computed.
const maxSizes = 1 << 17

// search goes through the layers, and then through the tree.
type search struct {
	plan   *Plan
	wanted filter // paths, what is above them, and contents

	contents bool   // some are wanted
	tree     sorter // names and wanted paths, as a walk meets them
	content  sorter // visible files with digests, and paths that are missing
	chosen   sorter // what was found for paths, by its name
	results  sorter // in the order of the plan
	seq      uint32 // of names
	item     []byte
}

func (s *search) close() {
	for _, sorter := range []*sorter{&s.tree, &s.content, &s.chosen, &s.results} {
		sorter.close()
	}
}

// Kinds of what is known of a path in the tree, in this order.
const (
	kindName   = iota + 1 // layer, number, flags, size, digest
	kindWanted            // number, content digest
)

// Flags of a name.
const (
	flagListed = 1 << iota // the layer has it
	flagHides              // it hides what lower layers have there, and below
	flagOpaque             // it hides what lower layers have below
)

// key starts an item of the tree. Slashes become zero bytes, which no name has, so
// that what is below a directory follows it at once.
func (s *search) key(name string) {
	s.item = append(s.item[:0], name...)
	for i, c := range s.item {
		if c == '/' {
			s.item[i] = 0
		}
	}
	s.item = append(s.item, 0, 0)
}

// want takes the paths to find.
func (s *search) want(entries *List) error {
	nodes := 0
	for e, err := range entries.All() {
		if err != nil {
			return err
		}
		nodes += 2 + strings.Count(e.Path, "/")
		s.contents = s.contents || e.ContentDigest != "" && e.Size > 0
	}
	s.wanted.size(nodes)
	i := uint32(0)
	for e, err := range entries.All() {
		if err != nil {
			return err
		}
		s.wanted.addPath(e.Path)
		s.key(e.Path)
		s.item = binary.BigEndian.AppendUint32(append(s.item, kindWanted), i)
		if e.ContentDigest != "" && e.Size > 0 {
			s.item = append(s.item, e.ContentDigest...)
			s.wanted.add(string(e.ContentDigest))
		}
		if err := s.tree.add(s.item); err != nil {
			return err
		}
		i++
	}
	return nil
}

// layer looks through one layer.
func (s *search) layer(ctx context.Context, i int, names iter.Seq2[Name, error]) error {
	l := &s.plan.Layers[i]
	for n, err := range names {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, ok := cleanPath(n.Path)
		if !ok {
			continue // the root
		}
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/") // "" of what is at the root
		flags := byte(flagListed)
		switch {
		case base == opaque:
			name, flags, n = dir, flagOpaque, Name{}
		case strings.HasPrefix(base, whiteout):
			name, flags, n = strings.Trim(dir+"/"+base[len(whiteout):], "/"), flagHides, Name{}
		case !n.IsDir:
			flags |= flagHides
			l.TotalFiles++
			l.TotalBytes += n.Size
		}
		if err := s.name(i, name, flags, &n); err != nil {
			return err
		}
	}
	return nil
}

// name takes what a layer says of a path.
func (s *search) name(layer int, name string, flags byte, n *Name) error {
	content := s.contents && n.Digest != "" && n.Size > 0 && s.wanted.has(string(n.Digest))
	if content {
		s.wanted.addPath(name) // so that it is known who hides it
	} else if name != "" && !s.wanted.has(name) {
		return nil
	}
	s.key(name)
	s.item = binary.BigEndian.AppendUint32(append(s.item, kindName), uint32(layer))
	s.item = binary.BigEndian.AppendUint32(s.item, s.seq)
	s.item = binary.BigEndian.AppendUint64(append(s.item, flags), uint64(n.Size))
	s.seq++
	if content {
		s.item = append(s.item, n.Digest...)
	}
	return s.tree.add(s.item)
}

// place is where a path was found.
type place struct {
	layer  int // -1: nowhere
	seq    uint32
	size   int64
	digest []byte // if it is wanted
}

// node is a path on the walk. Layers are numbers from the bottom; -1 is none.
type node struct {
	at     place // of the copy in the highest layer
	above  int   // the highest layer that hides what lower ones have, by what is above the path
	hides  int   // the highest that hides the path and what is below it
	opaque int   // the highest that hides what is below it
	asked  bool  // the record has it
}

// visible tells whether a container would see the copy. A layer never hides what is
// its own.
func (n *node) visible() bool { return n.at.layer >= 0 && n.at.layer >= max(n.above, n.hides) }

// step is a path that the walk is below of.
type step struct {
	keyBytes int // of the path's key, without its end
	covers   int // the highest layer that hides what lower ones have there
}

// walk goes through the tree: a path follows what is above it.
func (s *search) walk(ctx context.Context) error {
	var above []step
	var key []byte
	n, started := node{}, false
	for item, err := range s.tree.sorted(ctx) {
		if err != nil {
			return err
		}
		end := bytes.Index(item, []byte{0, 0})
		if next := item[:end]; !started || !bytes.Equal(next, key) {
			if started {
				above = append(above, step{len(key), max(n.above, n.hides, n.opaque)})
				if err := s.candidate(key, &n); err != nil {
					return err
				}
			}
			for len(above) > 0 && !isBelow(next, key[:above[len(above)-1].keyBytes]) {
				above = above[:len(above)-1]
			}
			key, started = append(key[:0], next...), true
			n = node{at: place{layer: -1, digest: n.at.digest[:0]}, above: -1, hides: -1, opaque: -1}
			if len(above) > 0 {
				n.above = above[len(above)-1].covers
			}
		}
		if err := s.meet(key, &n, item[end+2:]); err != nil {
			return err
		}
	}
	if !started {
		return nil
	}
	return s.candidate(key, &n)
}

// isBelow tells whether a key is of a path below another.
func isBelow(key, dir []byte) bool {
	return len(dir) == 0 || len(key) > len(dir) && key[len(dir)] == 0 && bytes.HasPrefix(key, dir)
}

// meet takes what is known of the path that the walk is at.
func (s *search) meet(key []byte, n *node, item []byte) error {
	number := binary.BigEndian.Uint32(item[1:])
	if item[0] == kindWanted {
		if n.asked {
			return nil // by an entry before this one
		}
		n.asked = true
		return s.wantedAt(key, n, number, item[5:])
	}
	layer, flags := int(number), item[9]
	if flags&flagHides != 0 {
		n.hides = layer
	}
	if flags&flagOpaque != 0 {
		n.opaque = layer
	}
	if flags&flagListed != 0 {
		size := int64(binary.BigEndian.Uint64(item[10:]))
		n.at = place{layer: layer, seq: binary.BigEndian.Uint32(item[5:]), size: size, digest: append(n.at.digest[:0], item[18:]...)}
	}
	return nil
}

// nameOf appends the path of a key.
func nameOf(b, key []byte) []byte {
	from := len(b)
	b = append(b, key...)
	for i := from; i < len(b); i++ {
		if b[i] == 0 {
			b[i] = '/'
		}
	}
	return b
}

// wantedAt says what becomes of a path of the record.
func (s *search) wantedAt(key []byte, n *node, index uint32, content []byte) error {
	if n.visible() {
		s.plan.Matched++
		return s.found(nameOf(nil, key), index, n.at.layer, n.at.size)
	}
	if len(content) == 0 {
		return s.result(resultMissing, index, nameOf(nil, key))
	}
	s.item = append(append(s.item[:0], content...), 0, contentWanted)
	s.item = binary.BigEndian.AppendUint32(s.item, index)
	return s.content.add(nameOf(s.item, key))
}

// Kinds of what is known of a content, in this order.
const (
	contentName   = iota + 1 // layer, number, size, name
	contentWanted            // number, path
)

// candidate notes a file that has a content that is wanted, maybe under another name.
func (s *search) candidate(key []byte, n *node) error {
	if len(n.at.digest) == 0 || !n.visible() {
		return nil
	}
	s.item = append(append(s.item[:0], n.at.digest...), 0, contentName)
	s.item = binary.BigEndian.AppendUint32(s.item, uint32(n.at.layer))
	s.item = binary.BigEndian.AppendUint32(s.item, n.at.seq)
	s.item = binary.BigEndian.AppendUint64(s.item, uint64(n.at.size))
	return s.content.add(nameOf(s.item, key))
}

// follow finds by their content what was not found by its path.
func (s *search) follow(ctx context.Context) error {
	var digest, to []byte
	layer, size := -1, int64(0)
	for item, err := range s.content.sorted(ctx) {
		if err != nil {
			return err
		}
		end := bytes.IndexByte(item, 0)
		if !bytes.Equal(digest, item[:end]) {
			digest, layer = append(digest[:0], item[:end]...), -1
		}
		number := binary.BigEndian.Uint32(item[end+2:])
		if item[end+1] == contentName {
			if layer < 0 { // the lowest, and there the first
				layer, size = int(number), int64(binary.BigEndian.Uint64(item[end+10:]))
				to = append(to[:0], item[end+18:]...)
			}
			continue
		}
		from := item[end+6:]
		if layer < 0 {
			err = s.result(resultMissing, number, from)
		} else {
			s.plan.Matched++
			if err = s.result(resultMoved, number, slices.Concat(from, []byte{0}, to)); err == nil {
				err = s.found(to, number, layer, size)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// found notes the file that stands for an entry.
func (s *search) found(name []byte, index uint32, layer int, size int64) error {
	s.item = append(append(s.item[:0], name...), 0)
	s.item = binary.BigEndian.AppendUint32(s.item, index)
	s.item = binary.BigEndian.AppendUint32(s.item, uint32(layer))
	return s.chosen.add(binary.BigEndian.AppendUint64(s.item, uint64(size)))
}

// choose takes each file once, for the first entry that it stands for.
func (s *search) choose(ctx context.Context) error {
	var last []byte
	for item, err := range s.chosen.sorted(ctx) {
		if err != nil {
			return err
		}
		name, rest := cutPath(item)
		if bytes.Equal(name, last) {
			continue
		}
		last = append(last[:0], name...)
		index, layer := binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:])
		s.plan.Layers[layer].Bytes += int64(binary.BigEndian.Uint64(rest[8:]))
		if err := s.result(resultLayer+layer, index, name); err != nil {
			return err
		}
		if err := s.result(resultKept, index, slices.Concat(rest[:8], name)); err != nil {
			return err
		}
	}
	return nil
}

// Kinds of results, in this order.
const (
	resultMissing uint32 = iota
	resultMoved
	resultKept
	resultLayer // of the lowest layer, and so on
)

func (s *search) result(kind, index uint32, text []byte) error {
	item := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(text)), kind)
	return s.results.add(append(binary.BigEndian.AppendUint32(item, index), text...))
}

// write makes the plan's lists.
func (s *search) write(ctx context.Context) error {
	p := s.plan
	for item, err := range s.results.sorted(ctx) {
		if err != nil {
			return err
		}
		var to *Paths
		kind, text := binary.BigEndian.Uint32(item), item[8:]
		switch kind {
		case resultMissing:
			to = &p.Missing
		case resultMoved:
			to = &p.moved
			from, _ := cutPath(text)
			if err := to.add(p.found, from); err != nil {
				return err
			}
			text = text[len(from)+1:]
		case resultKept:
			to = &p.kept
		default:
			to = &p.Layers[kind-resultLayer].Paths
		}
		if err := to.add(p.found, text); err != nil {
			return err
		}
	}
	return p.found.flush()
}
