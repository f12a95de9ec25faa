package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// image returns the bytes of a tar's image.
func image(tb testing.TB, tar io.Reader, o erofs.Options) []byte {
	tb.Helper()
	x, err := erofs.Copy(tb.Context(), anyID, stream.NewSlicer(tar, blockBytes), nil, layer.Limits{}, o)
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	n, err := x.WriteTo(&b)
	if err = errors.Join(err, x.Close()); err != nil || n != int64(b.Len()) {
		tb.Fatalf("wrote %d bytes, WriteTo says %d: %v", b.Len(), n, err)
	}
	return b.Bytes()
}

// many returns a tar of count files in directories of perDir, in disorder.
func many(count, perDir int) []byte {
	order := rand.New(rand.NewPCG(1, 2)).Perm(count)
	entries := make([]testkit.Entry, 0, count)
	for _, i := range order {
		entries = append(entries, testkit.File(fmt.Sprintf("usr/share/dir-%d/file-number-%d", i/perDir, i), "x").At(int64(i), int64(i)).Chown(int64(i%1000), 7))
	}
	return testkit.Tar(entries...)
}

func TestDirectoryOf200000(t *testing.T) {
	testkit.Need(t, testkit.Root())
	if testing.Short() {
		t.Skip("makes 200,000 entries")
	}
	const count = 200_000
	s, err := store(t, t.TempDir(), bytes.NewReader(many(count, count)))
	if err != nil {
		t.Fatal(err)
	}
	dir := mounted(t, s) + "/usr/share/dir-0"
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != count {
		t.Fatalf("got %d names, want %d: %v", len(names), count, err)
	}
	for i := 0; i < count; i += 997 {
		info, err := os.Lstat(fmt.Sprintf("%s/file-number-%d", dir, i))
		if err != nil || info.ModTime().Unix() != int64(i) {
			t.Fatalf("file %d: %v, %v", i, info, err)
		}
		if _, err := os.Lstat(fmt.Sprintf("%s/file-number-%dx", dir, i)); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("got %v for a name that is not there", err)
		}
	}
}

// linked returns a tar in disorder with hard links between its directories, names
// that are given twice, whiteouts and directories among them.
func linked(count, perDir int) []byte {
	var entries []testkit.Entry
	var files []string
	for _, n := range rand.New(rand.NewPCG(3, 4)).Perm(count) {
		name := fmt.Sprintf("d%d/name-%d", n/perDir, n)
		switch {
		case n%7 == 0 && len(files) > 0:
			entries = append(entries, testkit.Hardlink(name, files[len(files)/2]))
		case n%13 == 0:
			entries = append(entries, testkit.Whiteout(name))
		case n%17 == 0:
			entries = append(entries, testkit.File(name+"/deeper/file", "x"))
		case n%19 == 0:
			entries = append(entries, testkit.File(name, "first"), testkit.File(name, "again").At(int64(n), 0))
		default:
			entries = append(entries, testkit.File(name, "x").At(int64(n), 0).Setxattr("user.number", strconv.Itoa(n%100)))
			files = append(files, name)
		}
	}
	return testkit.Tar(entries...)
}

