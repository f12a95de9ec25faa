package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
	oracleexternal "github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/record"
	"dray/internal/registry"
	"dray/internal/repo"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// text returns n compressible bytes that differ with seed.
func text(seed uint64, n int) string {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%x line %d\n", rng.Uint32N(5000), rng.Uint32N(100))
	}
	return string(b[:n])
}

// app is an image with a bit of everything: three compressions, a shadowed file, a
// whiteout.
func app(tb testing.TB) *testkit.Builder {
	tb.Helper()
	return testkit.Image(tb).
		Layer(testkit.Dir("bin"), testkit.File("bin/sh", text(1, 60_000)).Chmod(0o755), testkit.File("bin/shadowed", text(2, 5000)), testkit.File("bin/gone", "gone")).
		Layer(testkit.Dir("bin"), testkit.File("bin/shadowed", text(3, 7000)), testkit.File("bin/.wh.gone", ""), testkit.Hardlink("bin/ash", "bin/shadowed")).Zstd().
		Layer(testkit.Dir("data"), testkit.File("data/big", text(4, 150_000)), testkit.File("data/empty", "")).Plain().
		Config(func(i *oci.Image) {
			i.Config.Labels = map[string]string{"a<b": "c&d"}
			i.History = []oci.History{{CreatedBy: "one"}, {CreatedBy: "env", EmptyLayer: true}, {CreatedBy: "two"}, {CreatedBy: "three"}}
		})
}

