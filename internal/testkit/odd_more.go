package testkit

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"dray/internal/oci"
	"dray/internal/ocidir"
)

// oddHeaders are tars that say ordinary things in unusual ways, or nonsense.
func oddHeaders() []OddImage {
	v7 := func(name string, kind byte, content string) Entry {
		raw := Tar(File(name, content))[:blockBytes]
		clear(raw[257:])
		raw[156] = kind
		checksum(raw)
		raw = append(raw, content...)
		return RawBytes(append(raw, make([]byte, padding(int64(len(content))))...))
	}
	header := func(change func(block []byte)) Entry {
		raw := Tar(File("f", "content"))[:2*blockBytes]
		change(raw)
		return RawBytes(raw)
	}
	resummed := func(change func(block []byte)) Entry {
		return header(func(block []byte) { change(block); checksum(block) })
	}
	pax := func(body string) Entry {
		return RawBytes(append(special(TypePAX, "PaxHeaders/x", body), Tar(File("f", "x"))[:2*blockBytes]...))
	}
	bad := func(name string, entries ...Entry) OddImage {
		return OddImage{Name: "bad-" + name, Threads: "image-spec#1301", Layers: one(entries...), Verdict: Malformed}
	}
	timed := File("old", "v7").At(Epoch, 0)
	return []OddImage{
		{Name: "v7-tar", Layers: one(v7("old", 0, "v7")), want: Expect(one(timed)...)},
		{Name: "v7-directory", Layers: one(v7("dir/", 0, "")), want: Expect(one(Dir("dir").Chmod(0o644))...)},
		{Name: "contiguous-file", Layers: one(v7("old", '7', "v7")), want: Expect(one(timed)...)},
		{Name: "empty-pax-value", Threads: "guest-components#1737", Layers: one(File("f", "x").WithPAX("SCHILY.xattr.user.overlay.origin", "").WithPAX("comment", "")), want: Expect(one(File("f", "x"))...).anyXattrs("f")},
		{Name: "overlay-xattrs", Layers: one(Dir("d").Setxattr("trusted.overlay.opaque", "y").Setxattr("user.overlay.opaque", "y"), File("f", "x").Setxattr("trusted.overlay.redirect", "/etc/shadow").Setxattr("trusted.overlay.metacopy", "")), want: Expect(one(Dir("d"), File("f", "x"))...).anyXattrs("d", "f")},
		{Name: "pax-unknown-records", Layers: one(File("f", "x").WithPAX("VENDOR.unknown", "\xff\x00y").WithPAX("comment", "hi").WithPAX("atime", "5.5").WithPAX("ctime", "5").WithPAX("uname", "nobody"))},
		{Name: "pax-binary-charset", Layers: one(File(repeatTo("\xe9", 150), "x").WithPAX("hdrcharset", "BINARY"))},
		{Name: "pax-global", Layers: one(GlobalHeader(Pair{"comment", "commit id"}), File("f", "x"))},
		{Name: "pax-twice", Layers: one(RawBytes(special(TypePAX, "a", Records(Pair{"path", "first"}))), File("ignored", "x").WithPAX("path", "second")), want: Expect(one(File("second", "x"))...)},
		{Name: "pax-path-for-link", Layers: one(File("target", "x"), Hardlink("short", "target").WithPAX("path", "long-by-record").WithPAX("linkpath", "target")), want: Expect(one(File("target", "x"), Hardlink("long-by-record", "target"))...)},
		{Name: "gnu-long-names", Layers: one(File(repeatTo("dir/", 400)+"f", "x").AsGNU(), Symlink(repeatTo("l", 200), repeatTo("target/", 1000)).AsGNU())},
		{Name: "gnu-base-256", Layers: one(File("f", "x").Chown(1<<31, 1<<30).At(1<<33+7, 0).AsGNU()), Needs: []Cap{Root()}},
		{Name: "size-on-a-directory", Layers: one(resummedDir()), want: Expect(one(Dir("d"))...)},
		{Name: "names-with-dots", Layers: one(Dir("./a/"), File("./a/./b", "x"), File("a//c", "x"), Dir("."), File(".//d", "x"))},
		bad("checksum", header(func(b []byte) { b[148] ^= 1 })),
		bad("size", resummed(func(b []byte) { copy(b[124:136], "nonsense!!!\x00") })),
		bad("negative-size", resummed(func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") })),
		bad("huge-size", resummed(func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") })),
		bad("cut-header", File("a", "x"), RawBytes(Tar(File("b", "y"))[:300])),
		bad("empty-name", RawBytes(Tar(File("", "x"))[:2*blockBytes])),
		bad("pax-length", pax("9999 path=x\n")),
		bad("pax-no-equals", pax("8 path\n\n")),
		bad("pax-negative", pax("-5 a=b\n")),
		bad("pax-nul-in-path", pax(Records(Pair{"path", "a\x00b"}))),
		bad("pax-size", pax(Records(Pair{"size", "-1"}))),
		bad("pax-time", pax(Records(Pair{"mtime", "never"}))),
		bad("pax-huge", pax(Records(Pair{"comment", strings.Repeat("x", 4<<20)}))),
		bad("gnu-name-huge", RawBytes(special('L', "././@LongLink", strings.Repeat("x", 4<<20))), File("f", "x")),
		bad("sparse-overlap", SparseFile("s", SparsePAX10, 10000, Extent{0, 600}, Extent{500, 100})),
		bad("sparse-beyond", SparseFile("s", SparsePAX01, 100, Extent{0, 600})),
		bad("sparse-count", File("s", "x").WithPAX("GNU.sparse.major", "1").WithPAX("GNU.sparse.minor", "0").WithPAX("GNU.sparse.realsize", "99999999999999")),
		bad("whole-garbage", RawBytes(bytes.Repeat([]byte("not a tar "), 200))),
	}
}

// resummedDir returns a directory whose header has a size but which has no body.
func resummedDir() Entry {
	raw := Tar(Dir("d"))[:blockBytes]
	copy(raw[124:136], "00000010000\x00")
	checksum(raw)
	return RawBytes(raw)
}

// anyXattrs says that the attributes of these paths do not matter.
func (n Nodes) anyXattrs(names ...string) Nodes {
	for _, name := range names {
		node := n[name]
		node.XattrsAny = true
		n[name] = node
	}
	return n
}

// oddForms are ordinary tars, compressed and labelled in unusual ways.
func oddForms() []OddImage {
	form := func(name, threads string, form func(*Builder) *Builder) OddImage {
		return OddImage{Name: "form-" + name, Threads: threads, Layers: [][]Entry{small()}, form: form}
	}
	bad := func(name string, verdict Verdict, form func(*Builder) *Builder) OddImage {
		return OddImage{Name: "bad-" + name, Layers: [][]Entry{small()}, Verdict: verdict, form: form}
	}
	cut := func(raw []byte) []byte { return raw[:len(raw)*2/3] }
	flip := func(raw []byte) []byte { raw[len(raw)/2] ^= 0x55; return raw }
	const zstdThreads = "soci-snapshotter#519, containers/image#2906"
	return []OddImage{
		form("plain", "", func(b *Builder) *Builder { return b.Plain() }),
		form("gzip-stored", "", func(b *Builder) *Builder { return b.GzipLevel(0) }),
		form("gzip-members", "bootc#2408", func(b *Builder) *Builder { return b.MultiMember(700) }),
		form("gzip-small-members", "", func(b *Builder) *Builder { return b.MultiMember(97) }),
		form("gzip-zero-padded", "", func(b *Builder) *Builder { return b.BlobTail(make([]byte, 1024)) }),
		form("zstd", zstdThreads, func(b *Builder) *Builder { return b.Zstd() }),
		form("zstd-frames", "bootc#2408", func(b *Builder) *Builder { return b.MultiFrame(1000) }),
		form("zstd-skippable-last", "bootc#2408", func(b *Builder) *Builder { return b.Zstd().BlobTail([]byte(skippable + skippable)) }),
		form("docker-zstd", zstdThreads, func(b *Builder) *Builder { return b.Docker().Zstd() }),
		form("docker-plain", "", func(b *Builder) *Builder { return b.Docker().Plain() }),
		form("docker-gzip", "", func(b *Builder) *Builder { return b.Docker() }),
		form("zstd-called-gzip", zstdThreads, func(b *Builder) *Builder { return b.Zstd().MediaType(oci.MediaTypeLayerGz) }),
		form("gzip-called-plain", zstdThreads, func(b *Builder) *Builder { return b.MediaType(oci.MediaTypeLayer) }),
		form("plain-called-gzip", zstdThreads, func(b *Builder) *Builder { return b.Plain().MediaType(oci.MediaTypeLayerGz) }),
		form("foreign-but-here", "", func(b *Builder) *Builder {
			return b.MediaType(oci.MediaTypeDockerForeign).URLs("https://example.invalid/layer")
		}),
		form("nondistributable", "", func(b *Builder) *Builder {
			return b.MediaType("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
		}),
		form("tar-without-end", "", func(b *Builder) *Builder { return b.NoEnd() }),
		form("tar-with-zeros-after-end", "", func(b *Builder) *Builder { return b.TarTail(make([]byte, 50_000)) }),
		form("tar-with-garbage-after-end", "", func(b *Builder) *Builder { return b.TarTail(bytes.Repeat([]byte("tail"), 5000)) }),
		bad("gzip-garbage-after-end", Malformed, func(b *Builder) *Builder { return b.BlobTail([]byte("garbage")) }),
		bad("gzip-cut", Malformed, func(b *Builder) *Builder { return b.Damage(cut) }),
		bad("gzip-damaged", Malformed, func(b *Builder) *Builder { return b.Damage(flip) }),
		bad("zstd-cut", Malformed, func(b *Builder) *Builder { return b.Zstd().Damage(cut) }),
		bad("zstd-damaged", Malformed, func(b *Builder) *Builder { return b.Zstd().Damage(flip) }),
		bad("plain-cut", Mismatch, func(b *Builder) *Builder { return b.Plain().Damage(cut) }),
		bad("not-a-layer", Malformed, func(b *Builder) *Builder {
			return b.Damage(func([]byte) []byte { return bytes.Repeat([]byte("garbage\n"), 1000) })
		}),
		bad("empty-blob", Mismatch, func(b *Builder) *Builder { return b.Damage(func([]byte) []byte { return nil }) }),
		bad("other-content", Mismatch, func(b *Builder) *Builder {
			return b.Plain().Damage(func(raw []byte) []byte { return bytes.Replace(raw, []byte("odd\n"), []byte("ODD\n"), 1) })
		}),
		bad("layer-missing", Missing, func(b *Builder) *Builder { return b.Absent() }),
	}
}

// oddHostile try to leave the root, or to confuse who writes and who checks.
func oddHostile() []OddImage {
	secret := File("in/secret", "mine")
	return []OddImage{
		{Name: "hostile-dot-dot", Layers: one(File("../escape", "x"))},
		{Name: "hostile-dot-dot-within", Layers: one(Dir("a"), File("a/../../escape", "x"))},
		{Name: "absolute-names", Layers: one(Dir("/etc"), File("/etc/passwd", "x"), Symlink("/l", "/etc"))},
		{
			Name: "hostile-below-absolute-symlink", Layers: one(Dir("in"), Symlink("out", "/in"), File("out/f", "x")),
			want: Expect(one(Dir("in"), Symlink("out", "/in"), File("in/f", "x"))...),
		},
		{
			Name: "hostile-below-escaping-symlink", Layers: one(Dir("tmp"), Symlink("up", "../../../../../../tmp"), File("up/escape", "x")),
			want: Expect(one(Dir("tmp"), Symlink("up", "../../../../../../tmp"), File("tmp/escape", "x"))...),
		},
		{Name: "hostile-below-symlink-of-lower-layer", Layers: [][]Entry{{Symlink("d", "/etc")}, {Dir("d"), File("d/f", "x")}}},
		{Name: "hostile-below-file", Layers: one(File("f", "x"), File("f/below", "x")), Verdict: Malformed},
		{Name: "hostile-hard-link-out", Layers: one(Hardlink("l", "../../../../etc/passwd")), Verdict: Malformed},
		{Name: "hostile-hard-link-absolute-out", Layers: one(Hardlink("l", "/proc/self/environ")), Verdict: Malformed},
		{Name: "hostile-hard-link-through-symlink", Layers: one(Symlink("etc", "/etc"), Hardlink("l", "etc/passwd")), Verdict: Malformed},
		{Name: "hostile-hard-link-missing", Layers: one(Hardlink("l", "later"), File("later", "x")), Verdict: Malformed},
		{Name: "hostile-hard-link-to-lower-layer", Layers: [][]Entry{{File("low", "x")}, {Hardlink("l", "low")}}, Verdict: Malformed},
		{Name: "hostile-hard-link-to-directory", Layers: one(Dir("d"), Hardlink("l", "d")), Verdict: Malformed},
		{Name: "hostile-hard-link-to-root", Layers: one(Hardlink("l", "/")), Verdict: Malformed},
		{Name: "hard-link-to-itself", Layers: one(File("f", "x"), Hardlink("f", "f")), want: Expect(one(File("f", "x"))...)},
		{Name: "hostile-write-through-hard-link", Layers: one(Dir("in"), secret, Hardlink("l", "in/secret"), File("l", "overwritten"))},
		{Name: "duplicates", Layers: one(File("f", "first").Chmod(0o600), File("f", "second, longer").Chmod(0o755).Setxattr("user.x", "1"), Dir("d").Chmod(0o700), File("d/f", "x"), Dir("d").Chmod(0o755)), Needs: []Cap{Xattr("user.x")}},
		{Name: "duplicate-types", Layers: one(File("a", "x"), Dir("a"), File("a/f", "x"), Symlink("b", "a"), File("b", "x"), Dir("c"), File("c/f", "x"), Symlink("c", "a"), Fifo("d"), File("d", "x"))},
		{Name: "hostile-root-is-file", Layers: one(File(".", "x")), Verdict: Malformed},
		{Name: "hostile-root-is-symlink", Layers: one(Symlink("./", "/etc")), Verdict: Malformed},
		{Name: "hostile-component-256", Layers: one(File(repeatTo("n", 256), "x")), Verdict: Malformed},
		{Name: "hostile-path-5000", Layers: one(File(deep("name", 1000), "x")), Verdict: Malformed},
		{Name: "hostile-symlink-5000", Layers: one(Symlink("l", repeatTo("t", 5000))), Verdict: Malformed},
		{Name: "hostile-symlink-empty", Layers: one(Symlink("l", "")), Verdict: Malformed},
		{Name: "hostile-device-in-place-of-root", Layers: one(Char("./", 1, 3)), Verdict: Malformed},
	}
}

// oddManifests are ordinary layers under unusual manifests and indexes.
func oddManifests() []OddImage {
	bad := func(name string, build func(*Builder) *Builder) OddImage {
		return OddImage{Name: "bad-" + name, Layers: [][]Entry{small(), {File("more", "m")}}, Verdict: Mismatch, build: build}
	}
	config := func(change func(*oci.Image)) func(*Builder) *Builder {
		return func(b *Builder) *Builder { return b.Config(change) }
	}
	manifest := func(change func(*oci.Manifest)) func(*Builder) *Builder {
		return func(b *Builder) *Builder { return b.Manifest(change) }
	}
	other := oci.DiffID(oci.DigestBytes([]byte("other")))
	return []OddImage{
		bad("diffid", config(func(c *oci.Image) { c.RootFS.DiffIDs[1] = other })),
		bad("diffids-swapped", config(func(c *oci.Image) { ids := c.RootFS.DiffIDs; ids[0], ids[1] = ids[1], ids[0] })),
		bad("diffids-few", config(func(c *oci.Image) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] })),
		bad("diffids-many", config(func(c *oci.Image) { c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, other) })),
		bad("layer-size-small", manifest(func(m *oci.Manifest) { m.Layers[0].Size-- })),
		bad("layer-size-large", manifest(func(m *oci.Manifest) { m.Layers[0].Size++ })),
		bad("config-size", manifest(func(m *oci.Manifest) { m.Config.Size++ })),
		{Name: "docker-manifest", Layers: [][]Entry{small()}, build: func(b *Builder) *Builder { return b.Docker() }},
		{Name: "index", Layers: [][]Entry{small()}, index: func(tb testing.TB, l *ocidir.Layout, built Built, tag string) {
			tb.Helper()
			Index(tb, l, tag, elsewhere(tb, l), built.Manifest, Attestation(tb, l, built.Manifest))
		}},
		{Name: "docker-list", Layers: [][]Entry{small()}, build: func(b *Builder) *Builder { return b.Docker() }, index: func(tb testing.TB, l *ocidir.Layout, built Built, tag string) {
			tb.Helper()
			DockerList(tb, l, tag, elsewhere(tb, l), built.Manifest)
		}},
		{Name: "index-nested", Layers: [][]Entry{small()}, index: func(tb testing.TB, l *ocidir.Layout, built Built, tag string) {
			tb.Helper()
			inner := Index(tb, l, "", built.Manifest)
			Index(tb, l, tag, elsewhere(tb, l), inner)
		}},
		{Name: "index-with-artifacts", Layers: [][]Entry{small()}, index: func(tb testing.TB, l *ocidir.Layout, built Built, tag string) {
			tb.Helper()
			Index(tb, l, tag, Artifact(tb, l, "", "application/vnd.example.sbom", nil, "sbom"), built.Manifest)
		}},
	}
}

// elsewhere returns an image for a machine that this is not.
func elsewhere(tb testing.TB, l *ocidir.Layout) oci.Descriptor {
	tb.Helper()
	return Image(tb).Platform(oci.Platform{OS: "linux", Architecture: "s390x"}).Layer(File("wrong-platform", "x")).Write(l, "").Manifest
}

// oddLarge are images of unusual size; they take a while to make.
func oddLarge() []OddImage {
	layers := func(count int) [][]Entry {
		all := make([][]Entry, count)
		for i := range all {
			all[i] = []Entry{Dir("d"), File(fmt.Sprintf("d/%d", i), fmt.Sprint(i)), File("d/last", fmt.Sprint(i))}
		}
		return all
	}
	return []OddImage{
		{Name: "layers-108", Threads: "guest-components#901", Layers: layers(108), Large: true},
		{Name: "layers-200", Threads: "nydus#1067, nydus-snapshotter#723", Layers: layers(200), Large: true},
		{Name: "layers-500", Threads: "guest-components#901", Layers: layers(500), Large: true},
	}
}
