package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
	oracleexternal "github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/registry"
	"dray/internal/repo"
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
		if without := format == estargz.ZstdChunked || format == estargz.LegacyStargz; err != nil || (hints.TOCDigest == "") != without {
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
		if format == estargz.LegacyStargz {
			if d.Annotations != nil {
				tb.Errorf("layer %d has the annotations %v", i, d.Annotations)
			}
		} else if want := fmt.Sprint(found.Size); d.Annotations[estargz.AnnotationUncompressedSize] != want {
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
		{"stargz", "oci", Options{Form: Form{Format: estargz.LegacyStargz, ChunkSize: 50_000}}, oci.MediaTypeLayerGz, oci.MediaTypeManifest, oci.MediaTypeConfig},
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

func entries(paths ...string) *record.List {
	var all []record.Entry
	for _, p := range paths {
		all = append(all, record.Entry{Path: p})
	}
	list, err := record.ListOf(all...)
	if err != nil {
		panic(err) // it is too small for a file
	}
	return list
}

func TestOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	wanted := []string{"data/big", "bin/shadowed", "not/there", "bin/gone"}
	order := func(context.Context, oci.Descriptor) (*record.List, error) { return entries(wanted...), nil }
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
		{"nothing", Options{Order: func(context.Context, oci.Descriptor) (*record.List, error) { return nil, nil }}, [][]string{nil, nil, nil}, nil},
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

// A result names so many missing paths and counts the rest.
func TestMissingIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app(t).Write(testkit.LayoutAt(t, dir), "v1")
	lines := make([]string, maxMissing+500)
	for i := range lines {
		lines[i] = fmt.Sprintf("not/there/%d", i)
	}
	order := func(context.Context, oci.Descriptor) (*record.List, error) {
		return entries(slices.Concat(lines, []string{"bin/sh"})...), nil
	}
	for name, o := range map[string]Options{"record": {Order: order}, "list": {Globs: slices.Concat(lines, []string{"bin/gone", "bin/sh"})}} {
		o.DryRun = true
		image := mustRun(t, place(t, dir, "v1", false), nil, o).Images[0]
		want := len(lines)
		if name == "list" {
			want++ // what another layer hides
		}
		if len(image.Missing) != maxMissing || image.MissingCount != want || image.Prioritized != 1 {
			t.Errorf("%s: %d of %d missing are named, %d first", name, len(image.Missing), image.MissingCount, image.Prioritized)
		}
	}
}
