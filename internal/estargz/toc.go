package estargz

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"math"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"dray/internal/layer"
)

// Names with a meaning, all at the root.
const (
	TOCName            = "stargz.index.json"
	PrefetchLandmark   = ".prefetch.landmark"
	NoPrefetchLandmark = ".no.prefetch.landmark"
)

// Defaults of [Limits].
const (
	DefaultMaxTOCBytes   = 2 << 30
	DefaultMaxEntries    = 10_000_000
	DefaultMaxEntryBytes = 1 << 20
	DefaultMaxChunkBytes = 1 << 30
)

// Limits bounds what a TOC may make its reader do. Zero is the default.
type Limits struct {
	MaxTOCBytes   int64 // uncompressed: [DefaultMaxTOCBytes]
	MaxEntries    int   // chunks count: [DefaultMaxEntries]
	MaxEntryBytes int64 // the JSON of one entry: [DefaultMaxEntryBytes]
	MaxChunkBytes int64 // of a chunk that [Reader.ReadFileAt] holds in memory: [DefaultMaxChunkBytes]
	Layer         layer.Limits
}

func (l Limits) withDefaults() Limits {
	l.MaxTOCBytes = cmp.Or(l.MaxTOCBytes, DefaultMaxTOCBytes)
	l.MaxEntries = cmp.Or(l.MaxEntries, DefaultMaxEntries)
	l.MaxEntryBytes = cmp.Or(l.MaxEntryBytes, DefaultMaxEntryBytes)
	l.MaxChunkBytes = cmp.Or(l.MaxChunkBytes, DefaultMaxChunkBytes)
	return l
}

// jsonEntry is an entry as all flavours write it.
type jsonEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	Offset      int64             `json:"offset"`
	InnerOffset int64             `json:"innerOffset"`
	EndOffset   int64             `json:"endOffset"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`
	ChunkType   string            `json:"chunkType"`
}

const typeChunk = "chunk"

// entryType returns the type that a TOC calls s.
func entryType(s string) (layer.EntryType, bool) {
	switch s {
	case "reg":
		return layer.Reg, true
	case "dir":
		return layer.Dir, true
	case "symlink":
		return layer.Symlink, true
	case "hardlink":
		return layer.HardLink, true
	case "char":
		return layer.Char, true
	case "block":
		return layer.Block, true
	case "fifo":
		return layer.FIFO, true
	}
	return 0, false
}

type sum [32]byte

// node is an entry: 56 bytes.
type node struct {
	mtime int64
	size  int64

	name     uint32 // offset in table.text
	extra    uint32 // index in table.extras plus 1, or 0
	uid, gid uint32
	nsec     uint32

	// Of a file its rows in table.chunks, of a link its target in table.text, of
	// a device its numbers.
	first, count uint32

	nameSize uint16
	mode     uint16
	typ      layer.EntryType
}

// chunkRow is a chunk: 56 bytes. It ends where the file's next one starts.
type chunkRow struct {
	offset     int64 // in the blob, of the member
	fileOffset int64
	inner      uint32
	flags      uint8
	digest     sum
}

// Flags of a chunkRow.
const (
	chunkVerified uint8 = 1 << iota // has a digest
	chunkZeros
)

// extra is what few entries have.
type extra struct {
	xattrs []layer.Xattr
	digest sum // of a file of several chunks
	has    bool
}

// table is a TOC in little memory.
type table struct {
	nodes  []node
	chunks []chunkRow
	extras []extra
	text   []byte   // names and targets
	byName []uint32 // nodes that hold, by name with '/' before all else
	byPos  []uint32 // chunks by position; nil if they already are in that order

	limits  Limits
	payload int64
	sizes   []int64 // of chunks; until finish
	open    bool    // the last node may get more chunks
	next    int64   // where its next chunk must start
}