// place is a layout directory as a repository.
func place(tb testing.TB, dir, tag string, write bool) *repo.Repository {
	tb.Helper()
	ref := oci.Reference{Transport: oci.LayoutDir, Path: dir, Tag: tag}
	open := repo.Open
	if write {
		open = repo.Create
	}
	r, err := open(tb.Context(), ref, repo.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return r
}

// remote is an image in a registry as a repository.
func remote(tb testing.TB, ref string) *repo.Repository {
	tb.Helper()
	c, err := registry.NewClient(registry.Options{AuthFiles: []string{}, Retry: registry.Retry{Count: 2, Base: 1, Max: 1}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	parsed, err := oci.ParseReference(ref)
	if err != nil {
		tb.Fatal(err)
	}
	r, err := repo.Create(tb.Context(), parsed, repo.Options{Registry: c})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func host() oci.Platform { return oci.HostPlatform() }

// checked is an image as it is in a repository.
type checked struct {
	manifest *oci.Manifest
	config   *oci.Image
	raw      map[string]any // the config
	digest   oci.Digest
}

func load(tb testing.TB, r *repo.Repository, digest oci.Digest) checked {
	tb.Helper()
	ctx := tb.Context()
	d, raw, err := r.Resolve(ctx, r.Reference().Tag, digest)
	if err != nil {
		tb.Fatal(err)
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil || document.Manifest == nil {
		tb.Fatalf("%s is no manifest: %v", d.Digest, err)
	}
	rawConfig, err := r.ReadBlob(ctx, document.Manifest.Config, 1<<20)
	if err != nil {
		tb.Fatal(err)
	}
	c := checked{manifest: document.Manifest, digest: d.Digest}
	if c.config, err = oci.DecodeImage(rawConfig); err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(rawConfig, &c.raw); err != nil {
		tb.Fatal(err)
	}
	return c
}

// checkLayers verifies every layer: that it is seekable, that its TOC is its tar,
// and that its diffID is the config's.
func checkLayers(tb testing.TB, r *repo.Repository, c checked, format estargz.Format, tocs map[oci.Digest][]byte) []*estargz.Reader {
	tb.Helper()
	readers := make([]*estargz.Reader, 0, len(c.manifest.Layers))
	for i, d := range c.manifest.Layers {
		hints, err := estargz.ParseHints(d.Annotations)
		if podman := format == estargz.ZstdChunked; err != nil || (hints.TOCDigest == "") != podman {
			tb.Fatalf("layer %d has the hints %+v, %v", i, hints, err)
		}
		o := estargz.OpenOptions{Hints: hints}
		if tocs != nil {
			o.ExternalTOC = bytes.NewReader(tocs[d.Digest])
		}
		reader, err := estargz.Open(r.BlobAt(tb.Context(), d), d.Size, o)
		if err != nil {
			tb.Fatalf("layer %d: %v", i, err)
		}
		tb.Cleanup(func() { _ = reader.Close() })
		found, err := reader.Verify(tb.Context())
		if err != nil {
			tb.Errorf("layer %d: %v", i, err)
		}
		if found.DiffID != c.config.RootFS.DiffIDs[i] || reader.Format() != format {
			tb.Errorf("layer %d is %v with diffID %s, the config says %s", i, reader.Format(), found.DiffID, c.config.RootFS.DiffIDs[i])
		}
		if want := fmt.Sprint(found.Size); d.Annotations[estargz.AnnotationUncompressedSize] != want {
			tb.Errorf("layer %d has the uncompressed size %q, want %s", i, d.Annotations[estargz.AnnotationUncompressedSize], want)
		}
		readers = append(readers, reader)
	}
	return readers
}

// checkOracle has containerd's library open and verify every layer.
func checkOracle(t *testing.T, r *repo.Repository, c checked, tocs map[oci.Digest][]byte) {
	t.Helper()
	for i, d := range c.manifest.Layers {
		var opts []oracle.OpenOption
		if tocs != nil {
			opts = append(opts, oracle.WithDecompressors(oracleexternal.NewGzipDecompressor(func() ([]byte, error) { return tocs[d.Digest], nil })))
		}
		reader, err := oracle.Open(io.NewSectionReader(r.BlobAt(t.Context(), d), 0, d.Size), opts...)
		if err != nil {
			t.Errorf("containerd's library: layer %d: %v", i, err)
			continue
		}
		if _, err := reader.VerifyTOC(digest.Digest(d.Annotations[estargz.AnnotationTOCDigest])); err != nil {
			t.Errorf("containerd's library: layer %d: %v", i, err)
		}
	}
}

func mustRun(tb testing.TB, source, target *repo.Repository, o Options) *Result {
	tb.Helper()
	o.Host = host()
	result, err := Run(tb.Context(), source, target, o)
	if err != nil {
		tb.Fatal(err)
	}
	return result
}

func hows(r *Result) []How {
	var all []How
	for _, l := range r.Images[0].Layers {
		all = append(all, l.How)
	}
	return all
}

func TestConvertForms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	built := app(t).Write(layout, "oci")
	app(t).Docker().Write(layout, "docker")
	for _, test := range []struct {
		name   string
		tag    string
		o      Options
		media  string // of a layer
		image  string // of the manifest
		config string
	}{
		{"estargz", "oci", Options{}, oci.MediaTypeLayerGz, oci.MediaTypeManifest, oci.MediaTypeConfig},
		{"estargz of docker's", "docker", Options{}, oci.MediaTypeDockerLayerGz, oci.MediaTypeDockerManifest, oci.MediaTypeDockerConfig},
		{"estargz of docker's with --oci", "docker", Options{OCI: true}, oci.MediaTypeLayerGz, oci.MediaTypeManifest, oci.MediaTypeConfig},
		{"level 9, small chunks", "oci", Options{Form: Form{Level: 9, ChunkSize: 50_000}}, oci.MediaTypeLayerGz, oci.MediaTypeManifest, oci.MediaTypeConfig},
		{"external", "oci", Options{Form: Form{Format: estargz.EStargzExternal}}, oci.MediaTypeLayerGz, oci.MediaTypeManifest, oci.MediaTypeConfig},
		{"keep diffID", "docker", Options{Form: Form{Format: estargz.EStargzExternal, KeepDiffID: true}}, oci.MediaTypeDockerLayerGz, oci.MediaTypeDockerManifest, oci.MediaTypeDockerConfig},
		{"zstd", "oci", Options{Form: Form{Format: estargz.ZstdChunked}}, oci.MediaTypeLayerZst, oci.MediaTypeManifest, oci.MediaTypeConfig},
		{"zstd, keep diffID", "oci", Options{Form: Form{Format: estargz.ZstdChunked, KeepDiffID: true}}, oci.MediaTypeLayerZst, oci.MediaTypeManifest, oci.MediaTypeConfig},
		{"containerd's zstd with --oci", "docker", Options{OCI: true, Form: Form{Format: estargz.ZstdChunkedContainerd}}, oci.MediaTypeLayerZst, oci.MediaTypeManifest, oci.MediaTypeConfig},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			source := place(t, dir, test.tag, false)
			target := place(t, t.TempDir(), "latest", true)
			result := mustRun(t, source, target, test.o)
			c := load(t, target, "")
			if c.digest != result.Target.Digest || c.digest != result.Images[0].Target {
				t.Errorf("the target is %s, the result says %s and %s", c.digest, result.Target.Digest, result.Images[0].Target)
			}
			if got := []string{c.manifest.Layers[0].MediaType, c.manifest.MediaType, c.manifest.Config.MediaType}; !slices.Equal(got, []string{test.media, test.image, test.config}) {
				t.Errorf("media types are %q", got)
			}
			tocs := externalTOCs(t, target, result)
			checkLayers(t, target, c, test.o.Format, tocs)
			if test.o.Format == estargz.EStargz || tocs != nil {
				checkOracle(t, target, c, tocs)
			}
			want := built.Image
			if !test.o.KeepDiffID {
				want.RootFS.DiffIDs = c.config.RootFS.DiffIDs
			}
			if diff := cmp.Diff(c.config, &want); diff != "" {
				t.Errorf("config differs: %s", diff)
			}
		})
	}
}

// externalTOCs returns the TOCs beside the target by layer, nil without.
func externalTOCs(t *testing.T, target *repo.Repository, result *Result) map[oci.Digest][]byte {
	t.Helper()
	if result.ExternalTOC == nil {
		return nil
	}
	_, raw, err := target.Resolve(t.Context(), "latest-esgztoc", "")
	if err != nil {
		t.Fatal(err)
	}
	document, err := oci.DecodeDocument(raw, "")
	if err != nil {
		t.Fatal(err)
	}
	tocs := map[oci.Digest][]byte{}
	for _, d := range document.Manifest.Layers {
		blob, err := target.ReadBlob(t.Context(), d, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		tocs[oci.Digest(d.Annotations[estargz.AnnotationLayerDigest])] = blob
	}
	return tocs
}

func TestUncompress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := app(t).Write(testkit.LayoutAt(t, dir), "v1")
	target := place(t, t.TempDir(), "v1", true)
	mustRun(t, place(t, dir, "v1", false), target, Options{Form: Form{Uncompressed: true}})
	c := load(t, target, "")
	for i, d := range c.manifest.Layers {
		if d.MediaType != oci.MediaTypeLayer || d.Digest != built.DiffIDs[i].Digest() || d.Annotations != nil {
			t.Errorf("layer %d is %+v", i, d)
		}
	}
	if c.manifest.Config.Digest != built.Config.Digest {
		t.Errorf("the config has changed to %s", c.manifest.Config.Digest)
	}
}

// The same input and options give the same bytes, whatever the machine.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	var first oci.Digest
	for _, jobs := range []int{1, 2, 5} {
		target := place(t, t.TempDir(), "v1", true)
		o := Options{Jobs: jobs, MemoryBytes: int64(32+jobs) << 20, Globs: []string{"data/**", "bin/*"}}
		result := mustRun(t, place(t, dir, "v1", false), target, o)
		if first == "" {
			first = result.Target.Digest
		}
		if result.Target.Digest != first {
			t.Errorf("%d jobs give %s, one gives %s", jobs, result.Target.Digest, first)
		}
	}
}

func entries(paths ...string) []record.Entry {
	var all []record.Entry
	for _, p := range paths {
		all = append(all, record.Entry{Path: p})
	}
	return all
}

func TestOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	wanted := []string{"data/big", "bin/shadowed", "not/there", "bin/gone"}
	order := func(context.Context, oci.Descriptor) ([]record.Entry, error) { return entries(wanted...), nil }
	for _, test := range []struct {
		name    string
		o       Options
		want    [][]string // by layer
		missing []string
	}{
		{"record", Options{Order: order}, [][]string{nil, {"bin/shadowed"}, {"data/big"}}, []string{"not/there", "bin/gone"}},
		{"globs", Options{Globs: []string{"**/s*", "none*"}}, [][]string{{"bin/sh"}, {"bin/shadowed"}, nil}, []string{"none*"}},
		{"zstd", Options{Order: order, Form: Form{Format: estargz.ZstdChunked}}, [][]string{nil, {"bin/shadowed"}, {"data/big"}}, []string{"not/there", "bin/gone"}},
		{"lossless", Options{Order: order, Form: Form{Format: estargz.ZstdChunked, KeepDiffID: true}}, [][]string{nil, {"bin/shadowed"}, {"data/big"}}, []string{"not/there", "bin/gone"}},
		{"nothing", Options{Order: func(context.Context, oci.Descriptor) ([]record.Entry, error) { return nil, nil }}, [][]string{nil, nil, nil}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			target := place(t, t.TempDir(), "v1", true)
			result := mustRun(t, place(t, dir, "v1", false), target, test.o)
			image := result.Images[0]
			if diff := cmp.Diff(image.Missing, test.missing); diff != "" {
				t.Errorf("missing: %s", diff)
			}
			for i, r := range checkLayers(t, target, load(t, target, ""), test.o.Format, nil) {
				if diff := cmp.Diff(r.Prioritized(), test.want[i]); diff != "" {
					t.Errorf("layer %d: %s", i, diff)
				}
				size, said := r.PrefetchSize()
				if !test.o.KeepDiffID && (!said || (size > 0) != (test.want[i] != nil)) {
					t.Errorf("layer %d: prefetch %d, %t", i, size, said)
				}
				if image.Layers[i].Prioritized != len(test.want[i]) {
					t.Errorf("layer %d: the result says %d files", i, image.Layers[i].Prioritized)
				}
			}
		})
	}
}

