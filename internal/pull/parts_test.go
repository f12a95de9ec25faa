package pull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/pull"
	"dray/internal/store"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// formats of layers that files are reused of.
var reusable = []estargz.Format{estargz.EStargz, estargz.ZstdChunked, estargz.ZstdChunkedContainerd}

// seekable writes an image of one seekable layer. change, if any, changes the layer's
// blob, or its descriptor.
func seekable(tb testing.TB, l *ocidir.Layout, tag string, f estargz.Format, change func(blob []byte, d *oci.Descriptor) []byte, entries ...testkit.Entry) testkit.Built {
	tb.Helper()
	raw, result := write(tb, f, testkit.Tar(entries...))
	d := oci.Descriptor{Annotations: maps.Clone(result.Annotations)}
	if change != nil {
		raw = change(raw, &d)
	}
	built := testkit.Image(tb).Blob(result.MediaType, raw).
		Config(func(i *oci.Image) { i.RootFS.DiffIDs[0] = result.DiffID }).
		Manifest(func(m *oci.Manifest) { m.Layers[0].Annotations = d.Annotations }).Write(l, tag)
	built.DiffIDs = []oci.DiffID{result.DiffID}
	return built
}

// written are layers by format and content: compressing takes most of the time.
var written sync.Map

func write(tb testing.TB, f estargz.Format, tar []byte) ([]byte, *estargz.Result) {
	tb.Helper()
	type layer struct {
		blob   []byte
		result *estargz.Result
	}
	once, _ := written.LoadOrStore(fmt.Sprint(f, oci.DigestBytes(tar)), sync.OnceValues(func() (layer, error) {
		options := estargz.Options{Format: f, ChunkSize: 1 << 20, Level: 1}
		if f == estargz.EStargzExternal {
			options.TOC = io.Discard
		}
		var blob bytes.Buffer
		result, err := estargz.Write(context.Background(), &blob, func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(tar)), nil
		}, options)
		return layer{blob.Bytes(), result}, err
	}))
	get, ok := once.(func() (layer, error))
	if !ok {
		tb.Fatalf("a layer that was written is %T", once)
	}
	l, err := get()
	if err != nil {
		tb.Fatal(err)
	}
	return l.blob, l.result
}

// versions writes two versions of an image: most files are in both.
func versions(tb testing.TB, dir string, f estargz.Format, change func([]byte, *oci.Descriptor) []byte) (first, second testkit.Built) {
	tb.Helper()
	l := testkit.LayoutAt(tb, filepath.Join(dir, "app"))
	first = seekable(tb, l, "v1", f, nil,
		testkit.Dir("lib"), testkit.Random("lib/one", 5<<20, 1), testkit.File("lib/small", "one"), testkit.Random("lib/two", 3<<20, 2),
		testkit.Random("same size", 4<<20, 3), testkit.Random("old name", 3<<20+5, 4))
	second = seekable(tb, l, "v2", f, change,
		testkit.File("new", "new"), testkit.Dir("lib"), testkit.Random("lib/one", 5<<20, 1), testkit.File("lib/small", "two"), testkit.Random("lib/two", 3<<20, 2),
		testkit.Random("same size", 4<<20, 30), testkit.Symlink("link", "lib/one"), testkit.Random("other name", 3<<20+5, 4), testkit.Random("more", 2<<20, 5))
	return first, second
}

func reusing(layout string, always bool) func(*pull.Options) {
	return func(o *pull.Options) {
		if o.Reuse = pull.ReuseFilesAt(1e6); always {
			o.Reuse = pull.ReuseFiles(true)
		}
		o.Layout = func(context.Context) (string, string, error) { return layout, "the test wants it", nil }
	}
}

// pullBoth pulls version 1, then does what between does, then pulls version 2.
func pullBoth(t *testing.T, b *bench, server *testkit.Server, between func()) (*pull.Evidence, error) {
	t.Helper()
	if _, _, err := b.pull(t, server.Ref("app:v1")); err != nil {
		t.Fatal(err)
	}
	server.Forget()
	if between != nil {
		between()
	}
	_, evidence, err := b.pull(t, server.Ref("app:v2"))
	return evidence, err
}

