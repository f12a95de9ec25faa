package dray_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray"
	"dray/internal/oci"
	"dray/internal/testkit"
)

// seedCase is an image, a registry that has it, and a seed of it.
type seedCase struct {
	built  testkit.Built
	server *testkit.Server
	pinned string // reference that needs no registry to be resolved
	want   testkit.Nodes
}

// newSeedCase makes an image of what layers can hold.
func newSeedCase(t *testing.T) *seedCase {
	t.Helper()
	dir := t.TempDir()
	layers := [][]testkit.Entry{
		{testkit.Dir("etc"), testkit.File("etc/one", "1\n").Chown(1, 2), testkit.File("etc/gone", "x"), testkit.Dir("old"), testkit.File("old/x", "x"), testkit.Random("big", 3<<20, 1)},
		{testkit.Whiteout("etc/gone"), testkit.Opaque("old"), testkit.File("old/y", "y"), testkit.File("bin/su", "#!").Chmod(0o4755), testkit.Hardlink("bin/su2", "bin/su"), testkit.Symlink("lib", "/usr/lib")},
		{testkit.File("a b\xff", "name"), testkit.Fifo("pipe"), testkit.Random("large", 2<<20, 2)},
	}
	b := testkit.Image(t)
	for _, l := range layers {
		b = b.Layer(l...)
	}
	c := &seedCase{built: b.Write(testkit.LayoutAt(t, dir), "v1"), server: testkit.Registry(t, dir), want: testkit.Expect(layers...)}
	c.pinned = c.server.Ref("some/name@" + string(c.built.Manifest.Digest))
	return c
}

