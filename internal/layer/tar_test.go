package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/stream"
)

// tarEntry is a raw header and its body, so that tests can write what no tool would.
type tarEntry struct {
	name, link   string
	prefix       string
	flag         byte
	mode         string
	uid, gid     string // raw fields
	size         string // raw field; empty is the body's
	mtime        string
	magic        string // 8 bytes; empty is ustar
	major, minor string
	tail         map[int]string // other bytes by offset
	badSum       int
	body         []byte
	noPad        bool
}

func octal(n int64, width int) string { return fmt.Sprintf("%0*o\x00", width-1, n) }

func (e tarEntry) bytes() []byte {
	var b block
	put := func(offset int, s string) { copy(b[offset:], s) }
	put(0, e.name)
	or := func(s, other string) string {
		if s != "" {
			return s
		}
		return other
	}
	put(100, or(e.mode, octal(0o644, 8)))
	put(108, or(e.uid, octal(0, 8)))
	put(116, or(e.gid, octal(0, 8)))
	put(124, or(e.size, octal(int64(len(e.body)), 12)))
	put(136, or(e.mtime, octal(0, 12)))
	b[156] = e.flag
	put(157, e.link)
	put(257, or(e.magic, "ustar\x0000"))
	put(329, e.major)
	put(337, e.minor)
	put(345, e.prefix)
	for offset, s := range e.tail {
		put(offset, s)
	}
	put(148, "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum+e.badSum))
	out := append(b[:], e.body...)
	if !e.noPad {
		out = append(out, make([]byte, padding(int64(len(e.body))))...)
	}
	return out
}

func buildTar(tb testing.TB, entries ...tarEntry) []byte {
	tb.Helper()
	var out []byte
	for _, e := range entries {
		if e.flag == 0 && e.magic == "" {
			e.flag = '0'
		}
		out = append(out, e.bytes()...)
	}
	return append(out, make([]byte, 2*blockBytes)...)
}

func record(key, value string) string {
	n := len(key) + len(value) + 3
	for {
		s := strconv.Itoa(n) + " " + key + "=" + value + "\n"
		if len(s) == n {
			return s
		}
		n = len(s)
	}
}

func paxHeader(flag byte, keysAndValues ...string) tarEntry {
	var text strings.Builder
	for i := 0; i < len(keysAndValues); i += 2 {
		text.WriteString(record(keysAndValues[i], keysAndValues[i+1]))
	}
	return tarEntry{name: "PaxHeaders/x", flag: flag, body: []byte(text.String())}
}

// item is an Entry with its body, kept.
type item struct {
	Entry
	Body   string
	Offset int64
}

func clone(e *Entry) Entry {
	c := *e
	c.Xattrs, c.Sparse = nil, nil
	for _, x := range e.Xattrs {
		c.Xattrs = append(c.Xattrs, Xattr{x.Name, append([]byte{}, x.Value...)})
	}
	if e.Sparse != nil {
		c.Sparse = append([]Extent{}, e.Sparse...)
	}
	return c
}

func walk(in []byte, blockSize int, l Limits) ([]item, error) {
	tr := NewTar(stream.NewSlicer(bytes.NewReader(in), blockSize), l)
	var items []item
	for {
		e, err := tr.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				_, err = tr.Drain()
			}
			return items, err
		}
		it := item{Entry: clone(e), Offset: tr.Offset()}
		for {
			part, err := tr.Body()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return items, err
			}
			it.Body += string(part)
		}
		items = append(items, it)
	}
}

