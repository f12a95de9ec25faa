package erofs

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"

	"dray/internal/layer"
)

// Names of attributes with a meaning.
const (
	accessACL     = "system.posix_acl_access"
	defaultACL    = "system.posix_acl_default"
	capability    = "security.capability"
	overlayOpaque = "trusted.overlay.opaque"
	overlayOrigin = "trusted.overlay.origin" // empty: without it overlayfs lists the whiteouts of a directory that only this layer has

	trustedOverlay = "trusted.overlay."
	userOverlay    = "user.overlay."
)

// prefixes of names and what stands for them (EROFS_XATTR_INDEX_*). ACLs have
// nothing behind the prefix.
var prefixes = [...]struct { //nolint:gochecknoglobals // a table that nobody changes
	text  string
	index byte
}{{"user.", 1}, {accessACL, 2}, {defaultACL, 3}, {"trusted.", 4}, {"security.", 6}}

const (
	xattrHeader = 12 // of an inode's attributes
	entryHeader = 4  // of one attribute

	maxValueBytes = 1<<16 - 1 // the kernel's own limit is one more
	maxShared     = 255       // of one inode
)

// attribute is one name and value that some inodes have. It is stored as the image
// has it, but for its padding.
type attribute struct {
	text   uint32 // offset
	uses   uint32 // by inodes of the tree
	shared uint32 // position in the shared area, in units of 4 bytes
}

// attributeSet is what one inode or several have.
type attributeSet struct {
	first, count uint32 // in xattrs.members
}

// xattrs are the attributes of all inodes, each stored once.
type xattrs struct {
	texts   texts
	list    list[attribute]
	members list[uint32] // numbers of attributes
	sets    list[attributeSet]

	slots  list[slot] // of the tables
	byText table      // of list
	bySet  table      // of sets

	seed   maphash.Seed
	number []uint32 // of the set being made
	buf    []byte
}

func (x *xattrs) text(id uint32) []byte {
	offset := x.list.at(id).text
	header := x.texts.at(offset, entryHeader)
	return x.texts.at(offset, entryHeader+int(header[0])+int(binary.LittleEndian.Uint16(header[2:])))
}

// paddedBytes returns the size of an attribute in the image.
func (x *xattrs) paddedBytes(id uint32) int { return (len(x.text(id)) + 3) &^ 3 }

func (x *xattrs) setMembers(id uint32) func(i uint32) uint32 {
	s := *x.sets.at(id)
	return func(i uint32) uint32 { return *x.members.at(s.first + i) }
}

func mix(h uint64, v uint32) uint64 {
	const odd = 0x9E3779B97F4A7C15
	h = (h ^ uint64(v)) * odd
	return h ^ h>>29
}

// attribute returns the number of a name and value.
func (x *xattrs) attribute(name string, value []byte) (uint32, error) {
	x.buf = append(x.buf[:0], 0, 0, byte(len(value)), byte(len(value)>>8))
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(name, p.text); ok {
			x.buf[0], x.buf[1] = byte(len(rest)), p.index
			x.buf = append(append(x.buf, rest...), value...)
			break
		}
	}
	return x.intern(x.buf)
}

// intern returns the number of an attribute in the form in which the image has it,
// without padding. It keeps nothing of text.
func (x *xattrs) intern(text []byte) (uint32, error) {
	h := uint32(maphash.Bytes(x.seed, text) >> 32)
	if id, ok := x.byText.find(&x.slots, h, func(id uint32) bool { return bytes.Equal(x.text(id), text) }); ok {
		return id, nil
	}
	offset, b, err := x.texts.add(len(text))
	if err != nil {
		return 0, err
	}
	copy(b, text)
	id, err := x.list.add(attribute{text: offset})
	if err != nil {
		return 0, err
	}
	return id, x.byText.add(&x.slots, h, id)
}

// set returns the number of the set of x.number; 0 is no attributes at all.
func (x *xattrs) set() (uint32, error) {
	if len(x.number) == 0 {
		return 0, nil
	}
	slices.Sort(x.number)
	var h uint64
	for _, n := range x.number {
		h = mix(h, n)
	}
	same := func(id uint32) bool {
		if int(x.sets.at(id).count) != len(x.number) {
			return false
		}
		at := x.setMembers(id)
		for i, n := range x.number {
			if at(uint32(i)) != n {
				return false
			}
		}
		return true
	}
	if id, ok := x.bySet.find(&x.slots, uint32(h>>32), same); ok {
		return id + 1, nil
	}
	first := x.members.count
	for _, n := range x.number {
		if _, err := x.members.add(n); err != nil {
			return 0, err
		}
	}
	id, err := x.sets.add(attributeSet{first: first, count: uint32(len(x.number))})
	if err != nil {
		return 0, err
	}
	return id + 1, x.bySet.add(&x.slots, uint32(h>>32), id)
}

