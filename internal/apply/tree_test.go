package apply

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
	"dray/internal/stream"
)

// item is one entry of a test's tar.
type item struct {
	tar.Header
	body string
}

var epoch = time.Unix(1_000_000_000, 123456789)

func reg(name, body string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}

func dirItem(name string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func link(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}, ""}
}

func symlink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

func (i item) mode(mode int64) item    { i.Mode = mode; return i }
func (i item) owner(uid, gid int) item { i.Uid, i.Gid = uid, gid; return i }
func (i item) at(t time.Time) item     { i.ModTime = t; return i }
func (i item) typed(flag byte) item    { i.Typeflag = flag; return i }
func (i item) dev(major, m int64) item { i.Devmajor, i.Devminor = major, m; return i }
func (i item) pax(kv ...string) item {
	records := map[string]string{}
	for j := 0; j < len(kv); j += 2 {
		records[kv[j]] = kv[j+1]
	}
	i.PAXRecords = records
	return i
}

func (i item) xattr(name, value string) item { return i.pax("SCHILY.xattr."+name, value) }

func tarOf(tb testing.TB, items ...item) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		if i.ModTime.IsZero() {
			i.ModTime = epoch
		}
		i.Size = int64(len(i.body))
		i.Format = tar.FormatPAX
		if err := w.WriteHeader(&i.Header); err != nil {
			tb.Fatalf("%s: %v", i.Name, err)
		}
		if _, err := w.Write([]byte(i.body)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// applied is a tree and what Apply said.
type applied struct {
	dir     string
	root    *os.File
	result  Result
	journal []byte
}

func newRoot(tb testing.TB) *os.File {
	tb.Helper()
	root, err := os.Open(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = root.Close() })
	return root
}

func applyTar(tb testing.TB, in []byte, o Options) (applied, error) {
	tb.Helper()
	root := newRoot(tb)
	return applyTo(tb, root, in, o)
}

func applyTo(tb testing.TB, root *os.File, in []byte, o Options) (applied, error) {
	tb.Helper()
	var journal bytes.Buffer
	o.Journal = &journal
	tr := layer.NewTar(stream.NewSlicer(bytes.NewReader(in), 100_000), layer.Limits{})
	result, err := Apply(tb.Context(), root, tr, o)
	return applied{root.Name(), root, result, journal.Bytes()}, err
}

// check asserts that the journal tells the truth.
func (a applied) check(tb testing.TB, o CheckOptions) {
	tb.Helper()
	found, err := Check(tb.Context(), a.root, bytes.NewReader(a.journal), o)
	if err != nil {
		tb.Errorf("check: %v", err)
	}
	for _, d := range found {
		tb.Errorf("check: %s", d)
	}
}

// tree describes everything below dir by path: type, mode, owner, time, size or
// target or device, xattrs, and the first path of the same file.
func tree(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	first := map[uint64]string{}
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		line := fmt.Sprintf("%s %04o %d:%d %d.%09d", kindOf(st.Mode), st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if len(data) <= 32 {
				line += fmt.Sprintf(" %q", data)
			} else {
				line += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		line += xattrsOf(tb, path)
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if other, ok := first[st.Ino]; ok {
				line = "= " + other
			} else {
				first[st.Ino] = name
			}
		}
		all[name] = line
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFIFO:
		return "fifo"
	}
	return "?"
}

func xattrsOf(tb testing.TB, path string) string {
	tb.Helper()
	names, err := listXattrs(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if err != nil {
		tb.Fatal(err)
	}
	slices.Sort(names)
	var out strings.Builder
	buf := make([]byte, 64<<10)
	for _, name := range names {
		if setByKernel(name) {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			tb.Fatal(err)
		}
		if n == 0 && strings.HasSuffix(name, ".overlay.origin") {
			continue // with every whiteout; test/script/faults.txtar looks at what it does
		}
		fmt.Fprintf(&out, " %s=%q", name, buf[:n])
	}
	return out.String()
}

// shape is [tree] without modes, owners and times, nor the root if it is plain.
func shape(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	short := map[string]string{}
	for name, line := range tree(tb, dir) {
		if name == "." && !strings.Contains(line, "overlay") {
			continue
		}
		fields := strings.Fields(line)
		if fields[0] == "=" {
			short[name] = line
			continue
		}
		short[name] = strings.Join(append(fields[:1:1], fields[4:]...), " ")
	}
	return short
}

func openFDs(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

var errTest = errors.New("stop")

func canceled(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithCancelCause(tb.Context())
	cancel(errTest)
	return ctx
}

func quoted(s string) string { return fmt.Sprintf("%q", s) }

func newTar(in []byte) *layer.Tar {
	return layer.NewTar(stream.NewSlicer(bytes.NewReader(in), 256<<10), layer.Limits{})
}

// smallFiles returns a tar of count files of 1 to 16 KiB in directories of 40.
func smallFiles(tb testing.TB, count int) []byte {
	tb.Helper()
	random := rand.New(rand.NewPCG(3, 4))
	body := make([]byte, 16<<10)
	for i := range body {
		body[i] = byte(random.Uint32())
	}
	var items []item
	for i := range count {
		dir := fmt.Sprintf("usr/share/part%d/package%d/", i/400, i/40)
		if i%40 == 0 {
			items = append(items, dirItem(dir))
		}
		items = append(items, reg(fmt.Sprintf("%sfile%d.txt", dir, i), string(body[:1024+random.IntN(15<<10)])).at(epoch.Truncate(time.Second)))
	}
	return tarOf(tb, items...)
}
