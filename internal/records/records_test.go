package records

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/estargz"
	"dray/internal/inspect"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/registry"
	"dray/internal/repo"
	"dray/internal/testkit"
)

// places are where records are kept: a registry with the list of referrers, one
// without, a layout.
func places(t *testing.T) map[string]string {
	t.Helper()
	testkit.Need(t, testkit.Tool("docker-registry"))
	return map[string]string{
		"with referrers":    testkit.Registry(t, t.TempDir()).Ref("team/app"),
		"without referrers": "http://" + testkit.DockerRegistry(t) + "/team/app",
		"layout":            "local://" + filepath.Join(t.TempDir(), "layout"),
	}
}

func open(t *testing.T, reference string, write bool) *repo.Repository {
	t.Helper()
	ref, err := oci.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.NewClient(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	opener := repo.Open
	if write {
		opener = repo.Create
	}
	r, err := opener(t.Context(), ref, repo.Options{Registry: client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// pushImage pushes an image of one eStargz layer with two files in front.
func pushImage(t *testing.T, reference string) oci.Descriptor {
	t.Helper()
	return pushLayer(t, reference, estargz.Options{}, func(*oci.Descriptor) {})
}

// pushLayer does, of a layer with options, whose descriptor is changed.
func pushLayer(t *testing.T, reference string, o estargz.Options, change func(*oci.Descriptor)) oci.Descriptor {
	t.Helper()
	var toc bytes.Buffer
	o.Prioritized, o.TOC = []string{"bin/sh", "bin/ash", "etc/empty"}, &toc
	plain := testkit.Tar(testkit.Dir("bin"), testkit.File("bin/late", "late"), testkit.File("bin/sh", "#!"), testkit.Symlink("bin/ash", "sh"), testkit.File("etc/empty", ""))
	var blob bytes.Buffer
	written, err := estargz.Write(t.Context(), &blob, func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(plain)), nil }, o)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, reference, true)
	put := func(mediaType string, raw []byte) oci.Descriptor {
		d, err := r.PutBlob(t.Context(), mediaType, raw)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	layer := put(oci.MediaTypeLayerGz, blob.Bytes())
	layer.Annotations = written.Annotations
	change(&layer)
	if toc.Len() > 0 {
		pushTOC(t, reference, put(oci.MediaTypeLayerGz, toc.Bytes()), layer.Digest)
	}
	config := put(oci.MediaTypeConfig, []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["`+string(written.DiffID)+`"]}}`))
	d, err := r.PutManifest(t.Context(), oci.MediaTypeManifest, encode(t, oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{layer}}))
	if err == nil {
		err = r.Tag(t.Context(), d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pushTOC pushes the image of TOCs beside an image.
func pushTOC(t *testing.T, reference string, toc oci.Descriptor, layer oci.Digest) {
	t.Helper()
	r := open(t, reference+"-esgztoc", true)
	toc.Annotations = map[string]string{estargz.AnnotationLayerDigest: string(layer)}
	config, err := r.PutBlob(t.Context(), oci.MediaTypeConfig, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.PutManifest(t.Context(), oci.MediaTypeManifest, encode(t, oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{toc}}))
	if err == nil {
		err = r.Tag(t.Context(), d)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func entries(t *testing.T, paths ...string) *record.List {
	t.Helper()
	all := &record.List{}
	t.Cleanup(all.Close)
	for _, p := range paths {
		if err := all.Add(&record.Entry{Path: p}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func pathsOf(t *testing.T, entries *record.List) []string {
	t.Helper()
	var all []string
	for e, err := range entries.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Path)
	}
	return all
}

func TestEveryPlace(t *testing.T) {
	t.Parallel()
	for name, base := range places(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, p := t.Context(), oci.HostPlatform()
			image := pushImage(t, base+":image")

			// The order that the layers have.
			got, err := Read(ctx, open(t, base+":image", false), Options{Platform: p})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pathsOf(t, got.Entries), []string{"bin/sh", "bin/ash", "etc/empty"}); diff != "" || got.From != Layers {
				t.Errorf("from %s: %s", got.From, diff)
			}
			next, stop := iter.Pull2(got.Entries.All())
			defer stop()
			if e, err, _ := next(); err != nil || e.ContentDigest != oci.DigestBytes([]byte("#!")) || e.Size != 2 || e.ManifestDigest != image.Digest || *e.LayerIndex != 0 {
				t.Errorf("entry %+v", e)
			}

			// Attached, twice; the same record again changes nothing.
			writer := open(t, base, true)
			for _, e := range []*record.List{entries(t, "bin/sh", "bin/late"), entries(t, "bin/late"), entries(t, "bin/late")} {
				if _, err := Attach(ctx, writer, e, p, image); err != nil {
					t.Fatal(err)
				}
			}
			got, err = Read(ctx, open(t, base+":image", false), Options{Platform: p})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pathsOf(t, got.Entries), []string{"bin/late", "bin/sh"}); diff != "" || got.From != Referrer || got.Count != 2 {
				t.Errorf("%d from %s: %s", got.Count, got.From, diff)
			}

			// As an image.
			if _, err := Push(ctx, open(t, base+":record", true), entries(t, "bin/sh"), p); err != nil {
				t.Fatal(err)
			}
			got, err = Read(ctx, open(t, base+":record", false), Options{Platform: p})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pathsOf(t, got.Entries), []string{"bin/sh"}); diff != "" || got.From != Records {
				t.Errorf("from %s: %s", got.From, diff)
			}
			for from, reference := range map[Source]string{Records: base + ":image", Referrer: base + ":record", Layers: base + ":record"} {
				if _, err := Read(ctx, open(t, reference, false), Options{Platform: p, From: from}); !errors.Is(err, ErrNone) {
					t.Errorf("%s of %s: got %v", from, reference, err)
				}
			}
		})
	}
}

// The order is in TOCs beside the image, too; one that cannot be read is named.
func TestOrderOfLayers(t *testing.T) {
	t.Parallel()
	ctx, o := t.Context(), Options{Platform: oci.HostPlatform(), From: Layers}
	base := "local://" + t.TempDir()
	pushLayer(t, base+":external", estargz.Options{Format: estargz.EStargzExternal, Lossless: true}, func(*oci.Descriptor) {})
	got, err := Read(ctx, open(t, base+":external", false), o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pathsOf(t, got.Entries), []string{"bin/sh", "bin/ash", "etc/empty"}); diff != "" || got.Unreadable != nil {
		t.Errorf("%q: %s", got.Unreadable, diff)
	}
	pushLayer(t, base+":lying", estargz.Options{}, func(d *oci.Descriptor) { d.Annotations[estargz.AnnotationTOCDigest] = string(oci.DigestBytes(nil)) })
	if _, err := Read(ctx, open(t, base+":lying", false), o); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "TOC") {
		t.Errorf("got %v", err)
	}
}

// What others attach to an image costs no more than a line in the result.
func TestAttachedRecordsAreAdvice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := testkit.Registry(t, dir)
	base := server.Ref("team/app")
	image := pushImage(t, base+":image")
	writer := open(t, base, true)
	ctx, p := t.Context(), oci.HostPlatform()
	for _, raw := range []string{`{"path":`, strings.Repeat("x", 1000)} {
		layer, err := writer.PutBlob(ctx, oci.MediaTypeLayer, testkit.Tar(testkit.File(record.FileName, raw)))
		if err != nil {
			t.Fatal(err)
		}
		config, err := writer.PutBlob(ctx, oci.MediaTypeConfig, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, ArtifactType: record.ArtifactType, Config: config, Layers: []oci.Descriptor{layer}, Subject: &image}
		if _, err := writer.PutManifest(ctx, oci.MediaTypeManifest, encode(t, m)); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Platform: p, From: Referrer}
	if _, err := Read(ctx, open(t, base+":image", false), o); !errors.Is(err, record.ErrFormat) {
		t.Errorf("only unreadable records: got %v", err)
	}
	if _, err := Attach(ctx, writer, entries(t, "bin/sh"), p, image); err != nil {
		t.Fatal(err)
	}
	got, err := Read(ctx, open(t, base+":image", false), o)
	if err != nil || got.Count != 1 || len(got.Unreadable) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Attached(ended, &inspect.Image{Descriptor: image, Repository: open(t, base, false)}, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A push that the registry refuses leaves no name behind.
func TestPushWithoutRights(t *testing.T) {
	t.Parallel()
	server := testkit.Registry(t, t.TempDir(), testkit.Status("/manifests/", http.StatusForbidden))
	_, err := Push(t.Context(), open(t, server.Ref("team/app")+":record", true), entries(t, "a"), oci.HostPlatform())
	if !errors.Is(err, registry.ErrUnauthorized) || !strings.Contains(err.Error(), "team/app") {
		t.Errorf("got %v", err)
	}
	server.Mend()
	if _, err := Read(t.Context(), open(t, server.Ref("team/app")+":record", false), Options{}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