// seed makes a seed of the image at path.
func (c *seedCase) seed(t *testing.T, path string) *dray.SeedReport {
	t.Helper()
	report, err := newClient(t).WriteSeed(t.Context(), []string{c.server.Ref("some/name:v1"), c.pinned}, path, dray.SeedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func clientWith(t *testing.T, o dray.Options) *dray.Client {
	t.Helper()
	o.Store, o.AuthFiles, o.Sync = filepath.Join(t.TempDir(), "store"), []string{}, dray.SyncNever
	client, err := dray.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

// A seed in each form gives the whole image to whoever has it, without a network:
// used where it lies if it stays what it was, copied if not. What it gives is what
// the registry gives.
func TestSeed(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	dir := t.TempDir()
	for _, form := range []string{"dir", "x.tar", "x.erofs"} {
		path := filepath.Join(dir, form)
		if report := c.seed(t, path); report.NetworkBytes == 0 || len(report.Layers) != 3 || len(report.Images) != 2 {
			t.Errorf("seed %s: %+v", form, report)
		}
		for name, test := range map[string]struct {
			options dray.Options
			uses    []string
		}{
			"not trusted":   {dray.Options{Seeds: []string{path}}, []string{"held", "copied"}}, // held where EROFS mounts from files
			"trusted":       {dray.Options{TrustedSeeds: []string{path}}, []string{"trusted", "copied"}},
			"foreign disks": {dray.Options{Seeds: []string{path}, ForeignDisks: true}, []string{"copied"}},
			"unpacked":      {dray.Options{Seeds: []string{path}, Layout: dray.LayoutDir}, []string{"copied"}},
		} {
			t.Run(form+", "+name, func(t *testing.T) {
				client := clientWith(t, test.options)
				target := filepath.Join(t.TempDir(), "rootfs")
				mounted := mountAt(t, client, c.pinned, target, dray.MountOptions{ReadOnly: true, Pull: dray.PullOptions{Offline: true}})
				if diff := testkit.Diff(c.want, testkit.Tree(t, target)); diff != "" {
					t.Error(diff)
				}
				e := mounted.Image.Evidence
				if e.NetworkBytes != 0 || e.SeedBytes == 0 || e.ResolvedBy != "seed "+path || len(e.Fallbacks) != 0 {
					t.Errorf("evidence: %+v", e)
				}
				for _, l := range e.Layers {
					if l.Source != "seed" || l.Seed != path || !slices.Contains(test.uses, l.SeedUse) {
						t.Errorf("layer: %+v, want one of %v", l, test.uses)
					}
				}
				if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || !report.OK() {
					t.Errorf("verify: %+v, %v", report, err)
				}
				again, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{})
				if err != nil || again.Evidence.NetworkBytes != 0 || again.Evidence.Layers[0].Source != "store" {
					t.Errorf("second pull: %+v, %v", again, err)
				}
			})
		}
	}
}

// The same images give the same bytes, whatever order they are named in, however many
// workers there are and wherever they come from.
func TestSeedIsReproducible(t *testing.T) {
	t.Parallel()
	c := newSeedCase(t)
	references := []string{c.server.Ref("some/name:v1"), c.pinned}
	created := time.Unix(1_600_000_000, 5)
	for _, form := range []string{"dir", "x.tar", "x.erofs"} {
		first, second := filepath.Join(t.TempDir(), form), filepath.Join(t.TempDir(), form)
		one := clientWith(t, dray.Options{Workers: 1})
		if _, err := one.Pull(t.Context(), references[0], dray.PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := one.WriteSeed(t.Context(), references, first, dray.SeedOptions{Created: created, Prefix: "/usr/share/dray/seed"}); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(references)
		if _, err := clientWith(t, dray.Options{Workers: 3}).WriteSeed(t.Context(), references, second, dray.SeedOptions{Created: created, Prefix: "/usr/share/dray/seed"}); err != nil {
			t.Fatal(err)
		}
		if form == "dir" {
			if diff := testkit.Diff(testkit.Tree(t, first), testkit.Tree(t, second)); diff != "" {
				t.Error(diff)
			}
			continue
		}
		if !bytes.Equal(readFile(t, first), readFile(t, second)) {
			t.Errorf("%s differs", form)
		}
	}
}

// Trees are the same in every form, whoever makes it, and are used where they lie or
// verified like anything else: those in a file system, those of a tar when it is
// unpacked.
func TestSeedTrees(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Tool("tar"), testkit.Tool("mount"))
	c := newSeedCase(t)
	const prefix = "/usr/share/seed"
	for _, layout := range []dray.Layout{dray.LayoutDir, dray.LayoutBoth} { //nolint:paralleltest // mounts
		t.Run(string(layout), func(t *testing.T) {
			dir := t.TempDir()
			write := func(out string, workers int) string {
				t.Helper()
				out = filepath.Join(dir, out)
				o := dray.SeedOptions{Layout: layout, Created: time.Unix(1_600_000_000, 0), Prefix: prefix}
				report, err := clientWith(t, dray.Options{Workers: workers}).WriteSeed(t.Context(), []string{c.pinned}, out, o)
				if err != nil || report.Layout != string(layout) {
					t.Fatalf("%+v, %v", report, err)
				}
				return out
			}
			for _, form := range []string{".tar", ".erofs"} {
				if !bytes.Equal(readFile(t, write("x"+form, 1)), readFile(t, write("y"+form, 3))) {
					t.Errorf("x%s differs", form)
				}
			}
			unpacked, mounted := filepath.Join(dir, "unpacked"), filepath.Join(dir, "mounted")
			check(t, errors.Join(os.Mkdir(unpacked, 0o755), os.Mkdir(mounted, 0o755)))
			run(t, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", unpacked, "-xf", filepath.Join(dir, "x.tar"))
			run(t, "mount", "-o", "loop,ro", filepath.Join(dir, "x.erofs"), mounted)
			t.Cleanup(func() { check(t, unix.Unmount(mounted, 0)) })
			plain := write("plain", 2)
			for _, root := range []string{unpacked, mounted} {
				for i, id := range c.built.DiffIDs {
					below := filepath.Join(prefix, "layers", "sha256", id.Hex(), "fs")
					if diff := testkit.Diff(testkit.Tree(t, filepath.Join(plain, below)), testkit.Tree(t, filepath.Join(root, below))); diff != "" {
						t.Errorf("layer %d in %s: %s", i, root, diff)
					}
				}
			}
			for _, root := range []string{plain, unpacked, mounted} {
				c.usesTrees(t, filepath.Join(root, prefix), layout == dray.LayoutBoth || root == mounted)
			}
			hasTars := layout == dray.LayoutBoth
			c.copies(t, filepath.Join(dir, "x.tar"), hasTars)
			c.copies(t, filepath.Join(dir, "x.erofs"), true) // its trees are in the tars
		})
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// usesTrees mounts the image from trusted trees, and checks what is not trusted if
// there are tars to check it by.
func (c *seedCase) usesTrees(t *testing.T, seed string, hasTars bool) {
	t.Helper()
	client := clientWith(t, dray.Options{TrustedSeeds: []string{seed}, Layout: dray.LayoutDir})
	target := filepath.Join(t.TempDir(), "rootfs")
	e := mountAt(t, client, c.pinned, target, dray.MountOptions{ReadOnly: true, Pull: dray.PullOptions{Offline: true}}).Image.Evidence
	if diff := testkit.Diff(c.want, testkit.Tree(t, target)); diff != "" {
		t.Errorf("%s: %s", seed, diff)
	}
	for _, l := range e.Layers {
		if l.SeedUse != "trusted" {
			t.Errorf("%s: layer: %+v", seed, l)
		}
	}
	if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("%s: verify: %+v, %v", seed, report, err)
	}
	c.copies(t, seed, hasTars)
}

// copies pulls the image from a seed that is not trusted: every layer is verified, or
// refused.
func (c *seedCase) copies(t *testing.T, seed string, good bool) {
	t.Helper()
	client := clientWith(t, dray.Options{Seeds: []string{seed}, ForeignDisks: true})
	image, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{Offline: true})
	if !good {
		if dray.KindOf(err) != dray.KindUnverified {
			t.Errorf("%s: %v", seed, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range image.Evidence.Layers {
		if l.SeedUse != "copied" {
			t.Errorf("%s: layer: %+v", seed, l)
		}
	}
}

// Of a trusted file not even the tars' headers are read when an image is pulled: its
// indexes are used, wherever in it the tars are.
func TestTrustedSeedIsNotRead(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	for _, form := range []string{"x.tar", "x.erofs"} {
		path := filepath.Join(t.TempDir(), form)
		c.seed(t, path)
		raw := readFile(t, path)
		const checksumAt = 148 // in a tar's header
		at := bytes.Index(raw, []byte("etc/one\x00"))
		copy(raw[at+checksumAt:], "damaged")
		write(t, path, raw)
		client := clientWith(t, dray.Options{TrustedSeeds: []string{path}})
		if report, err := client.Layouts(t.Context()); err != nil || !report.EROFS || report.Backing != "files" {
			testkit.Lacking(t, "EROFS from files", fmt.Sprintf("%+v, %v", report, err))
		}
		image, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{Offline: true})
		if err != nil || image.Evidence.Layers[0].SeedUse != "trusted" || image.Evidence.Layers[0].Layout != "seed" {
			t.Errorf("%s: %+v, %v", form, image, err)
		}
		if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || report.OK() {
			t.Errorf("%s: verify finds nothing: %+v, %v", form, report, err)
		}
	}
}

// An index of a trusted seed that the kernel would not mount is made anew of the tar, each
// by itself.
func TestTrustedSeedWithDamagedIndex(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	for what, damage := range map[string]func(index []byte) []byte{
		"superblock": func(index []byte) []byte { index[1024+36]++; return index },
		"cut":        func(index []byte) []byte { return index[:1500] },
		"no index":   func([]byte) []byte { return bytes.Repeat([]byte("x"), 4096) },
	} {
		dir := filepath.Join(t.TempDir(), "seed")
		c.seed(t, dir)
		for _, id := range c.built.DiffIDs[1:] {
			index := filepath.Join(dir, "layers", "sha256", id.Hex(), "index.erofs")
			write(t, index, damage(readFile(t, index)))
		}
		client, target := clientWith(t, dray.Options{TrustedSeeds: []string{dir}}), filepath.Join(t.TempDir(), "rootfs")
		m := mountAt(t, client, c.pinned, target, dray.MountOptions{ReadOnly: true, Pull: dray.PullOptions{Offline: true}})
		if diff := testkit.Diff(c.want, testkit.Tree(t, target)); diff != "" || len(m.Image.Evidence.Fallbacks) > 0 {
			t.Errorf("%s: %s, %v", what, diff, m.Image.Evidence.Fallbacks)
		}
	}
}

// A work directory of image-rs has layers and configurations: of an image only the
// manifest is pulled. Its document is not believed, nor kept to when it changes.
func TestWorkDirSeed(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	from := newClient(t)
	if _, err := from.Pull(t.Context(), c.pinned, dray.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "work")
	if _, err := from.ExportMetaStore(t.Context(), dir, nil, dray.MetaExportOptions{}); err != nil {
		t.Fatal(err)
	}
	client := clientWith(t, dray.Options{TrustedSeeds: []string{dir}})
	if seeds := client.Seeds(); len(seeds) != 1 || len(seeds[0].Layers) != 3 || seeds[0].Problem != "" {
		t.Errorf("seeds: %+v", seeds)
	}
	if _, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{Offline: true}); dray.KindOf(err) != dray.KindNotFound || !strings.Contains(err.Error(), "dray store import") {
		t.Errorf("without a manifest: %v", err)
	}
	image, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e := image.Evidence; e.NetworkBytes != c.built.Manifest.Size || e.ResolvedBy != "network" {
		t.Errorf("%d bytes from network, want the %d of the manifest: %+v", e.NetworkBytes, c.built.Manifest.Size, e)
	}
	report, err := client.Verify(t.Context(), dray.VerifyOptions{Seeds: true})
	if err != nil || report.SeedLayers != 3 {
		t.Errorf("verify: %+v, %v", report, err)
	}
	document := filepath.Join(dir, "meta_store.json")
	check(t, os.Rename(document, document+".away"))
	write(t, document, []byte("{}"))
	if seeds := client.Seeds(); len(seeds) != 1 || !strings.Contains(seeds[0].Problem, "invalid meta_store.json") {
		t.Errorf("changed: %+v", seeds)
	}
	o := dray.Options{Store: filepath.Join(t.TempDir(), "store"), Seeds: []string{dir}}
	if _, err := dray.New(t.Context(), o); dray.KindOf(err) != dray.KindUnverified {
		t.Errorf("broken: %v", err)
	}
}

// A directory with a prefix goes to that path of a root file system, which may be
// there; what fails leaves it as it was.
func TestSeedPrefix(t *testing.T) {
	t.Parallel()
	c := newSeedCase(t)
	root := t.TempDir()
	check(t, os.Mkdir(filepath.Join(root, "usr"), 0o755))
	check(t, os.Symlink("/", filepath.Join(root, "out")))
	o := dray.SeedOptions{Prefix: "/usr/share/dray/seed"}
	if _, err := newClient(t).WriteSeed(t.Context(), []string{c.server.Ref("no/such:image")}, root, o); dray.KindOf(err) != dray.KindNotFound {
		t.Errorf("no such image: %v", err)
	}
	for _, prefix := range []string{"usr", "/usr/../etc", "/usr//x", "/out/seed"} {
		if _, err := newClient(t).WriteSeed(t.Context(), []string{c.pinned}, root, dray.SeedOptions{Prefix: prefix}); dray.KindOf(err) != dray.KindUsage {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(root, "usr")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	report, err := newClient(t).WriteSeed(t.Context(), []string{c.pinned}, root, o)
	if err != nil || report.Path != filepath.Join(root, o.Prefix) || report.Prefix != o.Prefix {
		t.Fatalf("%+v, %v", report, err)
	}
	c.copies(t, report.Path, true)
	if _, err := newClient(t).WriteSeed(t.Context(), []string{c.pinned}, root, o); dray.KindOf(err) != dray.KindUsage {
		t.Errorf("again: %v", err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// poison is something that a seed can be made to be.
type poison struct {
	do      func(t *testing.T, seed string, layer []string) // directories of the layers, bottom first
	says    string                                          // in the evidence; "": it does no harm
	options dray.Options
}

// Whatever is wrong with a seed, its layer is refused, named in the evidence, and
// pulled instead; offline, the pull fails and leaves nothing.
func TestPoisonedSeed(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	tar := func(dir string) string { return filepath.Join(dir, "layer.tar") }
	for name, p := range map[string]poison{
		"wrong byte": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			raw := readFile(t, tar(l[0]))
			raw[1<<20] ^= 1
			write(t, tar(l[0]), raw)
		}, says: "content has digest"},
		"truncated": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			check(t, os.Truncate(tar(l[0]), 4096))
		}, says: "has 4096 bytes instead of"},
		"truncated, and says so": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			check(t, os.Truncate(tar(l[0]), 4096))
			patch(t, l[0], "size_bytes", 4096)
		}, says: "refused"},
		"huge": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			check(t, os.Truncate(tar(l[0]), 1<<40))
			patch(t, l[0], "size_bytes", 1<<40)
		}, says: "the limit is", options: dray.Options{MaxLayerBytes: 1 << 30}},
		"swapped layers": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			check(t, unix.Renameat2(unix.AT_FDCWD, l[0], unix.AT_FDCWD, l[2], unix.RENAME_EXCHANGE))
		}, says: "its record is of"},
		"swapped tars": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			raw := readFile(t, tar(l[2]))
			write(t, tar(l[0]), raw)
			patch(t, l[0], "size_bytes", len(raw))
		}, says: "content has digest"},
		"link out": {do: func(t *testing.T, seed string, l []string) {
			t.Helper()
			outside := filepath.Join(filepath.Dir(seed), "outside.tar")
			check(t, os.Rename(tar(l[0]), outside))
			check(t, os.Symlink(outside, tar(l[0])))
		}, says: "a link or a mount on the way"},
		"directory of links": {do: func(t *testing.T, seed string, l []string) {
			t.Helper()
			outside := filepath.Join(filepath.Dir(seed), "outside")
			check(t, os.Rename(l[0], outside))
			check(t, os.Symlink(outside, l[0]))
		}, says: "a link or a mount on the way"},
		"FIFO": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			check(t, os.Remove(tar(l[0])))
			check(t, unix.Mkfifo(tar(l[0]), 0o644))
		}, says: "a device or something of the kind where a file should be"},
		"no tar": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			check(t, os.Remove(tar(l[0])))
		}, says: "neither a layer.tar nor a tree"},
		"garbage for a record": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			write(t, filepath.Join(l[0], "layer.json"), []byte("{"))
		}, says: "store is corrupt"},
		"newer record": {do: func(t *testing.T, _ string, l []string) {
			t.Helper()
			patch(t, l[0], "version", 99)
		}, says: "newer format"},
		"wrong index": {do: func(t *testing.T, _ string, l []string) { // it is never looked at
			t.Helper()
			write(t, filepath.Join(l[0], "index.erofs"), readFile(t, filepath.Join(l[1], "index.erofs")))
		}},
		"others may write": {do: func(t *testing.T, _ string, l []string) { // so it is copied
			t.Helper()
			check(t, os.Chmod(tar(l[0]), 0o666))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			seed := filepath.Join(t.TempDir(), "seed")
			c.seed(t, seed)
			var dirs []string
			for _, id := range c.built.DiffIDs {
				dirs = append(dirs, filepath.Join(seed, "layers", "sha256", id.Hex()))
			}
			p.do(t, seed, dirs)
			p.options.Seeds = []string{seed}
			if p.says != "" {
				c.failsOffline(t, p)
			}
			client := clientWith(t, p.options)
			target := filepath.Join(t.TempDir(), "rootfs")
			e := mountAt(t, client, c.pinned, target, dray.MountOptions{ReadOnly: true, Pull: dray.PullOptions{Fresh: true}}).Image.Evidence
			if diff := testkit.Diff(c.want, testkit.Tree(t, target)); diff != "" {
				t.Error(diff)
			}
			source := map[bool]string{true: "seed", false: "network"}[p.says == ""]
			if e.Layers[0].Source != source {
				t.Errorf("layer came from %s, want %s; %v", e.Layers[0].Source, source, e.Fallbacks)
			}
			said := strings.Join(e.Fallbacks, "\n")
			if p.says != "" && (!strings.Contains(said, p.says) || !strings.Contains(said, "seed "+seed+": layer "+string(c.built.DiffIDs[0]))) {
				t.Errorf("evidence says %q, want %q", said, p.says)
			}
			if p.says == "" && len(e.Fallbacks) > 0 {
				t.Errorf("evidence says %q", said)
			}
			if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || !report.OK() {
				t.Errorf("verify: %+v, %v", report, err)
			}
		})
	}
}

