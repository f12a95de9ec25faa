package ocidir_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
	"dray/internal/testkit"
)

func TestWriteThenRead(t *testing.T) {
	t.Parallel()
	l := newLayout(t)
	want, raw := putImage(t, l, "v1", "hello")
	if _, err := l.PutManifest(t.Context(), "", "", raw); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, tag string
		digest    oci.Digest
	}{
		{"by tag", "v1", ""},
		{"by digest", "", want.Digest},
		{"by both", "other", want.Digest},
		{"the only one", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, got, err := l.Resolve(t.Context(), tc.tag, tc.digest)
			if err != nil {
				t.Fatal(err)
			}
			if d.Digest != want.Digest || d.MediaType != oci.MediaTypeManifest || !bytes.Equal(got, raw) {
				t.Errorf("got %v, want %v", d, want)
			}
		})
	}
	layer := oci.Descriptor{Digest: oci.DigestBytes([]byte("hello")), Size: 5}
	r, err := l.Blob(t.Context(), layer, 2)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := stream.ReadAll(r, 10)
	if err := errors.Join(err, r.Close()); err != nil || string(rest) != "llo" {
		t.Errorf("blob from offset 2 is %q, %v", rest, err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	l := newLayout(t)
	one, _ := putImage(t, l, "docker.io/library/busybox:1.36", "1")
	two, _ := putImage(t, l, "1.37", "2")
	for tag, want := range map[string]oci.Digest{
		"1.36":                           one.Digest,
		"docker.io/library/busybox:1.36": one.Digest,
		"1.37":                           two.Digest,
	} {
		if d, _, err := l.Resolve(t.Context(), tag, ""); err != nil || d.Digest != want {
			t.Errorf("resolve %q: got %v, %v, want %s", tag, d.Digest, err, want)
		}
	}
	for _, tag := range []string{"", "1.38"} {
		_, _, err := l.Resolve(t.Context(), tag, "")
		if !errors.Is(err, ocidir.ErrNotFound) || !strings.Contains(fmt.Sprint(err), "busybox:1.36") || !strings.Contains(fmt.Sprint(err), "1.37") {
			t.Errorf("resolve %q: %v does not list what there is", tag, err)
		}
	}
	three, _ := putImage(t, l, "example.org/other:1.36", "3")
	if _, _, err := l.Resolve(t.Context(), "1.36", ""); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("an ambiguous tag resolves: %v", err)
	}
	if d, _, err := l.Resolve(t.Context(), "example.org/other:1.36", ""); err != nil || d.Digest != three.Digest {
		t.Errorf("the full name: got %v, %v", d.Digest, err)
	}
	tags, err := l.Tags(t.Context())
	if diff := cmp.Diff([]string{"1.37", "docker.io/library/busybox:1.36", "example.org/other:1.36"}, tags); diff != "" || err != nil {
		t.Errorf("tags: %v %s", err, diff)
	}
}

// A layout that a tool writes to again and again without a name has what it wrote
// last under "latest", and what it wrote before under no name.
func TestResolveLatest(t *testing.T) {
	t.Parallel()
	l := testkit.Layout(t)
	testkit.Image(t).Layer(testkit.File("a", "1")).Write(l, "latest")
	testkit.Image(t).Layer(testkit.File("b", "1")).Write(l, "other")
	want := testkit.Image(t).Layer(testkit.File("a", "2")).Write(l, "latest").Manifest.Digest
	if d, _, err := l.Resolve(t.Context(), "", ""); err != nil || d.Digest != want {
		t.Errorf("Resolve = %s, %v, want %s", d.Digest, err, want)
	}
}

func TestTagUntagDelete(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLayout(t)
	one, _ := putImage(t, l, "a", "1")
	two, _ := putImage(t, l, "b", "2")
	must(t, l.Tag(ctx, two, "a")) // takes the name away from one
	must(t, l.Untag(ctx, "b"))
	if got := listed(t, l); !cmp.Equal(got, []string{" " + one.Digest.Hex()[:6], "a " + two.Digest.Hex()[:6]}) {
		t.Errorf("index.json lists %q", got)
	}
	if err := l.Untag(ctx, "b"); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("untag twice: %v", err)
	}
	must(t, l.Delete(ctx, one.Digest))
	if _, _, err := l.Resolve(ctx, "", one.Digest); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("resolve what was deleted: %v", err)
	}
	if err := l.Delete(ctx, one.Digest); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("delete twice: %v", err)
	}
	if err := l.Tag(ctx, one, "c"); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("tag what is not there: %v", err)
	}
}

