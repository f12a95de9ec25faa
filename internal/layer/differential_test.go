package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/stream"
	"dray/internal/testkit"
)

// errStrict is what theirs returns for archives that archive/tar reads
// otherwise, or that this package refuses on purpose.
var errStrict = errors.New("not comparable")

// theirs walks an archive with archive/tar.
func theirs(in []byte) ([]item, error) {
	r := tar.NewReader(bytes.NewReader(in))
	var items []item
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		it, err := fromHeader(h)
		if err != nil {
			return items, err
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return items, err
		}
		it.Body = string(body)
		items = append(items, it)
	}
}

func fromHeader(h *tar.Header) (item, error) {
	types := map[byte]EntryType{
		tar.TypeReg: Reg, '7': Reg, tar.TypeGNUSparse: Reg, tar.TypeLink: HardLink, tar.TypeSymlink: Symlink,
		tar.TypeChar: Char, tar.TypeBlock: Block, tar.TypeDir: Dir, tar.TypeFifo: FIFO,
	}
	kind, known := types[h.Typeflag]
	if !known || int64(h.Uid) < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) < 0 || int64(h.Gid) >= math.MaxUint32 {
		return item{}, errStrict
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "LIBARCHIVE.xattr.") || strings.HasPrefix(key, "SCHILY.xattr.") {
			return item{}, errStrict // other forms, empty values
		}
	}
	it := item{Entry: Entry{
		Name: h.Name, Linkname: h.Linkname, Type: kind, Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid),
		MTimeSec: h.ModTime.Unix(), MTimeNsec: uint32(h.ModTime.Nanosecond()),
	}}
	if kind == Reg {
		it.Size = h.Size
	}
	if kind == Char || kind == Block {
		it.Major, it.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	return it, nil
}

// fill makes a sparse file's body of what is stored.
func fill(it item) item {
	if it.Sparse != nil {
		body := make([]byte, it.Size)
		rest := it.Body
		for _, x := range it.Sparse {
			copy(body[x.Offset:], rest[:x.Size])
			rest = rest[x.Size:]
		}
		it.Body = string(body)
	}
	it.Sparse, it.StoredSize, it.Offset, it.Xattrs = nil, 0, 0, nil
	return it
}

