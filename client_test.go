package dray_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dray"
	"dray/internal/oci"
	"dray/internal/testkit"
)

// newClient opens a store of the test's own.
func newClient(t *testing.T) *dray.Client {
	t.Helper()
	return newClientFor(t, dray.LayoutAuto)
}

// layouts are what a test of layers has to pass in.
func layouts() []dray.Layout { return []dray.Layout{dray.LayoutAuto, dray.LayoutDir} }

func newClientFor(t *testing.T, layout dray.Layout) *dray.Client {
	t.Helper()
	client, err := dray.New(t.Context(), dray.Options{Store: filepath.Join(t.TempDir(), "store"), AuthFiles: []string{}, Sync: dray.SyncNever, Layout: layout})
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

// mountAt mounts and unmounts again when the test ends.
func mountAt(t *testing.T, client *dray.Client, reference, dir string, o dray.MountOptions) *dray.Mount {
	t.Helper()
	mounted, err := client.Mount(t.Context(), reference, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Unmount(context.Background(), dir); err != nil && dray.KindOf(err) != dray.KindNotFound {
			t.Error(err)
		}
	})
	return mounted
}

// Every image that broke a puller somewhere becomes its tree, or the error that it
// deserves, and leaves a store without problems.
func TestOddImages(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	for _, layout := range layouts() {
		t.Run(string(layout), func(t *testing.T) { testOddImages(t, layout) })
	}
}

func testOddImages(t *testing.T, layout dray.Layout) {
	t.Helper()
	for _, odd := range testkit.Odd() {
		t.Run(odd.Name, func(t *testing.T) {
			testkit.Need(t, odd.Needs...)
			if odd.Large && testing.Short() {
				t.Skip("takes seconds")
			}
			dir := t.TempDir()
			odd.Write(t, testkit.LayoutAt(t, dir), "odd")
			reference := testkit.Registry(t, dir).Ref("some/name:odd")
			client := newClientFor(t, layout)
			target := filepath.Join(t.TempDir(), "rootfs")
			_, err := client.Mount(t.Context(), reference, target, dray.MountOptions{ReadOnly: true})
			if odd.Verdict != testkit.Good {
				wantVerdict(t, client, odd, reference, err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := client.Unmount(t.Context(), target); err != nil {
					t.Error(err)
				}
			}()
			if diff := testkit.Diff(odd.Tree(), testkit.Tree(t, target)); diff != "" {
				t.Error(diff)
			}
			wantSound(t, client)
		})
	}
}

// wantVerdict checks that an odd image was refused as it deserves.
func wantVerdict(t *testing.T, client *dray.Client, odd testkit.OddImage, reference string, err error) {
	t.Helper()
	want := dray.KindUnverified
	if odd.Verdict == testkit.Missing {
		want = dray.KindNotFound
	}
	says := refusals()[odd.Name]
	if says == "" {
		t.Errorf("nobody knows what the error should say: %v", err)
	}
	wantRefused(t, client, err, want, reference, says)
}

// wantRefused checks the kind of an error, what it says, and that nothing is left of
// the pull. It closes the client.
func wantRefused(t *testing.T, client *dray.Client, err error, want dray.Kind, says ...string) {
	t.Helper()
	if err == nil || dray.KindOf(err) != want {
		t.Fatalf("got %v (kind %d), want kind %d", err, dray.KindOf(err), want)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want it to say %q", err, part)
		}
	}
	if images, err := client.Images(); err != nil || len(images) > 0 {
		t.Errorf("images %v are there, %v", images, err)
	}
	if err := client.Close(); err != nil { // waits for other layers of the image, which stop too
		t.Error(err)
	}
	for _, dir := range []string{"staging", "mounts", "refs"} {
		if left, err := os.ReadDir(filepath.Join(client.Store(), dir)); err != nil || len(left) > 0 {
			t.Errorf("%v is left in %s, %v", left, dir, err)
		}
	}
}