// multi writes an index: two platforms, one of them in a nested index, an
// attestation, an artifact, and one that refers to it.
func multi(t *testing.T, layout *ocidir.Layout) (amd, arm, attestation, artifact oci.Descriptor) {
	t.Helper()
	image := func(arch string, seed uint64) oci.Descriptor {
		return testkit.Image(t).Platform(oci.Platform{OS: "linux", Architecture: arch}).
			Layer(testkit.File("common", text(9, 20_000))).Layer(testkit.File("arch", text(seed, 20_000))).Write(layout, "").Manifest
	}
	amd, arm = image("amd64", 1), image("arm64", 2)
	attestation = testkit.Attestation(t, layout, amd)
	artifact = testkit.Artifact(t, layout, "", "application/x-sbom", nil, "sbom")
	testkit.Artifact(t, layout, "", "application/x-signature", &artifact, "signature of the sbom")
	testkit.Artifact(t, layout, "", "application/x-signature", &amd, "signature of the image")
	nested := testkit.Index(t, layout, "", arm)
	index := oci.Index{
		SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Annotations: map[string]string{"kept": "yes"},
		Manifests: []oci.Descriptor{amd, attestation, {MediaType: nested.MediaType, Digest: nested.Digest, Size: nested.Size}, artifact},
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(`{`), []byte(`{"unknown":{"field":1},`), 1)
	testkit.PutRaw(t, layout, "v1", oci.MediaTypeIndex, raw)
	return amd, arm, attestation, artifact
}

