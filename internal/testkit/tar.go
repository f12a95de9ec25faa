package testkit

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
)

const blockBytes = 512

// limits of ustar's octal fields.
const (
	maxUstarName = 100
	maxOctal7    = 1<<21 - 1
	maxOctal11   = 1<<33 - 1
)

// Tar returns the archive of entries, with its end.
//
//	raw := testkit.Tar(testkit.File("a", "content"))
func Tar(entries ...Entry) []byte {
	var buf bytes.Buffer
	_ = writeTar(&buf, slices.Values(entries)) // a buffer takes everything
	buf.Write(make([]byte, 2*blockBytes))
	return buf.Bytes()
}

// writeTar writes entries without the two blocks of the end.
func writeTar(w io.Writer, entries iter.Seq[Entry]) error {
	for e := range entries {
		if err := e.write(w); err != nil {
			return fmt.Errorf("write tar entry %q: %w", e.Name, err)
		}
	}
	return nil
}

func (e Entry) write(w io.Writer) error {
	if e.Raw != nil {
		_, err := w.Write(e.Raw)
		return err
	}
	head := e.extensions()
	stored := e.Size
	var sparseMap []byte
	if e.SparseAs != NotSparse {
		stored = 0
		for _, x := range e.Sparse {
			stored += x.Size
		}
		if e.SparseAs == SparsePAX10 {
			sparseMap = e.mapInBody()
		}
	}
	header := e.header(stored + int64(len(sparseMap)))
	head = append(head, header...)
	head = append(head, sparseMap...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	if e.Body == nil {
		return nil
	}
	n, err := io.Copy(w, e.Body())
	if err != nil {
		return err
	}
	if n != stored {
		return fmt.Errorf("body has %d bytes instead of %d", n, stored)
	}
	_, err = w.Write(make([]byte, padding(n)))
	return err
}

func padding(n int64) int64 { return -n & (blockBytes - 1) }

// header returns the entry's own block, and those of the old sparse format.
func (e Entry) header(stored int64) []byte {
	block := make([]byte, blockBytes)
	name, kind := e.Name, e.Type
	if e.SparseAs == SparsePAX01 || e.SparseAs == SparsePAX10 {
		name = "GNUSparseFile.0/" + name
	}
	copy(block[:maxUstarName], name)
	e.number(block[100:108], int64(e.Mode))
	e.number(block[108:116], e.UID)
	e.number(block[116:124], e.GID)
	e.number(block[124:136], stored)
	e.number(block[136:148], e.Sec)
	copy(block[157:257], e.Link)
	copy(block[257:265], "ustar\x0000")
	if e.GNU || e.SparseAs == SparseGNU {
		copy(block[257:265], "ustar  \x00")
	}
	if kind == TypeChar || kind == TypeBlock {
		e.number(block[329:337], e.Major)
		e.number(block[337:345], e.Minor)
	}
	var more []byte
	if e.SparseAs == SparseGNU {
		kind = TypeSparse
		more = e.oldSparse(block)
	}
	block[156] = kind
	checksum(block)
	return slices.Concat(block, more)
}

// checksum fills the checksum in.
func checksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block[:blockBytes] {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// number writes an octal field, or GNU's binary one. What neither the field nor
// the format can say is 0: a PAX record says it.
func (e Entry) number(field []byte, n int64) {
	limit := int64(1)<<(3*(len(field)-1)) - 1
	switch {
	case 0 <= n && n <= limit:
		copy(field, fmt.Sprintf("%0*o", len(field)-1, n))
	case e.GNU:
		for i := range field {
			field[len(field)-1-i] = byte(n >> min(8*i, 63))
		}
		field[0] = 0x80
		if n < 0 {
			field[0] = 0xff
		}
	default:
		copy(field, fmt.Sprintf("%0*o", len(field)-1, 0))
	}
}

// extensions returns the blocks that come before the header.
func (e Entry) extensions() []byte {
	var blocks []byte
	var records []Pair
	add := func(key, value string) { records = append(records, Pair{key, value}) }
	longName, longLink := len(e.Name) > maxUstarName, len(e.Link) > maxUstarName
	if e.GNU {
		if longLink {
			blocks = append(blocks, special('K', "././@LongLink", e.Link+"\x00")...)
		}
		if longName {
			blocks = append(blocks, special('L', "././@LongLink", e.Name+"\x00")...)
		}
	} else {
		if longName {
			add("path", e.Name)
		}
		if longLink {
			add("linkpath", e.Link)
		}
		if e.UID > maxOctal7 {
			add("uid", strconv.FormatInt(e.UID, 10))
		}
		if e.GID > maxOctal7 {
			add("gid", strconv.FormatInt(e.GID, 10))
		}
		if e.Size > maxOctal11 && e.SparseAs == NotSparse {
			add("size", strconv.FormatInt(e.Size, 10))
		}
		if e.Nsec != 0 || e.Sec < 0 || e.Sec > maxOctal11 {
			add("mtime", decimal(e.Sec, e.Nsec))
		}
	}
	for _, x := range e.Xattrs {
		add("SCHILY.xattr."+x.Key, x.Value)
	}
	records = append(records, e.sparseRecords()...)
	records = append(records, e.PAX...)
	if len(records) > 0 {
		blocks = append(blocks, special(TypePAX, "PaxHeaders/entry", Records(records...))...)
	}
	return blocks
}

// decimal writes a time as PAX does: -1.5 is a second and a half before 1970.
func decimal(sec, nsec int64) string {
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -sec-1, 1_000_000_000-nsec
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, nsec), "0")
}

