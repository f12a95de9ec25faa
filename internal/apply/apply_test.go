package apply

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/layer"
	"dray/internal/testkit"
)

const fileCap = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is a POSIX ACL that gives user 1000 rw- besides u::rwx, g::r-x, m::rwx and o::r-x.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" +
	"\x02\x00\x06\x00\xe8\x03\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x07\x00\xff\xff\xff\xff" +
	"\x20\x00\x05\x00\xff\xff\xff\xff"

func TestFidelity(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root())
	name255 := strings.Repeat("n", 255)
	target4095 := strings.Repeat("t/", 2047) + "x"
	in := tarOf(t,
		dirItem("./").mode(0o1777).owner(3, 4).at(time.Unix(5, 6)),
		dirItem("bin/").mode(0o555).at(time.Unix(1, 500)),
		reg("bin/ping", "ELF").mode(0o755).owner(10, 20).xattr("security.capability", fileCap),
		reg("bin/su", "ELF").mode(0o4755).owner(1, 2),
		reg("bin/wall", "ELF").mode(0o2755).owner(0, 5),
		link("bin/hard", "bin/ping"),
		link("bin/absolute", "/bin/su"),
		symlink("bin/sh", "/bin/dash").owner(7, 8).at(time.Unix(9, 10)),
		symlink("bin/long", target4095),
		link("bin/hardsymlink", "bin/sh"),
		reg("none", "").mode(0),
		reg("big-owner", "").owner(4_294_967_294, 4_000_000_000),
		reg("old", "").at(time.Unix(-1_000_000_000, 999_999_999)),
		reg("new", "").at(time.Unix(5_000_000_000, 1)),
		reg("xattrs", "x").pax("SCHILY.xattr.user.a", "\x00\xff", "SCHILY.xattr.user.b", "2", "SCHILY.xattr.trusted.c", "3"),
		reg("bytes-\xff\xfe", "x"),
		reg(name255, "x"),
		reg("sub/"+name255+"/"+name255, "x"),
		dirItem("acl").mode(0o775).xattr("system.posix_acl_default", acl),
		reg("acl/plain", "").mode(0o640),
		dirItem("acl/sub").mode(0o700),
		reg("acl/file", "").mode(0o674).xattr("system.posix_acl_access", acl),
		dirItem("sgid").mode(0o2775).owner(0, 50),
		reg("sgid/file", ""),
		dirItem("sgid/dir"),
		reg("null", "").typed(tar.TypeChar).mode(0o666).dev(1, 3),
		reg("disk", "").typed(tar.TypeBlock).mode(0o660).owner(0, 6).dev(259, 300_000),
		reg("pipe", "").typed(tar.TypeFifo).mode(0o622).owner(1, 1),
	)
	const at = "1000000000.123456789"
	want := map[string]string{
		".":                              "dir 1777 3:4 5.000000006",
		"bin":                            "dir 0555 0:0 1.000000500",
		"bin/ping":                       "= bin/hard",
		"bin/hard":                       "file 0755 10:20 " + at + ` "ELF" security.capability=` + quoted(fileCap),
		"bin/su":                         "= bin/absolute",
		"bin/absolute":                   "file 4755 1:2 " + at + ` "ELF"`,
		"bin/wall":                       "file 2755 0:5 " + at + ` "ELF"`,
		"bin/sh":                         "= bin/hardsymlink",
		"bin/hardsymlink":                "link 0777 7:8 9.000000010 -> /bin/dash",
		"bin/long":                       "link 0777 0:0 " + at + " -> " + target4095,
		"none":                           "file 0000 0:0 " + at + ` ""`,
		"big-owner":                      "file 0644 4294967294:4000000000 " + at + ` ""`,
		"old":                            `file 0644 0:0 -1000000000.999999999 ""`,
		"new":                            `file 0644 0:0 5000000000.000000001 ""`,
		"xattrs":                         "file 0644 0:0 " + at + ` "x" trusted.c="3" user.a="\x00\xff" user.b="2"`,
		"bytes-\xff\xfe":                 "file 0644 0:0 " + at + ` "x"`,
		name255:                          "file 0644 0:0 " + at + ` "x"`,
		"sub":                            "dir 0755 0:0 0.000000000",
		"sub/" + name255:                 "dir 0755 0:0 0.000000000",
		"sub/" + name255 + "/" + name255: "file 0644 0:0 " + at + ` "x"`,
		"acl":                            "dir 0775 0:0 " + at + " system.posix_acl_default=" + quoted(acl),
		"acl/plain":                      "file 0640 0:0 " + at + ` ""`,
		"acl/sub":                        "dir 0700 0:0 " + at,
		"acl/file":                       "file 0674 0:0 " + at + ` "" system.posix_acl_access=` + quoted(strings.Replace(strings.Replace(acl, "\x01\x00\x07", "\x01\x00\x06", 1), "\x20\x00\x05", "\x20\x00\x04", 1)),
		"sgid":                           "dir 2775 0:50 " + at,
		"sgid/file":                      "file 0644 0:0 " + at + ` ""`,
		"sgid/dir":                       "dir 0755 0:0 " + at,
		"null":                           "char 0666 0:0 " + at + " 1,3",
		"disk":                           "block 0660 0:6 " + at + " 259,300000",
		"pipe":                           "fifo 0622 1:1 " + at,
	}
	a, err := applyTar(t, in, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, tree(t, a.dir)); diff != "" {
		t.Error(diff)
	}
	if !a.result.Exact() {
		t.Errorf("not exact: %v", a.result.LogValue())
	}
	a.check(t, CheckOptions{})
}