func TestIndexHoldsItsChildren(t *testing.T) {
	t.Parallel()
	l := newLayout(t)
	child, _ := putImage(t, l, "", "child")
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, child.MediaType, child.Digest, child.Size)
	index, err := l.PutManifest(t.Context(), "multi", oci.MediaTypeIndex, raw)
	must(t, err)
	if got := listed(t, l); !cmp.Equal(got, []string{"multi " + index.Digest.Hex()[:6]}) {
		t.Errorf("index.json lists %q", got)
	}
	if d, _, err := l.Resolve(t.Context(), "", child.Digest); err != nil || d.MediaType != oci.MediaTypeManifest {
		t.Errorf("resolve the child: %v, %v", d, err)
	}
}

func TestPutBlobVerifies(t *testing.T) {
	t.Parallel()
	good := oci.DigestBytes([]byte("content"))
	bad := oci.DigestBytes([]byte("other"))
	for _, tc := range []struct {
		name   string
		digest oci.Digest
		size   int64
		ok     bool
	}{
		{"anything", "", stream.AnySize, true},
		{"right", good, 7, true},
		{"sha512", sha512Of("content"), 7, true},
		{"right digest of any size", good, stream.AnySize, true},
		{"wrong digest", bad, 7, false},
		{"too short", good, 8, false},
		{"too long", good, 6, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l, err := ocidir.Create(t.Context(), dir)
			must(t, err)
			defer func() { _ = l.Close() }()
			d, err := l.PutBlob(t.Context(), oci.Descriptor{Digest: tc.digest, Size: tc.size}, strings.NewReader("content"))
			if tc.ok != (err == nil) || !tc.ok && !errors.Is(err, stream.ErrMismatch) {
				t.Fatalf("got %v", err)
			}
			if tc.ok && d.Size != 7 {
				t.Errorf("size is %d", d.Size)
			}
			_, found, err := l.HasBlob(t.Context(), good)
			if want := tc.ok && d.Digest == good; err != nil || found != want {
				t.Errorf("has blob: %v, %v, want %v", found, err, want)
			}
			if names := fileNames(t, dir); len(names) != 3 {
				t.Errorf("the layout holds %q", names)
			}
		})
	}
}

func TestPutBlobOnce(t *testing.T) {
	t.Parallel()
	l := newLayout(t)
	d, err := l.PutBlob(t.Context(), oci.Descriptor{Size: stream.AnySize}, strings.NewReader("content"))
	must(t, err)
	unread := strings.NewReader("content")
	if _, err := l.PutBlob(t.Context(), d, unread); err != nil || unread.Len() != 7 {
		t.Errorf("a blob that is there was read again: %d bytes left, %v", unread.Len(), err)
	}
}

func TestConcurrentWritersLoseNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const writers = 16
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			l, err := ocidir.Create(t.Context(), dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = l.Close() }()
			putImage(t, l, fmt.Sprint("tag", i), fmt.Sprint("content", i/2))
			if _, _, err := l.Resolve(t.Context(), fmt.Sprint("tag", i), ""); err != nil {
				t.Error(err) // while others write
			}
		})
	}
	wg.Wait()
	l, err := ocidir.Open(t.Context(), dir, oci.LayoutDir)
	must(t, err)
	defer func() { _ = l.Close() }()
	if tags, err := l.Tags(t.Context()); len(tags) != writers || err != nil {
		t.Errorf("%d tags, %v", len(tags), err)
	}
	if names := fileNames(t, dir); len(names) != 3 {
		t.Errorf("the layout holds %q", names)
	}
}

func TestCreateSweeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := ocidir.Create(t.Context(), dir)
	must(t, err)
	live, err := l.Stage()
	must(t, err)
	defer live.Abort()
	must(t, os.WriteFile(filepath.Join(dir, ".blob-DEAD"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, ".tmp-DEAD"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "notes"), []byte("x"), 0o600))
	again, err := ocidir.Create(t.Context(), dir)
	must(t, errors.Join(err, again.Close()))
	if names := fileNames(t, dir); len(names) != 5 { // blobs, index.json, notes, oci-layout and the live one
		t.Errorf("the layout holds %q", names)
	}
	if _, err := live.Write([]byte("content")); err != nil {
		t.Fatal(err)
	}
	if d, err := live.Commit("", stream.AnySize); err != nil || d.Digest != oci.DigestBytes([]byte("content")) {
		t.Errorf("commit: %v, %v", d, err)
	}
	must(t, l.Close())
}

