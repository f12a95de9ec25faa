package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/repo"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// built is an image with an ordinary layer below and a seekable one above.
type built struct {
	repository *repo.Repository
	plain      []byte
	result     *estargz.Result
	toc        bytes.Buffer // of a form with an external one
	manifest   oci.Manifest
	config     oci.Image
}

func build(t *testing.T, o estargz.Options) *built {
	t.Helper()
	ref := oci.Reference{Transport: oci.LayoutDir, Path: t.TempDir(), Tag: "image"}
	r, err := repo.Create(t.Context(), ref, repo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	b := &built{repository: r, plain: testkit.Tar(
		testkit.Dir("bin"), testkit.File("bin/late", "late"), testkit.File("bin/sh", "#!"), testkit.Symlink("bin/ash", "sh"),
		testkit.Random("big", 200<<10, 1), testkit.File("<script>alert(1)</script>", "x"), testkit.File("empty", ""),
	)}
	var blob bytes.Buffer
	o.Prioritized, o.ChunkSize = []string{"bin/sh"}, 64<<10
	if o.Format == estargz.EStargzExternal {
		o.TOC = &b.toc
	}
	b.result, err = estargz.Write(t.Context(), &blob, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.plain)), nil
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	below := testkit.Tar(testkit.File("below", "x"))
	b.config = oci.Image{OS: "linux", Architecture: "amd64", RootFS: oci.RootFS{Type: "layers", DiffIDs: []oci.DiffID{oci.DiffID(oci.DigestBytes(below)), b.result.DiffID}}}
	seekable := b.put(t, b.result.MediaType, blob.Bytes())
	seekable.Annotations = maps.Clone(b.result.Annotations)
	b.manifest = oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Layers: []oci.Descriptor{b.put(t, oci.MediaTypeLayer, below), seekable}}
	return b
}