func TestTar(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long/", 60) + "name"
	tests := map[string]struct {
		in   []tarEntry
		want []item
	}{
		"file": {
			[]tarEntry{{name: "a", mode: octal(0o4755, 8), uid: octal(5, 8), gid: octal(6, 8), mtime: octal(7, 12), body: []byte("hello")}},
			[]item{{Entry{Name: "a", Mode: 0o4755, UID: 5, GID: 6, Size: 5, StoredSize: 5, MTimeSec: 7}, "hello", 512}},
		},
		"mode with the type's bits": {
			[]tarEntry{{name: "a", mode: octal(0o100644, 8)}},
			[]item{{Entry{Name: "a", Mode: 0o644}, "", 512}},
		},
		"ustar prefix": {
			[]tarEntry{{name: "b", prefix: "a"}},
			[]item{{Entry{Name: "a/b", Mode: 0o644}, "", 512}},
		},
		"v7 directory and file": {
			[]tarEntry{{name: "d/", magic: "\x00\x00"}, {name: "f", magic: "\x00\x00"}},
			[]item{{Entry{Name: "d/", Type: Dir, Mode: 0o644}, "", 512}, {Entry{Name: "f", Mode: 0o644}, "", 1024}},
		},
		"trailing slash of a regular file": {
			[]tarEntry{{name: "d/", flag: '0'}},
			[]item{{Entry{Name: "d/", Mode: 0o644}, "", 512}},
		},
		"contiguous file": {
			[]tarEntry{{name: "c", flag: '7', body: []byte("x")}},
			[]item{{Entry{Name: "c", Mode: 0o644, Size: 1, StoredSize: 1}, "x", 512}},
		},
		"links, devices, fifo; sizes without bodies": {
			[]tarEntry{
				{name: "h", link: "/a", flag: '1', size: octal(99, 12)},
				{name: "s", link: "../a", flag: '2', size: octal(4, 12)},
				{name: "c", flag: '3', major: octal(10, 8), minor: octal(200, 8)},
				{name: "b", flag: '4', major: octal(8, 8), minor: "\x80\x00\x00\x00\x00\x10\x00\x00"},
				{name: "d", flag: '5', size: octal(1024, 12)},
				{name: "f", flag: '6'},
			},
			[]item{
				{Entry{Name: "h", Linkname: "/a", Type: HardLink, Mode: 0o644}, "", 512},
				{Entry{Name: "s", Linkname: "../a", Type: Symlink, Mode: 0o644}, "", 1024},
				{Entry{Name: "c", Type: Char, Mode: 0o644, Major: 10, Minor: 200}, "", 1536},
				{Entry{Name: "b", Type: Block, Mode: 0o644, Major: 8, Minor: 1 << 20}, "", 2048},
				{Entry{Name: "d", Type: Dir, Mode: 0o644}, "", 2560},
				{Entry{Name: "f", Type: FIFO, Mode: 0o644}, "", 3072},
			},
		},
		"base-256 owner and time": {
			[]tarEntry{{
				name: "a", magic: "ustar  \x00", uid: "\x80\x00\x00\x00\xff\xff\xff\xfe",
				mtime: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
			}},
			[]item{{Entry{Name: "a", Mode: 0o644, UID: math.MaxUint32 - 1, MTimeSec: -2}, "", 512}},
		},
		"GNU long names": {
			[]tarEntry{
				{name: "././@LongLink", flag: 'L', magic: "ustar  \x00", body: []byte(long + "\x00")},
				{name: "././@LongLink", flag: 'K', magic: "ustar  \x00", body: []byte("to/" + long + "\x00")},
				{name: "short", link: "short", flag: '2', magic: "ustar  \x00"},
				{name: "next", flag: '0', magic: "ustar  \x00"},
			},
			[]item{{Entry{Name: long, Linkname: "to/" + long, Type: Symlink, Mode: 0o644}, "", 2560}, {Entry{Name: "next", Mode: 0o644}, "", 3072}},
		},
		"prefix that Go before 1.8 put into GNU headers": {
			[]tarEntry{{name: "b", magic: "ustar  \x00", prefix: "dir/of/old/docker"}},
			[]item{{Entry{Name: "dir/of/old/docker/b", Mode: 0o644}, "", 512}},
		},
		"PAX": {
			[]tarEntry{
				paxHeader('x', "path", long, "linkpath", "to", "uid", "4294967294", "gid", "70000", "mtime", "-1.25", "size", "3", "hdrcharset", "BINARY"),
				{name: "a", size: octal(0, 12), body: []byte("abc")},
				{name: "b"},
			},
			[]item{
				{Entry{Name: long, Linkname: "to", Mode: 0o644, UID: math.MaxUint32 - 1, GID: 70000, Size: 3, StoredSize: 3, MTimeSec: -2, MTimeNsec: 750_000_000}, "abc", 1536},
				{Entry{Name: "b", Mode: 0o644}, "", 2560},
			},
		},
		"PAX times": {
			[]tarEntry{
				paxHeader('x', "mtime", "5000000000.0123456789"),
				{name: "a"},
				paxHeader('x', "mtime", "-0.5"),
				{name: "b"},
			},
			[]item{
				{Entry{Name: "a", Mode: 0o644, MTimeSec: 5e9, MTimeNsec: 12345678}, "", 1536},
				{Entry{Name: "b", Mode: 0o644, MTimeSec: -1, MTimeNsec: 5e8}, "", 3072},
			},
		},
		"PAX, global and its cancellation": {
			[]tarEntry{
				paxHeader('g', "uid", "7", "gid", "8", "SCHILY.xattr.user.g", "global"),
				{name: "a"},
				paxHeader('x', "uid", "9", "gid", "", "SCHILY.xattr.user.g", "own"),
				{name: "b", gid: octal(3, 8)},
				paxHeader('x', "uid", "10"),
				paxHeader('g', "uid", ""),
				{name: "c"},
				{name: "d"},
			},
			[]item{
				{Entry{Name: "a", Mode: 0o644, UID: 7, GID: 8, Xattrs: []Xattr{{"user.g", []byte("global")}}}, "", 1536},
				{Entry{Name: "b", Mode: 0o644, UID: 9, GID: 3, Xattrs: []Xattr{{"user.g", []byte("own")}}}, "", 3072},
				{Entry{Name: "c", Mode: 0o644, UID: 10, GID: 8, Xattrs: []Xattr{{"user.g", []byte("global")}}}, "", 5632},
				{Entry{Name: "d", Mode: 0o644, GID: 8, Xattrs: []Xattr{{"user.g", []byte("global")}}}, "", 6144},
			},
		},
		"PAX, of two headers the second holds": {
			[]tarEntry{paxHeader('x', "path", "one", "uid", "1"), paxHeader('x', "path", "two"), {name: "a"}},
			[]item{{Entry{Name: "two", Mode: 0o644}, "", 2560}},
		},
		"PAX size is not that of a long name after it": {
			[]tarEntry{
				paxHeader('x', "size", "1024"),
				{name: "././@LongLink", flag: 'L', body: []byte("name\x00")},
				{name: "a", size: octal(0, 12), body: bytes.Repeat([]byte{'x'}, 1024)},
			},
			[]item{{Entry{Name: "name", Mode: 0o644, Size: 1024, StoredSize: 1024}, strings.Repeat("x", 1024), 2560}},
		},
		"xattrs": {
			[]tarEntry{
				paxHeader('x', "SCHILY.xattr.user.b", "1", "SCHILY.xattr.user.a", "\x00=\n\xff", "SCHILY.xattr.user.b", "2",
					"SCHILY.xattr.user.overlay.origin", "", "LIBARCHIVE.xattr.user.b", "eHg", "LIBARCHIVE.xattr.user.%63", "AQI="),
				{name: "a"},
			},
			[]item{{Entry{Name: "a", Mode: 0o644, Xattrs: []Xattr{
				{"user.a", []byte("\x00=\n\xff")},
				{"user.b", []byte("2")},
				{"user.c", []byte{1, 2}},
				{"user.overlay.origin", []byte{}},
			}}, "", 1536}},
		},
		"names of any bytes": {
			[]tarEntry{{name: "\xff\xfe\n"}},
			[]item{{Entry{Name: "\xff\xfe\n", Mode: 0o644}, "", 512}},
		},
		"volume label, listing of a directory": {
			[]tarEntry{
				{name: "label", flag: 'V', magic: "ustar  \x00"},
				{name: "d/", flag: 'D', magic: "ustar  \x00", body: []byte("Yfile\x00\x00")},
				{name: "a"},
			},
			[]item{{Entry{Name: "d/", Type: Dir, Mode: 0o644}, "", 1536}, {Entry{Name: "a", Mode: 0o644}, "", 2048}},
		},
		"GNU sparse": {
			[]tarEntry{{
				name: "s", flag: 'S', magic: "ustar  \x00", body: []byte(strings.Repeat("a", 512) + "bc"),
				tail: map[int]string{386: octal(1024, 12) + octal(512, 12) + octal(2048, 12) + octal(2, 12) + octal(4096, 12) + octal(0, 12), 483: octal(4096, 12)},
			}},
			[]item{{Entry{
				Name: "s", Mode: 0o644, Size: 4096, StoredSize: 514,
				Sparse: []Extent{{1024, 512}, {2048, 2}},
			}, strings.Repeat("a", 512) + "bc", 512}},
		},
		"PAX sparse 0.0": {
			[]tarEntry{
				paxHeader('x', "GNU.sparse.size", "100", "GNU.sparse.numblocks", "2", "GNU.sparse.offset", "10", "GNU.sparse.numbytes", "2",
					"GNU.sparse.offset", "100", "GNU.sparse.numbytes", "0"),
				{name: "s", body: []byte("ab")},
			},
			[]item{{Entry{Name: "s", Mode: 0o644, Size: 100, StoredSize: 2, Sparse: []Extent{{10, 2}}}, "ab", 1536}},
		},
		"PAX sparse 0.1": {
			[]tarEntry{
				paxHeader('x', "GNU.sparse.size", "100", "GNU.sparse.map", "10,2,50,1", "GNU.sparse.name", "real"),
				{name: "GNUSparseFile.1/s", body: []byte("abc")},
			},
			[]item{{Entry{Name: "real", Mode: 0o644, Size: 100, StoredSize: 3, Sparse: []Extent{{10, 2}, {50, 1}}}, "abc", 1536}},
		},
		"PAX sparse 1.0": {
			[]tarEntry{
				paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "100", "GNU.sparse.name", "real"),
				{name: "GNUSparseFile.1/s", body: []byte("2\n10\n2\n50\n1\n" + strings.Repeat("\x00", 500) + "abc")},
			},
			[]item{{Entry{Name: "real", Mode: 0o644, Size: 100, StoredSize: 3, Sparse: []Extent{{10, 2}, {50, 1}}}, "abc", 2048}},
		},
		"sparse without data": {
			[]tarEntry{
				paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "100"),
				{name: "s", body: []byte("0\n" + strings.Repeat("\x00", 510))},
			},
			[]item{{Entry{Name: "s", Mode: 0o644, Size: 100, Sparse: []Extent{}}, "", 2048}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := buildTar(t, test.in...)
			for _, blockSize := range []int{1 << 20, 512, 700, 1} {
				got, err := walk(in, blockSize, Limits{})
				if err != nil {
					t.Fatalf("blocks of %d: %v", blockSize, err)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("blocks of %d:\n%s", blockSize, diff)
				}
			}
		})
	}
}