// failsOffline pulls with nothing but the poisoned seed.
func (c *seedCase) failsOffline(t *testing.T, p poison) {
	t.Helper()
	client := clientWith(t, p.options)
	_, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{Offline: true})
	if err == nil || !strings.Contains(err.Error(), p.says) || dray.KindOf(err) != dray.KindUnverified {
		t.Errorf("offline: %v of kind %d, want %q", err, dray.KindOf(err), p.says)
	}
	if images, err := client.Images(); err != nil || len(images) != 0 {
		t.Errorf("offline: %v, %v", images, err)
	}
	if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("offline: verify: %+v, %v", report, err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, raw []byte) {
	t.Helper()
	check(t, os.WriteFile(path, raw, 0o600))
}

// patch changes a field of a layer's record.
func patch(t *testing.T, dir, field string, value any) {
	t.Helper()
	path := filepath.Join(dir, "layer.json")
	record := map[string]any{}
	check(t, json.Unmarshal(readFile(t, path), &record))
	record[field] = value
	raw, err := json.Marshal(record)
	check(t, err)
	write(t, path, raw)
}

// What is no seed, or not one for this dray, is said when a client is opened.
func TestBadSeed(t *testing.T) {
	t.Parallel()
	c := newSeedCase(t)
	dir := t.TempDir()
	for name, test := range map[string]struct {
		make func(path string) error
		kind dray.Kind
		says string
	}{
		"missing":   {func(string) error { return nil }, dray.KindNotFound, "no such file"},
		"empty":     {func(path string) error { return os.Mkdir(path, 0o700) }, dray.KindNotFound, "it has no seed.json"},
		"some file": {func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), 5000), 0o600) }, dray.KindNotFound, "not a seed"},
		"FIFO":      {func(path string) error { return unix.Mkfifo(path, 0o600) }, dray.KindNotFound, "not a seed"},
		"newer": {func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "seed.json"), []byte(`{"dray_seed":2,"needs":"9.9"}`), 0o600))
		}, dray.KindCorrupt, `use dray "9.9" or newer`},
		"newer format": {func(path string) error {
			c.seed(t, path)
			return os.WriteFile(filepath.Join(path, "version"), []byte(`{"version":2,"dray":"9.9"}`), 0o600)
		}, dray.KindCorrupt, `use dray "9.9" or newer`},
		"newer store": {func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "version"), []byte(`{"version":2,"dray":"9.9"}`), 0o600))
		}, dray.KindCorrupt, `use dray "9.9" or newer`},
		"garbage for a version": {func(path string) error {
			c.seed(t, path)
			return os.WriteFile(filepath.Join(path, "version"), []byte(`x`), 0o600)
		}, dray.KindUnverified, "read version"},
		"ext4": {func(path string) error {
			raw := make([]byte, 1<<20)
			raw[1024+0x38], raw[1024+0x39] = 0x53, 0xef // its magic
			return os.WriteFile(path, raw, 0o600)
		}, dray.KindNotFound, "other file systems are to be mounted first"},
		"garbage": {func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "seed.json"), []byte(`[]`), 0o600))
		}, dray.KindUnverified, "decode seed.json"},
		"cut archive": {func(path string) error {
			c.seed(t, path+".erofs")
			return errors.Join(os.Truncate(path+".erofs", 2<<20), os.Rename(path+".erofs", path))
		}, dray.KindUnverified, "cut off: it has 2097152 bytes of"},
		"cut tar": {func(path string) error {
			c.seed(t, path+".tar")
			return errors.Join(os.Truncate(path+".tar", 2<<20), os.Rename(path+".tar", path))
		}, dray.KindUnverified, `cut off in "layers/`},
		"tar cut between files": {func(path string) error {
			c.seed(t, path+".tar")
			return errors.Join(os.Truncate(path+".tar", 1536), os.Rename(path+".tar", path))
		}, dray.KindNotFound, "it is cut off, or none"},
	} {
		path := filepath.Join(dir, name)
		check(t, test.make(path))
		_, err := dray.New(t.Context(), dray.Options{Store: filepath.Join(t.TempDir(), "store"), Seeds: []string{path}})
		if err == nil || dray.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v of kind %d, want %d and %q", name, err, dray.KindOf(err), test.kind, test.says)
		}
	}
}