// Records returns PAX records; their lengths count themselves.
func Records(records ...Pair) string {
	var b strings.Builder
	for _, r := range records {
		rest := len(r.Key) + len(r.Value) + 3 // space, = and newline
		size := rest + len(strconv.Itoa(rest))
		if rest+len(strconv.Itoa(size)) != size {
			size = rest + len(strconv.Itoa(size))
		}
		fmt.Fprintf(&b, "%d %s=%s\n", size, r.Key, r.Value)
	}
	return b.String()
}

// special returns the blocks of an extension header.
func special(kind byte, name, body string) []byte {
	e := Entry{Type: kind, Name: name, Mode: 0o644}
	blocks := append(e.header(int64(len(body))), body...)
	return append(blocks, make([]byte, padding(int64(len(body))))...)
}

// GlobalHeader returns a PAX header for all entries that follow.
func GlobalHeader(records ...Pair) Entry {
	return RawBytes(special(TypeGlobal, "pax_global_header", Records(records...)))
}

func (e Entry) sparseRecords() []Pair {
	size := strconv.FormatInt(e.Size, 10)
	count := strconv.Itoa(len(e.Sparse))
	var flat []string
	for _, x := range e.Sparse {
		flat = append(flat, strconv.FormatInt(x.Offset, 10), strconv.FormatInt(x.Size, 10))
	}
	switch e.SparseAs {
	case SparsePAX00:
		records := []Pair{{"GNU.sparse.size", size}, {"GNU.sparse.numblocks", count}}
		for i := 0; i < len(flat); i += 2 {
			records = append(records, Pair{"GNU.sparse.offset", flat[i]}, Pair{"GNU.sparse.numbytes", flat[i+1]})
		}
		return records
	case SparsePAX01:
		return []Pair{{"GNU.sparse.size", size}, {"GNU.sparse.numblocks", count}, {"GNU.sparse.map", strings.Join(flat, ",")}, {"GNU.sparse.name", e.Name}}
	case SparsePAX10:
		return []Pair{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", e.Name}, {"GNU.sparse.realsize", size}}
	case NotSparse, SparseGNU:
	}
	return nil
}

// mapInBody returns the sparse map of format 1.0, padded.
func (e Entry) mapInBody() []byte {
	var text strings.Builder
	_, _ = fmt.Fprintf(&text, "%d\n", len(e.Sparse))
	for _, x := range e.Sparse {
		_, _ = fmt.Fprintf(&text, "%d\n%d\n", x.Offset, x.Size)
	}
	return append([]byte(text.String()), make([]byte, padding(int64(len(text.String()))))...)
}

// oldSparse fills the map of GNU's old format into the header and returns the
// blocks that hold the rest of it.
func (e Entry) oldSparse(block []byte) []byte {
	const inHeader, inBlock = 4, 21
	put := func(at []byte, x Extent) {
		copy(at, fmt.Sprintf("%011o\x00%011o\x00", x.Offset, x.Size))
	}
	for i, x := range e.Sparse[:min(len(e.Sparse), inHeader)] {
		put(block[386+24*i:], x)
	}
	copy(block[483:495], fmt.Sprintf("%011o\x00", e.Size))
	rest := e.Sparse[min(len(e.Sparse), inHeader):]
	if len(rest) > 0 {
		block[482] = 1
	}
	var more []byte
	for len(rest) > 0 {
		next := make([]byte, blockBytes)
		n := min(len(rest), inBlock)
		for i, x := range rest[:n] {
			put(next[24*i:], x)
		}
		if rest = rest[n:]; len(rest) > 0 {
			next[504] = 1
		}
		more = append(more, next...)
	}
	return more
}