func TestTarEnds(t *testing.T) {
	t.Parallel()
	one := tarEntry{name: "a", flag: '0', body: []byte("abc")}.bytes()
	zero := make([]byte, blockBytes)
	tests := map[string]struct {
		in    []byte
		count int
		want  error
	}{
		"empty":                        {nil, 0, nil},
		"two zero blocks":              {cat(zero, zero), 0, nil},
		"no zero block":                {one, 1, nil},
		"one zero block":               {cat(one, zero), 1, nil},
		"no padding":                   {one[:515], 1, nil},
		"data after the end":           {cat(one, zero, zero, []byte("tail")), 1, nil},
		"entries after the end":        {cat(one, zero, zero, one), 1, nil},
		"cut header":                   {one[:300], 0, io.ErrUnexpectedEOF},
		"cut body":                     {one[:514], 0, io.ErrUnexpectedEOF},
		"cut zero block":               {cat(one, zero[:9]), 1, io.ErrUnexpectedEOF},
		"zero block amid the entries":  {cat(one, zero, one), 1, ErrFormat},
		"extended header at the end":   {cat(paxHeader('x', "uid", "1").bytes(), zero, zero), 0, ErrFormat},
		"extended header, end at once": {paxHeader('x', "uid", "1").bytes(), 0, ErrFormat},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, blockSize := range []int{1 << 20, 512, 7} {
				got, err := walk(test.in, blockSize, Limits{})
				if !errors.Is(err, test.want) {
					t.Errorf("blocks of %d: error %v, want %v", blockSize, err, test.want)
				}
				if len(got) != test.count {
					t.Errorf("blocks of %d: %d entries, want %d", blockSize, len(got), test.count)
				}
			}
		})
	}
}

