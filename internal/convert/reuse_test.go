package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/testkit"
)

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
	order := func(context.Context, oci.Descriptor) (*record.List, error) { return entries("data/big"), nil }
	some := place(t, t.TempDir(), "some", true)
	if got := hows(mustRun(t, place(t, seekable, "esgz", false), some, Options{Reuse: true, Order: order})); !slices.Equal(got, []How{Reused, Reused, Converted}) {
		t.Errorf("with a record: %v", got)
	}
	checkLayers(t, some, load(t, some, ""), estargz.EStargz, nil)
	if got := hows(mustRun(t, place(t, seekable, "esgz", false), place(t, t.TempDir(), "z", true), Options{Reuse: true, Form: Form{Format: estargz.ZstdChunked}})); slices.Contains(got, Reused) {
		t.Errorf("in another format: %v", got)
	}
	lie(t, seekable, "esgz", "lying")
	lying := mustRun(t, place(t, seekable, "lying", false), place(t, t.TempDir(), "l", true), Options{Reuse: true, Order: order})
	if got := hows(lying); !slices.Equal(got, []How{Converted, Reused, Converted}) {
		t.Errorf("with a TOC that is another: %v", got)
	}
	if got := strings.Join(lying.Notes, "; "); len(lying.Notes) != 2 || !strings.Contains(got, "cannot be reused") || !strings.Contains(got, "read whole") {
		t.Errorf("with a TOC that is another: notes %q", lying.Notes)
	}
	if got := hows(mustRun(t, place(t, seekable, "esgz", false), nil, Options{Reuse: true, DryRun: true})); !slices.Equal(got, []How{Reused, Reused, Reused}) {
		t.Errorf("dry run: %v", got)
	}
}

// lie tags an image again whose manifest names another TOC in its lowest layer.
func lie(t *testing.T, dir, from, to string) {
	t.Helper()
	m := *load(t, place(t, dir, from, false), "").manifest
	m.Layers = slices.Clone(m.Layers)
	m.Layers[0].Annotations = map[string]string{estargz.AnnotationTOCDigest: string(oci.DigestBytes(nil))}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	r := place(t, dir, to, true)
	d, err := r.PutManifest(t.Context(), oci.MediaTypeManifest, raw)
	if err == nil {
		err = r.Tag(t.Context(), d)
	}
	if err != nil {
		t.Fatal(err)
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
