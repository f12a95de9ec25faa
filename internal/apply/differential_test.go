package apply

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/testkit"
)

func run(tb testing.TB, dir, name string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// oddTree makes a tree with everything that a file system can hold.
func oddTree(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, body string) string {
		must(os.MkdirAll(filepath.Dir(path(name)), 0o755))
		must(os.WriteFile(path(name), []byte(body), 0o644))
		return path(name)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		name := write(fmt.Sprintf("many/%d/%d/f%d", i%3, i%7, i), string(make([]byte, random.IntN(9000))))
		must(os.Chmod(name, os.FileMode(random.IntN(0o1000))))
		must(os.Lchown(name, random.IntN(100_000), random.IntN(5_000_000)))
	}
	must(unix.Setxattr(write("caps", "x"), "security.capability", []byte(fileCap), 0))
	must(unix.Setxattr(write("xattrs", "x"), "user.binary", []byte("\x00\n=\xff"), 0))
	must(unix.Setxattr(path("xattrs"), "user.empty", nil, 0))
	must(unix.Setxattr(path("many"), "trusted.dir", []byte("v"), 0))
	must(unix.Setxattr(write("acl", "x"), "system.posix_acl_access", []byte(acl), 0))
	must(unix.Setxattr(path("many/1"), "system.posix_acl_default", []byte(acl), 0))
	must(unix.Chmod(write("suid", "x"), 0o6755))
	must(os.Link(path("suid"), path("many/hard")))
	must(os.Symlink("../nowhere", path("many/link")))
	must(unix.Lsetxattr(path("many/link"), "trusted.link", []byte("v"), 0))
	must(os.Link(path("many/link"), path("hardlink")))
	must(unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(path("pipe"), unix.S_IFIFO|0o600, 0))
	write("\xffnot-utf8\n", "x")
	write(string(bytes.Repeat([]byte("n"), 255)), "x")
	write(string(bytes.Repeat([]byte("deep/"), 100))+"file", "x")
	must(os.Chtimes(write("old", "x"), time.Time{}, time.Unix(-5, 250_000_000)))
	must(os.Chtimes(write("new", "x"), time.Time{}, time.Unix(6_000_000_000, 7)))
	must(os.Chmod(path("many/2"), 0o1777|os.ModeSticky))
	for name, size := range map[string]int64{"sparse": 5 << 20, "hole": 1 << 20, "empty": 0} {
		f, err := os.Create(path(name))
		must(err)
		must(f.Truncate(size))
		if name == "sparse" {
			for i := range int64(20) {
				_, err = f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), i*200_704)
				must(err)
			}
		}
		must(f.Close())
	}
	return dir
}

// What GNU tar packs, in any of its formats, comes out as GNU tar unpacks it.
func TestAgainstGNUTar(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	testkit.Need(t, testkit.Tool("tar"))
	source := oddTree(t)
	original := tree(t, source)
	tests := map[string]struct {
		args  []string
		exact bool // the form keeps all that the source has
	}{
		"posix":            {[]string{"--format=posix", "--xattrs", "--xattrs-include=*"}, true},
		"posix, sparse 00": {[]string{"--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"}, true},
		"posix, sparse 01": {[]string{"--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"}, true},
		"posix, sparse 10": {[]string{"--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=1.0"}, true},
		"gnu":              {[]string{"--format=gnu"}, false},
		"gnu, sparse":      {[]string{"--format=gnu", "--sparse"}, false},
		"oldgnu, sparse":   {[]string{"--format=oldgnu", "--sparse"}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			archive := filepath.Join(t.TempDir(), "a.tar")
			run(t, source, "tar", append(test.args, "--sort=name", "-cf", archive, ".")...)
			in, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			a, err := applyTar(t, in, Options{ContentHash: SHA256})
			if err != nil {
				t.Fatal(err)
			}
			got := tree(t, a.dir)
			want := original
			if !test.exact {
				theirs := t.TempDir()
				run(t, theirs, "tar", "-xpf", archive, "--numeric-owner")
				want = tree(t, theirs)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			a.check(t, CheckOptions{})
			if slices.Contains(test.args, "--sparse") && blocks(t, a.dir) > 2*blocks(t, source) {
				t.Errorf("%d blocks, the source has %d", blocks(t, a.dir), blocks(t, source))
			}
		})
	}
}

// blocks returns how much the sparse file of [oddTree] takes on disk.
func blocks(tb testing.TB, dir string) int64 {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "sparse"), &st); err != nil {
		tb.Fatal(err)
	}
	return st.Blocks
}

// A real tree comes out as umoci unpacks it.
func TestAgainstUmoci(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	testkit.Need(t, testkit.Tool("tar"))
	testkit.Need(t, testkit.Tool("umoci"))
	source := oddTree(t)
	work := t.TempDir()
	archive := filepath.Join(work, "a.tar")
	run(t, source, "tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--sort=name", "-cf", archive, ".")
	run(t, work, "umoci", "init", "--layout", "image")
	run(t, work, "umoci", "new", "--image", "image:tag")
	run(t, work, "umoci", "raw", "add-layer", "--image", "image:tag", archive)
	run(t, work, "umoci", "raw", "unpack", "--image", "image:tag", "theirs")
	in, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	a, err := applyTar(t, in, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, got := tree(t, filepath.Join(work, "theirs")), tree(t, a.dir)
	// archive/tar takes an empty xattr for none.
	got["xattrs"] = strings.Replace(got["xattrs"], ` user.empty=""`, "", 1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkApply unpacks 25,000 small files, as they come out of a Debian image,
// and lets GNU tar do the same. CPU time is the sturdier figure on a busy machine.
// The trees are left to the end: ext4 without a journal takes many times as long
// to make files where others were removed a moment ago.
func BenchmarkApply(b *testing.B) {
	in := smallFiles(b, 25_000)
	ways := map[string]func(b *testing.B, dir string){
		"plain": func(b *testing.B, dir string) {
			b.Helper()
			benchApply(b, dir, in, Options{})
		},
		"journal": func(b *testing.B, dir string) {
			b.Helper()
			benchApply(b, dir, in, Options{Journal: &bytes.Buffer{}})
		},
	}
	if _, err := exec.LookPath("tar"); err == nil {
		archive := filepath.Join(b.TempDir(), "a.tar")
		if err := os.WriteFile(archive, in, 0o600); err != nil {
			b.Fatal(err)
		}
		ways["gnutar"] = func(b *testing.B, dir string) {
			b.Helper()
			run(b, dir, "tar", "-xf", archive)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			parent := b.TempDir()
			before := cpuTime(b)
			for i := 0; b.Loop(); i++ {
				dir := filepath.Join(parent, strconv.Itoa(i))
				if err := os.Mkdir(dir, 0o755); err != nil {
					b.Fatal(err)
				}
				ways[name](b, dir)
			}
			b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}

func benchApply(b *testing.B, dir string, in []byte, o Options) {
	b.Helper()
	root, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if _, err := Apply(context.Background(), root, newTar(in), o); err != nil {
		b.Fatal(err)
	}
}

// cpuTime returns what this process and its children have used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var total time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var usage unix.Rusage
		if err := unix.Getrusage(who, &usage); err != nil {
			b.Fatal(err)
		}
		total += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	return total
}