// withMark returns the set that has an attribute of overlayfs's besides.
func (x *xattrs) withMark(set uint32, name, value string) (uint32, error) {
	x.number = x.number[:0]
	for id := range x.each(set) {
		x.number = append(x.number, id)
	}
	id, err := x.attribute(name, []byte(value))
	if err != nil {
		return 0, err
	}
	x.number = append(x.number, id)
	return x.set()
}

// each yields the attributes of a set.
func (x *xattrs) each(set uint32) func(yield func(uint32) bool) {
	return func(yield func(uint32) bool) {
		if set == 0 {
			return
		}
		at := x.setMembers(set - 1)
		for i := range x.sets.at(set - 1).count {
			if !yield(at(i)) {
				return
			}
		}
	}
}

// share gives the attributes that several inodes have their place in the shared
// area, and returns its size.
func (x *xattrs) share() uint64 {
	var end uint64
	for id := range x.list.count {
		if a := x.list.at(id); a.uses > 1 {
			a.shared = uint32(end / 4)
			end += uint64(x.paddedBytes(id))
		}
	}
	return end
}

// sizeBytes returns how much the attributes of a set take behind an inode.
func (x *xattrs) sizeBytes(set uint32) int {
	if set == 0 {
		return 0
	}
	size, shared := xattrHeader, 0
	for id := range x.each(set) {
		if x.list.at(id).uses > 1 && shared < maxShared {
			size += 4
			shared++
		} else {
			size += x.paddedBytes(id)
		}
	}
	return size
}

// encode appends the attributes of a set as they stand behind an inode.
func (x *xattrs) encode(b []byte, set uint32) []byte {
	if set == 0 {
		return b
	}
	head := len(b)
	b = append(b, make([]byte, xattrHeader)...)
	shared := 0
	for id := range x.each(set) {
		if a := x.list.at(id); a.uses > 1 && shared < maxShared {
			b = binary.LittleEndian.AppendUint32(b, a.shared)
			shared++
		}
	}
	b[head+4] = byte(shared)
	for id := range x.each(set) {
		if x.list.at(id).uses > 1 && shared > 0 {
			shared--
			continue
		}
		b = x.appendPadded(b, id)
	}
	return b
}

func (x *xattrs) appendPadded(b []byte, id uint32) []byte {
	text := x.text(id)
	b = append(b, text...)
	return append(b, make([]byte, -len(text)&3)...)
}

// xattrsOf returns the number of the set of an entry, as it is on its file.
func (x *Index) xattrsOf(e *layer.Entry) (uint32, error) {
	if len(e.Xattrs) == 0 {
		return 0, nil
	}
	x.xattrs.number = x.xattrs.number[:0]
	for _, a := range e.Xattrs {
		value := a.Value
		switch {
		case strings.HasPrefix(a.Name, trustedOverlay), strings.HasPrefix(a.Name, userOverlay):
			x.result.OverlayXattrsDropped++
			continue
		case !possible(a.Name, e.Type):
			x.result.XattrsImpossible++
			continue
		case a.Name == accessACL, a.Name == defaultACL:
			var ok bool
			if value, ok = normalACL(value, e.Mode, a.Name == accessACL); !ok {
				return 0, &InexpressibleError{Name: e.Name, Reason: "an ACL that the kernel would refuse"}
			}
			if value == nil {
				continue
			}
		case a.Name == capability && !validCapability(value):
			return 0, &InexpressibleError{Name: e.Name, Reason: "a file capability that the kernel would refuse"}
		}
		if len(value) > maxValueBytes {
			return 0, &InexpressibleError{Name: e.Name, Reason: "an extended attribute of more than 65535 bytes"}
		}
		id, err := x.xattrs.attribute(a.Name, value)
		if err != nil {
			return 0, err
		}
		x.xattrs.number = append(x.xattrs.number, id)
	}
	return x.xattrs.set()
}

// possible tells whether Linux has a place for the attribute (xattr(7)), as
// package apply does.
func possible(name string, t layer.EntryType) bool {
	const maxNameBytes = 255
	namespace, rest, _ := strings.Cut(name, ".")
	if rest == "" || len(name) > maxNameBytes {
		return false
	}
	switch namespace {
	case "trusted", "security":
		return true
	case "system":
		return name == accessACL && t != layer.Symlink || name == defaultACL && t == layer.Dir
	case "user":
		return t == layer.Reg || t == layer.Dir
	}
	return false
}

// validCapability tells whether the kernel takes the value (cap_convert_nscap).
func validCapability(value []byte) bool {
	const (
		revisionMask = 0xff000000
		revision2    = 0x02000000
		revision3    = 0x03000000
		bytes2       = 20
		bytes3       = 24
	)
	if len(value) < 4 {
		return false
	}
	revision := binary.LittleEndian.Uint32(value) & revisionMask
	return len(value) == bytes2 && revision == revision2 || len(value) == bytes3 && revision == revision3
}