// Many layers that lie in a seed are merged like others: the same index is good for the
// same places only.
func TestSeedOfManyLayers(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	if layouts, err := newClient(t).Layouts(t.Context()); err != nil || layouts.Backing != "files" {
		t.Skipf("layers are used where they lie if the kernel mounts EROFS from files: %+v, %v", layouts, err)
	}
	var layers [][]testkit.Entry
	for i := range 33 {
		entries := []testkit.Entry{testkit.Dir("d"), testkit.Text(fmt.Sprintf("d/%d", i), int64(700*i), uint64(i)), testkit.File("same", strings.Repeat("x", 600+i))}
		if i%5 == 4 {
			entries = append(entries, testkit.Whiteout(fmt.Sprintf("d/%d", i-1)))
		}
		layers = append(layers, entries)
	}
	dir := t.TempDir()
	b := testkit.Image(t)
	for _, l := range layers {
		b = b.Layer(l...)
	}
	c := &seedCase{built: b.Write(testkit.LayoutAt(t, dir), "v1"), server: testkit.Registry(t, dir), want: testkit.Expect(layers...)}
	c.pinned = c.server.Ref("some/name@" + string(c.built.Manifest.Digest))
	for _, form := range []string{"dir", "x.erofs"} {
		path := filepath.Join(t.TempDir(), form)
		c.seed(t, path)
		for use, o := range map[string]dray.Options{"held": {Seeds: []string{path}}, "trusted": {TrustedSeeds: []string{path}}} {
			client := clientWith(t, o)
			c.mountsMerged(t, client, use)
			if use == "held" {
				check(t, os.Rename(path, path+".away")) // layers have to be pulled, to other places
				c.mountsMerged(t, client, "")
				check(t, os.Rename(path+".away", path))
			}
		}
	}
}