func (b *built) put(t *testing.T, mediaType string, raw []byte) oci.Descriptor {
	t.Helper()
	d, err := b.repository.PutBlob(t.Context(), mediaType, raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tag writes the documents as they are now and returns the image.
func (b *built) tag(t *testing.T) *Image {
	t.Helper()
	b.manifest.Config = b.put(t, oci.MediaTypeConfig, encode(t, b.config))
	d, err := b.repository.PutManifest(t.Context(), oci.MediaTypeManifest, encode(t, b.manifest))
	if err == nil {
		err = b.repository.Tag(t.Context(), d)
	}
	if err != nil {
		t.Fatal(err)
	}
	image, err := Open(t.Context(), b.repository, oci.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func formats() map[string]estargz.Options {
	return map[string]estargz.Options{
		"estargz":      {},
		"external":     {Format: estargz.EStargzExternal},
		"lossless":     {Format: estargz.EStargzExternal, Lossless: true},
		"zstd:chunked": {Format: estargz.ZstdChunked},
		"containerd":   {Format: estargz.ZstdChunkedContainerd},
		"min-chunk":    {MinChunkSize: 1 << 20},
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	for name, o := range formats() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := build(t, o)
			if b.toc.Len() > 0 {
				b.putTOC(t)
			}
			image := b.tag(t)
			report, err := image.Report(t.Context(), Options{Entries: true, Verify: true})
			if err != nil || report.Err() != nil {
				t.Fatal(err, report.Err())
			}
			below, l := report.Layers[0], report.Layers[1]
			if below.Format != "" || below.Ordinary != "it has no TOC" || !below.Checked.OK || below.Checked.DiffID != below.DiffID {
				t.Errorf("ordinary layer %+v", below)
			}
			if l.TOCDigest != b.result.TOCDigest || !l.Vouched || !l.Checked.OK || report.Seekable != 1 || report.Platform != "linux/amd64" {
				t.Errorf("seekable layer %+v", l)
			}
			if diff := cmp.Diff(l.Prefetch, []string{"bin/sh"}); diff != "" || l.PrefetchBytes == 0 || l.PrefetchBytes > 2000 {
				t.Errorf("fetched first: %d bytes, %s", l.PrefetchBytes, diff)
			}
			var text bytes.Buffer
			digest, err := image.TOC(t.Context(), 1, &text, layer.Limits{})
			if err != nil || digest != l.TOCDigest || oci.DigestBytes(text.Bytes()) != digest {
				t.Errorf("TOC %s, %v", digest, err)
			}
			if _, err := image.TOC(t.Context(), 0, &text, layer.Limits{}); !errors.Is(err, estargz.ErrNoTOC) {
				t.Errorf("TOC of an ordinary layer: %v", err)
			}
			covers(t, l)
		})
	}
}

// covers checks that the map of a layer has every byte once.
func covers(t *testing.T, l *Layer) {
	t.Helper()
	at, count := int64(0), map[string]int{}
	for _, s := range l.segments(l.members()) {
		if s.From != at || s.To <= s.From {
			t.Errorf("%s covers %d to %d, not from %d", s.Label, s.From, s.To, at)
		}
		at = s.To
		count[s.Kind]++
	}
	if at != l.SizeBytes || count[kindFirst] == 0 || count[kindChunk]+count[kindShared] == 0 || count[kindTOC] == 0 {
		t.Errorf("covers %d of %d bytes: %v", at, l.SizeBytes, count)
	}
}

// putTOC writes the image with the external TOC.
func (b *built) putTOC(t *testing.T) {
	t.Helper()
	d := b.put(t, oci.MediaTypeLayerGz, b.toc.Bytes())
	d.Annotations = map[string]string{estargz.AnnotationLayerDigest: string(b.manifest.Layers[1].Digest)}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: b.put(t, oci.MediaTypeConfig, []byte("{}")), Layers: []oci.Descriptor{d}}
	put, err := b.repository.PutManifest(t.Context(), oci.MediaTypeManifest, encode(t, m))
	if err == nil {
		err = b.repository.TagAs(t.Context(), put, "image-esgztoc")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What is wrong with a layer is told with the layer, whatever it is.
func TestVerifyFindsLies(t *testing.T) {
	t.Parallel()
	other := oci.DigestBytes([]byte("other"))
	for _, test := range []struct {
		name string
		lie  func(*testing.T, *built)
		want error
	}{
		{"diffID", func(_ *testing.T, b *built) { b.config.RootFS.DiffIDs[1] = oci.DiffID(other) }, stream.ErrMismatch},
		{"diffID of an ordinary layer", func(_ *testing.T, b *built) { b.config.RootFS.DiffIDs[0] = oci.DiffID(other) }, stream.ErrMismatch},
		{"TOC digest", func(_ *testing.T, b *built) {
			b.manifest.Layers[1].Annotations[estargz.AnnotationTOCDigest] = string(other)
		}, stream.ErrMismatch},
		{"TOC digest that is none", func(_ *testing.T, b *built) {
			b.manifest.Layers[1].Annotations[estargz.AnnotationTOCDigest] = "sha256:x"
		}, oci.ErrDigest},
		{"size", func(_ *testing.T, b *built) { b.manifest.Layers[1].Size-- }, stream.ErrMismatch},
		{"chunk", func(t *testing.T, b *built) { // a byte of it changed, and the digest of the blob with it
			t.Helper()
			raw, err := b.repository.ReadBlob(t.Context(), b.manifest.Layers[1], 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			raw[len(raw)/2] ^= 1
			d := b.put(t, oci.MediaTypeLayerGz, raw)
			d.Annotations = b.manifest.Layers[1].Annotations
			b.manifest.Layers[1] = d
		}, nil},
		{"no tar", func(t *testing.T, b *built) {
			t.Helper()
			b.manifest.Layers[0] = b.put(t, oci.MediaTypeLayer, []byte(strings.Repeat("this is no tar", 100)))
		}, layer.ErrFormat},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := build(t, estargz.Options{})
			test.lie(t, b)
			image, dir := b.tag(t), t.TempDir()
			report, err := image.Report(t.Context(), Options{Verify: true, TempDir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if err := report.Err(); err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// What is fallen back to is said, with its reason, and is as good.
func TestNamesFallBackAloud(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		o    estargz.Options
		lie  func(*oci.Descriptor)
		note string
	}{
		{"vouched for", estargz.Options{}, func(*oci.Descriptor) {}, ""},
		{"beside the image", estargz.Options{Format: estargz.EStargzExternal}, func(*oci.Descriptor) {}, ""},
		{"ordinary", estargz.Options{}, func(d *oci.Descriptor) { d.Annotations = nil }, ""},
		{"another TOC", estargz.Options{}, func(d *oci.Descriptor) {
			d.Annotations[estargz.AnnotationTOCDigest] = string(oci.DigestBytes(nil))
		}, "TOC"},
		{"no digest", estargz.Options{}, func(d *oci.Descriptor) { d.Annotations[estargz.AnnotationTOCDigest] = "sha256:x" }, "invalid digest"},
		{"no position", estargz.Options{Format: estargz.ZstdChunked}, func(d *oci.Descriptor) {
			d.Annotations[estargz.AnnotationPosition] = "1:2"
		}, "has 2 parts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := build(t, test.o)
			if test.o.Format == estargz.EStargzExternal {
				b.putTOC(t)
			}
			test.lie(&b.manifest.Layers[1])
			var notes, names []string
			for _, layer := range b.tag(t).Names(t.Context(), NamesOptions{Note: func(text string) { notes = append(notes, text) }}) {
				for name, err := range layer {
					if err != nil {
						t.Fatal(err)
					}
					names = append(names, strings.TrimSuffix(name.Path, "/"))
				}
			}
			slices.Sort(names)
			if diff := cmp.Diff(names, []string{"<script>alert(1)</script>", "below", "big", "bin", "bin/ash", "bin/late", "bin/sh", "empty"}); diff != "" {
				t.Error(diff)
			}
			if got := strings.Join(notes, "; "); (got == "") != (test.note == "") || !strings.Contains(got, test.note) || len(notes) > 1 {
				t.Errorf("notes %q, want one with %q", notes, test.note)
			}
		})
	}
}

func TestNoImage(t *testing.T) {
	t.Parallel()
	b := build(t, estargz.Options{})
	b.manifest.Layers[1].Digest = oci.DigestBytes([]byte("not there"))
	image := b.tag(t)
	if _, err := image.Report(t.Context(), Options{}); !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := image.Report(ended, Options{Verify: true}); !errors.Is(err, context.Canceled) && !errors.Is(err, ocidir.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// The page takes hostile names as text.
func TestHTML(t *testing.T) {
	t.Parallel()
	report, err := build(t, estargz.Options{}).tag(t).Report(t.Context(), Options{Entries: true})
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := report.HTML(&page); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), "<script>alert") || !strings.Contains(page.String(), `\u003cscript\u003ealert(1)`) || strings.Contains(page.String(), "http") {
		t.Error("a name is markup, or the page wants something from elsewhere")
	}
}

// The page in a real browser: no error, and a map of every seekable layer.
func TestPageInBrowser(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Tool("chromium"))
	report, err := build(t, estargz.Options{}).tag(t).Report(t.Context(), Options{Entries: true})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "page.html")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(report.HTML(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
		"--user-data-dir="+t.TempDir(), "--virtual-time-budget=2000", "--dump-dom", "file://"+path)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	if strings.Contains(log.String(), "CONSOLE") {
		t.Errorf("the browser complains: %s", log.String())
	}
	dom := out.String()
	for _, want := range []string{`aria-label="map of layer 1"`, "An ordinary layer", "it has no TOC", "fetched first:", "<li>bin/sh</li>"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page does not say %s", want)
		}
	}
}

func TestCondense(t *testing.T) {
	t.Parallel()
	var all []segment
	for i := range int64(100_000) {
		all = append(all, segment{From: i, To: i + 1, Kind: kindFile, Members: 1})
	}
	got := condense(all, 100_000/maxSegments)
	if len(got) != maxSegments || got[len(got)-1].To != 100_000 || got[0].Members != 25 {
		t.Errorf("%d segments, the last %+v", len(got), got[len(got)-1])
	}
}