func rootIndex(t *testing.T, r *repo.Repository) (*oci.Index, string) {
	t.Helper()
	_, raw, err := r.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	document, err := oci.DecodeDocument(raw, "")
	if err != nil || document.Index == nil {
		t.Fatalf("no index: %v", err)
	}
	return document.Index, string(raw)
}

func TestIndexes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	amd, arm, attestation, artifact := multi(t, testkit.LayoutAt(t, dir))
	t.Run("all platforms", func(t *testing.T) {
		t.Parallel()
		target := place(t, t.TempDir(), "v1", true)
		result := mustRun(t, place(t, dir, "v1", false), target, Options{AllPlatforms: true})
		index, raw := rootIndex(t, target)
		if len(index.Manifests) != 4 || index.Annotations["kept"] != "yes" || !strings.Contains(raw, `"unknown":{"field":1}`) {
			t.Fatalf("index is %s", raw)
		}
		if len(result.Images) != 2 || len(result.Kept) != 2 || result.Dropped != nil {
			t.Errorf("result is %+v", result)
		}
		converted := index.Manifests[0]
		if converted.Digest == amd.Digest || converted.Platform.Architecture != "amd64" {
			t.Errorf("the first is %+v", converted)
		}
		checkLayers(t, target, load(t, target, converted.Digest), estargz.EStargz, nil)
		if got := index.Manifests[1]; got.Digest != attestation.Digest || got.Annotations[annotationReferenceDigest] != string(converted.Digest) {
			t.Errorf("the attestation is %+v", got)
		}
		_, raw2, err := target.Resolve(t.Context(), "", index.Manifests[2].Digest)
		if err != nil {
			t.Fatal(err)
		}
		nested, err := oci.DecodeDocument(raw2, "")
		if err != nil {
			t.Fatal(err)
		}
		checkLayers(t, target, load(t, target, nested.Index.Manifests[0].Digest), estargz.EStargz, nil)
		if index.Manifests[3].Digest != artifact.Digest {
			t.Errorf("the artifact is %+v", index.Manifests[3])
		}
		list, err := target.Referrers(t.Context(), artifact.Digest, "")
		if err != nil || len(list) != 1 {
			t.Errorf("the artifact has the referrers %v, %v", list, err)
		}
		if len(result.LeftBehind) != 1 || result.LeftBehind[0].ArtifactType != "application/x-signature" {
			t.Errorf("left behind: %v", result.LeftBehind)
		}
		// What both images have is one job.
		if a, b := result.Images[0].Layers[0], result.Images[1].Layers[0]; a.Target != b.Target || a.Target == "" {
			t.Errorf("the common layer is %+v and %+v", a, b)
		}
	})
	for _, test := range []struct {
		name      string
		platforms []oci.Platform
		kept      []oci.Digest // of the source
		dropped   int
	}{
		{"one platform", []oci.Platform{{OS: "linux", Architecture: "amd64"}}, []oci.Digest{amd.Digest, attestation.Digest, artifact.Digest}, 2},
		{"the nested one", []oci.Platform{{OS: "linux", Architecture: "arm64"}}, []oci.Digest{arm.Digest, artifact.Digest}, 2},
		{"both", []oci.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "amd64"}}, []oci.Digest{amd.Digest, attestation.Digest, arm.Digest, artifact.Digest}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			target := place(t, t.TempDir(), "v1", true)
			result := mustRun(t, place(t, dir, "v1", false), target, Options{Platforms: test.platforms})
			var got []oci.Digest
			for _, i := range result.Images {
				got = append(got, i.Source)
			}
			for _, d := range result.Kept {
				got = append(got, d.Digest)
			}
			slices.Sort(got)
			slices.Sort(test.kept)
			if !slices.Equal(got, test.kept) || len(result.Dropped) != test.dropped {
				t.Errorf("kept %v, dropped %d; want %v, %d", got, len(result.Dropped), test.kept, test.dropped)
			}
			index, _ := rootIndex(t, target)
			for _, d := range index.Manifests {
				if _, _, err := target.Resolve(t.Context(), "", d.Digest); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		target := place(t, t.TempDir(), "v1", true)
		_, err := Run(t.Context(), place(t, dir, "v1", false), target, Options{Platforms: []oci.Platform{{OS: "plan9", Architecture: "mips"}}})
		if !errors.Is(err, oci.ErrPlatform) || !strings.Contains(err.Error(), "plan9/mips") {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	app(t).Write(layout, "v1")
	app(t).Layer(testkit.File("more", text(7, 9000))).Write(layout, "v2")
	server := testkit.Registry(t, t.TempDir())
	at := filepath.Join(t.TempDir(), "memory")
	memory, err := OpenMemory(at)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Memory: memory}
	run := func(tag, name string) *Result {
		return mustRun(t, place(t, dir, tag, false), remote(t, server.URL+"/"+name), o)
	}
	first := run("v1", "app:v1")
	if got := hows(first); !slices.Equal(got, []How{Converted, Converted, Converted}) {
		t.Errorf("first: %v", got)
	}
	dry := o
	dry.DryRun = true
	if got := hows(mustRun(t, place(t, dir, "v2", false), nil, dry)); !slices.Equal(got, []How{Remembered, Remembered, Remembered, Converted}) {
		t.Errorf("dry run: %v", got)
	}
	if got := hows(run("v2", "app:v2")); !slices.Equal(got, []How{Remembered, Remembered, Remembered, Converted}) {
		t.Errorf("the next of the family: %v", got)
	}
	again := run("v1", "app:again")
	if got := hows(again); !slices.Equal(got, []How{Remembered, Remembered, Remembered}) || again.Target.Digest != first.Target.Digest {
		t.Errorf("again: %v, %s instead of %s", got, again.Target.Digest, first.Target.Digest)
	}
	other := run("v1", "elsewhere/app:v1")
	if other.Target.Digest != first.Target.Digest {
		t.Errorf("in another repository: %s instead of %s", other.Target.Digest, first.Target.Digest)
	}
	zstd := o
	zstd.Format = estargz.ZstdChunked
	if got := hows(mustRun(t, place(t, dir, "v1", false), remote(t, server.URL+"/app:z"), zstd)); slices.Contains(got, Remembered) {
		t.Errorf("with other options: %v", got)
	}

	// What the memory says is believed only if the target has it.
	files, err := filepath.Glob(filepath.Join(at, "*.json"))
	if err != nil || len(files) != 7 {
		t.Fatalf("memory has %d files, %v", len(files), err)
	}
	for i, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			raw = raw[:len(raw)/2]
		case 1:
			raw = bytes.ReplaceAll(raw, []byte(`"size":`), []byte(`"size":1`))
		case 2:
			raw = bytes.ReplaceAll(raw, []byte(`"digest":"sha256:`), []byte(`"digest":"sha256:0123`))
		}
		if err := os.WriteFile(f, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damaged := run("v1", "app:v1")
	if got := hows(damaged); slices.Contains(got, Remembered) || damaged.Target.Digest != first.Target.Digest {
		t.Errorf("with a damaged memory: %v, %s", got, damaged.Target.Digest)
	}
}

