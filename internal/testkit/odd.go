package testkit

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"dray/internal/ocidir"
)

// Verdict is what is right to do with an image.
type Verdict uint8

// Verdicts.
const (
	Good      Verdict = iota // it becomes its tree
	Malformed                // the tar or its compression is not one, or exceeds every limit
	Mismatch                 // content is not what a digest, a size or the config promises
	Missing                  // a blob is not there
)

// OddImage is an image that has broken a puller somewhere, with what is right.
//
//	for _, odd := range testkit.Odd() {
//		t.Run(odd.Name, func(t *testing.T) {
//			testkit.Need(t, odd.Needs...)
//			layout := testkit.Layout(t)
//			odd.Write(t, layout, "odd")
//			// pull it: the tree is odd.Tree(), or the error that odd.Verdict says
//		})
//	}
type OddImage struct {
	Name    string
	Threads string    // public reports, repository#number
	Layers  [][]Entry // bottom first
	Verdict Verdict
	Needs   []Cap
	Large   bool // takes seconds: not in short tests

	want  Nodes                                           // instead of what the model says
	build func(*Builder) *Builder                         // changes the image
	index func(testing.TB, *ocidir.Layout, Built, string) // wraps the image
	form  func(*Builder) *Builder                         // changes each layer
}

// Tree returns what the image becomes, all layers stacked; nil unless Good.
func (o OddImage) Tree() Nodes {
	switch {
	case o.Verdict != Good:
		return nil
	case o.want != nil:
		return o.want
	}
	return Expect(o.Layers...)
}

// Write stores the image in l under tag.
func (o OddImage) Write(tb testing.TB, l *ocidir.Layout, tag string) Built {
	tb.Helper()
	b := Image(tb)
	for _, entries := range o.Layers {
		b.Layer(entries...)
		if o.form != nil {
			o.form(b)
		}
	}
	if o.build != nil {
		b = o.build(b)
	}
	if o.index == nil {
		return b.Write(l, tag)
	}
	built := b.Write(l, "")
	o.index(tb, l, built, tag)
	return built
}

// Odd returns all odd images: those of this list, of their forms, of hostile tars
// and of manifests and indexes.
func Odd() []OddImage {
	return slices.Concat(oddTrees(), oddWhiteouts(), oddHeaders(), oddForms(), oddHostile(), oddManifests(), oddLarge())
}

// one is the layers of an image that has one.
func one(entries ...Entry) [][]Entry { return [][]Entry{entries} }

// small is a layer with something in it.
func small() []Entry {
	return []Entry{Dir("etc"), File("etc/hostname", "odd\n"), Dir("usr"), Dir("usr/bin"), File("usr/bin/tool", "#!/bin/sh\n").Chmod(0o755), Text("usr/data", 20_000, 1)}
}