func TestReuseFiles(t *testing.T) {
	t.Parallel()
	for _, format := range reusable {
		dir := t.TempDir()
		_, second := versions(t, dir, format, nil)
		for _, layout := range []string{store.LayoutDir, store.LayoutEROFS} {
			t.Run(fmt.Sprintf("%v/%s", format, layout), func(t *testing.T) {
				t.Parallel()
				server := testkit.Registry(t, dir)
				b := newBench(t, reusing(layout, false))
				evidence, err := pullBoth(t, b, server, nil)
				if err != nil {
					t.Fatal(err)
				}
				l := evidence.Layers[0]
				if l.Reused == nil {
					t.Fatalf("nothing was reused: %+v", evidence)
				}
				files := 2 // in a tree, those of the same names
				if layout == store.LayoutEROFS {
					files = 3
				}
				_, sent := server.Count("/blobs/" + string(second.Layers[0].Digest))
				if l.Reused.Files != files || evidence.ReusedBytes != l.Reused.StoredBytes || l.Reused.TOC == "" {
					t.Errorf("evidence says %+v, want %d files", l.Reused, files)
				}
				if got := evidence.NetworkBytes - second.Manifest.Size - second.Config.Size; got > sent || got > second.Layers[0].Size-evidence.ReusedBytes+1<<20+100<<10 {
					t.Errorf("of %d bytes %d were sent, %d are said to be fetched and %d reused", second.Layers[0].Size, sent, got, evidence.ReusedBytes)
				}
				if _, again, err := b.pull(t, server.Ref("app@"+string(second.Manifest.Digest))); err != nil || again.ReusedBytes != 0 || again.Layers[0].Reused == nil {
					t.Errorf("pulled again, evidence says %+v, %v", again, err)
				}
				whole := newBench(t, reusing(layout, false))
				if _, evidence, err = whole.pull(t, server.Ref("app:v2")); err != nil {
					t.Fatal(err)
				}
				if evidence.Layers[0].Reused != nil || l.SizeBytes != evidence.Layers[0].SizeBytes {
					t.Errorf("pulled whole, evidence says %+v", evidence.Layers[0])
				}
				sameLayer(t, b.store, whole.store, second.DiffIDs[0])
			})
		}
	}
}

// Files of another repository's images are looked for only if all are wanted.
func TestReuseOfOtherRepositories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	versions(t, dir, estargz.ZstdChunked, nil)
	server := testkit.Registry(t, dir)
	if err := os.Symlink("app", filepath.Join(dir, "same")); err != nil {
		t.Fatal(err)
	}
	for _, always := range []bool{false, true} {
		b := newBench(t, reusing(store.LayoutEROFS, always))
		if _, _, err := b.pull(t, server.Ref("same:v1")); err != nil {
			t.Fatal(err)
		}
		_, evidence, err := b.pull(t, server.Ref("app:v2"))
		if err != nil {
			t.Fatal(err)
		}
		if r := evidence.Layers[0].Reused; (r != nil) != always || r != nil && r.Files != 4 { // with the small ones
			t.Errorf("always %v: reused %+v", always, r)
		}
	}
}

