package testkit_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dray/internal/oci"
	"dray/internal/stream"
	"dray/internal/testkit"
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, args, err, out)
	}
}

// TestModelAgreesWithGNUTar: what the kit writes, GNU tar reads as the model says.
func TestModelAgreesWithGNUTar(t *testing.T) {
	testkit.Need(t, testkit.Root(), testkit.Tool("tar"))
	differs := map[string]string{
		"hostile-dot-dot":                "refused",
		"hostile-dot-dot-within":         "refused",
		"hostile-below-absolute-symlink": "links are made last",
		"hostile-below-escaping-symlink": "links are made last",
		"capabilities":                   "set before the owner",
		"acls":                           "not as attributes",
		"duplicate-types":                "a symbolic link does not replace a directory",
		"duplicates":                     "adds attributes up",
		"pax-twice":                      "the first header counts too",
		"overlay-xattrs":                 "kept",
		"absolute-names":                 "links are absolute",
		"size-on-a-directory":            "skips a body",
		"hard-link-to-itself":            "unlinks first",
		"names-with-dots":                "times of directories",
		"whiteout-in-first-layer":        "not deletions",
		"empty-pax-value":                "sets it",
	}
	for _, odd := range testkit.Odd() {
		if odd.Verdict != testkit.Good || len(odd.Layers) != 1 || strings.HasPrefix(odd.Name, "form-") || differs[odd.Name] != "" {
			continue
		}
		t.Run(odd.Name, func(t *testing.T) {
			testkit.Need(t, odd.Needs...)
			dir := t.TempDir()
			archive := filepath.Join(dir, "layer.tar")
			if err := os.WriteFile(archive, testkit.Tar(odd.Layers[0]...), 0o600); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(dir, "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			run(t, "tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--no-selinux", "-f", archive, "-C", root)
			if diff := testkit.Diff(odd.Tree(), testkit.Tree(t, root)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestImagesAreDeterministic: the same calls give the same digest.
func TestImagesAreDeterministic(t *testing.T) {
	t.Parallel()
	build := func() oci.Digest {
		return testkit.Image(t).
			Layer(testkit.Dir("d"), testkit.Text("d/text", 100_000, 1), testkit.Random("d/random", 10_000, 2)).MultiMember(5000).
			Layer(testkit.File("f", "x").Setxattr("user.x", "1")).Zstd().
			Layer(testkit.Files("many", 100)...).Plain().
			Config(func(c *oci.Image) { c.Config.Cmd = []string{"/bin/sh"} }).
			Write(testkit.Layout(t), "v1").Manifest.Digest
	}
	if a, b := build(), build(); a != b {
		t.Errorf("%s and %s", a, b)
	}
}

// TestOddImagesAreWritten: every odd image can be made, and its manifest read.
func TestOddImagesAreWritten(t *testing.T) {
	t.Parallel()
	l := testkit.Layout(t)
	seen := map[string]bool{}
	for _, odd := range testkit.Odd() {
		if seen[odd.Name] {
			t.Errorf("two images are called %s", odd.Name)
		}
		seen[odd.Name] = true
		if odd.Large && odd.Name != "layers-108" {
			continue
		}
		built := odd.Write(t, l, odd.Name)
		if _, _, err := l.Resolve(t.Context(), odd.Name, ""); err != nil {
			t.Errorf("%s: %v", odd.Name, err)
		}
		if len(built.Layers) != len(odd.Layers) {
			t.Errorf("%s has %d layers, want %d", odd.Name, len(built.Layers), len(odd.Layers))
		}
		if tree := odd.Tree(); (tree == nil) != (odd.Verdict != testkit.Good) {
			t.Errorf("%s: tree %v and verdict %v", odd.Name, tree, odd.Verdict)
		}
	}
}

// TestModelAgreesWithUmoci: stacks of layers, deletions above all.
func TestModelAgreesWithUmoci(t *testing.T) {
	testkit.Need(t, testkit.Root(), testkit.Tool("umoci"))
	differs := map[string]string{
		"entry-then-whiteout":               "the whiteout wins",
		"directory-then-whiteout":           "the whiteout wins",
		"opaque-last":                       "the whiteout wins",
		"whiteout-as-hard-link-to-whiteout": "its target is looked for",
		"aufs-bookkeeping":                  "taken for whiteouts",
		"directory-attributes-change":       "the root's attributes",
	}
	for _, odd := range testkit.Odd() {
		if odd.Verdict != testkit.Good || len(odd.Layers) < 2 || odd.Large || differs[odd.Name] != "" {
			continue
		}
		t.Run(odd.Name, func(t *testing.T) {
			testkit.Need(t, odd.Needs...)
			dir := t.TempDir()
			odd.Write(t, testkit.LayoutAt(t, dir+"/layout"), "odd")
			run(t, "umoci", "unpack", "--image", dir+"/layout:odd", dir+"/bundle")
			if diff := testkit.Diff(odd.Tree(), testkit.Tree(t, dir+"/bundle/rootfs")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDockerTypesAndBlobs(t *testing.T) {
	t.Parallel()
	l := testkit.Layout(t)
	built := testkit.Image(t).Docker().Layer(testkit.File("a", "x")).Blob("application/garbage", []byte("garbage")).Write(l, "v1")
	got := []string{built.Manifest.MediaType, built.Layers[0].MediaType, built.Layers[1].MediaType}
	if want := []string{oci.MediaTypeDockerManifest, oci.MediaTypeDockerLayerGz, "application/garbage"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	r, err := l.Blob(t.Context(), built.Layers[1], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if raw, err := stream.ReadAll(r, 100); err != nil || !bytes.Equal(raw, []byte("garbage")) {
		t.Errorf("blob: %q, %v", raw, err)
	}
}

func TestIndexes(t *testing.T) {
	t.Parallel()
	l := testkit.Layout(t)
	image := testkit.Image(t).Layer(testkit.File("a", "x")).Write(l, "")
	testkit.Index(t, l, "multi", image.Manifest, testkit.Attestation(t, l, image.Manifest))
	testkit.Artifact(t, l, "", "application/vnd.example", &image.Manifest, "content")
	tags, err := l.Tags(t.Context())
	if err != nil || strings.Join(tags, " ") != "multi" {
		t.Errorf("tags: %q, %v", tags, err)
	}
	if _, _, err := l.Resolve(t.Context(), "", image.Manifest.Digest); err != nil {
		t.Error(err)
	}
	if descriptors, err := l.Descriptors(t.Context()); err != nil || len(descriptors) != 2 {
		t.Errorf("index.json lists %d, %v", len(descriptors), err)
	}
}