func TestIndexWithoutThePlatform(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	other := testkit.Image(t).Platform(oci.Platform{OS: "linux", Architecture: "s390x"}).Layer(testkit.File("a", "b")).Write(layout, "")
	testkit.Index(t, layout, "v1", other.Manifest)
	reference := testkit.Registry(t, dir).Ref("some/name:v1")
	client := newClient(t)
	_, err := client.Pull(t.Context(), reference, dray.PullOptions{})
	wantRefused(t, client, err, dray.KindNotFound, reference, "linux/s390x", "choose another with --platform")
}

// refusals are what errors say of bad images, whatever the layout.
func refusals() map[string]string {
	return map[string]string{
		"bare-whiteout":                     `whiteout of nothing`,
		"whiteout-of-dot":                   `whiteout of nothing`,
		"whiteout-of-dot-dot":               `whiteout of nothing`,
		"bad-checksum":                      `at offset 512: header with a wrong checksum`,
		"bad-size":                          `"f" has an invalid number in its header`,
		"bad-negative-size":                 `"f" has the invalid size -1`,
		"bad-huge-size":                     `bytes: 9223372036854775807 exceeds the limit of 1099511627776`,
		"bad-cut-header":                    `at offset 2348: unexpected EOF`,
		"bad-empty-name":                    `file "": the root must be a directory`,
		"bad-pax-length":                    `invalid record in a PAX header`,
		"bad-pax-no-equals":                 `invalid record in a PAX header`,
		"bad-pax-negative":                  `invalid record in a PAX header`,
		"bad-pax-nul-in-path":               `PAX header has a NUL in the name "a\x00b"`,
		"bad-pax-size":                      `"f" has the invalid size -1`,
		"bad-pax-time":                      `PAX header has the invalid mtime "never"`,
		"bad-pax-huge":                      `extended header bytes: 4194321 exceeds the limit of 1048576`,
		"bad-gnu-name-huge":                 `name bytes: 4194304 exceeds the limit of 4097`,
		"bad-sparse-overlap":                `"s" has an invalid extent in its sparse map: 100 bytes at 500`,
		"bad-sparse-beyond":                 `"s" has an invalid extent in its sparse map: 600 bytes at 0`,
		"bad-sparse-count":                  `"s" has a sparse map larger than its body`,
		"bad-whole-garbage":                 `header with a wrong checksum`,
		"bad-gzip-garbage-after-end":        `byte 0x67 after the last member`,
		"bad-gzip-cut":                      `decompress gzip: unexpected EOF`,
		"bad-gzip-damaged":                  `verify gzip member: invalid checksum or size`,
		"bad-zstd-cut":                      `decompress zstd: unexpected EOF`,
		"bad-zstd-damaged":                  `decompress zstd: malformed layer: CRC check failed`,
		"bad-plain-cut":                     `content has digest`,
		"bad-not-a-layer":                   `found "garbage\ngarbage\n" instead of tar, gzip or zstd`,
		"bad-empty-blob":                    `content has digest`,
		"bad-other-content":                 `content has digest`,
		"bad-layer-missing":                 `404 Not Found`,
		"hostile-below-file":                `file "f/below": "f" is not a directory`,
		"hostile-hard-link-out":             `hard link "l": target "../../../../etc/passwd": no such file`,
		"hostile-hard-link-absolute-out":    `hard link "l": target "/proc/self/environ": no such file`,
		"hostile-hard-link-through-symlink": `hard link "l": target "etc/passwd": too many levels of symbolic links`,
		"hostile-hard-link-missing":         `hard link "l": target "later": no such file`,
		"hostile-hard-link-to-lower-layer":  `hard link "l": target "low": no such file`,
		"hostile-hard-link-to-directory":    `target "d" is a directory or a whiteout`,
		"hostile-hard-link-to-root":         `target "/" is the root`,
		"hostile-root-is-file":              `file ".": the root must be a directory`,
		"hostile-root-is-symlink":           `symlink "./": the root must be a directory`,
		"hostile-component-256":             `file name too long`,
		"hostile-path-5000":                 `name bytes: 4999 exceeds the limit of 4096`,
		"hostile-symlink-5000":              `name bytes: 5000 exceeds the limit of 4096`,
		"hostile-symlink-empty":             `symlink "l": no target`,
		"hostile-device-in-place-of-root":   `character device "./": the root must be a directory`,
		"bad-diffid":                        `content has digest`,
		"bad-diffids-swapped":               `content has digest`,
		"bad-diffids-few":                   `1 diff_ids for 2 layers`,
		"bad-diffids-many":                  `3 diff_ids for 2 layers`,
		"bad-layer-size-small":              `more than 7798 bytes`,
		"bad-layer-size-large":              `7799 bytes instead of 7800`,
		"bad-config-size":                   `237 bytes instead of 238`,
	}
}

