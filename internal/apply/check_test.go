package apply

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/layer"
	"dray/internal/stream"
	"dray/internal/testkit"
)

func TestCheckFindsEveryChange(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	in := tarOf(t,
		dirItem("d").mode(0o750), reg("d/f", "content"), reg("d/g", strings.Repeat("x", 300_000)).xattr("user.a", "1"),
		link("d/h", "d/f"), symlink("l", "target"), reg("null", "").typed(tar.TypeChar).dev(1, 3),
		reg(".wh.gone", ""), reg("o/.wh..wh..opq", ""),
		reg("s", "ab").pax("?NU.sparse.major", "0", "?NU.sparse.minor", "1", "?NU.sparse.size", "1000000", "?NU.sparse.map", "500000,2"),
	)
	in = bytes.ReplaceAll(in, []byte("?NU.sparse"), []byte("GNU.sparse")) // archive/tar writes no such records
	tests := map[string]struct {
		change func(dir string) error
		want   []string // path and what
	}{
		"nothing": {func(string) error { return nil }, nil},
		"content": {func(dir string) error { return writeAt(dir+"/d/g", 299_999, "y") }, []string{"d/g content"}},
		"size":    {func(dir string) error { return os.Truncate(dir+"/d/g", 5) }, []string{"d/g size"}},
		"data in a hole": {
			func(dir string) error { return writeAt(dir+"/s", 900_000, "y") },
			[]string{"s hole"},
		},
		"zeros in a hole": {func(dir string) error { return writeAt(dir+"/s", 900_000, "\x00") }, nil},
		"mode":            {func(dir string) error { return os.Chmod(dir+"/d", 0o755) }, []string{"d mode"}},
		"setuid":          {func(dir string) error { return unix.Chmod(dir+"/d/g", 0o4644) }, []string{"d/g mode"}},
		"owner":           {func(dir string) error { return os.Chown(dir+"/d/g", 1, 2) }, []string{"d/g group", "d/g owner"}},
		"time": {
			func(dir string) error { return os.Chtimes(dir+"/d/g", time.Time{}, time.Unix(1, 2)) },
			[]string{"d/g time"},
		},
		"root's mode":   {func(dir string) error { return os.Chmod(dir, 0o700) }, []string{" mode"}},
		"xattr changed": {func(dir string) error { return unix.Setxattr(dir+"/d/g", "user.a", []byte("2"), 0) }, []string{`d/g xattr "user.a"`}},
		"xattr removed": {func(dir string) error { return unix.Removexattr(dir+"/d/g", "user.a") }, []string{`d/g xattr "user.a"`}},
		"xattr added":   {func(dir string) error { return unix.Setxattr(dir+"/d", "user.b", nil, 0) }, []string{`d xattr "user.b"`}},
		"opaque mark":   {func(dir string) error { return unix.Removexattr(dir+"/o", "trusted.overlay.opaque") }, []string{"o opaque mark"}},
		"missing file":  {func(dir string) error { return os.Remove(dir + "/l") }, []string{"l missing"}},
		"missing tree":  {func(dir string) error { return os.RemoveAll(dir + "/d") }, []string{"d missing"}},
		"extra":         {func(dir string) error { return os.MkdirAll(dir+"/d/x/y", 0o755) }, []string{"d/x extra"}},
		"other target": {func(dir string) error {
			return replaceBy(dir+"/l", func(p string) error { return os.Symlink("other", p) })
		}, []string{"l target"}},
		"other type": {func(dir string) error {
			return replaceBy(dir+"/l", func(p string) error { return os.WriteFile(p, nil, 0o600) })
		}, []string{"l type"}},
		"other device": {func(dir string) error {
			return replaceBy(dir+"/null", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, 5) })
		}, []string{"null device"}},
		"whiteout": {func(dir string) error {
			return replaceBy(dir+"/gone", func(p string) error { return os.WriteFile(p, nil, 0o600) })
		}, []string{"gone type"}},
		"tree by a file": {func(dir string) error {
			return replaceBy(dir+"/o", func(p string) error { return os.WriteFile(p, nil, 0o600) })
		}, []string{"o type"}},
		"hard link broken": {
			func(dir string) error {
				return replaceBy(dir+"/d/h", func(p string) error { return os.WriteFile(p, nil, 0o644) })
			},
			[]string{"hard link"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := applyTar(t, in, Options{})
			if err != nil {
				t.Fatal(err)
			}
			// Changes below a directory change its time as well: keep them.
			times := map[string]time.Time{}
			for p := range tree(t, a.dir) {
				info, err := os.Lstat(filepath.Join(a.dir, p))
				if err != nil {
					t.Fatal(err)
				}
				times[p] = info.ModTime()
			}
			if err := test.change(a.dir); err != nil {
				t.Fatal(err)
			}
			for p, at := range times {
				spec := unix.NsecToTimespec(at.UnixNano())
				if name != "time" {
					// What was removed has no time.
					_ = unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(a.dir, p), []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW)
				}
			}
			found, err := Check(t.Context(), a.root, bytes.NewReader(a.journal), CheckOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if name == "hard link broken" { // whichever name came first is taken for the file
				for _, d := range found {
					if d.What == "hard link" {
						return
					}
				}
				t.Fatalf("not found: %v", found)
			}
			var got []string
			for _, d := range found {
				got = append(got, d.Path+" "+d.What)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s\n%v", diff, found)
			}
		})
	}
}

