package retar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Types of entries, as in a tar.
const (
	typeReg     = tar.TypeReg
	typeLink    = tar.TypeLink
	typeSymlink = tar.TypeSymlink
	typeChar    = tar.TypeChar
	typeBlock   = tar.TypeBlock
	typeDir     = tar.TypeDir
	typeFIFO    = tar.TypeFifo
)

const (
	xattrPrefix = "SCHILY.xattr." // of PAX records
	capability  = "security.capability"
)

// goHeader writes the header as the programs do that use Go's archive/tar.
func (f Form) goHeader(n *node) ([]byte, error) {
	h := &tar.Header{
		Typeflag: n.kind, Name: f.entryName(n), Linkname: f.linkName(n), Size: n.size,
		Mode: int64(n.mode), Uid: int(n.uid), Gid: int(n.gid), ModTime: time.Unix(n.sec, 0),
		Devmajor: int64(n.major), Devminor: int64(n.minor), Format: tar.FormatPAX,
	}
	f.goSpecial(n, h)
	if f.names && n.uid == 0 {
		h.Uname = "root"
	}
	if f.names && n.gid == 0 {
		h.Gname = "root"
	}
	for _, x := range n.xattrs {
		if x.name == capability {
			h.PAXRecords = map[string]string{xattrPrefix + capability: x.value}
		}
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTree, err)
	}
	return b.Bytes(), nil
}

// goSpecial changes what docker and containerd write in ways of their own.
func (f Form) goSpecial(n *node, h *tar.Header) {
	switch {
	case n.whiteout && f.typed:
		h.Mode = 0o600 // docker's archive package converts the device
	case n.whiteout:
		h.Mode, h.Uid, h.Gid = 0, 0, 0 // containerd writes no more than a name and a time
	case n.opaque:
		h.Mode, h.ModTime = int64(n.mode&0o777), time.Unix(0, 0)
	case f.typed:
		h.Mode |= typeBits(n.kind)
	}
}

// typeBits returns what docker adds to modes, so that its tars stay what Go made of
// files before version 1.9. Character devices have the bits of block devices too.
func typeBits(kind byte) int64 {
	switch kind {
	case typeDir:
		return 0o040000
	case typeSymlink:
		return 0o120000
	case typeChar:
		return 0o020000
	case typeBlock:
		return 0o060000
	case typeFIFO:
		return 0o010000
	}
	return 0o100000
}

// block is a header of 512 bytes, in the fields of ustar.
type block [blockBytes]byte

func (b *block) text(offset, size int, s string) { copy(b[offset:offset+size], s) }

// octal writes a number and a NUL, or in base 256 what does not fit.
func (b *block) octal(offset, size int, v int64) {
	field := b[offset : offset+size]
	if text := strconv.FormatInt(v, 8); v >= 0 && len(text) < size {
		for i := range field[:size-1] {
			field[i] = '0'
		}
		copy(field[size-1-len(text):], text)
		field[size-1] = 0
		return
	}
	for i := size - 1; i >= 0; i-- {
		field[i] = byte(v)
		v >>= 8
	}
	field[0] |= 0x80
}

// checksum completes the block (POSIX pax, "ustar Header Block").
func (b *block) checksum() []byte {
	b.text(148, 8, "        ")
	var sum int64
	for _, c := range b {
		sum += int64(c)
	}
	b.octal(148, 7, sum)
	return b[:]
}

// newBlock fills in what all of our own formats have.
func newBlock(n *node, name, link string, size int64) *block {
	b := &block{}
	b.text(0, 100, name)
	b.octal(100, 8, int64(n.mode))
	b.octal(108, 8, int64(n.uid))
	b.octal(116, 8, int64(n.gid))
	b.octal(124, 12, size)
	b.octal(136, 12, n.sec)
	b[156] = n.kind
	b.text(157, 100, link)
	if n.kind == typeChar || n.kind == typeBlock {
		b.octal(329, 8, int64(n.major))
		b.octal(337, 8, int64(n.minor))
	}
	return b
}