func TestReuse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	seekable := t.TempDir()
	first := mustRun(t, place(t, dir, "v1", false), place(t, seekable, "esgz", true), Options{})
	again := mustRun(t, place(t, seekable, "esgz", false), place(t, t.TempDir(), "again", true), Options{Reuse: true})
	if got := hows(again); !slices.Equal(got, []How{Reused, Reused, Reused}) || again.Target.Digest != first.Target.Digest {
		t.Errorf("reused: %v, %s", got, again.Target.Digest)
	}
	order := func(context.Context, oci.Descriptor) ([]record.Entry, error) { return entries("data/big"), nil }
	some := place(t, t.TempDir(), "some", true)
	if got := hows(mustRun(t, place(t, seekable, "esgz", false), some, Options{Reuse: true, Order: order})); !slices.Equal(got, []How{Reused, Reused, Converted}) {
		t.Errorf("with a record: %v", got)
	}
	checkLayers(t, some, load(t, some, ""), estargz.EStargz, nil)
	if got := hows(mustRun(t, place(t, seekable, "esgz", false), place(t, t.TempDir(), "z", true), Options{Reuse: true, Form: Form{Format: estargz.ZstdChunked}})); slices.Contains(got, Reused) {
		t.Errorf("in another format: %v", got)
	}
	if got := hows(mustRun(t, place(t, seekable, "esgz", false), nil, Options{Reuse: true, DryRun: true})); !slices.Equal(got, []How{Reused, Reused, Reused}) {
		t.Errorf("dry run: %v", got)
	}
}

func TestForeignLayersStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := testkit.Image(t).Layer(testkit.File("a", "a")).
		Layer(testkit.File("windows", "base")).MediaType(oci.MediaTypeDockerForeign).URLs("https://example.com/base").Absent().
		Docker().Write(testkit.LayoutAt(t, dir), "v1")
	target := place(t, t.TempDir(), "v1", true)
	result := mustRun(t, place(t, dir, "v1", false), target, Options{})
	if got := hows(result); !slices.Equal(got, []How{Converted, Kept}) {
		t.Errorf("layers are %v", got)
	}
	if diff := cmp.Diff(load(t, target, "").manifest.Layers[1], built.Layers[1]); diff != "" {
		t.Error(diff)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	small := func() *testkit.Builder { return testkit.Image(t).Layer(testkit.File("a", text(1, 100_000))) }
	small().Docker().Write(layout, "docker")
	small().MediaType(oci.MediaTypeLayerGz+"+encrypted").Write(layout, "encrypted")
	small().Config(func(i *oci.Image) { i.RootFS.DiffIDs[0] = oci.DiffID(oci.DigestBytes([]byte("other"))) }).Write(layout, "lying")
	small().Config(func(i *oci.Image) { i.RootFS.DiffIDs = nil }).Write(layout, "no-ids")
	small().Damage(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }).Write(layout, "damaged")
	testkit.Image(t).Layer(testkit.File("a", "gone")).Absent().Write(layout, "absent")
	small().Write(layout, "good")
	testkit.Image(t).Layer(testkit.File("\xff", "no UTF-8")).Write(layout, "bytes")
	testkit.Image(t).Layer(testkit.File("../up", "climbs")).Write(layout, "climbs")
	testkit.Artifact(t, layout, "artifact", "application/x-thing", nil, "x")
	for _, test := range []struct {
		tag  string
		o    Options
		want error
		text string
	}{
		{"docker", Options{Form: Form{Format: estargz.ZstdChunked}}, ErrUnsupported, "add --oci"},
		{"encrypted", Options{}, ErrUnsupported, "layer 0 is encrypted"},
		{"lying", Options{}, stream.ErrMismatch, "verify layer"},
		{"lying", Options{Form: Form{Uncompressed: true}}, stream.ErrMismatch, "verify layer"},
		{"no-ids", Options{}, oci.ErrManifest, "0 diff_ids for 1 layers"},
		{"damaged", Options{}, nil, "layer sha256:"},
		{"absent", Options{}, ocidir.ErrNotFound, "layer sha256:"},
		{"bytes", Options{}, estargz.ErrUnsupported, "UTF-8"},
		{"climbs", Options{}, estargz.ErrFormat, "../up"},
		{"artifact", Options{}, ErrUnsupported, "application/x-thing"},
		{"good", Options{Form: Form{Level: 10}}, nil, "level 10"},
		{"good", Options{Form: Form{KeepDiffID: true}}, ErrOptions, "external"},
		{"good", Options{Reuse: true, Form: Form{Format: estargz.EStargzExternal}}, ErrOptions, "not reused"},
		{"good", Options{Platforms: []oci.Platform{{OS: "plan9", Architecture: "386"}}}, oci.ErrPlatform, "linux/"},
		{"nothing", Options{}, ocidir.ErrNotFound, "nothing"},
	} {
		t.Run(test.tag+" "+test.text, func(t *testing.T) {
			t.Parallel()
			to, temp := t.TempDir(), t.TempDir()
			target := place(t, to, "v1", true)
			test.o.Host, test.o.TempDir = host(), temp
			_, err := Run(t.Context(), place(t, dir, test.tag, false), target, test.o)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("Run = %v, want %v with %q", err, test.want, test.text)
			}
			checkNothingLeft(t, target, to, temp)
		})
	}
}

