package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// TestOddImagesBecomeTheirTrees unpacks every odd image layer by layer, as the
// engine does, stacks the layers with overlayfs and compares.
func TestOddImagesBecomeTheirTrees(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	for _, odd := range testkit.Odd() {
		if odd.Large {
			continue
		}
		t.Run(odd.Name, func(t *testing.T) {
			testkit.Need(t, odd.Needs...)
			dir := t.TempDir()
			lowers, err := unpackImage(t, odd, dir)
			switch odd.Verdict {
			case testkit.Good:
				if err != nil {
					t.Fatal(err)
				}
				if diff := testkit.Diff(odd.Tree(), mounted(t, dir, lowers)); diff != "" {
					t.Error(diff)
				}
			case testkit.Malformed:
				if err == nil || errors.Is(err, stream.ErrMismatch) || errors.Is(err, ocidir.ErrNotFound) {
					t.Errorf("want it refused as malformed, got %v", err)
				}
			case testkit.Mismatch:
				if !errors.Is(err, stream.ErrMismatch) {
					t.Errorf("want a mismatch, got %v", err)
				}
			case testkit.Missing:
				if !errors.Is(err, ocidir.ErrNotFound) {
					t.Errorf("want what is missing, got %v", err)
				}
			}
		})
	}
}

// unpackImage writes the image and makes a directory in dir of each layer. It
// returns their names, bottom first.
func unpackImage(t *testing.T, odd testkit.OddImage, dir string) ([]string, error) {
	t.Helper()
	l := testkit.LayoutAt(t, dir+"/layout")
	built := odd.Write(t, l, "odd")
	document, err := oci.DecodeDocument(built.Raw, "")
	if err != nil {
		return nil, err
	}
	layers, ids := document.Manifest.Layers, built.Image.RootFS.DiffIDs
	if len(layers) != len(ids) {
		return nil, fmt.Errorf("%d layers and %d diff IDs: %w", len(layers), len(ids), stream.ErrMismatch)
	}
	config, err := l.Blob(t.Context(), document.Manifest.Config, 0)
	if err != nil {
		return nil, err
	}
	_ = config.Close()
	var lowers []string
	for i, d := range layers {
		name := fmt.Sprintf("layer-%d", i)
		result, err := unpack(t.Context(), l, d, ids[i], filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if result.OpaqueRoot { // overlayfs does not look
			lowers = nil
		}
		lowers = append(lowers, name)
	}
	return lowers, nil
}

// mounted stacks directories of dir with overlayfs and lists what comes of it.
func mounted(t *testing.T, dir string, lowers []string) testkit.Nodes {
	t.Helper()
	lowers = append([]string{"empty", "bottom"}, lowers...) // overlayfs wants two
	const merged = "merged"
	for _, name := range []string{"empty", "bottom", merged} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(lowers)
	t.Chdir(dir) // for short options
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	}()
	return testkit.Tree(t, merged)
}

// unpack makes a directory of one layer, and verifies it.
func unpack(ctx context.Context, l *ocidir.Layout, d oci.Descriptor, id oci.DiffID, path string) (apply.Result, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return apply.Result{}, err
	}
	root, err := os.Open(path)
	if err != nil {
		return apply.Result{}, err
	}
	defer func() { _ = root.Close() }()
	blob, err := l.Blob(ctx, d, 0)
	if err != nil {
		return apply.Result{}, err
	}
	defer func() { _ = blob.Close() }()
	verified := stream.NewVerifier(blob, "blob", d.Digest, d.Size)
	plain, err := layer.Decompress(verified, layer.Options{})
	if err != nil {
		return apply.Result{}, err
	}
	defer func() { _ = plain.Close() }()
	tar := layer.NewTar(stream.NewBlockVerifier(stream.NewSlicer(plain, 64<<10), "layer", id.Digest(), stream.AnySize), layer.Limits{})
	result, err := apply.Apply(ctx, root, tar, apply.Options{})
	if err != nil {
		return apply.Result{}, err
	}
	if _, err := tar.Drain(); err != nil {
		return apply.Result{}, err
	}
	_, err = io.Copy(io.Discard, verified)
	return result, err
}
