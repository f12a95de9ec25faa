//go:build linux

package bench_test

import (
	"errors"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/bench"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
	"dray/internal/registryd"
)

// serveCorpus serves a generated image, "generated", as a registry of its own.
func serveCorpus(t *testing.T) (corpus *bench.Corpus, server *httptest.Server) {
	t.Helper()
	dir := t.TempDir()
	corpus, err := bench.BuildRecipe(t.Context(), dir, "generated", 2, 256<<10)
	if err != nil {
		t.Fatal(err)
	}
	backend, err := registryd.New(registryd.Options{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	server = httptest.NewServer(backend)
	t.Cleanup(func() {
		server.Close()
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	return corpus, server
}

func fetch(t *testing.T, dir string, references ...string) ([]string, error) {
	t.Helper()
	client, err := registry.NewClient(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	return bench.FetchImages(t.Context(), bench.FetchOptions{Dir: dir, References: references, Registry: client, Say: t.Logf})
}

func TestImagesAreFetchedOnce(t *testing.T) {
	built, server := serveCorpus(t)
	dir := t.TempDir()
	reference := server.URL + "/generated:latest"
	names, err := fetch(t, dir, reference, server.URL+"/missing:v1")
	if err == nil || !strings.Contains(err.Error(), "missing:v1") {
		t.Errorf("an image that is not there: %v", err)
	}
	if diff := cmp.Diff([]string{"generated"}, names); diff != "" {
		t.Fatal(diff)
	}
	fetched, err := bench.OpenCorpus(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, got := built.Image("generated"), fetched.Image("generated")
	if diff := cmp.Diff(want.Layers, got.Layers); diff != "" || got.Manifest != want.Manifest {
		t.Errorf("what was fetched is not what was built: %s", diff)
	}
	// from where it was fetched, from a registry that is named, and not from nowhere
	for _, from := range []string{bench.OriginRegistry, server.URL} {
		report := measure(t, bench.Options{Corpus: fetched, Rivals: []*bench.Rival{rival(t, "floor")}, Modes: []string{bench.Individual}, Registry: from})
		if r := report.Runs[0]; r.Error != "" || r.NetworkRequests != 0 || len(report.Notes) == 0 {
			t.Errorf("%s: %q, %d requests, notes %v", from, r.Error, r.NetworkRequests, report.Notes)
		}
	}
	report := measure(t, bench.Options{Corpus: built, Rivals: []*bench.Rival{rival(t, "floor")}, Modes: []string{bench.Individual}, Registry: bench.OriginRegistry})
	if !strings.Contains(report.Runs[0].Error, bench.ErrNoOrigin.Error()) {
		t.Errorf("a built image's origin: %q", report.Runs[0].Error)
	}
	server.Close()
	if names, err := fetch(t, dir, reference); err != nil || len(names) != 1 {
		t.Errorf("fetched again: %v, %v", names, err)
	}
}

// The image that the registry does not have any more fails, the others do not.
func TestImageMissingFromTheRegistry(t *testing.T) {
	_, server := serveCorpus(t)
	c, err := bench.BuildRecipe(t.Context(), t.TempDir(), "other", 1, 256<<10)
	if err != nil {
		t.Fatal(err)
	}
	report := measure(t, bench.Options{
		Corpus: c, Rivals: []*bench.Rival{rival(t, "floor")}, Modes: []string{bench.Individual}, Registry: server.URL, Missing: errors.New("image x: not found"),
	})
	if !strings.Contains(report.Runs[0].Error, "404") || !report.Failed() || !strings.Contains(strings.Join(report.Notes, "\n"), "image x: not found") {
		t.Errorf("%q, notes %v", report.Runs[0].Error, report.Notes)
	}
}

func TestKnownImagesAreReferences(t *testing.T) {
	t.Parallel()
	if _, err := fetch(t, filepath.Join(t.TempDir(), "c"), "NO reference"); !errors.Is(err, bench.ErrNoImages) {
		t.Errorf("a reference that is none was taken: %v", err)
	}
	if n := len(bench.KnownImages()); n != 7 {
		t.Errorf("%d images, document 000 has 7", n)
	}
}

// The images of Contrast's evaluation from a mirror of their registries; they keep names
// of their own beside the images that are built.
func TestKnownImagesFromAMirror(t *testing.T) {
	dir := t.TempDir()
	for n, reference := range bench.KnownImages() {
		ref, err := oci.ParseReference(reference)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bench.BuildRecipe(t.Context(), dir, ref.Repository, n%3+1, 64<<10); err != nil {
			t.Fatal(err)
		}
		retag(t, filepath.Join(dir, ref.Repository), ref.Tag)
	}
	backend, err := registryd.New(registryd.Options{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(backend)
	t.Cleanup(func() {
		server.Close()
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := registry.NewClient(registry.Options{Hosts: []registry.Host{{Match: ".", Mirrors: []registry.Mirror{{URL: server.URL}}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	fetched := t.TempDir()
	names, err := bench.FetchImages(t.Context(), bench.FetchOptions{Dir: fetched, References: bench.KnownImages(), Registry: client, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"dmesg-v0.0.1", "coordinator", "library-busybox", "nginx-unprivileged", "prom-prometheus", "initializer", "tensorflow-latest-gpu"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	c, err := bench.OpenCorpus(fetched)
	if err != nil {
		t.Fatal(err)
	}
	report := measure(t, bench.Options{Corpus: c, Images: names, Rivals: []*bench.Rival{rival(t, "floor")}, Modes: []string{bench.Continuous}})
	if len(report.Runs) != 1 || report.Failed() {
		t.Errorf("%d runs, failed %v", len(report.Runs), report.Failed())
	}
}

// retag gives the layout's image another tag.
func retag(t *testing.T, dir, tag string) {
	t.Helper()
	layout, err := ocidir.Create(t.Context(), dir) // opens what is there
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := layout.Resolve(t.Context(), oci.DefaultTag, "")
	if err == nil {
		err = layout.Tag(t.Context(), d, tag)
	}
	if err := errors.Join(err, layout.Close()); err != nil {
		t.Fatal(err)
	}
}