func TestImageIsTheSameInMemoryAndOnDisk(t *testing.T) {
	t.Parallel()
	tars := [][]byte{many(30_000, 700), linked(5000, 300), linked(3000, 3000)}
	if !testing.Short() {
		tars = append(tars, many(70_000, 70_000)) // sorted in more than one run
	}
	for i, raw := range tars {
		want := image(t, bytes.NewReader(raw), erofs.Options{MaxBytes: 1 << 30})
		for _, limit := range []int64{1, 1_000_000} {
			dir := t.TempDir()
			got := image(t, bytes.NewReader(raw), erofs.Options{MaxBytes: limit, Dir: dir})
			if !bytes.Equal(got, want) {
				t.Errorf("tar %d: the image differs with %d bytes of memory", i, limit)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	}
}

func TestIndexDiskFull(t *testing.T) {
	t.Parallel()
	_, err := erofs.Copy(t.Context(), anyID, stream.NewSlicer(bytes.NewReader(many(100, 10)), blockBytes), nil, layer.Limits{}, erofs.Options{MaxBytes: 1, Dir: "/proc"})
	if err == nil || errors.Is(err, erofs.ErrInexpressible) || errors.Is(err, layer.ErrFormat) {
		t.Errorf("got %v, want an error of the disk", err)
	}
}

func TestMemoryPerEntry(t *testing.T) {
	const count = 200_000
	raw := many(count, 200)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	x, err := erofs.Copy(t.Context(), anyID, stream.NewSlicer(bytes.NewReader(raw), blockBytes), nil, layer.Limits{}, erofs.Options{MaxBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	allocated := float64(after.TotalAlloc-before.TotalAlloc) / count
	runtime.GC()
	runtime.ReadMemStats(&after)
	live := float64(after.HeapAlloc-before.HeapAlloc) / count
	runtime.KeepAlive(raw)
	t.Logf("%.0f bytes live per entry, %.0f allocated", live, allocated)
	if name := len("file-number-123456"); live > float64(erofs.BytesPerEntry+name) {
		t.Errorf("%.0f bytes per entry, want at most %d and the name's %d", live, erofs.BytesPerEntry, name)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

func TestInexpressible(t *testing.T) {
	t.Parallel()
	file := testkit.Tar(testkit.File("f", "content"))
	dirty := bytes.Clone(file)
	dirty[512+100] = 1
	for _, c := range []struct {
		name string
		tar  []byte
		want string
	}{
		{"sparse", testkit.Tar(testkit.SparseFile("s", testkit.SparseGNU, 1<<20, testkit.Extent{Offset: 1 << 20})), "sparse"},
		{"dirty padding", dirty, "padding"},
		{"missing padding", file[:512+7], "padding"},
		{"acl of an unknown tag", testkit.Tar(testkit.File("f", "x").Setxattr("system.posix_acl_access", "\x02\x00\x00\x00\x03\x00\x07\x00\xff\xff\xff\xff")), "ACL"},
		{"capability of an unknown version", testkit.Tar(testkit.File("f", "x").Setxattr("security.capability", strings.Repeat("\x01", 20))), "capability"},
		{"attribute of 64 KiB", testkit.Tar(testkit.File("f", "x").Setxattr("user.x", strings.Repeat("x", 1<<16))), "65535"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var kept bytes.Buffer
			_, err := erofs.Copy(t.Context(), anyID, stream.NewSlicer(bytes.NewReader(c.tar), 700), &kept, layer.Limits{}, erofs.Options{})
			if !errors.Is(err, erofs.ErrInexpressible) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want one about %q", err, c.want)
			}
			if diff := cmp.Diff(c.tar, kept.Bytes()); diff != "" {
				t.Errorf("the tar was not kept whole: %d bytes of %d", kept.Len(), len(c.tar))
			}
		})
	}
}

func TestManyAttributes(t *testing.T) {
	testkit.Need(t, testkit.Root())
	// More shared ones than an inode may refer to, and more than a block of others.
	var entries []testkit.Entry
	for f := range 3 {
		e := testkit.File(fmt.Sprintf("f%d", f), "content")
		for i := range 300 {
			e = e.Setxattr(fmt.Sprintf("user.shared-%03d", i), fmt.Sprint(i))
		}
		entries = append(entries, e.Setxattr("user.own", strings.Repeat(fmt.Sprint(f), 5000)))
	}
	l := testkit.Symlink("l", strings.Repeat("t", 300)).Setxattr("trusted.large", strings.Repeat("v", 200))
	s, err := store(t, t.TempDir(), bytes.NewReader(testkit.Tar(append(entries, l)...)))
	if err != nil {
		t.Fatal(err)
	}
	tree := testkit.Tree(t, mounted(t, s))
	for f := range 3 {
		n := tree[fmt.Sprintf("f%d", f)]
		if len(n.Xattrs) != 301 || n.Xattrs["user.own"] != strings.Repeat(fmt.Sprint(f), 5000) || n.Xattrs["user.shared-299"] != "299" || n.Size != 7 {
			t.Errorf("file %d: %d attributes, size %d", f, len(n.Xattrs), n.Size)
		}
	}
	if n := tree["l"]; n.Link != strings.Repeat("t", 300) || n.Xattrs["trusted.large"] != strings.Repeat("v", 200) {
		t.Errorf("got link %+v", n)
	}
}

// mayIndex returns the index of what may be a tar, or nil.
func mayIndex(t *testing.T, raw []byte) *erofs.Index {
	t.Helper()
	x, err := erofs.Copy(t.Context(), anyID, stream.NewSlicer(bytes.NewReader(raw), 700), nil, layer.Limits{MaxBytes: 1 << 24}, erofs.Options{})
	if err != nil {
		return nil
	}
	return x
}