// wantSound checks the store to its last byte.
func wantSound(t *testing.T, client *dray.Client) {
	t.Helper()
	report, err := client.Verify(t.Context(), dray.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("store: %s: %s", p.Path, p.Detail)
	}
}

func TestMountsAreIndependent(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	dir := t.TempDir()
	testkit.Image(t).Layer(testkit.File("shared", "from the image")).Write(testkit.LayoutAt(t, dir), "v1")
	reference := "local://" + dir + ":v1"
	client := newClient(t)
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	mountAt(t, client, reference, one, dray.MountOptions{})
	mountAt(t, client, reference, two, dray.MountOptions{})
	if err := os.WriteFile(filepath.Join(one, "shared"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(two, "shared")); err != nil || string(got) != "from the image" {
		t.Errorf("the other mount has %q (%v)", got, err)
	}
	again := mountAt(t, client, reference, one, dray.MountOptions{})
	if got, err := os.ReadFile(filepath.Join(again.Target, "shared")); err != nil || string(got) != "changed" {
		t.Errorf("mounting again changed the mount: %q (%v)", got, err)
	}
	wantSound(t, client)
	if _, err := client.Remove(t.Context(), reference); dray.KindOf(err) != dray.KindBusy {
		t.Errorf("removing a mounted image gives %v, want a busy error", err)
	}
}

func TestReadOnlyMount(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	dir := t.TempDir()
	testkit.Image(t).Layer(testkit.File("a", "b")).Write(testkit.LayoutAt(t, dir), "v1")
	client := newClient(t)
	target := filepath.Join(t.TempDir(), "rootfs")
	mountAt(t, client, "local://"+dir, target, dray.MountOptions{ReadOnly: true})
	if err := os.WriteFile(filepath.Join(target, "a"), nil, 0o600); err == nil {
		t.Error("a read-only mount was written to")
	}
}

func TestGCAfterRemove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testkit.Image(t).Layer(testkit.Random("x", 1<<16, 3)).Write(testkit.LayoutAt(t, dir), "v1")
	client := newClient(t)
	if _, err := client.Pull(t.Context(), "local://"+dir+":v1", dray.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if report, err := client.GC(t.Context(), dray.GCOptions{}); err != nil || len(report.Layers) != 0 {
		t.Errorf("collected %v of an image in use (%v)", report.Layers, err)
	}
	if _, err := client.Remove(t.Context(), "local://"+dir+":v1"); err != nil {
		t.Fatal(err)
	}
	if report, err := client.GC(t.Context(), dray.GCOptions{}); err != nil || len(report.Layers) != 1 {
		t.Errorf("collected %v, want the one layer (%v)", report.Layers, err)
	}
	if _, err := client.Find("local://" + dir + ":v1"); dray.KindOf(err) != dray.KindNotFound {
		t.Errorf("the image is still found: %v", err)
	}
}

func TestRequireDigest(t *testing.T) {
	t.Parallel()
	client := newClient(t)
	_, err := client.Pull(t.Context(), "example.com/a:v1", dray.PullOptions{RequireDigest: true})
	if !errors.Is(err, dray.ErrNeedsDigest) || dray.KindOf(err) != dray.KindDenied {
		t.Errorf("got %v, want ErrNeedsDigest", err)
	}
}

func TestStoreLosesALayer(t *testing.T) {
	t.Parallel()
	for _, layout := range layouts() {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			built := testkit.Image(t).Layer(testkit.File("x", "y")).Write(testkit.LayoutAt(t, dir), "v1")
			client := newClientFor(t, layout)
			reference := "local://" + dir + ":v1"
			if _, err := client.Pull(t.Context(), reference, dray.PullOptions{}); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(client.Store(), "layers", "sha256", built.DiffIDs[0].Hex()))
			report, err := client.Verify(t.Context(), dray.VerifyOptions{Repair: true})
			if err != nil || len(report.Problems) == 0 {
				t.Fatalf("a changed file was not found: %+v (%v)", report, err)
			}
			if _, err := client.Pull(t.Context(), reference, dray.PullOptions{}); err != nil {
				t.Fatal(err)
			}
			wantSound(t, client)
		})
	}
}

