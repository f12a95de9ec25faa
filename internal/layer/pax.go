package layer

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// paxKey is a set of the records that a PAX header may have once.
type paxKey uint16

const (
	paxPath paxKey = 1 << iota
	paxLinkpath
	paxUID
	paxGID
	paxSize
	paxMTime
	paxSparseMajor
	paxSparseMinor
	paxSparseName
	paxSparseSize // GNU.sparse.size or GNU.sparse.realsize
	paxSparseMap  // version 0.1
	paxSparsePart // version 0.0: offsets and sizes as records of their own

	paxSparse = paxSparseMajor | paxSparseMinor | paxSparseName | paxSparseSize | paxSparseMap | paxSparsePart
)

// pax is what a PAX header says. Its slices point into the header's text, but
// for global headers, which keep copies.
type pax struct {
	has       paxKey
	cancelled paxKey // empty values: the global header's do not hold either

	path, linkpath []byte
	uid, gid       int64
	size           int64
	mtimeSec       int64
	mtimeNsec      uint32
	xattrs         []paxXattr

	sparseMajor, sparseMinor int64
	sparseName               []byte
	sparseSize               int64
	sparseMap                []byte
	sparseParts              []Extent
	halfPart                 bool // the last of sparseParts lacks its size
}

// paxXattr is an xattr in the order of the archive.
type paxXattr struct {
	name  string
	value []byte
	rank  uint8 // of what two records say about one name the higher holds: star's form is 1, libarchive's 0
}

func (p *pax) reset() {
	*p = pax{xattrs: p.xattrs[:0], sparseParts: p.sparseParts[:0]}
}

// parse reads the records of text ("%d %s=%s\n"), which p then points to.
func (p *pax) parse(text []byte, l Limits) error {
	for len(text) > 0 {
		key, value, rest, ok := cutRecord(text)
		if !ok {
			return malformed("invalid record in a PAX header")
		}
		text = rest
		if err := p.set(key, value, l); err != nil {
			return err
		}
	}
	return nil
}

// cutRecord takes one record off text.
func cutRecord(text []byte) (key, value, rest []byte, ok bool) {
	const maxDigits = 10
	n, i := 0, 0
	for ; i < len(text) && i < maxDigits && text[i] >= '0' && text[i] <= '9'; i++ {
		n = n*10 + int(text[i]-'0')
	}
	// The shortest record has a key of one byte: "5 a=\n".
	if i == 0 || i == len(text) || text[i] != ' ' || n > len(text) || n < i+4 || text[n-1] != '\n' {
		return nil, nil, nil, false
	}
	key, value, ok = bytes.Cut(text[i+1:n-1], []byte("="))
	return key, value, text[n:], ok && len(key) > 0 && bytes.IndexByte(key, 0) < 0
}

// set takes one record.
func (p *pax) set(key, value []byte, l Limits) error {
	var ok bool
	switch string(key) {
	case "path":
		return p.setName(paxPath, &p.path, value, l)
	case "linkpath":
		return p.setName(paxLinkpath, &p.linkpath, value, l)
	case "GNU.sparse.name":
		return p.setName(paxSparseName, &p.sparseName, value, l)
	case "uid":
		ok = p.setNumber(paxUID, &p.uid, value)
	case "gid":
		ok = p.setNumber(paxGID, &p.gid, value)
	case "size":
		ok = p.setNumber(paxSize, &p.size, value)
	case "mtime":
		ok = !p.present(paxMTime, value)
		if !ok {
			p.mtimeSec, p.mtimeNsec, ok = parseTime(value)
		}
	case "GNU.sparse.major":
		ok = p.setNumber(paxSparseMajor, &p.sparseMajor, value)
	case "GNU.sparse.minor":
		ok = p.setNumber(paxSparseMinor, &p.sparseMinor, value)
	case "GNU.sparse.size", "GNU.sparse.realsize":
		ok = p.setNumber(paxSparseSize, &p.sparseSize, value)
	case "GNU.sparse.map":
		p.present(paxSparseMap, value)
		p.sparseMap = value
		ok = true
	case "GNU.sparse.offset", "GNU.sparse.numbytes":
		return p.setPart(string(key) == "GNU.sparse.offset", value, l)
	default:
		return p.setXattr(key, value, l)
	}
	if !ok {
		return malformed("PAX header has the invalid %s %q", key, clip(value))
	}
	return nil
}

// present notes that key has a value, and tells so, or that it has none.
func (p *pax) present(key paxKey, value []byte) bool {
	if len(value) == 0 {
		p.has &^= key
		p.cancelled |= key
		return false
	}
	p.has |= key
	p.cancelled &^= key
	return true
}

func (p *pax) setName(key paxKey, field *[]byte, value []byte, l Limits) error {
	if p.present(key, value) && bytes.IndexByte(value, 0) >= 0 {
		return malformed("PAX header has a NUL in the name %q", clip(value))
	}
	if len(value) > l.MaxNameBytes {
		return &LimitError{What: "name bytes", Limit: int64(l.MaxNameBytes), Got: int64(len(value))}
	}
	*field = value
	return nil
}

