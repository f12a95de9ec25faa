package retar

import (
	"errors"
	"fmt"
)

// ErrTree reports a tree that no layer can have become: sockets, mounts in it, names
// that are too long, files that change.
var ErrTree = errors.New("not the tree of a layer")

// Form is how a program writes a tree as a tar. The zero value is none.
type Form struct {
	name   string
	encode encoding
	order  order
	root   rooted
	dot    bool // names begin with "./"
	names  bool // of owner 0: "root"
	typed  bool // the mode has the type too
	lean   bool // directories without an entry of their own are left out, see [node.implicit]
	ends   int  // the size is a multiple of this
}

// String returns the form's name.
func (f Form) String() string {
	if f.lean {
		return f.name + ", parents left out"
	}
	return f.name
}

// encoding is how an entry's header is written.
type encoding uint8

const (
	goPAX    encoding = iota // Go's archive/tar in PAX format, whole seconds
	gnu                      // GNU tar's own format
	exactPAX                 // ours, all that a tree has
)

// order is in which order entries stand. A directory always precedes what is in it.
type order uint8

const (
	byName order = iota // a directory's entries by name, each followed by what is below it
	byPath              // by the bytes of the whole path, so that "a-b" precedes "a/b"
)

// rooted is how the root's own entry is called.
type rooted uint8

const (
	noRoot   rooted = iota // there is none
	dotRoot                // "./"
	bareRoot               // "."
)

// Sizes that tars are padded to, behind the two blocks of zeros at their end.
const (
	blockBytes  = 512
	recordBytes = 20 * blockBytes // GNU's default
)

// Forms returns the known forms, the most frequent first.
func Forms() []Form {
	return []Form{
		{name: "containerd, BuildKit", encode: goPAX, ends: blockBytes},
		{name: "docker, podman, buildah", encode: goPAX, typed: true, ends: blockBytes},
		{name: "docker, by path", encode: goPAX, typed: true, order: byPath, ends: blockBytes},
		{name: "Go, by path", encode: goPAX, order: byPath, ends: blockBytes},
		{name: "Go with names of owners", encode: goPAX, names: true, ends: blockBytes},
		{name: "docker with names of owners", encode: goPAX, names: true, typed: true, ends: blockBytes},
		{name: "umoci", encode: goPAX, order: byPath, root: bareRoot, ends: blockBytes},
		{name: "GNU tar", encode: gnu, names: true, root: dotRoot, dot: true, ends: recordBytes},
		{name: "GNU tar, numeric owners", encode: gnu, root: dotRoot, dot: true, ends: recordBytes},
		{name: "debuerreotype", encode: gnu, root: dotRoot, ends: recordBytes},
		{name: "GNU tar, no dots", encode: gnu, names: true, ends: recordBytes},
		{name: "GNU tar, no dots, numeric owners", encode: gnu, ends: recordBytes},
		Exact(),
	}
}

// Exact returns the form that has all that a tree has: fractions of seconds, extended
// attributes, holes. dray's own layers are copied in it.
func Exact() Form {
	return Form{name: "exact", encode: exactPAX, root: dotRoot, dot: true, ends: blockBytes}
}

// node is an entry of the tree.
type node struct {
	path  string // below the root, without a slash at either end; "" is the root
	kind  byte   // as archive/tar's Typeflag
	mode  uint32 // permissions, setuid, setgid, sticky
	uid   uint32
	gid   uint32
	size  int64 // of a file
	sec   int64
	nsec  uint32
	link  string // target of a link
	major uint32
	minor uint32

	xattrs   []xattr
	sparse   []extent // what is stored of a file with holes, nil if it has none
	whiteout bool     // path is that of the whiteout
	opaque   bool     // path is that of the mark, the rest that of its directory
}

// implicit tells whether a directory is as unpacking makes those that a tar has no
// entry for: then nobody knows whether it had one.
func (n *node) implicit() bool {
	return n.kind == typeDir && n.mode == 0o755 && n.uid == 0 && n.gid == 0 && n.sec == 0 && n.nsec == 0 && len(n.xattrs) == 0
}

type xattr struct{ name, value string }

type extent struct{ offset, size int64 }

// stored returns how many bytes of content the archive has.
func (n *node) stored() int64 {
	if n.sparse == nil {
		return n.size
	}
	var sum int64
	for _, x := range n.sparse {
		sum += x.size
	}
	return sum
}

// header returns everything before the entry's content.
func (f Form) header(n *node) ([]byte, error) {
	var raw []byte
	var err error
	switch f.encode {
	case goPAX:
		raw, err = f.goHeader(n)
	case gnu:
		raw = f.gnuHeader(n)
	case exactPAX:
		raw, err = exactHeader(n)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", n.path, err)
	}
	return raw, nil
}

// entryName returns the name as it stands in the archive.
func (f Form) entryName(n *node) string {
	name := n.path
	switch {
	case name == "" && f.root == bareRoot:
		return "."
	case name == "" || f.dot:
		name = "./" + name
	}
	if n.kind == typeDir && n.path != "" {
		name += "/"
	}
	return name
}

// linkName returns the target as it stands in the archive: that of a hard link is a
// name like others.
func (f Form) linkName(n *node) string {
	if f.dot && n.kind == typeLink {
		return "./" + n.link
	}
	return n.link
}