// damage changes the last byte of a file of a layer, in either layout.
func damage(t *testing.T, layer string) {
	t.Helper()
	path := filepath.Join(layer, "fs", "x")
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(layer, "layer.tar")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		var info os.FileInfo
		if info, err = f.Stat(); err == nil {
			_, err = f.WriteAt([]byte("z"), info.Size()-1)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A layer of a million files is pulled and mounted like any other.
func TestMillionEntries(t *testing.T) { //nolint:paralleltest // mounts
	if testing.Short() || testkit.Race {
		t.Skip("makes a million files; scripts/test runs it by itself")
	}
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	const count, perDir = 1_000_000, 1000
	dir := t.TempDir()
	entries := func(yield func(testkit.Entry) bool) {
		for i := range count {
			if !yield(testkit.File(fmt.Sprintf("d/%03d/file-%07d", i/perDir, i), "")) {
				return
			}
		}
	}
	testkit.Image(t).LayerOf(entries).GzipLevel(gzip.BestSpeed).Write(testkit.LayoutAt(t, dir), "v1")
	client := newClient(t)
	target := filepath.Join(t.TempDir(), "rootfs")
	mountAt(t, client, "local://"+dir, target, dray.MountOptions{ReadOnly: true})
	files, err := os.ReadDir(filepath.Join(target, "d", "999"))
	if err != nil || len(files) != perDir {
		t.Errorf("the last directory has %d files, want %d (%v)", len(files), perDir, err)
	}
	image, err := client.Find("local://" + dir)
	if err != nil {
		t.Fatal(err)
	}
	if size := image.Evidence.SizeBytes; size < count*512 {
		t.Errorf("the layer has %d bytes, want at least a header for each file", size)
	}
}

// The examples that go test cannot run by itself, since they need root, do what
// they say. They write to the process's standard output.
func TestExamples(t *testing.T) { //nolint:paralleltest // mounts, and replaces os.Stdout
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Tool("busybox"), testkit.Tool("runc"))
	for _, tt := range []struct {
		name string
		run  func()
		want string
	}{
		{"mount", ExampleClient_Mount, "hello <nil>\nhello <nil>\n"},
		{"run", ExampleClient_Run, "from inside\n3 <nil>\n"},
	} {
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		stdout := os.Stdout
		os.Stdout = out
		tt.run()
		os.Stdout = stdout
		got, err := os.ReadFile(out.Name())
		if err := errors.Join(err, out.Close()); err != nil {
			t.Fatal(err)
		}
		if string(got) != tt.want {
			t.Errorf("%s says %q, want %q", tt.name, got, tt.want)
		}
	}
}