func TestNamesAreConfined(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in   []item
		want map[string]string
	}{
		"dot-dot": {
			[]item{reg("../../evil", "x"), reg("a/../../evil2", "x"), reg("d/../e", "x"), dirItem("../..").mode(0o700)},
			map[string]string{"evil": `file "x"`, "evil2": `file "x"`, "e": `file "x"`},
		},
		"absolute": {
			[]item{reg("/etc/x", "x"), reg("//y", "x")},
			map[string]string{"etc": "dir", "etc/x": `file "x"`, "y": `file "x"`},
		},
		"below a link out of the root": {
			[]item{symlink("l", "OUTSIDE"), reg("l/evil", "x")},
			nil, // see below: the outside's path is made inside
		},
		"below a relative link out of the root": {
			[]item{dirItem("d"), symlink("d/l", "../../../../d"), reg("d/l/x", "x")},
			map[string]string{"d": "dir", "d/l": "link -> ../../../../d", "d/x": `file "x"`},
		},
		"below an absolute link": {
			[]item{dirItem("usr/"), dirItem("usr/lib/"), symlink("lib", "/usr/lib"), reg("lib/a", "x"), reg("usr/lib/b", "y"), reg("lib/c", "z")},
			map[string]string{
				"usr": "dir", "usr/lib": "dir", "lib": "link -> /usr/lib",
				"usr/lib/a": `file "x"`, "usr/lib/b": `file "y"`, "usr/lib/c": `file "z"`,
			},
		},
		"below a link that leads nowhere": {
			[]item{symlink("a", "b"), symlink("b", "/c/d"), reg("a/x/y", "x")},
			map[string]string{"a": "link -> b", "b": "link -> /c/d", "c": "dir", "c/d": "dir", "c/d/x": "dir", "c/d/x/y": `file "x"`},
		},
		"a link is replaced, not followed": {
			[]item{reg("file", "x"), symlink("l", "file"), reg("l", "y"), symlink("m", "/etc"), dirItem("m"), symlink("n", "file"), reg("n", "").typed(tar.TypeFifo)},
			map[string]string{"file": `file "x"`, "l": `file "y"`, "m": "dir trusted.overlay.opaque=\"y\"", "n": "fifo"},
		},
		"hard link to an absolute link": {
			[]item{symlink("l", "/etc/passwd"), link("h", "l"), link("i", "/l")},
			map[string]string{"h": "link -> /etc/passwd", "i": "= h", "l": "= h"},
		},
		"hard link out of the root": {
			[]item{reg("x", "x"), link("h", "../../x"), symlink("up", "../.."), link("i", "up/x")},
			map[string]string{"h": `file "x"`, "i": "= h", "up": "link -> ../..", "x": "= h"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, testkit.Root())
			outside := t.TempDir()
			before := tree(t, outside)
			for i := range test.in {
				test.in[i].Linkname = strings.Replace(test.in[i].Linkname, "OUTSIDE", outside, 1)
			}
			a, err := applyTar(t, tarOf(t, test.in...), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if test.want == nil {
				if data, err := os.ReadFile(filepath.Join(a.dir, outside, "evil")); err != nil || string(data) != "x" {
					t.Errorf("not inside: %q, %v", data, err)
				}
			} else if diff := cmp.Diff(test.want, shape(t, a.dir)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(before, tree(t, outside)); diff != "" {
				t.Errorf("outside was touched:\n%s", diff)
			}
			a.check(t, CheckOptions{})
		})
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	const opaque = ` trusted.overlay.opaque="y"`
	const gone = "char 0,0"
	tests := map[string]struct {
		in   []item
		want map[string]string
	}{
		"file over file":      {[]item{reg("a", "1"), reg("a", "2")}, map[string]string{"a": `file "2"`}},
		"file over directory": {[]item{reg("a/b/c", "1"), reg("a/d", "1"), reg("a", "2")}, map[string]string{"a": `file "2"`}},
		"directory over file": {[]item{reg("a", "1"), dirItem("a"), reg("a/b", "2")}, map[string]string{"a": "dir" + opaque, "a/b": `file "2"`}},
		"directory over directory": {
			[]item{dirItem("a").xattr("user.old", "1"), reg("a/b", "1"), dirItem("a").xattr("user.new", "1")},
			map[string]string{"a": `dir user.new="1"`, "a/b": `file "1"`},
		},
		"link over directory": {[]item{reg("a/b", "1"), symlink("a", "c")}, map[string]string{"a": "link -> c"}},
		"hard link twice":     {[]item{reg("a", "1"), link("b", "a"), link("b", "a")}, map[string]string{"a": `file "1"`, "b": "= a"}},
		"hard link to itself": {[]item{reg("a", "1"), link("a", "a")}, map[string]string{"a": `file "1"`}},
		"hard link over file": {[]item{reg("a", "1"), reg("b", "2"), link("b", "a")}, map[string]string{"a": `file "1"`, "b": "= a"}},
		"file over hard link": {[]item{reg("a", "1"), link("b", "a"), reg("a", "2")}, map[string]string{"a": `file "2"`, "b": `file "1"`}},
		"hard link over directory": {
			[]item{reg("a", "1"), reg("d/x", "2"), link("d", "a")},
			map[string]string{"a": `file "1"`, "d": "= a"},
		},
		"directory removed and made again": {
			[]item{reg("d/e/x", "1"), reg("d", "2"), dirItem("d"), reg("d/e/y", "3")},
			map[string]string{"d": "dir" + opaque, "d/e": "dir", "d/e/y": `file "3"`},
		},
		"whiteout":                      {[]item{reg("d/.wh.a", "")}, map[string]string{"d": "dir", "d/a": gone}},
		"whiteout as hard link":         {[]item{link(".wh.a", "nothing")}, map[string]string{"a": gone}},
		"whiteout as symlink":           {[]item{symlink(".wh.a", "nothing")}, map[string]string{"a": gone}},
		"whiteout as directory":         {[]item{dirItem(".wh.a/")}, map[string]string{"a": gone}},
		"whiteout twice":                {[]item{reg(".wh.a", ""), reg(".wh.a", "")}, map[string]string{"a": gone}},
		"whiteout before file":          {[]item{reg(".wh.a", ""), reg("a", "1")}, map[string]string{"a": `file "1"`}},
		"whiteout after file":           {[]item{reg("a", "1"), reg(".wh.a", "")}, map[string]string{"a": `file "1"`}},
		"whiteout before directory":     {[]item{reg(".wh.a", ""), dirItem("a"), reg("a/b", "1")}, map[string]string{"a": "dir" + opaque, "a/b": `file "1"`}},
		"whiteout after directory":      {[]item{reg("a/b", "1"), reg(".wh.a", "")}, map[string]string{"a": "dir" + opaque, "a/b": `file "1"`}},
		"whiteout before parent":        {[]item{reg(".wh.a", ""), reg("a/b", "1")}, map[string]string{"a": "dir" + opaque, "a/b": `file "1"`}},
		"whiteout before hard link":     {[]item{reg("x", "1"), reg(".wh.a", ""), link("a", "x")}, map[string]string{"a": `file "1"`, "x": "= a"}},
		"opaque directory":              {[]item{dirItem("d"), reg("d/a", "1"), reg("d/.wh..wh..opq", ""), reg("d/b", "2")}, map[string]string{"d": "dir" + opaque, "d/a": `file "1"`, "d/b": `file "2"`}},
		"opaque directory, entry later": {[]item{reg("d/.wh..wh..opq", ""), dirItem("d")}, map[string]string{"d": "dir" + opaque}},
		"opaque root":                   {[]item{reg(".wh..wh..opq", "")}, map[string]string{".": "dir" + opaque}},
		"AUFS": {
			[]item{reg(".wh..wh.aufs", ""), dirItem(".wh..wh.plnk/"), reg(".wh..wh.plnk/1.2", ""), dirItem("d/.wh..wh.orph")},
			map[string]string{},
		},
		"overlay's own xattrs": {
			[]item{dirItem("d").xattr("trusted.overlay.opaque", "y"), reg("f", "").xattr("user.overlay.origin", "z")},
			map[string]string{"d": "dir", "f": `file ""`},
		},
		"xattrs without a place": {
			[]item{reg("f", "").xattr("com.apple.quarantine", "x"), symlink("l", "f").xattr("user.a", "x")},
			map[string]string{"f": `file ""`, "l": "link -> f"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, testkit.Root())
			a, err := applyTar(t, tarOf(t, test.in...), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, shape(t, a.dir)); diff != "" {
				t.Error(diff)
			}
			a.check(t, CheckOptions{})
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in   []item
		want error
	}{
		"whiteout of nothing":             {[]item{reg("a/.wh.", "")}, layer.ErrFormat},
		"whiteout of dot":                 {[]item{reg(".wh..", "")}, layer.ErrFormat},
		"whiteout of dot-dot":             {[]item{reg("a/.wh...", "")}, layer.ErrFormat},
		"entry below a whiteout":          {[]item{reg(".wh.a/b", "")}, layer.ErrFormat},
		"root that is a file":             {[]item{reg("a/..", "x")}, layer.ErrFormat},
		"entry below a file":              {[]item{reg("a", "x"), reg("a/b", "x")}, layer.ErrFormat},
		"entry below a hard link":         {[]item{reg("a", "x"), link("b", "a"), reg("b/c", "x")}, layer.ErrFormat},
		"entry below a link to a file":    {[]item{reg("a", "x"), symlink("b", "a"), reg("b/c", "x")}, layer.ErrFormat},
		"links in a ring":                 {[]item{symlink("a", "b"), symlink("b", "a"), reg("a/c", "x")}, unix.ELOOP},
		"hard link to nothing":            {[]item{link("a", "b")}, unix.ENOENT},
		"hard link to a directory":        {[]item{dirItem("d"), link("a", "d")}, layer.ErrFormat},
		"hard link to a whiteout":         {[]item{reg(".wh.d", ""), link("a", "d")}, layer.ErrFormat},
		"hard link to the root":           {[]item{link("a", "..")}, layer.ErrFormat},
		"hard link over its target's dir": {[]item{reg("d/x", "1"), link("d", "d/x")}, unix.ENOENT},
		"name of 256 bytes":               {[]item{reg(strings.Repeat("n", 256), "")}, unix.ENAMETOOLONG},
		"magic link":                      {[]item{symlink("p", "/proc/self/fd/0/x"), reg("p/y", "")}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testkit.Need(t, testkit.Root())
			if _, err := applyTar(t, tarOf(t, test.in...), Options{}); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}