func TestTarRefuses(t *testing.T) {
	t.Parallel()
	file := tarEntry{name: "a"}
	tests := map[string][]tarEntry{
		"wrong checksum":                 {{name: "a", badSum: 1}},
		"size that is no number":         {{name: "a", size: "12x"}},
		"negative size":                  {{name: "a", size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}},
		"negative owner":                 {{name: "a", uid: "\xff\xff\xff\xff\xff\xff\xff\xff"}},
		"owner that means unchanged":     {paxHeader('x', "uid", "4294967295"), file},
		"negative PAX group":             {paxHeader('x', "gid", "-1"), file},
		"negative PAX size":              {paxHeader('x', "size", "-1"), file},
		"PAX size that is no number":     {paxHeader('x', "size", "1e3"), file},
		"PAX time that is no number":     {paxHeader('x', "mtime", "noon"), file},
		"PAX time with letters":          {paxHeader('x', "mtime", "1.2.3"), file},
		"NUL in a PAX path":              {paxHeader('x', "path", "a\x00b"), file},
		"NUL in an xattr's name":         {paxHeader('x', "SCHILY.xattr.user.\x00", "v"), file},
		"nameless xattr":                 {paxHeader('x', "SCHILY.xattr.", "v"), file},
		"base64 that is none":            {paxHeader('x', "LIBARCHIVE.xattr.user.a", "!"), file},
		"PAX record without a length":    {{name: "x", flag: 'x', body: []byte("path=a\n")}, file},
		"PAX record too long":            {{name: "x", flag: 'x', body: []byte("99 path=a\n")}, file},
		"PAX record without a newline":   {{name: "x", flag: 'x', body: []byte("9 path=ab")}, file},
		"PAX record without a key":       {{name: "x", flag: 'x', body: []byte("5 =a\n")}, file},
		"continuation of a file":         {{name: "a", flag: 'M'}},
		"unknown type":                   {{name: "a", flag: 'Q'}},
		"device without numbers":         {{name: "a", flag: '3', magic: "\x00\x00"}},
		"device with a negative number":  {{name: "a", flag: '3', major: "\xff\xff\xff\xff\xff\xff\xff\xff"}},
		"sparse map beyond the file":     {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.map", "9,2"), {name: "a", body: []byte("ab")}},
		"sparse map out of order":        {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.map", "5,1,3,1"), {name: "a", body: []byte("ab")}},
		"sparse map overlapping":         {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.map", "0,2,1,1"), {name: "a", body: []byte("abc")}},
		"sparse map with half an extent": {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.map", "0,2,1"), {name: "a", body: []byte("ab")}},
		"sparse map smaller than body":   {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.map", "0,1"), {name: "a", body: []byte("ab")}},
		"sparse map larger than body":    {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.map", "0,3"), {name: "a", body: []byte("ab")}},
		"sparse map of another version":  {paxHeader('x', "GNU.sparse.major", "2", "GNU.sparse.minor", "0"), file},
		"sparse parts out of order":      {paxHeader('x', "GNU.sparse.numbytes", "1"), file},
		"sparse part without a size":     {paxHeader('x', "GNU.sparse.size", "10", "GNU.sparse.offset", "1"), file},
		"sparse map that ends in body":   {paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0"), {name: "a", body: []byte("1\n2")}},
		"sparse map with letters":        {paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0"), {name: "a", body: []byte("x\n")}},
		"star's sparse file":             {{name: "a", flag: 'S'}},
	}
	for name, entries := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := walk(buildTar(t, entries...), 1<<20, Limits{}); !errors.Is(err, ErrFormat) {
				t.Errorf("error %v, want ErrFormat; entries %v", err, got)
			}
		})
	}
}

func TestTarLimits(t *testing.T) {
	t.Parallel()
	file := tarEntry{name: "a"}
	long := strings.Repeat("n", 5000)
	var manyXattrs []string
	for i := range 20 {
		manyXattrs = append(manyXattrs, fmt.Sprintf("SCHILY.xattr.user.%d", i), "v")
	}
	tests := map[string]struct {
		in     []tarEntry
		limits Limits
		want   LimitError
	}{
		"entries":           {[]tarEntry{file, file, file}, Limits{MaxEntries: 2}, LimitError{"entries", 2, 3}},
		"bytes of a file":   {[]tarEntry{{name: "a", size: octal(1<<30, 12)}}, Limits{MaxBytes: 1 << 20}, LimitError{"bytes", 1 << 20, 1 << 30}},
		"bytes":             {[]tarEntry{file, file, file, file}, Limits{MaxBytes: 1024}, LimitError{"bytes", 1024, 1536}},
		"PAX header":        {[]tarEntry{paxHeader('x', "comment", long), file}, Limits{MaxHeaderBytes: 4096}, LimitError{"extended header bytes", 4096, 5014}},
		"huge PAX header":   {[]tarEntry{{name: "x", flag: 'x', size: octal(1<<32, 12)}}, Limits{}, LimitError{"extended header bytes", 1 << 20, 1 << 32}},
		"PAX path":          {[]tarEntry{paxHeader('x', "path", long), file}, Limits{}, LimitError{"name bytes", 4096, 5000}},
		"PAX link":          {[]tarEntry{paxHeader('x', "linkpath", long), file}, Limits{}, LimitError{"name bytes", 4096, 5000}},
		"GNU long name":     {[]tarEntry{{name: "L", flag: 'L', body: []byte(long)}, file}, Limits{}, LimitError{"name bytes", 4097, 5000}},
		"xattrs":            {[]tarEntry{paxHeader('x', manyXattrs...), file}, Limits{MaxXattrs: 19}, LimitError{"xattrs", 19, 20}},
		"xattr bytes":       {[]tarEntry{paxHeader('x', "SCHILY.xattr.user.a", long), file}, Limits{MaxXattrBytes: 1000}, LimitError{"xattr bytes", 1000, 5006}},
		"sparse 0.0":        {[]tarEntry{paxHeader('x', "GNU.sparse.offset", "1", "GNU.sparse.numbytes", "1", "GNU.sparse.offset", "3"), file}, Limits{MaxSparseExtents: 1}, LimitError{"sparse extents", 1, 2}},
		"sparse 0.1":        {[]tarEntry{paxHeader('x', "GNU.sparse.size", "9", "GNU.sparse.map", "1,1,3,1"), file}, Limits{MaxSparseExtents: 1}, LimitError{"sparse extents", 1, 2}},
		"sparse 1.0":        {[]tarEntry{paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0"), {name: "a", body: []byte("2\n")}}, Limits{MaxSparseExtents: 1}, LimitError{"sparse extents", 1, 2}},
		"sparse file's map": {[]tarEntry{paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "99"), {name: "a", body: bytes.Repeat([]byte("9\n"), 300)}}, Limits{MaxHeaderBytes: 300}, LimitError{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := walk(buildTar(t, test.in...), 1<<20, test.limits)
			if test.want == (LimitError{}) {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			got, ok := errors.AsType[*LimitError](err)
			if !ok {
				t.Fatalf("error %v, want a LimitError", err)
			}
			if diff := cmp.Diff(test.want, *got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A source's own error passes as it is, and is final.
func TestTarKeepsSourceError(t *testing.T) {
	t.Parallel()
	in := buildTar(t, tarEntry{name: "a", body: make([]byte, 2000)})
	want := errors.New("digest mismatch")
	for _, n := range []int{0, 100, 512, 1000, 2600} {
		src := io.MultiReader(bytes.NewReader(in[:n]), errReader{want})
		tr := NewTar(stream.NewSlicer(src, 512), Limits{})
		var err error
		for err == nil {
			_, err = tr.Next()
		}
		if err != want { //nolint:errorlint // it must be the very error
			t.Errorf("cut at %d: error %v", n, err)
		}
		if _, again := tr.Next(); again != err { //nolint:errorlint // it must be the very error
			t.Errorf("cut at %d: then %v", n, again)
		}
	}
	tr := NewTar(stream.NewSlicer(io.MultiReader(bytes.NewReader(in), errReader{want}), 512), Limits{})
	for {
		if _, err := tr.Next(); err != nil {
			break
		}
	}
	if _, err := tr.Drain(); !errors.Is(err, want) {
		t.Errorf("drain: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestDrainCountsTrailingBytes(t *testing.T) {
	t.Parallel()
	in := append(buildTar(t, tarEntry{name: "a"}), make([]byte, 10_000)...)
	tr := NewTar(stream.NewSlicer(bytes.NewReader(in), 700), Limits{})
	for {
		if _, err := tr.Next(); err != nil {
			break
		}
	}
	n, err := tr.Drain()
	if err != nil || n != 10_000 || tr.Offset() != int64(len(in)) {
		t.Errorf("drained %d to %d: %v", n, tr.Offset(), err)
	}
	if n, err := tr.Drain(); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
}

// Names that archive/tar writes come back, whatever format it picks.
func TestTarReadsArchiveTar(t *testing.T) {
	t.Parallel()
	for n := 1; n < 600; n += 7 {
		name := strings.Repeat("ab/", n/3) + strings.Repeat("x", n%3+1)
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 3, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte("abc"))
		_ = w.Close()
		got, err := walk(buf.Bytes(), 512, Limits{})
		if err != nil || len(got) != 1 || got[0].Name != name || got[0].Body != "abc" {
			t.Fatalf("%q: %v, %v", name, got, err)
		}
	}
}