// mountsMerged mounts what comes from a seed, or does not, and compares.
func (c *seedCase) mountsMerged(t *testing.T, client *dray.Client, use string) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "rootfs")
	m := mountAt(t, client, c.pinned, target, dray.MountOptions{ReadOnly: true, Pull: dray.PullOptions{Offline: use != ""}})
	if !m.Merged || m.Image.Evidence.Layers[0].SeedUse != use {
		t.Errorf("%s: merged %v, evidence %+v", use, m.Merged, m.Image.Evidence)
	}
	if diff := testkit.Diff(c.want, testkit.Tree(t, target)); diff != "" {
		t.Errorf("%s: %s", use, diff)
	}
	if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("%s: verify: %+v, %v", use, report, err)
	}
	check(t, client.Unmount(t.Context(), target))
}

// A seed that goes away under a running client costs a pull, no more; layers that were
// used where they lay are as good as absent.
func TestSeedVanishes(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	for _, form := range []string{"dir", "x.erofs"} {
		seed := filepath.Join(t.TempDir(), form)
		c.seed(t, seed)
		client := clientWith(t, dray.Options{Seeds: []string{seed}})
		first := filepath.Join(t.TempDir(), "first")
		mounted := mountAt(t, client, c.pinned, first, dray.MountOptions{ReadOnly: true})
		check(t, os.RemoveAll(seed))
		if diff := testkit.Diff(c.want, testkit.Tree(t, first)); diff != "" {
			t.Error(diff) // what is mounted holds its files
		}
		if l := client.Seeds(); len(l) != 1 || l[0].Problem == "" {
			t.Errorf("a seed that is gone: %+v", l)
		}
		bare, err := dray.New(t.Context(), dray.Options{Store: client.Store(), Seeds: []string{}})
		check(t, err)
		_, err = bare.Pull(t.Context(), c.pinned, dray.PullOptions{Offline: true})
		held := mounted.Image.Evidence.Layers[0].SeedUse == "held" // where EROFS mounts from files
		if held && (dray.KindOf(err) != dray.KindNotFound || !strings.Contains(err.Error(), "in seed "+seed+", and are not there")) {
			t.Errorf("%s: %v", form, err)
		}
		check(t, bare.Close())
		image, err := client.Pull(t.Context(), c.pinned, dray.PullOptions{})
		check(t, err)
		for _, l := range image.Evidence.Layers {
			if l.Source != "network" && l.Layout == "seed" {
				t.Errorf("%s: %+v", form, l)
			}
		}
		if report, err := client.Verify(t.Context(), dray.VerifyOptions{}); err != nil || !report.OK() {
			t.Errorf("verify: %+v, %v", report, err)
		}
	}
}