// FuzzTar compares with archive/tar whatever both accept, and with itself over
// blocks of another size. Checksums are made right, since fuzzing would not.
func FuzzTar(f *testing.F) {
	for _, entries := range [][]tarEntry{
		{{name: "a", body: []byte("hello")}, {name: "d/", magic: "\x00\x00"}},
		{{name: "h", link: "/a", flag: '1'}, {name: "c", flag: '3', major: octal(1, 8), minor: octal(3, 8)}},
		{paxHeader('x', "path", "b", "mtime", "-1.5", "uid", "70000", "size", "3"), {name: "a", body: []byte("abc")}},
		{{name: "L", flag: 'L', magic: "ustar  \x00", body: []byte("long\x00")}, {name: "a", magic: "ustar  \x00", prefix: "p"}},
		{{name: "s", flag: 'S', magic: "ustar  \x00", body: []byte("ab"), tail: map[int]string{386: octal(10, 12) + octal(2, 12), 483: octal(20, 12)}}},
		{paxHeader('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "100", "GNU.sparse.name", "real"), {name: "s", body: []byte("1\n10\n2\n" + strings.Repeat("\x00", 505) + "ab")}},
		{paxHeader('x', "GNU.sparse.size", "100", "GNU.sparse.map", "10,2"), {name: "s", body: []byte("ab")}},
		{{name: "a", prefix: strings.Repeat("p", 131), tail: map[int]string{508: "tar\x00"}}},
	} {
		f.Add(buildTar(f, entries...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const maxBytes = 64 << 10
		if len(in) > maxBytes {
			return
		}
		in = bytes.Clone(in)
		for i := 0; i+blockBytes <= len(in); i += blockBytes {
			if b := (*block)(in[i:]); !b.isZero() {
				unsigned, _ := b.sum()
				copy(b.checksum(), fmt.Sprintf("%06o\x00 ", unsigned))
			}
		}
		limits := Limits{MaxBytes: 1 << 20}
		got, err := walk(in, 1<<20, limits)
		again, againErr := walk(in, 100, limits)
		if diff := cmp.Diff(got, again); diff != "" || (err == nil) != (againErr == nil) {
			t.Fatalf("over small blocks: %v, %v\n%s", err, againErr, diff)
		}
		if err != nil || bytes.Contains(in, []byte("GNU.sparse")) && hasHoles(got) {
			return
		}
		for i := range got {
			if got[i].Size > maxBytes*4 {
				return
			}
			got[i] = fill(got[i])
		}
		want, err := theirs(in)
		if err != nil {
			return
		}
		if bytes.IndexByte(flags(in), 'g') >= 0 || bytes.IndexByte(flags(in), 'V') >= 0 || bytes.IndexByte(flags(in), 'D') >= 0 {
			return // archive/tar hands them out
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func hasHoles(items []item) bool {
	for _, it := range items {
		if it.Size > 1<<20 {
			return true
		}
	}
	return false
}

// flags returns what may be type flags.
func flags(in []byte) []byte {
	var all []byte
	for i := 156; i < len(in); i += blockBytes {
		all = append(all, in[i])
	}
	return all
}

// What GNU tar writes is read as archive/tar reads it.
func TestTarAgainstGNUTar(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Tool("tar"))
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 50 {
		name := filepath.Join(dir, fmt.Sprintf("d%d", i%5), strings.Repeat("n", 1+i%80))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, make([]byte, random.IntN(5000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("t", 90), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "d0", "n"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"v7", "oldgnu", "gnu", "ustar", "posix"} {
		cmd := exec.CommandContext(t.Context(), "tar", "--format="+format, "--sort=name", "-cf", "-", "-C", dir, ".")
		in, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		got, err := walk(in, 10_000, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		want, err := theirs(in)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		for i := range got {
			got[i] = fill(got[i])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", format, diff)
		}
	}
}

// lender lends one buffer again and again: a source that costs nothing.
type lender struct {
	header, body []byte
	count        int
	next         int
}

func (l *lender) Next() ([]byte, error) {
	l.next++
	switch {
	case l.next > l.count:
		return nil, io.EOF
	case l.next == 1:
		return l.header, nil
	}
	return l.body, nil
}

// BenchmarkTarWalk skims over large files, and over small ones.
func BenchmarkTarWalk(b *testing.B) {
	b.Run("large", func(b *testing.B) {
		const count, blockSize = 1024, 256 << 10
		size := int64(count-1) * blockSize
		header := tarEntry{name: "big", flag: '0', size: octal(size, 12)}.bytes()
		l := &lender{header: header, body: make([]byte, blockSize), count: count}
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			l.next = 0
			walkBench(b, l)
		}
	})
	for _, form := range []string{"ustar", "pax"} {
		var entries []tarEntry
		const count = 10_000
		for i := range count {
			if form == "pax" {
				entries = append(entries, paxHeader('x', "mtime", "1700000000.123456789", "SCHILY.xattr.user.a", "value"))
			}
			entries = append(entries, tarEntry{name: fmt.Sprintf("usr/share/doc/package%d/file", i), body: make([]byte, 100)})
		}
		in := buildTar(b, entries...)
		b.Run(form, func(b *testing.B) {
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			src := bytes.NewReader(in)
			for b.Loop() {
				src.Reset(in)
				walkBench(b, stream.NewSlicer(src, 256<<10))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/entry")
		})
	}
}

func walkBench(b *testing.B, src stream.Blocks) {
	b.Helper()
	tr := NewTar(src, Limits{})
	for {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecompress(b *testing.B) {
	plain := sampleTar(b, 4<<20)
	for name, in := range map[string][]byte{"plain": plain, "gzip": gz(b, plain), "zstd": zst(b, plain)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				d, err := Decompress(bytes.NewReader(in), Options{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, d); err != nil {
					b.Fatal(err)
				}
				_ = d.Close()
			}
		})
	}
}
