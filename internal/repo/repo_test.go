package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
	"dray/internal/stream"
	"dray/internal/testkit"
)

func options(tb testing.TB) Options {
	tb.Helper()
	c, err := registry.NewClient(registry.Options{AuthFiles: []string{}, Retry: registry.Retry{Base: 1, Max: 1}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return Options{Registry: c}
}

func parse(tb testing.TB, s string) oci.Reference {
	tb.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		tb.Fatal(err)
	}
	return ref
}

// places are references to empty places of every kind.
func places(tb testing.TB) map[string]string {
	tb.Helper()
	dir := tb.TempDir()
	return map[string]string{
		"dray's registry":   testkit.Registry(tb, tb.TempDir()).URL + "/some/image:v1",
		"docker's registry": "http://" + testkit.DockerRegistry(tb) + "/some/image:v1",
		"layout":            "local://" + filepath.Join(dir, "layout") + ":v1",
		"archive":           "oci-archive:" + filepath.Join(dir, "a.tar") + ":v1",
	}
}

// source is a repository with the image "v1", which has a referrer.
func source(tb testing.TB) (*Repository, testkit.Built) {
	tb.Helper()
	dir := tb.TempDir()
	layout := testkit.LayoutAt(tb, dir)
	built := testkit.Image(tb).Layer(testkit.File("a", strings.Repeat("content of a", 1000))).Layer(testkit.File("b", "b")).Write(layout, "v1")
	testkit.Artifact(tb, layout, "", "application/x-test", &built.Manifest, "about v1")
	testkit.Artifact(tb, layout, "", "application/x-other", &built.Manifest, "other")
	r, err := Open(tb.Context(), parse(tb, "local://"+dir+":v1"), Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return r, built
}

// fill copies the image of source to target by hand, every blob in its own way.
func fill(t *testing.T, target, source *Repository, built testkit.Built) {
	t.Helper()
	ctx := t.Context()
	if how, err := target.PushBlob(ctx, built.Layers[0], source); err != nil || how == Found {
		t.Fatalf("PushBlob = %v, %v, want it sent or linked", how, err)
	}
	if how, err := target.PushBlob(ctx, built.Layers[0], source); err != nil || how != Found {
		t.Fatalf("second PushBlob = %v, %v, want it found", how, err)
	}
	second, err := source.ReadBlob(ctx, built.Layers[1], 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	d, err := target.StreamBlob(ctx, func(_ context.Context, w io.Writer) (oci.Descriptor, error) {
		_, err := w.Write(second)
		return oci.Descriptor{Digest: oci.DigestBytes(second), Size: int64(len(second))}, err
	})
	if err != nil || d.Digest != built.Layers[1].Digest {
		t.Fatalf("StreamBlob = %v, %v", d, err)
	}
	config, err := source.ReadBlob(ctx, built.Config, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.PutBlob(ctx, oci.MediaTypeConfig, config); err != nil {
		t.Fatal(err)
	}
	manifest, err := target.PutManifest(ctx, built.Manifest.MediaType, built.Raw)
	if err != nil || manifest.Digest != built.Manifest.Digest {
		t.Fatalf("PutManifest = %v, %v", manifest, err)
	}
	if err := target.Tag(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	referrers, err := source.Referrers(ctx, manifest.Digest, "")
	if err != nil || len(referrers) != 2 {
		t.Fatalf("Referrers of the source = %v, %v, want 2", referrers, err)
	}
	for _, r := range referrers {
		_, raw, err := source.Resolve(ctx, "", r.Digest)
		if err != nil {
			t.Fatal(err)
		}
		document, err := oci.DecodeDocument(raw, r.MediaType)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range append(document.Manifest.Layers, document.Manifest.Config) {
			if _, err := target.PushBlob(ctx, d, source); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := target.PutManifest(ctx, r.MediaType, raw); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestEveryPlace(t *testing.T) {
	t.Parallel()
	for name, ref := range places(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			from, built := source(t)
			o := options(t)
			target, err := Create(ctx, parse(t, ref), o)
			if err != nil {
				t.Fatal(err)
			}
			fill(t, target, from, built)
			if err := target.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := Open(ctx, parse(t, ref), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			checkImage(t, r, built)
			if _, err := r.PutBlob(ctx, "", []byte("x")); !errors.Is(err, ErrReadOnly) {
				t.Errorf("PutBlob of what is only read = %v, want %v", err, ErrReadOnly)
			}
		})
	}
}

func checkImage(t *testing.T, r *Repository, built testkit.Built) {
	t.Helper()
	ctx := t.Context()
	d, raw, err := r.Root(ctx)
	if err != nil || d.Digest != built.Manifest.Digest || !bytes.Equal(raw, built.Raw) {
		t.Fatalf("Root = %v, %v", d, err)
	}
	if tags, err := r.Tags(ctx); err != nil || !cmp.Equal(withoutFallback(tags), []string{"v1"}) {
		t.Errorf("Tags = %q, %v", tags, err)
	}
	if size, found, err := r.Has(ctx, built.Layers[0].Digest); err != nil || !found || size != built.Layers[0].Size {
		t.Errorf("Has = %d, %t, %v", size, found, err)
	}
	if _, found, err := r.Has(ctx, oci.DigestBytes([]byte("nothing"))); err != nil || found {
		t.Errorf("Has of nothing = %t, %v", found, err)
	}
	list, err := r.Referrers(ctx, d.Digest, "application/x-test")
	if err != nil || len(list) != 1 || list[0].ArtifactType != "application/x-test" || list[0].MediaType != oci.MediaTypeManifest {
		t.Errorf("Referrers = %v, %v", list, err)
	}
	whole, err := r.ReadBlob(ctx, built.Layers[0], 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	at := r.BlobAt(ctx, built.Layers[0])
	part := make([]byte, 10)
	if n, err := at.ReadAt(part, 20); err != nil || n != 10 || !bytes.Equal(part, whole[20:30]) {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	if n, err := at.ReadAt(part, built.Layers[0].Size-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt over the end = %d, %v", n, err)
	}
	if _, err := r.ReadBlob(ctx, built.Layers[0], 10); !errors.Is(err, stream.ErrTooLarge) {
		t.Errorf("ReadBlob beyond its limit = %v", err)
	}
}

// withoutFallback leaves out the tags that list referrers where the registry does not.
func withoutFallback(tags []string) []string {
	var rest []string
	for _, tag := range tags {
		if !strings.HasPrefix(tag, "sha256-") {
			rest = append(rest, tag)
		}
	}
	return rest
}

func TestMountsAcrossRepositories(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{
		"dray's":   testkit.Registry(t, t.TempDir()).Host,
		"docker's": testkit.DockerRegistry(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			o := options(t)
			from, built := source(t)
			var repos []*Repository
			for _, n := range []string{"one", "two"} {
				r, err := Create(ctx, parse(t, "http://"+host+"/"+n+":v1"), o)
				if err != nil {
					t.Fatal(err)
				}
				repos = append(repos, r)
			}
			if how, err := repos[0].PushBlob(ctx, built.Layers[0], from); err != nil || how != Sent {
				t.Fatalf("PushBlob = %v, %v", how, err)
			}
			if how, err := repos[1].PushBlob(ctx, built.Layers[0], repos[0]); err != nil || how == Found {
				t.Fatalf("PushBlob from the other = %v, %v", how, err)
			}
			if size, found, err := repos[1].Has(ctx, built.Layers[0].Digest); err != nil || !found || size != built.Layers[0].Size {
				t.Errorf("Has = %d, %t, %v", size, found, err)
			}
		})
	}
}

// A registry that knows no mounts gets the bytes: whether it begins an upload, as the
// distribution-spec says, or refuses.
func TestRegistryWithoutMounts(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]int{"begins an upload": 0, "forbids": http.StatusForbidden, "method": http.StatusMethodNotAllowed, "no such thing": http.StatusNotFound} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to, err := url.Parse(testkit.Registry(t, t.TempDir()).URL)
			if err != nil {
				t.Fatal(err)
			}
			proxy := httputil.NewSingleHostReverseProxy(to)
			var asked atomic.Bool
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if query := r.URL.Query(); query.Has("mount") {
					asked.Store(true)
					if refuse != 0 {
						http.Error(w, "no mounts here", refuse)
						return
					}
					r.URL.RawQuery = ""
				}
				r.Host = to.Host
				proxy.ServeHTTP(w, r)
			}))
			t.Cleanup(server.Close)
			o := options(t)
			from, built := source(t)
			var repos []*Repository
			for _, n := range []string{"one", "two"} {
				r, err := Create(t.Context(), parse(t, server.URL+"/"+n+":v1"), o)
				if err != nil {
					t.Fatal(err)
				}
				repos = append(repos, r)
			}
			if _, err := repos[0].PushBlob(t.Context(), built.Layers[0], from); err != nil {
				t.Fatal(err)
			}
			if how, err := repos[1].PushBlob(t.Context(), built.Layers[0], repos[0]); err != nil || how != Sent {
				t.Errorf("PushBlob = %v, %v", how, err)
			}
			if !asked.Load() {
				t.Error("it was not asked to mount")
			}
			if size, found, err := repos[1].Has(t.Context(), built.Layers[0].Digest); err != nil || !found || size != built.Layers[0].Size {
				t.Errorf("Has = %d, %t, %v", size, found, err)
			}
		})
	}
}

// A blob that is not what its digest says must not get anywhere.
func TestRefusesOtherBytes(t *testing.T) {
	t.Parallel()
	for name, ref := range places(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			dir := t.TempDir()
			layout := testkit.LayoutAt(t, dir)
			built := testkit.Image(t).Layer(testkit.File("a", "honest")).Write(layout, "v1")
			damaged := built.Layers[0]
			path := filepath.Join(dir, "blobs/sha256", damaged.Digest.Hex())
			if err := os.WriteFile(path, bytes.Repeat([]byte("x"), int(damaged.Size)), 0o600); err != nil {
				t.Fatal(err)
			}
			from, err := Open(ctx, parse(t, "local://"+dir), Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = from.Close() })
			target, err := Create(ctx, parse(t, ref), options(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = target.Close() })
			if _, err := target.PushBlob(ctx, damaged, from); !errors.Is(err, stream.ErrMismatch) {
				t.Errorf("PushBlob = %v, want %v", err, stream.ErrMismatch)
			}
			if _, err := target.StreamBlob(ctx, func(_ context.Context, w io.Writer) (oci.Descriptor, error) {
				_, err := w.Write([]byte("something else"))
				return damaged, err
			}); err == nil {
				t.Error("StreamBlob of other bytes succeeded")
			}
			boom := errors.New("boom")
			if _, err := target.StreamBlob(ctx, func(_ context.Context, w io.Writer) (oci.Descriptor, error) {
				_, _ = w.Write([]byte("a part"))
				return oci.Descriptor{}, boom
			}); !errors.Is(err, boom) {
				t.Errorf("StreamBlob = %v, want %v", err, boom)
			}
			if _, found, err := target.Has(ctx, damaged.Digest); err != nil || found {
				t.Errorf("Has = %t, %v: it came to be there", found, err)
			}
		})
	}
}