// add takes an entry in the order of the TOC.
func (t *table) add(e *jsonEntry) error {
	if len(t.nodes)+len(t.chunks) >= t.limits.MaxEntries {
		return malformed("TOC has more than %d entries", t.limits.MaxEntries)
	}
	if e.Type == typeChunk {
		return t.addChunk(e)
	}
	if err := t.endFile(); err != nil {
		return err
	}
	n := node{size: e.Size, mode: uint16(e.Mode & 0o7777)}
	var ok bool
	if n.typ, ok = entryType(e.Type); !ok {
		return malformed("%q has the unknown type %q", clip(e.Name), clip(e.Type))
	}
	name, err := cleanName(e.Name)
	if err != nil {
		return err
	}
	n.name, n.nameSize = t.intern(name), uint16(len(name))
	for _, id := range []int64{e.UID, e.GID} {
		if id < 0 || id >= math.MaxUint32 {
			return malformed("%q has the invalid owner %d:%d", clip(e.Name), e.UID, e.GID)
		}
	}
	n.uid, n.gid = uint32(e.UID), uint32(e.GID)
	if e.ModTime != "" {
		at, err := time.Parse(time.RFC3339, e.ModTime)
		if err != nil {
			return malformed("%q has the invalid time %q", clip(e.Name), clip(e.ModTime))
		}
		n.mtime, n.nsec = at.Unix(), uint32(at.Nanosecond())
	}
	if err := t.addKind(&n, e); err != nil {
		return err
	}
	if len(e.Xattrs) > 0 {
		x := t.extraOf(&n)
		for name, value := range e.Xattrs {
			if name == "" || strings.IndexByte(name, 0) >= 0 {
				return malformed("%q has the invalid xattr name %q", clip(e.Name), clip(name))
			}
			x.xattrs = append(x.xattrs, layer.Xattr{Name: name, Value: value})
		}
		slices.SortFunc(x.xattrs, func(a, b layer.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	}
	t.nodes = append(t.nodes, n)
	if len(t.text) > math.MaxUint32-2*math.MaxUint16 {
		return malformed("TOC has too many names")
	}
	return nil
}

// addKind takes what only some types have.
func (t *table) addKind(n *node, e *jsonEntry) error {
	if n.typ != layer.Reg {
		n.size = 0
	}
	switch n.typ {
	case layer.Symlink, layer.HardLink:
		target := e.LinkName
		if n.typ == layer.HardLink {
			var err error
			if target, err = cleanName(target); err != nil {
				return err
			}
		}
		if target == "" || len(target) > math.MaxUint16 || strings.IndexByte(target, 0) >= 0 {
			return malformed("%q has the invalid target %q", clip(e.Name), clip(target))
		}
		n.first, n.count = t.intern(target), uint32(len(target))
	case layer.Char, layer.Block:
		if e.DevMajor < 0 || e.DevMajor > math.MaxUint32 || e.DevMinor < 0 || e.DevMinor > math.MaxUint32 {
			return malformed("%q has an invalid device number", clip(e.Name))
		}
		n.first, n.count = uint32(e.DevMajor), uint32(e.DevMinor)
	case layer.Reg:
		return t.addFile(n, e)
	case layer.Dir, layer.FIFO:
	}
	return nil
}

func (t *table) addFile(n *node, e *jsonEntry) error {
	if e.Size < 0 {
		return malformed("%q has the size %d", clip(e.Name), e.Size)
	}
	digest, has, err := parseSum(e.Digest)
	if err != nil {
		return err
	}
	n.first = uint32(len(t.chunks))
	if e.Size == 0 {
		return nil
	}
	t.open, t.next = true, 0
	single := e.ChunkSize == 0 || e.ChunkSize == e.Size
	if single && e.ChunkDigest == "" {
		e.ChunkDigest = e.Digest
	}
	if !single && has || e.ChunkDigest != e.Digest {
		x := t.extraOf(n)
		x.digest, x.has = digest, has
	}
	return t.addRow(n, e)
}

// addChunk takes a chunk of the last file.
func (t *table) addChunk(e *jsonEntry) error {
	if !t.open {
		return malformed("chunk of %q does not follow its file", clip(e.Name))
	}
	n := &t.nodes[len(t.nodes)-1]
	if name, err := cleanName(e.Name); err != nil || name != string(t.name(n)) {
		return malformed("chunk of %q follows %q", clip(e.Name), t.name(n))
	}
	return t.addRow(n, e)
}

func (t *table) addRow(n *node, e *jsonEntry) error {
	size := e.ChunkSize
	if size == 0 {
		size = n.size - t.next
	}
	switch {
	case e.ChunkOffset != t.next:
		return malformed("chunk of %q is at %d instead of %d", clip(e.Name), e.ChunkOffset, t.next)
	case size <= 0 || size > n.size-t.next:
		return malformed("chunk of %q at %d has the size %d", clip(e.Name), t.next, size)
	case e.Offset < 0 || e.Offset >= t.payload:
		return malformed("%q is at %d of a blob of %d", clip(e.Name), e.Offset, t.payload)
	case e.InnerOffset < 0 || e.InnerOffset > math.MaxUint32:
		return malformed("%q has the inner offset %d", clip(e.Name), e.InnerOffset)
	case e.EndOffset != 0 && (e.EndOffset <= e.Offset || e.EndOffset > t.payload):
		return malformed("%q ends at %d of a blob of %d", clip(e.Name), e.EndOffset, t.payload)
	}
	row := chunkRow{offset: e.Offset, fileOffset: t.next, inner: uint32(e.InnerOffset)}
	switch e.ChunkType {
	case "":
	case "zeros":
		row.flags |= chunkZeros
	default:
		return malformed("chunk of %q has the unknown type %q", clip(e.Name), clip(e.ChunkType))
	}
	digest, has, err := parseSum(e.ChunkDigest)
	if err != nil {
		return err
	}
	if has {
		row.digest = digest
		row.flags |= chunkVerified
	}
	t.chunks = append(t.chunks, row)
	t.sizes = append(t.sizes, size)
	n.count++
	t.next += size
	return nil
}

// endFile checks that the last file is complete.
func (t *table) endFile() error {
	if t.open {
		if n := &t.nodes[len(t.nodes)-1]; t.next != n.size {
			return malformed("%q has %d bytes in chunks instead of %d", t.name(n), t.next, n.size)
		}
	}
	t.open = false
	return nil
}

// extraOf returns the extra of n, valid until the next call.
func (t *table) extraOf(n *node) *extra {
	if n.extra == 0 {
		t.extras = append(t.extras, extra{})
		n.extra = uint32(len(t.extras))
	}
	return &t.extras[n.extra-1]
}

func (t *table) intern(s string) uint32 {
	at := uint32(len(t.text))
	t.text = append(t.text, s...)
	return at
}

func (t *table) name(n *node) []byte { return t.text[n.name:][:n.nameSize] }

func (t *table) target(n *node) []byte { return t.text[n.first:][:n.count] }

// cleanName makes name relative to the root, which is "".
func cleanName(name string) (string, error) {
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			depth--
		default:
			depth++
		}
		if depth < 0 {
			return "", malformed("name %q climbs above the root", clip(name))
		}
	}
	if len(name) > math.MaxUint16 || strings.IndexByte(name, 0) >= 0 {
		return "", malformed("invalid name %q", clip(name))
	}
	if clean := strings.TrimPrefix(path.Clean("/"+name), "/"); clean != name {
		return clean, nil
	}
	return name, nil // so that who holds both holds one
}