// oddTrees are ordinary tars of unusual files.
func oddTrees() []OddImage {
	return []OddImage{
		{Name: "zero-layers", Threads: "stargz-snapshotter#2137"},
		{Name: "empty-layer", Threads: "stargz-snapshotter#2137", Layers: [][]Entry{small(), {}, {}}},
		{Name: "same-layer-twice", Threads: "guest-components#76, #1258, #1740", Layers: [][]Entry{small(), small()}},
		{
			Name: "layers-a-b-a", Threads: "guest-components#76",
			Layers: [][]Entry{{Dir("d"), File("d/x", "a")}, {Dir("d"), File("d/x", "b"), File("d/y", "b")}, {Dir("d"), File("d/x", "a")}},
		},
		{Name: "implicit-parents", Threads: "ko, Bazel", Layers: one(File("app/bin/server", "x").Chmod(0o755), Symlink("srv/www/link", "../x"), Dir("a/b/c"))},
		{
			Name: "directory-attributes-change", Layers: [][]Entry{
				{Dir(".").Chmod(0o750), Dir("d").Chmod(0o700).Chown(1, 1), File("d/f", "1")},
				{Dir(".").Chmod(0o755), Dir("d").Chmod(0o1777).Chown(2, 2).At(5, 0)},
			},
		},
		{
			Name: "modes", Layers: one(
				File("setuid", "x").Chmod(0o4755), File("setgid", "x").Chmod(0o2755), File("both", "x").Chmod(0o6711), File("none", "x").Chmod(0),
				Dir("sticky").Chmod(0o1777), Dir("setgid-dir").Chmod(0o2775).Chown(5, 6), File("setgid-dir/inside", "x"), Dir("closed").Chmod(0),
				File("closed/inside", "x"), File("owned-setuid", "x").Chmod(0o4755).Chown(1000, 1000), File("read-only", "x").Chmod(0o444)),
			Needs: []Cap{Root()},
		},
		{
			Name: "owners", Layers: one(File("a", "x").Chown(65536, 65537), File("b", "x").Chown(2_097_152, 4_294_967_293), Symlink("c", "a").Chown(1, 2), Dir("d").Chown(100_000, 7), File("e", "x").Chown(3_000_000, 3_000_000).AsGNU()),
			Needs: []Cap{Root()},
		},
		{
			Name: "times", Layers: one(File("sub-second", "x").At(Epoch, 123_456_789), File("before-1970", "x").At(-86_400, 0), File("half-before-1970", "x").At(-2, 500_000_000),
				File("after-2038", "x").At(1<<31+10, 999_999_999), File("after-2106", "x").At(1<<32+10, 0), Symlink("link", "x").At(7, 700), Dir("dir").At(9, 900), File("dir/newer", "x"), File("gnu", "x").At(-3, 0).AsGNU()),
		},
		{
			Name: "capabilities", Threads: "lost when owners are set after them", Needs: []Cap{Root(), Xattr("security.capability")},
			Layers: one(File("ping", "x").Chmod(0o755).Chown(1, 1).Setxattr("security.capability", Capability(1<<13)), File("setuid", "x").Chmod(0o4755).Setxattr("security.capability", Capability(1<<10))),
		},
		{
			Name: "acls", Needs: []Cap{Root(), Xattr("system.posix_acl_access")},
			Layers: one(File("f", "x").Chmod(0o640).Setxattr("system.posix_acl_access", ACL(0o640, 1000, 4)),
				Dir("d").Setxattr("system.posix_acl_default", ACL(0o755, 1000, 7)), File("d/inherits-nothing", "x").Chmod(0o600)),
		},
		{
			Name: "xattrs", Needs: []Cap{Root(), Xattr("user.x", "trusted.x")},
			Layers: one(File("f", "x").Setxattr("user.one", "1").Setxattr("user.binary", "\x00\xff\n=").Setxattr("user.empty", ""), Dir("d").Setxattr("user.dir", "2"),
				Symlink("l", "f").Setxattr("trusted.link", "3"), Dir("locked").Chmod(0o555).Setxattr("user.x", "4"), File("read-only", "x").Chmod(0o400).Setxattr("user.x", "5")),
		},
		{
			Name: "devices", Needs: []Cap{Root(), Mknod()},
			Layers: one(Dir("dev"), Char("dev/null", 1, 3).Chmod(0o666), Block("dev/loop0", 7, 0).Chown(0, 6), Fifo("dev/pipe").Chmod(0o600), Char("dev/big", 4095, 1_048_575)),
		},
		{
			Name: "hard-links", Threads: "guest-components#689, #1148, #1152", Layers: one(File("a", "same"), Hardlink("b", "a"), Hardlink("absolute", "/a"), Dir("d"), Hardlink("d/c", "./a"), Hardlink("long/"+repeatTo("name-", 150), "a"),
				File(repeatTo("target-", 180), "t"), Hardlink("to-long", repeatTo("target-", 180)), Hardlink("gnu", repeatTo("target-", 180)).AsGNU(), Symlink("s", "a"), Hardlink("link-to-symlink", "s")),
		},
		{Name: "hard-links-of-devices", Needs: []Cap{Root(), Mknod()}, Layers: one(Char("null", 1, 3), Hardlink("null2", "null"), Fifo("p"), Hardlink("p2", "p"))},
		{Name: "names", Layers: one(File("caf\xe9", "latin 1"), File("\xff\xfe", "x"), File("new\nline", "x"), File("a\ttab", "x"), File("スペース 名", "x"), File(" ", "x"), File(`back\slash`, "x"), File("-rf", "x"), File("$(x)", "x"), Dir("dir\x80"), File("dir\x80/f", "x"), Symlink("l", "\xfe\xff"))},
		{Name: "names-255", Layers: one(File(repeatTo("n", 255), "x"), Dir("d/"+repeatTo("é", 254)), File("d/"+repeatTo("é", 254)+"/f", "x"), File(repeatTo("\xf0", 255), "gnu").AsGNU())},
		{Name: "paths-deep", Threads: "guest-components#378", Layers: one(File(deep("site-packages", 60)+"/module.py", "x"), File(deep("d", 400)+"/f", "x"))},
		{Name: "symlinks-4000", Layers: one(Symlink("l", repeatTo("target/", 4000)), Symlink("g", repeatTo("target/", 4000)).AsGNU(), Symlink("absolute", "/etc/passwd"), Symlink("up", "../../../../etc/passwd"), Symlink("loop", "loop"), Symlink("dangling", "nowhere"))},
		{Name: "sparse-gnu", Layers: one(sparse(SparseGNU, 3), sparse(SparseGNU, 60))},
		{Name: "sparse-pax-0.0", Layers: one(sparse(SparsePAX00, 3))},
		{Name: "sparse-pax-0.1", Layers: one(sparse(SparsePAX01, 3))},
		{Name: "sparse-pax-1.0", Layers: one(sparse(SparsePAX10, 3), sparse(SparsePAX10, 200))},
		{Name: "sparse-empty", Layers: one(SparseFile("all-hole", SparseGNU, 64<<20, Extent{64 << 20, 0}), SparseFile("pax", SparsePAX10, 1<<20, Extent{1 << 20, 0}))},
	}
}