func checkNothingLeft(t *testing.T, target *repo.Repository, dir, temp string) {
	t.Helper()
	if tags, err := target.Tags(t.Context()); err != nil || len(tags) > 0 {
		t.Errorf("tags are %q, %v", tags, err)
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
		t.Errorf("temporary files are left: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("staged files are left: %q", left)
	}
}

// A conversion that is interrupted, at any request, leaves no tag.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	for at := range 12 {
		to, temp := t.TempDir(), t.TempDir()
		target := place(t, to, "v1", true)
		ctx, cancel := context.WithCancel(t.Context())
		seen := 0
		_, err := Run(ctx, place(t, dir, "v1", false), target, Options{Host: host(), TempDir: temp, Jobs: 1, Globs: []string{"data/*"}, Progress: func(Event) {
			if seen++; seen == at {
				cancel()
			}
		}})
		if at == 0 {
			cancel()
		}
		if err == nil {
			break // all of it was done before
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after %d events: %v", at, err)
		}
		checkNothingLeft(t, target, to, temp)
	}
}

func TestRefusedPush(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	server := testkit.Registry(t, t.TempDir(), testkit.Status("POST ", 403))
	_, err := Run(t.Context(), place(t, dir, "v1", false), remote(t, server.URL+"/a:v1"), Options{Host: host()})
	if !errors.Is(err, registry.ErrDenied) {
		t.Errorf("Run = %v, want %v", err, registry.ErrDenied)
	}
}

