package erofs

import (
	"errors"
	"fmt"
	"hash/maphash"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// DefaultMaxBytes is how much of an index is in memory, unless told otherwise.
const DefaultMaxBytes = 1 << 19

// BytesPerEntry is the most memory that an entry takes, its name not included.
const BytesPerEntry = 180

// Options of [Copy]. The zero value is good.
type Options struct {
	// MaxBytes of memory are held by the index; 0: [DefaultMaxBytes]. What exceeds
	// them is put into a file without a name in Dir.
	MaxBytes int64

	// Dir is on a disk, on a file system that has files without names (O_TMPFILE);
	// "": the system's directory for temporary files.
	Dir string

	// DeviceOffset is where in the index's device the tar begins, in bytes: a multiple
	// of 512. It is not 0 where the tar is a part of a larger file.
	DeviceOffset int64
}

// Result counts what is in a layer. The words are those of package apply.
type Result struct {
	Entries int64 // of the tar
	Inodes  int64 // of the tree

	Whiteouts  int64
	OpaqueDirs int64
	OpaqueRoot bool // the root is opaque, which overlayfs does not heed
	Replaced   int64

	OverlayXattrsDropped int64 // never taken from an image
	XattrsImpossible     int64 // Linux has no place for them
}

// none is no inode, no directory entry.
const none = 1<<32 - 1

// inode is a file of any type. Directories have no hard links.
type inode struct {
	// size of a file or a link's target; of a directory when it is laid out, and
	// before that the number of its table in [Index.tables] plus one, or 0 for none.
	size  int64
	mtime int64
	nsec  uint32
	uid   uint32
	gid   uint32

	// data is the first block in the tar of a file, the device number of a device,
	// the offset of a symbolic link's target in [Index.texts], the first entry of a
	// directory or none.
	data uint32

	parent uint32 // of a directory: its own entry; none for the root
	xattrs uint32 // number of the set; 0 for none
	nlink  uint32 // in the tree as it is written
	names  uint32 // in its layer, where another may hide some of them; 0 where none does
	slot   uint32 // where in the image, in units of 32 bytes
	mode   uint16
	opaque bool
	hiding bool // of a directory: it has, or had, whiteouts
	named  bool // was given a name
	linked bool // was given several
}

func (n *inode) isDir() bool  { return n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *inode) isLink() bool { return n.mode&unix.S_IFMT == unix.S_IFLNK }
func (n *inode) isWhiteout() bool {
	return n.mode&unix.S_IFMT == unix.S_IFCHR && n.data == 0
}

// dirent is a name in a directory. One that was removed stays, with no inode.
type dirent struct {
	next   uint32 // in the same directory, or none
	ino    uint32 // or none
	dir    uint32 // the directory's inode
	name   uint32 // offset in [Index.texts]
	length uint8  // of the name
}

// Index is the tree of one layer or of several. Not safe for concurrent use.
type Index struct {
	memory  memory
	texts   texts
	inodes  list[inode]
	dirents list[dirent]
	tables  list[table] // of the names in large directories
	slots   list[slot]  // of all tables
	xattrs  xattrs
	seed    maphash.Seed
	result  Result

	tarBytes  int64
	tarBlocks uint64   // of all devices
	devices   []uint32 // blocks of each, where there may be several
	uuid      [uuidBytes]byte
	layout    layout
	whole     bool   // an [Image]: files are in the same file as the tree
	origin    uint64 // block of that file at which the tree begins

	// The directory that the last entry was in, found without following links;
	// forgotten when any directory is removed.
	lastPath string
	last     uint32
}

const root = 0 // its inode

func newIndex(o Options) (*Index, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	x := &Index{memory: memory{limit: o.MaxBytes, dir: o.Dir}, seed: maphash.MakeSeed()}
	m := &x.memory
	x.texts.mem, x.inodes.mem, x.dirents.mem, x.tables.mem, x.slots.mem = m, m, m, m, m
	a := &x.xattrs
	a.texts.mem, a.list.mem, a.members.mem, a.sets.mem, a.slots.mem, a.seed = m, m, m, m, m, x.seed
	_, err := x.inodes.add(inode{mode: unix.S_IFDIR | implicitMode, data: none, parent: none})
	return x, err
}

// Result returns what is in the layer.
func (x *Index) Result() Result { return x.result }

// TarBytes returns the size of the tar that [Copy] has read.
func (x *Index) TarBytes() int64 { return x.tarBytes }

// Close frees the index.
func (x *Index) Close() error { return x.memory.close() }

const (
	implicitMode = 0o755
	maxNameBytes = 255
	maxPathBytes = 4095 // PATH_MAX without the NUL
	maxLinks     = 40   // as in the kernel
)

func (x *Index) name(d *dirent) []byte { return x.texts.at(d.name, int(d.length)) }

// hash of a name. Tables take its upper half.
func (x *Index) hash(name []byte) uint32 { return uint32(maphash.Bytes(x.seed, name) >> 32) }

// fewNames are looked for one by one: most directories need no table.
const fewNames = 8

// find returns the entry of a name, which may have been removed, or none.
func (x *Index) find(dir uint32, name string) uint32 {
	n := x.inodes.at(dir)
	if n.size == 0 {
		for id := n.data; id != none; {
			d := x.dirents.at(id)
			if string(x.name(d)) == name {
				return id
			}
			id = d.next
		}
		return none
	}
	hash := uint32(maphash.String(x.seed, name) >> 32)
	id, ok := x.tables.at(uint32(n.size-1)).find(&x.slots, hash, func(id uint32) bool {
		return string(x.name(x.dirents.at(id))) == name
	})
	if !ok {
		return none
	}
	return id
}

// enlist makes the first entry of a directory one that is found.
func (x *Index) enlist(dir uint32) error {
	n := x.inodes.at(dir)
	if n.size != 0 {
		return x.tables.at(uint32(n.size-1)).add(&x.slots, x.hash(x.name(x.dirents.at(n.data))), n.data)
	}
	count := 0
	for id := n.data; id != none; id = x.dirents.at(id).next {
		count++
	}
	if count <= fewNames {
		return nil
	}
	var t table
	for id := n.data; id != none; id = x.dirents.at(id).next {
		if err := t.add(&x.slots, x.hash(x.name(x.dirents.at(id))), id); err != nil {
			return err
		}
	}
	number, err := x.tables.add(t)
	n.size = int64(number) + 1
	return err
}

// lookup returns the inode of a name, or none.
func (x *Index) lookup(dir uint32, name string) (uint32, error) {
	if len(name) > maxNameBytes {
		return none, unix.ENAMETOOLONG
	}
	id := x.find(dir, name)
	if id == none {
		return none, nil
	}
	return x.dirents.at(id).ino, nil
}

// set gives a name an inode, whatever it had before.
func (x *Index) set(dir uint32, name string, ino uint32) error {
	id := x.find(dir, name)
	if id == none {
		offset, err := x.texts.addString(name)
		if err != nil {
			return err
		}
		id, err = x.dirents.add(dirent{next: x.inodes.at(dir).data, dir: dir, name: offset, length: uint8(len(name))})
		if err != nil {
			return err
		}
		x.inodes.at(dir).data = id
		if err := x.enlist(dir); err != nil {
			return err
		}
	} else if old := x.dirents.at(id).ino; old != none && x.inodes.at(old).isDir() {
		x.lastPath = ""
	}
	x.dirents.at(id).ino = ino
	n := x.inodes.at(ino)
	if n.named, n.linked = true, n.linked || n.named; n.isDir() {
		n.parent = id
	}
	return nil
}

// above returns the directory that a directory is in: the root's is the root.
func (x *Index) above(dir uint32) uint32 {
	if p := x.inodes.at(dir).parent; p != none {
		return x.dirents.at(p).dir
	}
	return root
}

// path returns where a directory is, from the root.
func (x *Index) path(dir uint32) string {
	var parts []string
	for dir != root {
		parts = append(parts, string(x.name(x.dirents.at(x.inodes.at(dir).parent))))
		dir = x.above(dir)
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		if b.Len() > 0 {
			b.WriteByte('/')
		}
		b.WriteString(parts[i])
	}
	return b.String()
}

// target returns where a symbolic link leads.
func (x *Index) target(n *inode) string { return string(x.texts.at(n.data, int(n.size))) }

// walk returns the directory at a path, links followed inside the root, as
// openat2(2) does with RESOLVE_IN_ROOT and O_DIRECTORY.
func (x *Index) walk(path string) (uint32, error) {
	dir, links := uint32(root), 0
	for path != "" {
		var part string
		part, path, _ = strings.Cut(path, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			dir = x.above(dir)
			continue
		}
		ino, err := x.lookup(dir, part)
		if err != nil {
			return none, err
		}
		if ino == none {
			return none, unix.ENOENT
		}
		n := x.inodes.at(ino)
		switch {
		case n.isDir():
			dir = ino
		case !n.isLink():
			return none, unix.ENOTDIR
		case links == maxLinks:
			return none, unix.ELOOP
		default:
			links++
			target := x.target(n)
			if strings.HasPrefix(target, "/") {
				dir = root
			}
			path = target + "/" + path
		}
	}
	if links > 0 && len(x.path(dir)) > maxPathBytes {
		return none, unix.ENAMETOOLONG
	}
	return dir, nil
}

// parent returns the directory at path, made if it is missing.
func (x *Index) parent(path string) (uint32, error) {
	if path == x.lastPath && path != "" {
		return x.last, nil
	}
	dir, err := x.openOrMake(path, 0)
	if err != nil {
		return none, err
	}
	if x.path(dir) == path {
		x.lastPath, x.last = path, dir
	}
	return dir, nil
}

func (x *Index) openOrMake(path string, links int) (uint32, error) {
	dir, err := x.walk(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return x.makeParent(path, links)
	}
	return dir, err
}

// makeParent makes a directory without an entry, and those above it.
func (x *Index) makeParent(path string, links int) (uint32, error) {
	above, base := split(path)
	dir, err := x.openOrMake(above, links)
	if err != nil {
		return none, err
	}
	ino, err := x.lookup(dir, base)
	if err != nil {
		return none, err
	}
	opaque := false
	if ino != none {
		n := x.inodes.at(ino)
		switch {
		case n.isLink():
			return x.followNowhere(dir, n, links)
		case !n.isWhiteout():
			return none, fmt.Errorf("%q is not a directory: %w", path, layer.ErrFormat)
		}
		opaque = true
	}
	made, err := x.inodes.add(inode{mode: unix.S_IFDIR | implicitMode, data: none})
	if err != nil {
		return none, err
	}
	if err := x.set(dir, base, made); err != nil {
		return none, err
	}
	if opaque {
		x.markOpaque(made)
	}
	return made, nil
}

// followNowhere makes the directory that a dangling link in dir leads to.
func (x *Index) followNowhere(dir uint32, link *inode, links int) (uint32, error) {
	if links == maxLinks {
		return none, unix.ELOOP
	}
	target := x.target(link)
	if !strings.HasPrefix(target, "/") {
		target = x.path(dir) + "/" + target
	}
	if target = cleanPath(target); len(target) > maxPathBytes {
		return none, unix.ENAMETOOLONG
	}
	return x.openOrMake(target, links+1)
}

// entries yields the names of a directory that have an inode.
func (x *Index) entries(dir uint32) func(yield func(*dirent) bool) {
	return func(yield func(*dirent) bool) {
		for id := x.inodes.at(dir).data; id != none; {
			d := x.dirents.at(id)
			if d.ino != none && !yield(d) {
				return
			}
			id = d.next
		}
	}
}

// cleanName returns name as if below a root, without a slash at either end; ""
// is the root.
func cleanName(name string) string {
	name = strings.Trim(strings.TrimPrefix(name, "./"), "/")
	for rest := name; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if part == "" || part == "." || part == ".." {
			return cleanPath(name)
		}
	}
	return name
}

// cleanPath resolves "." and ".." lexically, never above the root.
func cleanPath(name string) string { return path.Clean("/" + name)[1:] }

func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}