// gnuHeader writes the header as GNU tar 1.3x does by default.
func (f Form) gnuHeader(n *node) []byte {
	const nameBytes = 100
	var out []byte
	name, link := f.entryName(n), f.linkName(n)
	for _, long := range []struct {
		kind byte
		text string
	}{{tar.TypeGNULongLink, link}, {tar.TypeGNULongName, name}} {
		if len(long.text) > nameBytes {
			out = append(out, f.gnuBlock(&node{kind: long.kind, mode: 0o644}, "././@LongLink", "", int64(len(long.text)+1))...)
			out = append(out, padded(long.text+"\x00")...)
		}
	}
	return append(out, f.gnuBlock(n, name, link, n.size)...)
}

func (f Form) gnuBlock(n *node, name, link string, size int64) []byte {
	b := newBlock(n, name, link, size)
	b.text(257, 8, "ustar  \x00")
	if f.names && n.uid == 0 {
		b.text(265, 32, "root")
	}
	if f.names && n.gid == 0 {
		b.text(297, 32, "root")
	}
	return b.checksum()
}

// exactHeader writes the header with all that the node has (POSIX pax, and for holes
// GNU's sparse format 1.0).
func exactHeader(n *node) ([]byte, error) {
	const ustarBytes = 100
	form := Exact()
	name, link := form.entryName(n), form.linkName(n)
	var records []byte
	record := func(key, value string) { records = appendRecord(records, key, value) }
	if len(name) > ustarBytes || n.sparse != nil {
		record("path", name)
	}
	if len(link) > ustarBytes {
		record("linkpath", link)
	}
	if n.nsec != 0 || n.sec < 0 {
		record("mtime", paxTime(n.sec, n.nsec))
	}
	for _, x := range n.xattrs {
		if strings.Contains(x.name, "=") {
			return nil, fmt.Errorf("no tar can hold an attribute named %q: %w", x.name, ErrTree)
		}
		record(xattrPrefix+x.name, x.value)
	}
	size, sparseMap := n.size, ""
	if n.sparse != nil {
		sparseMap = n.sparseMap()
		size = int64(len(padded(sparseMap))) + n.stored()
		record("GNU.sparse.major", "1")
		record("GNU.sparse.minor", "0")
		record("GNU.sparse.name", name)
		record("GNU.sparse.realsize", strconv.FormatInt(n.size, 10))
	}
	var out []byte
	if len(records) > 0 {
		out = append(out, ustarBlock(&node{kind: tar.TypeXHeader, mode: 0o644}, "PaxHeaders", "", int64(len(records)))...)
		out = append(out, padded(string(records))...)
	}
	out = append(out, ustarBlock(n, name, link, size)...)
	return append(out, padded(sparseMap)...), nil
}

func ustarBlock(n *node, name, link string, size int64) []byte {
	b := newBlock(n, name, link, size)
	b.text(257, 8, "ustar\x0000")
	return b.checksum()
}

// sparseMap lists the extents; a hole at the end follows from an empty extent there.
func (n *node) sparseMap() string {
	extents := n.sparse
	if len(extents) == 0 || extents[len(extents)-1].offset+extents[len(extents)-1].size < n.size {
		extents = append(extents[:len(extents):len(extents)], extent{n.size, 0})
	}
	out := fmt.Appendf(nil, "%d\n", len(extents))
	for _, x := range extents {
		out = fmt.Appendf(out, "%d\n%d\n", x.offset, x.size)
	}
	return string(out)
}

// appendRecord adds "LENGTH KEY=VALUE\n", whose length counts itself.
func appendRecord(out []byte, key, value string) []byte {
	rest := len(" ") + len(key) + len("=") + len(value) + len("\n")
	size := rest
	for size != rest+len(strconv.Itoa(size)) {
		size = rest + len(strconv.Itoa(size))
	}
	return fmt.Appendf(out, "%d %s=%s\n", size, key, value)
}

func paxTime(sec int64, nsec uint32) string {
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	if sec >= 0 {
		return fmt.Sprintf("%d.%09d", sec, nsec)
	}
	return fmt.Sprintf("-%d.%09d", -(sec + 1), 1e9-nsec)
}

// padded returns the text with zeros to the end of a block.
func padded(text string) []byte {
	out := make([]byte, len(text)+int(padding(int64(len(text)))))
	copy(out, text)
	return out
}

// padding returns how many zeros follow so many bytes.
func padding(size int64) int64 { return -size & (blockBytes - 1) }