// An upload that breaks is made again, with the same bytes.
func TestBrokenUpload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	want := mustRun(t, place(t, dir, "v1", false), place(t, t.TempDir(), "v1", true), Options{}).Target.Digest
	server := testkit.Registry(t, t.TempDir(), testkit.Status("PATCH ", 503).Times(2))
	target := remote(t, server.URL+"/a:v1")
	if got := mustRun(t, place(t, dir, "v1", false), target, Options{}).Target.Digest; got != want {
		t.Errorf("the target is %s, want %s", got, want)
	}
	checkLayers(t, target, load(t, target, ""), estargz.EStargz, nil)
}

func TestSourceMoves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	layout := testkit.LayoutAt(t, dir)
	built := app(t).Write(layout, "v1")
	moved := false
	result := mustRun(t, place(t, dir, "v1", false), place(t, t.TempDir(), "v1", true), Options{Progress: func(Event) {
		if !moved {
			moved = true
			testkit.Image(t).Layer(testkit.File("new", "new")).Write(layout, "v1")
		}
	}})
	if result.Source.Digest != built.Manifest.Digest || len(result.Images[0].Layers) != 3 {
		t.Errorf("converted %s", result.Source.Digest)
	}
	if len(result.Notes) != 1 || !strings.Contains(result.Notes[0], string(built.Manifest.Digest)) {
		t.Errorf("notes are %q", result.Notes)
	}
}

func TestRegistries(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{
		"dray's":   testkit.Registry(t, t.TempDir()).Host,
		"docker's": testkit.DockerRegistry(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			multi(t, testkit.LayoutAt(t, dir))
			source := remote(t, "http://"+host+"/source:v1")
			if _, err := Copy(t.Context(), place(t, dir, "v1", false), source, CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			target := remote(t, "http://"+host+"/target:v1")
			mustRun(t, source, target, Options{AllPlatforms: true, Form: Form{Format: estargz.EStargzExternal, KeepDiffID: true}})
			index, _ := rootIndex(t, target)
			_, raw, err := target.Resolve(t.Context(), "v1-esgztoc", "")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(raw, []byte(load(t, target, index.Manifests[0].Digest).manifest.Layers[0].Digest)) {
				t.Errorf("the image of TOCs is %s", raw)
			}
		})
	}
}