// sparse returns a file of count pieces of data, 64 KiB apart.
func sparse(format SparseFormat, count int64) Entry {
	var extents []Extent
	for i := range count {
		extents = append(extents, Extent{i << 16, blockBytes * (1 + i%3)})
	}
	size := count<<16 + 5000
	extents = append(extents, Extent{size, 0}) // the hole at the end, as GNU tar says it
	return SparseFile(fmt.Sprintf("sparse-%d", count), format, size, extents...)
}

// repeatTo repeats a text to exactly n bytes.
func repeatTo(text string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = text[i%len(text)]
	}
	return string(b)
}

// deep returns a path of count directories.
func deep(name string, count int) string {
	var path strings.Builder
	path.WriteString(name)
	for range count - 1 {
		path.WriteString("/" + name)
	}
	return path.String()
}

// oddWhiteouts are deletions.
func oddWhiteouts() []OddImage {
	base := []Entry{Dir("d"), File("d/keep", "k"), File("d/x", "old"), Dir("d/sub"), File("d/sub/deep", "s"), Symlink("l", "d"), File("top", "t")}
	over := func(entries ...Entry) [][]Entry { return [][]Entry{base, entries} }
	bookkeeping := []Entry{Dir(".wh..wh.plnk"), File(".wh..wh.plnk/12.34", "x"), File(".wh..wh.aufs", "x"), Dir(".wh..wh.orph"), Dir("d"), File("d/.wh..wh..tmp", "x"), File("d/new", "n")}
	return []OddImage{
		{Name: "whiteout", Threads: "guest-components#1210, #1211, #604, #687, #876, #1022", Layers: over(Dir("d"), Whiteout("d/x"), Whiteout("d/sub"), Whiteout("top"), Whiteout("l"))},
		{Name: "whiteout-of-nothing", Layers: over(Whiteout("nothing"), Dir("d"), Whiteout("d/never"))},
		{Name: "whiteout-in-implicit-directory", Layers: over(Whiteout("d/sub/deep"))},
		{Name: "whiteout-in-first-layer", Layers: one(Whiteout("x"), Dir("d"), Opaque("d"), File("d/f", "x"))},
		{Name: "whiteout-then-entry", Layers: over(Dir("d"), Whiteout("d/x"), File("d/x", "new"))},
		{Name: "entry-then-whiteout", Layers: over(Dir("d"), File("d/x", "new"), Whiteout("d/x"))},
		{Name: "whiteout-then-directory", Layers: over(Dir("d"), Whiteout("d/sub"), Dir("d/sub"), File("d/sub/other", "o"))},
		{Name: "directory-then-whiteout", Layers: over(Dir("d"), Dir("d/sub"), File("d/sub/other", "o"), Whiteout("d/sub"))},
		{Name: "whiteout-file-becomes-directory", Layers: over(Whiteout("top"), Dir("top"), File("top/f", "x"))},
		{Name: "directory-becomes-file", Layers: over(File("d", "a file now"))},
		{Name: "file-becomes-directory", Layers: over(Dir("top"), File("top/f", "x"))},
		{Name: "symlink-becomes-directory", Layers: over(Dir("l"), File("l/f", "x"))},
		{Name: "opaque", Threads: "guest-components#1210", Layers: over(Dir("d"), Opaque("d"), File("d/new", "n"))},
		{Name: "opaque-last", Layers: over(Dir("d"), File("d/new", "n"), Dir("d/sub"), File("d/sub/new", "s"), Opaque("d"))},
		{Name: "opaque-implicit-directory", Layers: over(Opaque("d"), File("d/new", "n"))},
		{Name: "opaque-root", Layers: over(Opaque("."), File("only", "o"))},
		{Name: "opaque-and-whiteout", Layers: over(Dir("d"), Opaque("d"), Whiteout("d/x"), File("d/x", "new"))},
		{Name: "opaque-then-more-layers", Layers: append(over(Dir("d"), Opaque("d")), []Entry{Dir("d"), File("d/late", "l")}, []Entry{Dir("d"), Whiteout("d/late")})},
		{Name: "whiteout-as-hard-link", Threads: "smolvm#401, cvmfs#4286, vic#5997", Layers: over(File("a", "x"), Dir("d"), Hardlink("d/.wh.x", "a"))},
		{Name: "whiteout-as-hard-link-to-whiteout", Threads: "smolvm#401", Layers: over(Dir("d"), Whiteout("top"), Hardlink("d/.wh.x", ".wh.top"))},
		{Name: "whiteout-as-symlink", Threads: "smolvm#401", Layers: over(Dir("d"), Symlink("d/.wh.x", "nowhere"))},
		{Name: "whiteout-as-directory", Layers: over(Dir("d"), Dir("d/.wh.x"))},
		{Name: "whiteout-with-content", Layers: over(Dir("d"), File("d/.wh.x", "content"))},
		{Name: "whiteout-of-255-byte-name", Layers: over(File(repeatTo("n", 251), "x"), Whiteout(repeatTo("m", 251)))},
		{Name: "aufs-bookkeeping", Layers: over(bookkeeping...), want: Expect(base, []Entry{Dir("d"), File("d/new", "n")})},
		{Name: "bare-whiteout", Threads: "image-spec#1301", Layers: over(File("d/.wh.", "")), Verdict: Malformed},
		{Name: "whiteout-of-dot", Layers: over(File("d/.wh..", "")), Verdict: Malformed},
		{Name: "whiteout-of-dot-dot", Layers: over(File("d/.wh...", "")), Verdict: Malformed},
	}
}