// parseSum reads a sha256 digest, or "".
func parseSum(s string) (digest sum, has bool, err error) {
	if s == "" {
		return digest, false, nil
	}
	text, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(text) != 2*len(digest) {
		return digest, false, malformed("invalid digest %q", clip(s))
	}
	if _, err := hex.Decode(digest[:], []byte(text)); err != nil {
		return digest, false, malformed("invalid digest %q", clip(s))
	}
	return digest, true, nil
}

// comparePaths orders paths such that what is below a directory follows it.
func comparePaths(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

// finish checks what concerns several entries and gives spare memory back.
func (t *table) finish() error {
	if err := t.endFile(); err != nil {
		return err
	}
	t.nodes, t.chunks, t.extras = slices.Clone(t.nodes), slices.Clone(t.chunks), slices.Clone(t.extras)
	t.text = bytes.Clone(t.text)
	t.index()
	if err := t.checkTree(); err != nil {
		return err
	}
	return t.checkChunks()
}

// index sorts the names; of equal ones the last stays.
func (t *table) index() {
	all := make([]uint32, len(t.nodes))
	for i := range all {
		all[i] = uint32(i)
	}
	slices.SortFunc(all, func(a, b uint32) int {
		return cmp.Or(comparePaths(t.name(&t.nodes[a]), t.name(&t.nodes[b])), cmp.Compare(a, b))
	})
	kept := all[:0]
	for i, n := range all {
		if i+1 == len(all) || !bytes.Equal(t.name(&t.nodes[n]), t.name(&t.nodes[all[i+1]])) {
			kept = append(kept, n)
		}
	}
	t.byName = kept
}

// find returns the index of the node named name.
func (t *table) find(name []byte) (uint32, bool) {
	i, ok := sort.Find(len(t.byName), func(i int) int {
		return comparePaths(name, t.name(&t.nodes[t.byName[i]]))
	})
	if !ok {
		return 0, false
	}
	return t.byName[i], true
}

// checkTree refuses what is below something that is no directory, and links to
// nothing.
func (t *table) checkTree() error {
	const maxLinks = 64
	for _, i := range t.byName {
		n := &t.nodes[i]
		name := t.name(n)
		// Names that have no node are directories that nobody mentioned.
		for end := bytes.LastIndexByte(name, '/'); end > 0; end = bytes.LastIndexByte(name[:end], '/') {
			if p, ok := t.find(name[:end]); ok {
				if t.nodes[p].typ != layer.Dir {
					return malformed("%q is below %q, which is a %s", clip(string(name)), clip(string(name[:end])), t.nodes[p].typ)
				}
				break
			}
		}
		for links := 0; n.typ == layer.HardLink; links++ {
			target, ok := t.find(t.target(n))
			if !ok || links == maxLinks || t.nodes[target].typ == layer.Dir {
				return malformed("%q is a hard link to %q, which is no file", clip(string(name)), clip(string(t.target(n))))
			}
			n = &t.nodes[target]
		}
	}
	if root, ok := t.find(nil); ok && t.nodes[root].typ != layer.Dir {
		return malformed("the root is a %s", t.nodes[root].typ)
	}
	return nil
}

// checkChunks refuses chunks that share bytes.
func (t *table) checkChunks() error {
	compare := func(a, b *chunkRow) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.inner, b.inner))
	}
	sorted := true
	for i := 1; i < len(t.chunks) && sorted; i++ {
		sorted = compare(&t.chunks[i-1], &t.chunks[i]) < 0
	}
	if !sorted {
		t.byPos = make([]uint32, len(t.chunks))
		for i := range t.byPos {
			t.byPos[i] = uint32(i)
		}
		slices.SortFunc(t.byPos, func(a, b uint32) int { return compare(&t.chunks[a], &t.chunks[b]) })
	}
	for i := 1; i < len(t.chunks); i++ {
		at := t.rowAt(i - 1)
		a, b := &t.chunks[at], &t.chunks[t.rowAt(i)]
		if a.offset == b.offset && int64(a.inner)+t.sizes[at] > int64(b.inner) {
			return malformed("chunks at %d of the blob overlap", a.offset)
		}
	}
	t.sizes = nil
	return nil
}

// rowSize returns the size of one of n's chunks.
func (t *table) rowSize(n *node, row uint32) int64 {
	if row+1 < n.first+n.count {
		return t.chunks[row+1].fileOffset - t.chunks[row].fileOffset
	}
	return n.size - t.chunks[row].fileOffset
}

// rowAt returns the row at position i of the blob.
func (t *table) rowAt(i int) uint32 {
	if t.byPos == nil {
		return uint32(i)
	}
	return t.byPos[i]
}

// memberEnd returns an offset at or behind the end of the members that hold the
// chunk at offset: where the next chunk that starts a member is.
func (t *table) memberEnd(offset int64) int64 {
	i := sort.Search(len(t.chunks), func(i int) bool { return t.chunks[t.rowAt(i)].offset > offset })
	if i == len(t.chunks) {
		return t.payload
	}
	return t.chunks[t.rowAt(i)].offset
}