func TestArchive(t *testing.T) {
	t.Parallel()
	one, two := newLayout(t), newLayout(t)
	image, raw := putImage(t, one, "v1", "first")
	putImage(t, one, "v2", "second")
	putImage(t, two, "v2", "second") // the same in another order
	putImage(t, two, "v1", "first")
	var first, second bytes.Buffer
	must(t, one.WriteArchive(t.Context(), &first))
	must(t, two.WriteArchive(t.Context(), &second))
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same images make different archives")
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	must(t, os.WriteFile(path, first.Bytes(), 0o600))
	l, err := ocidir.Open(t.Context(), path, oci.OCIArchive)
	must(t, err)
	defer func() { _ = l.Close() }()
	d, got, err := l.Resolve(t.Context(), "v1", "")
	if err != nil || d.Digest != image.Digest || !bytes.Equal(got, raw) {
		t.Errorf("resolve: %v, %v", d, err)
	}
	r, err := l.Blob(t.Context(), oci.Descriptor{Digest: oci.DigestBytes([]byte("second")), Size: 6}, 3)
	must(t, err)
	if rest, err := stream.ReadAll(r, 10); err != nil || string(rest) != "ond" {
		t.Errorf("blob: %q, %v", rest, err)
	}
	if _, err := l.PutBlob(t.Context(), oci.Descriptor{Size: stream.AnySize}, strings.NewReader("x")); !errors.Is(err, ocidir.ErrReadOnly) {
		t.Errorf("put: %v", err)
	}
}

func TestNotALayout(t *testing.T) {
	t.Parallel()
	marker := `{"imageLayoutVersion":"1.0.0"}`
	for _, tc := range []struct {
		name    string
		entries []tar.Header // Linkname is the content
		prefix  string
		hint    string
		want    error
	}{
		{"empty archive", nil, "", "no oci-layout", ocidir.ErrNotLayout},
		{"no index", []tar.Header{{Name: "oci-layout", Linkname: marker}}, "", "no index.json", ocidir.ErrNotLayout},
		{"docker save", []tar.Header{{Name: "manifest.json", Linkname: "[]"}}, "", "docker save", ocidir.ErrNotLayout},
		{"other version", []tar.Header{{Name: "oci-layout", Linkname: `{"imageLayoutVersion":"2.0"}`}}, "", `"2.0"`, ocidir.ErrNotLayout},
		{"marker not JSON", []tar.Header{{Name: "oci-layout", Linkname: "x"}}, "", "", ocidir.ErrNotLayout},
		{"huge marker", []tar.Header{{Name: "oci-layout", Linkname: strings.Repeat(" ", 5000)}}, "", "", stream.ErrTooLarge},
		{"symlink", []tar.Header{{Name: "oci-layout", Typeflag: tar.TypeSymlink}}, "", "not a regular file", ocidir.ErrNotLayout},
		{"gzip", nil, "\x1f\x8b\b", "gunzip", ocidir.ErrNotLayout},
		{"zstd", nil, "\x28\xb5\x2f\xfd", "zstd", ocidir.ErrNotLayout},
		{"garbage", nil, strings.Repeat("garbage", 200), "", ocidir.ErrNotLayout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var buf bytes.Buffer
			buf.WriteString(tc.prefix)
			if tc.prefix == "" {
				buf.Write(tarOf(t, tc.entries))
			}
			path := filepath.Join(t.TempDir(), "image.tar")
			must(t, os.WriteFile(path, buf.Bytes(), 0o600))
			_, err := ocidir.Open(t.Context(), path, oci.OCIArchive)
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.hint) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.hint)
			}
		})
	}
	dir := t.TempDir()
	for path, transport := range map[string]oci.Transport{
		dir:         oci.LayoutDir,
		dir + "/.":  oci.OCIArchive,
		"/dev/null": oci.LayoutDir, // a file
	} {
		if _, err := ocidir.Open(t.Context(), path, transport); !errors.Is(err, ocidir.ErrNotLayout) {
			t.Errorf("open %s: %v", path, err)
		}
	}
	if _, err := ocidir.Open(t.Context(), dir+"/missing", oci.LayoutDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open what is missing: %v", err)
	}
}