func writeAt(path string, offset int64, data string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(data), offset)
	return errors.Join(err, f.Close())
}

func replaceBy(path string, create func(path string) error) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return create(path)
}

func TestCheckStopsAtEnough(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	a, err := applyTar(t, tarOf(t, reg("a", ""), reg("b", ""), reg("c", "")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	found, err := Check(t.Context(), a.root, bytes.NewReader(a.journal), CheckOptions{MaxDifferences: 2})
	if err != nil || len(found) != 2 {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := Check(canceled(t), a.root, bytes.NewReader(a.journal), CheckOptions{}); err != nil {
		t.Errorf("an empty tree leaves nothing to cancel: %v", err)
	}
}

// A journal that is cut anywhere, or damaged, is an error and nothing worse.
func TestJournalDamage(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	for _, sum := range []string{CRC32C, SHA256} {
		a, err := applyTar(t, tarOf(t, dirItem("d"), reg("d/f", "x").xattr("user.a", "1"), link("h", "d/f"), reg("d", "y")), Options{ContentHash: sum})
		if err != nil {
			t.Fatal(err)
		}
		a.check(t, CheckOptions{})
		for n := range a.journal {
			if _, err := Check(t.Context(), a.root, bytes.NewReader(a.journal[:n]), CheckOptions{}); !errors.Is(err, ErrJournal) {
				t.Errorf("%s, %d bytes: %v", sum, n, err)
			}
			broken := bytes.Clone(a.journal)
			broken[n] ^= 0x10
			// The frame's header has bits that change nothing.
			found, err := Check(t.Context(), a.root, bytes.NewReader(broken), CheckOptions{})
			if !errors.Is(err, ErrJournal) && (err != nil || len(found) > 0) {
				t.Errorf("%s, byte %d changed: %v, %v", sum, n, found, err)
			}
		}
	}
	if _, err := applyTar(t, tarOf(t), Options{ContentHash: "md5"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("md5: %v", err)
	}
}

func FuzzReadJournal(f *testing.F) {
	f.Add([]byte("d\x00\x00\xed\x03\x00\x00\x00\x00\x00f\x00\x01aabcd"))
	f.Add([]byte("d\x00\x00\xed\x03\x00\x00\x00\x00\x00h\x00\x01b\x01a.\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		sum, _, err := newHash(CRC32C)
		if err != nil {
			t.Fatal(err)
		}
		all := &records{byPath: map[string]*record{}, sum: sum}
		r := newJournalReader(bytes.NewReader(in), sum.Size())
		for seq := int64(1); ; seq++ {
			if done, err := r.next(all, seq); done || err != nil {
				return
			}
		}
	})
}

// Cancellation is seen amid a file, and nothing stays open.
func TestCancel(t *testing.T) {
	testkit.Need(t, testkit.Root()) // not parallel: it counts descriptors
	before := openFDs(t)
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := tarOf(t, dirItem("a/b"), reg("a/b/c", "x"), reg("file", strings.Repeat("x", 1<<20)), reg("later", ""))
	ctx, cancel := context.WithCancelCause(t.Context())
	src := &cancelAfter{Reader: bytes.NewReader(in), cancel: func() { cancel(errTest) }, left: 200_000}
	result, err := Apply(ctx, root, layer.NewTar(stream.NewSlicer(src, 4096), layer.Limits{}), Options{Journal: io.Discard})
	if !errors.Is(err, errTest) || result.Files != 1 {
		t.Errorf("error %v after %+v", err, result)
	}
	if _, err := os.Lstat(filepath.Join(root.Name(), "later")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("went on: %v", err)
	}
	if _, err := Apply(canceled(t), root, newTar(in), Options{}); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	_ = root.Close()
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

type cancelAfter struct {
	io.Reader
	cancel func()
	left   int
}

func (c *cancelAfter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.left -= n; c.left < 0 {
		c.cancel()
	}
	return n, err
}

// Directories are used in turn beyond the number that stays open; their times,
// ACLs and descriptors are right all the same.
func TestManyDirectories(t *testing.T) {
	testkit.Need(t, testkit.Root()) // not parallel: it counts descriptors
	var items []item
	want := map[string]string{".": "dir 0755 0:0 0.000000000"}
	const count = 3 * maxOpenDirs
	name := func(i int) string {
		return "d" + strings.Repeat("x", i%5) + string(rune('a'+i%26)) + string(rune('a'+i/26))
	}
	for i := range count {
		items = append(items, dirItem(name(i)).mode(0o755).at(time.Unix(int64(i), 0)).xattr("system.posix_acl_default", acl))
	}
	for round := range 2 {
		for i := range count {
			items = append(items, reg(name(i)+"/f"+string(rune('0'+round)), ""))
		}
	}
	before := openFDs(t)
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a, err := applyTo(t, root, tarOf(t, items...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		want[name(i)] = "dir 0755 0:0 " + strconv.Itoa(i) + ".000000000 system.posix_acl_default=" + quoted(acl)
		for round := range 2 {
			want[name(i)+"/f"+string(rune('0'+round))] = `file 0644 0:0 1000000000.123456789 ""`
		}
	}
	if diff := cmp.Diff(want, tree(t, a.dir)); diff != "" {
		t.Error(diff)
	}
	a.check(t, CheckOptions{})
	_ = root.Close()
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// A file system without xattrs is an error, never a lost opaque mark. Not
// parallel: it mounts.
func TestNoXattrs(t *testing.T) {
	testkit.Need(t, testkit.Root())
	for name, entry := range map[string]item{
		"opaque": reg("d/.wh..wh..opq", ""),
		"caps":   reg("f", "").xattr("security.capability", fileCap),
		"user":   reg("f", "").xattr("user.a", "b"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			root, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Apply(t.Context(), root, newTar(tarOf(t, entry)), Options{})
			_ = root.Close()
			if unmountErr := unix.Unmount(dir, 0); unmountErr != nil {
				t.Error(unmountErr)
			}
			if !errors.Is(err, ErrNoXattrs) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A full file system is reported as what it is, by a large file and by small ones. Not
// parallel: it mounts.
func TestNoSpace(t *testing.T) {
	testkit.Need(t, testkit.Root())
	var many []item
	for i := range 100 {
		many = append(many, reg(fmt.Sprintf("small%d", i), strings.Repeat("x", 3000)))
	}
	for name, in := range map[string][]item{"big": {reg("big", strings.Repeat("x", 1<<20))}, "small": many} {
		t.Run(name, func(t *testing.T) {
			before := openFDs(t)
			dir := t.TempDir()
			if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			root, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Apply(t.Context(), root, newTar(tarOf(t, in...)), Options{})
			_ = root.Close()
			if unmountErr := unix.Unmount(dir, 0); unmountErr != nil {
				t.Error(unmountErr)
			}
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `"`+name) {
				t.Errorf("error %v", err)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors are open, %d were", after, before)
			}
		})
	}
}

// What is not exact is counted, and said once.
func TestInexactIsSaid(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	var log bytes.Buffer
	in := tarOf(t, reg("f", "").xattr("com.apple.quarantine", "x"), reg("far", "").at(time.Unix(1<<40, 0)))
	a, err := applyTar(t, in, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if a.result.Exact() || a.result.XattrsImpossible != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%+v\n%s", a.result, log.String())
	}
	a.check(t, CheckOptions{}) // the journal has what the file system made of it
}

func TestDeepTree(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	deep := strings.Repeat("d/", 2000)
	in := tarOf(t, reg(deep+"f", "x"), reg(deep+"g", "y"), link("h", deep+"f"), reg("d", "z"))
	a, err := applyTar(t, in, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"d": `file "z"`, "h": `file "x"`}, shape(t, a.dir)); diff != "" {
		t.Error(diff)
	}
	a.check(t, CheckOptions{})
	if a.result.ImplicitDirs != 2000 || a.result.Replaced != 1 {
		t.Errorf("%+v", a.result)
	}
}

// The process's umask takes nothing away. Not parallel: it changes the umask.
func TestUmask(t *testing.T) {
	testkit.Need(t, testkit.Root())
	in := tarOf(t, dirItem("d").mode(0o777), reg("d/f", "").mode(0o666), reg("d/p", "").typed(tar.TypeFifo).mode(0o622), reg("implicit/f", ""))
	root := newRoot(t)
	old := unix.Umask(0o077)
	a, err := applyTo(t, root, in, Options{})
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	got := tree(t, a.dir)
	for name, want := range map[string]string{"d": "dir 0777", "d/f": "file 0666", "d/p": "fifo 0622", "implicit": "dir 0755", "implicit/f": "file 0644"} {
		if !strings.HasPrefix(got[name], want) {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
}

// No sequence of entries leaves the root or makes the journal wrong.
func FuzzApply(f *testing.F) {
	testkit.Need(f, testkit.Root())
	paths := []string{
		"a", "b", "a/b", "a/b/c", "b/a", "l", "l/a", "l/../a", "/b/c", "../a", ".", "a/l", "a/l/x",
		".wh.a", ".wh.b", "a/.wh.b", "l/.wh.a", ".wh..wh..opq", "a/.wh..wh..opq", "a/b/.wh..wh..opq", "l/.wh..wh..opq", ".wh..wh.plnk/x",
	}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar}
	f.Add([]byte{1, 0, 0, 0, 2, 1, 2, 5, 0, 0, 6, 0})
	f.Add([]byte{0, 13, 0, 1, 0, 0, 0, 2, 0, 0, 18, 0, 0, 0, 0})
	f.Add([]byte{0, 3, 0, 0, 15, 0, 0, 18, 0, 3, 1, 3, 1, 2, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		const maxBytes = 60
		var items []item
		for in = in[:min(len(in), maxBytes)]; len(in) >= 3; in = in[3:] {
			i := item{Header: tar.Header{Name: paths[int(in[1])%len(paths)], Typeflag: types[int(in[0])%len(types)], Mode: int64(in[2]) << 4}}
			switch i.Typeflag {
			case tar.TypeReg:
				i.body = "x"
			case tar.TypeSymlink, tar.TypeLink:
				i.Linkname = paths[int(in[2])%len(paths)]
			case tar.TypeDir:
				i = i.xattr("user.a", string(in[2:3]))
			case tar.TypeChar:
				i.Devminor = int64(in[2] & 1)
			}
			items = append(items, i)
		}
		outer := t.TempDir()
		inner := filepath.Join(outer, "inner")
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(inner)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		a, err := applyTo(t, root, tarOf(t, items...), Options{})
		entries, readErr := os.ReadDir(outer)
		if readErr != nil || len(entries) != 1 {
			t.Fatalf("outside: %v, %v", entries, readErr)
		}
		if err == nil {
			a.check(t, CheckOptions{})
		}
	})
}