// A seed in memory is used where it lies if the kernel reads it there.
func TestSeedInMemory(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	c := newSeedCase(t)
	dir := t.TempDir()
	check(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
	seed := filepath.Join(dir, "seed")
	c.seed(t, seed)
	client := clientWith(t, dray.Options{Seeds: []string{seed}})
	target := filepath.Join(t.TempDir(), "rootfs")
	mounted := mountAt(t, client, c.pinned, target, dray.MountOptions{ReadOnly: true, Pull: dray.PullOptions{Offline: true}})
	if diff := testkit.Diff(c.want, testkit.Tree(t, target)); diff != "" {
		t.Error(diff)
	}
	for _, l := range mounted.Image.Evidence.Layers {
		if l.Source != "seed" {
			t.Errorf("layer: %+v", l)
		}
	}
}

// Of an image that is partly in a seed only the rest is pulled.
func TestPartialSeed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shared := []testkit.Entry{testkit.Random("shared", 1<<20, 3)}
	testkit.Image(t).Layer(shared...).Write(testkit.LayoutAt(t, filepath.Join(dir, "base")), "v1")
	built := testkit.Image(t).Layer(shared...).Layer(testkit.File("own", "x")).Write(testkit.LayoutAt(t, filepath.Join(dir, "app")), "v1")
	server := testkit.Registry(t, dir)
	seed := filepath.Join(t.TempDir(), "seed.tar")
	if _, err := newClient(t).WriteSeed(t.Context(), []string{server.Ref("base:v1")}, seed, dray.SeedOptions{}); err != nil {
		t.Fatal(err)
	}
	image, err := clientWith(t, dray.Options{Seeds: []string{seed}}).Pull(t.Context(), server.Ref("app:v1"), dray.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := image.Evidence
	if e.Layers[0].Source != "seed" || e.Layers[1].Source != "network" || e.NetworkBytes >= built.Layers[0].Size || e.ResolvedBy != "network" {
		t.Errorf("evidence: %+v", e)
	}
}

// An OCI image layout is a seed of whole blobs.
func TestBlobSeed(t *testing.T) { //nolint:paralleltest // looks for leaks
	testkit.NoLeaks(t)
	dir := t.TempDir()
	built := testkit.Image(t).Layer(testkit.Random("x", 1<<16, 4)).Layer(testkit.File("y", "y")).Zstd().Write(testkit.LayoutAt(t, dir), "v1")
	client := clientWith(t, dray.Options{Seeds: []string{dir}})
	image, err := client.Pull(t.Context(), "x.invalid/y@"+string(built.Manifest.Digest), dray.PullOptions{Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range image.Evidence.Layers {
		if l.Source != "seed" || l.SeedUse != "copied" {
			t.Errorf("layer: %+v", l)
		}
	}
	path := filepath.Join(dir, "blobs", "sha256", built.Layers[0].Digest.Hex())
	raw := readFile(t, path)
	raw[100] ^= 1
	check(t, os.Remove(path))
	write(t, path, raw)
	client = clientWith(t, dray.Options{Seeds: []string{dir}})
	if _, err = client.Pull(t.Context(), "x.invalid/y@"+string(built.Manifest.Digest), dray.PullOptions{Offline: true}); dray.KindOf(err) != dray.KindUnverified {
		t.Errorf("poisoned blob: %v", err)
	}
}

// A seed holds what platforms it was asked for; whoever wants another is told.
func TestSeedPlatforms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	var manifests []oci.Descriptor
	for _, arch := range []string{"amd64", "arm64", "s390x"} {
		p := oci.Platform{OS: "linux", Architecture: arch}
		d := testkit.Image(t).Layer(testkit.File("arch", arch)).Platform(p).Write(layout, "").Manifest
		d.Platform = &p
		manifests = append(manifests, d)
	}
	testkit.Index(t, layout, "v1", manifests...)
	reference := testkit.Registry(t, dir).Ref("a/b:v1")
	seed := filepath.Join(t.TempDir(), "seed")
	report, err := newClient(t).WriteSeed(t.Context(), []string{reference}, seed, dray.SeedOptions{Platforms: []string{"linux/arm64", "linux/amd64"}})
	if err != nil || len(report.Images) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	for arch, kind := range map[string]dray.Kind{"amd64": 0, "arm64": 0, "s390x": dray.KindNotFound} {
		client := clientWith(t, dray.Options{Seeds: []string{seed}, Platform: "linux/" + arch})
		image, err := client.Pull(t.Context(), reference, dray.PullOptions{Offline: true})
		switch {
		case kind == 0 && (err != nil || image.Platform != "linux/"+arch || image.Evidence.Index == ""):
			t.Errorf("%s: %+v, %v", arch, image, err)
		case kind != 0 && (err == nil || dray.KindOf(err) != kind || !strings.Contains(err.Error(), "neither the store nor a seed has")):
			t.Errorf("%s: %v", arch, err)
		}
	}
}

// A seed is not made where something else is, nor half.
func TestSeedTarget(t *testing.T) {
	t.Parallel()
	c := newSeedCase(t)
	client := newClient(t)
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "full"), 0o700))
	write(t, filepath.Join(dir, "full", "x"), nil)
	for path, kind := range map[string]dray.Kind{
		filepath.Join(dir, "full"):           dray.KindUsage,
		filepath.Join(dir, "none", "x.tar"):  dray.KindUsage,
		filepath.Join(dir, "full", "x", "y"): dray.KindUsage,
	} {
		if _, err := client.WriteSeed(t.Context(), []string{c.pinned}, path, dray.SeedOptions{}); dray.KindOf(err) != kind {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := client.WriteSeed(t.Context(), []string{c.server.Ref("no/such:image")}, filepath.Join(dir, "x.erofs"), dray.SeedOptions{}); dray.KindOf(err) != dray.KindNotFound {
		t.Errorf("no such image: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", fmt.Sprint(entries), err)
	}
}