func (p *pax) setNumber(key paxKey, field *int64, value []byte) bool {
	if !p.present(key, value) {
		return true
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	*field = n
	return err == nil
}

// setPart takes an offset or a size of a sparse file of version 0.0; they
// alternate.
func (p *pax) setPart(isOffset bool, value []byte, l Limits) error {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil || isOffset == p.halfPart {
		return malformed("invalid sparse map")
	}
	p.has |= paxSparsePart
	p.halfPart = isOffset
	if !isOffset {
		p.sparseParts[len(p.sparseParts)-1].Size = n
		return nil
	}
	if len(p.sparseParts) == l.MaxSparseExtents {
		return sparseLimit(l)
	}
	p.sparseParts = append(p.sparseParts, Extent{Offset: n})
	return nil
}

// setXattr takes an xattr. Other keys say nothing that a file system keeps.
func (p *pax) setXattr(key, value []byte, l Limits) error {
	const (
		star       = "SCHILY.xattr."
		libarchive = "LIBARCHIVE.xattr."
	)
	x := paxXattr{value: value}
	switch {
	case bytes.HasPrefix(key, []byte(star)):
		x.name, x.rank = string(key[len(star):]), 1
	case bytes.HasPrefix(key, []byte(libarchive)):
		name, err := url.PathUnescape(string(key[len(libarchive):]))
		if err != nil {
			return malformed("PAX header has the invalid xattr name %q", clip(key))
		}
		plain := bytes.TrimRight(value, "=\n")
		decoded, err := base64.RawStdEncoding.AppendDecode(nil, plain)
		if err != nil {
			return malformed("PAX header has an invalid value of xattr %q", clip([]byte(name)))
		}
		x.name, x.value = name, decoded
	default:
		return nil
	}
	if x.name == "" || strings.IndexByte(x.name, 0) >= 0 {
		return malformed("PAX header has the invalid xattr name %q", clip(key))
	}
	if len(p.xattrs) == l.MaxXattrs {
		return &LimitError{What: "xattrs", Limit: int64(l.MaxXattrs), Got: int64(l.MaxXattrs) + 1}
	}
	p.xattrs = append(p.xattrs, x)
	return nil
}

// merge takes the records of a global header, which hold until another global
// header says otherwise.
func (p *pax) merge(text []byte, l Limits) error {
	next := *p
	next.cancelled = 0
	next.xattrs = slices.Clone(p.xattrs)
	if err := next.parse(text, l); err != nil {
		return err
	}
	// What a global header says about one file's map is nonsense.
	next.has &^= paxSparse
	next.cancelled = 0
	next.sparseName, next.sparseMap, next.sparseParts = nil, nil, nil
	next.path = bytes.Clone(next.path)
	next.linkpath = bytes.Clone(next.linkpath)
	next.xattrs = lastXattrs(next.xattrs)
	for i := range next.xattrs {
		next.xattrs[i].value = bytes.Clone(next.xattrs[i].value)
	}
	*p = next
	return nil
}

// lastXattrs sorts xattrs by name and keeps of each name the one that holds.
func lastXattrs(xattrs []paxXattr) []paxXattr {
	if len(xattrs) < 2 {
		return xattrs
	}
	slices.SortStableFunc(xattrs, func(a, b paxXattr) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.rank, b.rank))
	})
	kept := xattrs[:0]
	for i, x := range xattrs {
		if i+1 == len(xattrs) || xattrs[i+1].name != x.name {
			kept = append(kept, x)
		}
	}
	return kept
}

// xattrs sets the entry's xattrs: the global header's, then its own.
func (t *Tar) xattrs() error {
	all := lastXattrs(t.local.xattrs)
	t.local.xattrs = all
	if len(t.global.xattrs) > 0 {
		// Sorting is stable: of two with the same rank, the entry's own comes last.
		all = lastXattrs(append(slices.Clone(t.global.xattrs), all...))
	}
	sizeBytes := 0
	for _, x := range all {
		sizeBytes += len(x.name) + len(x.value)
		t.entry.Xattrs = append(t.entry.Xattrs, Xattr{Name: x.name, Value: x.value})
	}
	if sizeBytes > t.limits.MaxXattrBytes {
		return &LimitError{What: "xattr bytes", Limit: int64(t.limits.MaxXattrBytes), Got: int64(sizeBytes)}
	}
	return nil
}

// parseTime reads seconds with a decimal fraction, of which nine digits count.
func parseTime(text []byte) (sec int64, nsec uint32, ok bool) {
	whole, fraction, _ := bytes.Cut(text, []byte("."))
	sec, err := strconv.ParseInt(string(whole), 10, 64)
	if err != nil {
		return 0, 0, false
	}
	scale := uint32(100_000_000)
	for _, c := range fraction {
		if c < '0' || c > '9' {
			return 0, 0, false
		}
		nsec += uint32(c-'0') * scale
		scale /= 10
	}
	if whole[0] == '-' && nsec > 0 {
		if sec == math.MinInt64 {
			return 0, 0, false
		}
		sec, nsec = sec-1, 1_000_000_000-nsec
	}
	return sec, nsec, true
}

// clip shortens what an error shows of the input.
func clip(b []byte) []byte {
	const shownBytes = 64
	return b[:min(len(b), shownBytes)]
}