// A part of a blob is what was asked for, or an error, whatever the registry says
// of ranges. (What bytes it sends is for the digests of chunks to tell.)
func TestPartsOfBlobs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		fault testkit.Fault
		works bool
	}{
		{"no ranges", testkit.NoRanges("/blobs/"), true},
		{"another range", testkit.ContentRange("/blobs/", "bytes 0-99/11776"), true},
		{"another size", testkit.ContentRange("/blobs/", "bytes 600-699/700"), false},
		{"no length", testkit.NoLength("/blobs/"), true},
		{"cut once", testkit.Cut("/blobs/", 5).Times(1), true},
		{"gone", testkit.Status("/blobs/", 404), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			built := testkit.Image(t).Layer(testkit.Random("a", 10_000, 1)).Plain().Write(testkit.LayoutAt(t, dir), "v1")
			want, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", built.Layers[0].Digest.Hex()))
			if err != nil {
				t.Fatal(err)
			}
			server := testkit.Registry(t, dir, test.fault)
			r, err := Open(t.Context(), parse(t, server.URL+"/a:v1"), options(t))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 100)
			n, err := r.BlobAt(t.Context(), built.Layers[0]).ReadAt(got, 600)
			if test.works && (err != nil || !bytes.Equal(got, want[600:700])) {
				t.Errorf("ReadAt = %d, %v", n, err)
			}
			if !test.works && err == nil {
				t.Error("ReadAt succeeded")
			}
		})
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, built := source(t)
	archive := "oci-archive:" + filepath.Join(dir, "a.tar")
	put := func(ref string) error {
		r, err := Create(t.Context(), parse(t, ref), Options{})
		if err != nil {
			return err
		}
		fill(t, r, from, built)
		return r.Close()
	}
	if err := put(archive + ":v1"); err != nil {
		t.Fatal(err)
	}
	if err := put(archive + ":v1"); err != nil {
		t.Errorf("the same image again: %v", err)
	}
	if err := put(archive + ":v2"); !errors.Is(err, ErrTarget) || !strings.Contains(err.Error(), `"v1"`) {
		t.Errorf("another image = %v, want an error that names v1", err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := put("oci-archive:" + text); !errors.Is(err, ErrTarget) {
		t.Errorf("over a text = %v, want %v", err, ErrTarget)
	}
	if err := put("local://" + dir + "/l@" + string(built.Manifest.Digest)); !errors.Is(err, ErrTarget) {
		t.Errorf("to a digest = %v, want %v", err, ErrTarget)
	}
	if err := put("http://127.0.0.1:1/a"); err == nil {
		t.Error("a registry without a client succeeded")
	}
	if _, err := Open(t.Context(), parse(t, "local:///nowhere/at/all"), Options{}); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("Open of nothing = %v, want %v", err, ocidir.ErrNotFound)
	}
	killed := filepath.Join(dir, stagingPrefix+"killed")
	if err := errors.Join(os.Mkdir(killed, 0o700), os.WriteFile(filepath.Join(killed, lockName), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	uncommitted, err := Create(t.Context(), parse(t, "oci-archive:"+filepath.Join(dir, "never.tar")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := uncommitted.PutBlob(t.Context(), "", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := uncommitted.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || !cmp.Equal(left, []string{filepath.Join(dir, "a.tar"), filepath.Join(dir, "text")}) {
		t.Errorf("there is %q, %v", left, err)
	}
}
