package ocidir_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha512"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
	"dray/internal/testkit"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLayout(t *testing.T) *ocidir.Layout {
	t.Helper()
	l, err := ocidir.Create(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

// putImage stores an image of one uncompressed layer.
func putImage(t *testing.T, l *ocidir.Layout, tag, layer string) (oci.Descriptor, []byte) {
	t.Helper()
	put := func(content string) oci.Descriptor {
		d, err := l.PutBlob(t.Context(), oci.Descriptor{Size: stream.AnySize}, strings.NewReader(content))
		must(t, err)
		return d
	}
	blob := put(layer)
	config := put(fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, blob.Digest))
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		oci.MediaTypeManifest, oci.MediaTypeConfig, config.Digest, config.Size, oci.MediaTypeLayer, blob.Digest, blob.Size)
	d, err := l.PutManifest(t.Context(), tag, oci.MediaTypeManifest, raw)
	must(t, err)
	return d, raw
}

// listed returns name and digest of what index.json lists, sorted.
func listed(t *testing.T, l *ocidir.Layout) []string {
	t.Helper()
	descriptors, err := l.Descriptors(t.Context())
	must(t, err)
	var lines []string
	for _, d := range descriptors {
		lines = append(lines, d.Annotations[ocidir.AnnotationRefName]+" "+d.Digest.Hex()[:6])
	}
	slices.Sort(lines)
	return lines
}

// tarOf makes a tar; a header's Linkname is the content of its file.
func tarOf(t *testing.T, entries []tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		content := h.Linkname
		if h.Typeflag == 0 {
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeReg, "", int64(len(content)), 0o644
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(content))
			must(t, err)
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

func fileNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func sha512Of(s string) oci.Digest {
	return oci.Digest(fmt.Sprintf("sha512:%x", sha512.Sum512([]byte(s))))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func FuzzArchive(f *testing.F) {
	f.Add([]byte("\x1f\x8b"))
	f.Add(bytes.Repeat([]byte{0}, 1024))
	var whole bytes.Buffer
	l := testkit.Layout(f)
	testkit.Image(f).Layer(testkit.File("a", "x")).Write(l, "v1")
	if err := l.WriteArchive(f.Context(), &whole); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := t.TempDir() + "/a.tar"
		must(t, os.WriteFile(path, raw, 0o600))
		l, err := ocidir.Open(t.Context(), path, oci.OCIArchive)
		if err != nil {
			return
		}
		defer func() { _ = l.Close() }()
		if _, raw, err := l.Resolve(t.Context(), "", ""); err == nil && len(raw) > ocidir.MaxManifestBytes {
			t.Errorf("a manifest of %d bytes", len(raw))
		}
	})
}
