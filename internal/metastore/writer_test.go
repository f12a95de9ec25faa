package metastore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/stream"
)

func digest(text string) oci.Digest { return oci.DigestBytes([]byte(text)) }

// write makes a work directory with one image of two blobs of the same layer.
func write(t *testing.T, out string, o metastore.WriterOptions) {
	t.Helper()
	w, err := metastore.Create(out, o)
	if err != nil {
		t.Fatal(err)
	}
	image := metastore.Image{ID: digest("config"), Manifest: digest("manifest"), Reference: "a/b:c", Config: []byte(`{"os":"<linux>"}`)}
	for _, blob := range []string{"gzip", "zstd", "gzip"} {
		dir, err := w.Layer(metastore.Layer{Decoder: metastore.Gzip, Blob: digest(blob), DiffID: oci.DiffID(digest("tar"))})
		if err != nil {
			t.Fatal(err)
		}
		if dir == nil {
			continue // is there
		}
		image.Layers = append(image.Layers, digest(blob))
		if err := errors.Join(os.WriteFile(filepath.Join(dir.Name(), "file"), []byte(blob), 0o600), dir.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if w.Image(image) || !w.Image(image) {
		t.Error("an image is there before it was entered, or not after it")
	}
	if err := errors.Join(w.Commit(), w.Abort()); err != nil {
		t.Fatal(err)
	}
}

func TestWriteAndOpen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		naming metastore.Naming
		want   []string
	}{
		{metastore.Numbers, []string{"0", "1"}},
		{metastore.Digests, []string{"sha256_" + digest("gzip").Hex(), "sha256_" + digest("zstd").Hex()}},
	} {
		parent := t.TempDir()
		out := filepath.Join(parent, "w")
		write(t, out, metastore.WriterOptions{Prefix: "/run/image/", Naming: tt.naming})
		w, err := metastore.Open(out, metastore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if w.Prefix != "/run/image" || len(w.Images) != 1 || string(w.Images[0].Config) != `{"os":"<linux>"}` {
			t.Errorf("got %+v", w.Document)
		}
		if found := w.ByDiffID(oci.DiffID(digest("tar"))); len(found) != 2 || w.ByDiffID(oci.DiffID(digest("other"))) != nil {
			t.Errorf("got %d layers by diff ID, want 2", len(found))
		}
		var names, content []string
		for _, blob := range w.Images[0].Layers {
			l := w.Layer(blob)
			names = append(names, l.Name)
			dir, err := w.OpenLayer(l)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(dir.Name(), "file"))
			if err := errors.Join(err, dir.Close()); err != nil {
				t.Fatal(err)
			}
			content = append(content, string(raw))
		}
		if diff := cmp.Diff(tt.want, names); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"gzip", "zstd"}, content); diff != "" {
			t.Error(diff)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) != 1 {
			t.Errorf("beside it: %v, %v", left, err)
		}
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	out := filepath.Join(parent, "w")
	staging := filepath.Join(parent, ".w.dray-export")
	if err := os.MkdirAll(filepath.Join(staging, "layers", "0"), 0o700); err != nil { // a killed writer's
		t.Fatal(err)
	}
	w, err := metastore.Create(out, metastore.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(staging, "layers", "0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a killed writer left is still there: %v", err)
	}
	if _, err := metastore.Create(out, metastore.WriterOptions{}); !errors.Is(err, metastore.ErrBusy) {
		t.Errorf("got %v for a second writer, want ErrBusy", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("left after Abort: %v, %v", left, err)
	}
	if err := os.Mkdir(out, 0o700); err != nil { // empty: taken
		t.Fatal(err)
	}
	write(t, out, metastore.WriterOptions{})
	if _, err := metastore.Create(out, metastore.WriterOptions{}); !errors.Is(err, metastore.ErrBusy) || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("got %v over what is there, want ErrBusy", err)
	}
	for _, o := range []metastore.WriterOptions{{Prefix: "relative"}, {Naming: "both"}} {
		if _, err := metastore.Create(filepath.Join(parent, "x"), o); !errors.Is(err, metastore.ErrOption) {
			t.Errorf("got %v for %+v, want ErrOption", err, o)
		}
	}
}

// A configuration that image-rs could not read back is found out before it is too late.
func TestCommitUnreadable(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	w, err := metastore.Create(filepath.Join(parent, "w"), metastore.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Image(metastore.Image{ID: digest("a"), Manifest: digest("b"), Reference: "c", Config: []byte(`{"os":"linux","os":"other"}`)})
	if err := w.Commit(); !errors.Is(err, metastore.ErrFormat) {
		t.Errorf("got %v, want ErrFormat", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOpenBadInput(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(dir string) error
		want error
	}{
		{"nothing", func(string) error { return nil }, metastore.ErrNotFound},
		{"directory", func(dir string) error { return os.Mkdir(filepath.Join(dir, "meta_store.json"), 0o700) }, metastore.ErrFormat},
		{"symbolic link", func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "meta_store.json")) }, metastore.ErrFormat},
		{"too large", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "meta_store.json"), make([]byte, 101), 0o600)
		}, stream.ErrTooLarge},
		{"FIFO", func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "meta_store.json"), 0o600) }, metastore.ErrFormat},
	} {
		dir := t.TempDir()
		if err := tt.make(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := metastore.Open(dir, metastore.Options{MaxBytes: 100}); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}