func TestHostileFiles(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("hello"), 0o600))
	layer := oci.Descriptor{Digest: oci.DigestBytes([]byte("hello")), Size: 5}
	for _, tc := range []struct {
		name  string
		place func(dir, blob string) error
	}{
		{"symlink out", func(_, blob string) error { return os.Symlink(secret, blob) }},
		{"symlink within", func(dir, blob string) error {
			return errors.Join(os.WriteFile(dir+"/x", []byte("hello"), 0o600), os.Symlink("../../x", blob))
		}},
		{"fifo", func(_, blob string) error { return syscall.Mkfifo(blob, 0o600) }},
		{"directory", func(_, blob string) error { return os.Mkdir(blob, 0o700) }},
		{"parent out", func(dir, _ string) error {
			return errors.Join(os.RemoveAll(dir+"/blobs"), os.Symlink(filepath.Dir(secret), dir+"/blobs"))
		}},
		{"other size", func(_, blob string) error { return os.WriteFile(blob, []byte("hell"), 0o600) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l, err := ocidir.Create(t.Context(), dir)
			must(t, err)
			defer func() { _ = l.Close() }()
			must(t, tc.place(dir, filepath.Join(dir, "blobs/sha256", layer.Digest.Hex())))
			if r, err := l.Blob(t.Context(), layer, 0); err == nil {
				_ = r.Close()
				t.Error("it is served")
			}
		})
	}
}

func TestManifestIsVerifiedAndLimited(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := ocidir.Create(t.Context(), dir)
	must(t, err)
	defer func() { _ = l.Close() }()
	image, raw := putImage(t, l, "v1", "x")
	blob := filepath.Join(dir, "blobs/sha256", image.Digest.Hex())
	raw[len(raw)-1] = ' '
	must(t, os.WriteFile(blob, raw, 0o600))
	if _, _, err := l.Resolve(t.Context(), "v1", ""); !errors.Is(err, stream.ErrMismatch) {
		t.Errorf("a changed manifest: %v", err)
	}
	must(t, os.Truncate(blob, ocidir.MaxManifestBytes+1))
	if _, _, err := l.Resolve(t.Context(), "", image.Digest); err == nil {
		t.Error("a grown manifest is served")
	}
	big, err := l.PutBlob(t.Context(), oci.Descriptor{Size: stream.AnySize}, io.LimitReader(zeros{}, ocidir.MaxManifestBytes+1))
	must(t, err)
	if _, _, err := l.Resolve(t.Context(), "", big.Digest); !errors.Is(err, stream.ErrTooLarge) {
		t.Errorf("a huge manifest: %v", err)
	}
	if _, err := l.PutManifest(t.Context(), "x", oci.MediaTypeManifest, []byte(`{"schemaVersion":2,"layers":[],"manifests":[]}`)); !errors.Is(err, oci.ErrManifest) {
		t.Errorf("put a manifest that is an index: %v", err)
	}
}

// TestOtherTools: what skopeo writes is read, and the other way round.
func TestOtherTools(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Tool("skopeo"))
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "skopeo", args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %s: %v\n%s", args, err, out)
		}
	}
	dir := t.TempDir()
	ours, err := ocidir.Create(t.Context(), dir+"/ours")
	must(t, err)
	defer func() { _ = ours.Close() }()
	layer := string(tarOf(t, []tar.Header{{Name: "file", Linkname: "content"}}))
	image, _ := putImage(t, ours, "v1", layer)
	run("copy", "--preserve-digests", "oci:"+dir+"/ours:v1", "oci:"+dir+"/theirs:example.org/app:v2")
	run("copy", "--preserve-digests", "oci:"+dir+"/ours:v1", "oci-archive:"+dir+"/theirs.tar:v2")
	for path, transport := range map[string]oci.Transport{dir + "/theirs": oci.LayoutDir, dir + "/theirs.tar": oci.OCIArchive} {
		theirs, err := ocidir.Open(t.Context(), path, transport)
		must(t, err)
		if d, _, err := theirs.Resolve(t.Context(), "v2", ""); err != nil || d.Digest != image.Digest {
			t.Errorf("resolve in %s: %v, %v", path, d, err)
		}
		must(t, theirs.Close())
	}
	f, err := os.Create(dir + "/ours.tar")
	must(t, err)
	must(t, errors.Join(ours.WriteArchive(t.Context(), f), f.Close()))
	run("inspect", "oci-archive:"+dir+"/ours.tar:v1")
	must(t, os.RemoveAll(dir+"/theirs"))
	run("copy", "oci-archive:"+dir+"/ours.tar:v1", "oci:"+dir+"/theirs:v1")
}