// sameLayer compares what two stores have of a layer.
func sameLayer(t *testing.T, a, b *store.Store, id oci.DiffID) {
	t.Helper()
	var trees [2]map[string]string
	for i, s := range []*store.Store{a, b} {
		l, err := s.Layer(id)
		if err != nil {
			t.Fatal(err)
		}
		trees[i] = map[string]string{}
		err = filepath.WalkDir(l.Path, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "layer.json") {
				return err
			}
			content, err := os.ReadFile(path)
			trees[i][strings.TrimPrefix(path, l.Path)] = string(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range trees[0] {
		if strings.HasPrefix(name, "/fs/") && trees[1][name] != content || name == "/layer.tar" && trees[1][name] != content {
			t.Errorf("%s is not what it is when pulled whole", name)
		}
	}
	if len(trees[0]) != len(trees[1]) || len(trees[0]) < 2 {
		t.Errorf("%d files, %d when pulled whole", len(trees[0]), len(trees[1]))
	}
}

// What is not to be reused is fetched as if nothing were there, and nothing more.
func TestReuseNothing(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		change func([]byte, *oci.Descriptor) []byte
		option func(*pull.Options)
		faults func(id oci.Descriptor) []testkit.Fault
		extra  bool // requests that find out
		note   string
	}{
		"not wanted":         {option: func(o *pull.Options) { o.Reuse = nil }},
		"without annotation": {change: func(b []byte, d *oci.Descriptor) []byte { d.Annotations = nil; return b }},
		"annotation is no digest": {change: func(b []byte, d *oci.Descriptor) []byte {
			d.Annotations = map[string]string{estargz.AnnotationTOCDigest: "x"}
			return b
		}},
		"no seekable layer": {extra: true},
		"another TOC": {extra: true, note: "TOC", change: func(b []byte, d *oci.Descriptor) []byte {
			d.Annotations = map[string]string{estargz.AnnotationTOCDigest: string(oci.DigestBytes(nil))}
			return b
		}},
		"no ranges": {extra: true, note: "no ranges", faults: func(d oci.Descriptor) []testkit.Fault { return []testkit.Fault{testkit.NoRanges(digestPart(d))} }},
		"wrong range": {extra: true, note: "is fetched whole", faults: func(d oci.Descriptor) []testkit.Fault {
			return []testkit.Fault{testkit.ContentRange(digestPart(d), "bytes 0-9/10")}
		}},
		"other bytes": {extra: true, note: "layer", faults: func(d oci.Descriptor) []testkit.Fault {
			return []testkit.Fault{testkit.ShiftRange(digestPart(d), 0), testkit.Garbage(digestPart(d)).After(3).Times(1)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			_, second := versions(t, dir, estargz.EStargz, one.change)
			server := testkit.Registry(t, dir)
			b := newBench(t, func(o *pull.Options) {
				reusing(store.LayoutEROFS, false)(o)
				if one.option != nil {
					one.option(o)
				}
			})
			want := second.Layers[0].Size
			if name == "no seekable layer" { // what says so is the manifest alone
				second = plainWithAnnotation(t, dir)
				want = second.Layers[0].Size
			}
			evidence, err := pullBoth(t, b, server, func() {
				if one.faults != nil {
					server.Add(one.faults(second.Layers[0])...)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if evidence.Layers[0].Reused != nil || evidence.ReusedBytes != 0 {
				t.Errorf("evidence says %+v", evidence.Layers[0])
			}
			if got := strings.Join(evidence.Fallbacks, "\n"); (got == "") != (one.note == "") || !strings.Contains(got, one.note) {
				t.Errorf("fallbacks are %q, want %q", got, one.note)
			}
			if got := evidence.NetworkBytes - second.Manifest.Size - second.Config.Size; got < want || !one.extra && got != want {
				t.Errorf("%d bytes fetched of a layer of %d", got, want)
			}
		})
	}
}

// plainWithAnnotation writes a version 2 that only its manifest calls seekable.
func plainWithAnnotation(t *testing.T, dir string) testkit.Built {
	t.Helper()
	return testkit.Image(t).Layer(testkit.Random("lib/one", 9<<20, 1)).Gzip().Manifest(func(m *oci.Manifest) {
		m.Layers[0].Annotations = map[string]string{estargz.AnnotationTOCDigest: string(oci.DigestBytes(nil))}
	}).Write(testkit.LayoutAt(t, filepath.Join(dir, "app")), "v2")
}

// A manifest and a TOC that agree on a lie: the diff ID finds out.
func TestReuseOfALyingTOC(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := testkit.LayoutAt(t, filepath.Join(dir, "app"))
	file := testkit.Random("one", 9<<20, 1)
	seekable(t, l, "v1", estargz.EStargz, nil, file)
	// The TOC and the members of a layer with version 1's file, under the diff ID of
	// another layer: what is put together is not that one, and the blob is not either.
	other := seekable(t, l, "other", estargz.EStargz, nil, testkit.Random("one", 9<<20, 2))
	lying := seekable(t, l, "v2", estargz.EStargz, nil, file, testkit.File("and", "this"))
	testkit.Image(t).Blob(oci.MediaTypeLayerGz, blobOf(t, l, lying.Layers[0])).
		Config(func(i *oci.Image) { i.RootFS.DiffIDs[0] = other.DiffIDs[0] }).
		Manifest(func(m *oci.Manifest) { m.Layers[0].Annotations = annotationsOf(t, lying) }).Write(l, "v2")
	server := testkit.Registry(t, dir)
	b := newBench(t, reusing(store.LayoutEROFS, false))
	_, err := pullBoth(t, b, server, nil)
	if !errors.Is(err, stream.ErrMismatch) {
		t.Fatalf("pull returned %v, want ErrMismatch", err)
	}
	if _, err := b.store.Layer(other.DiffIDs[0]); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a layer that is not what its diff ID says is in the store: %v", err)
	}
	if n, _ := server.Count(digestPart(lying.Layers[0])); n < 3 {
		t.Errorf("%d requests: it was not tried in parts", n)
	}
}

func annotationsOf(t *testing.T, b testkit.Built) map[string]string {
	t.Helper()
	document, err := oci.DecodeDocument(b.Raw, oci.MediaTypeManifest)
	if err != nil {
		t.Fatal(err)
	}
	return document.Manifest.Layers[0].Annotations
}

func blobOf(t *testing.T, l *ocidir.Layout, d oci.Descriptor) []byte {
	t.Helper()
	r, err := l.Blob(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What has changed in the store since is no candidate, or is found out.
func TestReuseOfAChangedStore(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, l *store.Layer){
		"one byte of a file": func(t *testing.T, l *store.Layer) {
			t.Helper()
			f, err := os.OpenFile(l.Tar(), os.O_RDWR, 0)
			if err != nil {
				t.Skip("the tar is sealed")
			}
			_, err = f.WriteAt([]byte("changed"), 2<<20)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		},
		"no index": func(t *testing.T, l *store.Layer) {
			t.Helper()
			if err := os.Remove(l.Index()); err != nil {
				t.Fatal(err)
			}
		},
		"a damaged index": func(t *testing.T, l *store.Layer) {
			t.Helper()
			if err := errors.Join(os.Remove(l.Index()), os.WriteFile(l.Index(), make([]byte, 8192), 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"a short tar": func(t *testing.T, l *store.Layer) {
			t.Helper()
			if os.Truncate(l.Tar(), 1<<20) != nil {
				t.Skip("the tar is sealed")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first, second := versions(t, dir, estargz.ZstdChunked, nil)
			b := newBench(t, reusing(store.LayoutEROFS, false))
			evidence, err := pullBoth(t, b, testkit.Registry(t, dir), func() {
				l, err := b.store.Layer(first.DiffIDs[0])
				if err != nil {
					t.Fatal(err)
				}
				change(t, l)
			})
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]int{"one byte of a file": 2, "a short tar": 0}
			if r, read := evidence.Layers[0].Reused, want[name]; r == nil && read > 0 || r != nil && r.Files != read {
				t.Errorf("reused %+v", r)
			}
			whole := newBench(t, reusing(store.LayoutEROFS, false))
			if _, _, err := whole.pull(t, testkit.Registry(t, dir).Ref("app:v2")); err != nil {
				t.Fatal(err)
			}
			sameLayer(t, b.store, whole.store, second.DiffIDs[0])
		})
	}
}

// What changes in the store while it is read is found out, and fetched.
func TestReuseOfAVanishingStore(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(path string) error{
		"gone":   os.Remove,
		"short":  func(path string) error { return os.Truncate(path, 100) },
		"others": func(path string) error { return os.WriteFile(path, make([]byte, 5<<20), 0o600) },
		"a directory": func(path string) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first, second := versions(t, dir, estargz.ZstdChunked, nil)
			server := testkit.Registry(t, dir)
			b := newBench(t, reusing(store.LayoutDir, false))
			if _, _, err := b.pull(t, server.Ref("app:v1")); err != nil {
				t.Fatal(err)
			}
			l, err := b.store.Layer(first.DiffIDs[0])
			if err != nil {
				t.Fatal(err)
			}
			request := b.request(t, server.Ref("app:v2"))
			changed := false
			request.Progress = func(e pull.Event) {
				if !changed && e.FetchedBytes > 0 {
					changed = true
					if err := errors.Join(change(l.FS()+"/lib/one"), change(l.FS()+"/lib/two")); err != nil {
						t.Error(err)
					}
				}
			}
			if _, _, err := b.engine.Pull(t.Context(), request); err != nil || !changed {
				t.Fatalf("pull returned %v, and the store was changed: %v", err, changed)
			}
			whole := newBench(t, reusing(store.LayoutDir, false))
			if _, _, err := whole.pull(t, server.Ref("app:v2")); err != nil {
				t.Fatal(err)
			}
			sameLayer(t, b.store, whole.store, second.DiffIDs[0])
		})
	}
}

// The network is asked, not a switch: what comes as fast as from this machine is
// fetched whole, on the connection that showed it, and the evidence says so.
func TestReuseOnAFastNetwork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, second := versions(t, dir, estargz.ZstdChunked, nil)
	server := testkit.Registry(t, dir)
	b := newBench(t, func(o *pull.Options) {
		reusing(store.LayoutEROFS, false)(o)
		o.Reuse = pull.ReuseFilesAt(1e9)
	})
	evidence, err := pullBoth(t, b, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := evidence.Layers[0]
	if n, _ := server.Count(digestPart(second.Layers[0])); n != 1 || l.Reused != nil || !strings.HasPrefix(l.Reuse, "fetched whole: ") || len(evidence.Fallbacks) > 0 {
		t.Errorf("in %d requests, evidence %+v, fallbacks %q", n, l, evidence.Fallbacks)
	}
	if got := evidence.NetworkBytes - second.Manifest.Size - second.Config.Size; got != second.Layers[0].Size {
		t.Errorf("%d bytes fetched of a layer of %d", got, second.Layers[0].Size)
	}
}

// A blob that ends before the network is known is judged as any other.
func TestReuseOfAShortBlob(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, second := versions(t, dir, estargz.ZstdChunked, nil)
	server := testkit.Registry(t, dir)
	b := newBench(t, reusing(store.LayoutEROFS, false))
	_, err := pullBoth(t, b, server, func() {
		server.Add(testkit.Resize(digestPart(second.Layers[0]), 1000-int(second.Layers[0].Size)))
	})
	if !errors.Is(err, stream.ErrMismatch) {
		t.Errorf("pull returned %v, want ErrMismatch", err)
	}
}

// A TOC that is elsewhere is not looked for.
func TestReuseOfAnExternalTOC(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, second := versions(t, dir, estargz.EStargzExternal, nil)
	server := testkit.Registry(t, dir)
	evidence, err := pullBoth(t, newBench(t, reusing(store.LayoutEROFS, false)), server, nil)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := server.Count(digestPart(second.Layers[0]))
	if l := evidence.Layers[0]; n != 2 || l.Reused != nil || !strings.HasPrefix(l.Reuse, "fetched whole: ") || len(evidence.Fallbacks) > 0 {
		t.Errorf("in %d requests, evidence %+v, fallbacks %q", n, l, evidence.Fallbacks)
	}
}

func TestSeekable(t *testing.T) {
	t.Parallel()
	toc := map[string]string{estargz.AnnotationTOCDigest: string(oci.DigestBytes(nil))}
	for name, one := range map[string]struct {
		layer        oci.Descriptor
		auto, always bool
	}{
		"seekable":  {oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Size: 9 << 20, Annotations: toc}, true, true},
		"small":     {oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Size: 7 << 20, Annotations: toc}, false, true},
		"plain":     {oci.Descriptor{MediaType: oci.MediaTypeLayerGz, Size: 9 << 20}, false, false},
		"encrypted": {oci.Descriptor{MediaType: oci.MediaTypeLayerGz + "+encrypted", Size: 9 << 20, Annotations: toc}, false, false},
	} {
		if auto, always := pull.Seekable(pull.ReuseFiles(false), one.layer), pull.Seekable(pull.ReuseFiles(true), one.layer); auto != one.auto || always != one.always {
			t.Errorf("%s: got %v and, always, %v", name, auto, always)
		}
	}
}

// A pull that is given up while it puts a layer together leaves nothing behind, and
// the layers that it takes from are there until then, whatever the collector does.
func TestReuseCancelledWhileCollecting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := versions(t, dir, estargz.ZstdChunked, nil)
	server := testkit.Registry(t, dir)
	b := newBench(t, reusing(store.LayoutDir, false))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, _, err := b.pull(t, server.Ref("app:v1")); err != nil {
		t.Fatal(err)
	}
	server.Add(testkit.Slow(digestPart(second.Layers[0]), 64<<10, 5*time.Millisecond))
	request := b.request(t, server.Ref("app:v2"))
	collected := false
	request.Progress = func(e pull.Event) {
		if collected || e.FetchedBytes == 0 {
			return
		}
		collected = true
		if _, err := b.store.Remove(t.Context(), server.Ref("app:v1")); err != nil {
			t.Error(err)
		}
		if _, err := b.store.GC(t.Context(), store.GCOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := b.store.Layer(first.DiffIDs[0]); err != nil {
			t.Errorf("while files of it are in use: %v", err)
		}
		cancel()
	}
	if _, _, err := b.engine.Pull(ctx, request); !errors.Is(err, context.Canceled) {
		t.Fatalf("pull returned %v, want its context's error", err)
	}
	server.Mend()
	if _, _, err := b.pull(t, server.Ref("app:v2")); err != nil {
		t.Fatal(err)
	}
}

// Limits hold for what is put together, too.
func TestReuseWithinLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	versions(t, dir, estargz.EStargz, nil)
	b := newBench(t, func(o *pull.Options) {
		reusing(store.LayoutEROFS, false)(o)
		o.Tar = layer.Limits{MaxBytes: 16 << 20}
		o.Decompress = layer.Options{MaxBytes: 16 << 20}
	})
	_, err := pullBoth(t, b, testkit.Registry(t, dir), nil)
	var limit *layer.LimitError
	if !errors.As(err, &limit) {
		t.Errorf("pull returned %v, want a LimitError", err)
	}
}
