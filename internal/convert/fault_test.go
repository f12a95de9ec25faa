package convert

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
	"dray/internal/repo"
	"dray/internal/stream"
	"dray/internal/testkit"
)

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

// A conversion that is interrupted, at any event, leaves no tag.
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
