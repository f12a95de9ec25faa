package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/testkit"
)

// contents is an image: its layers, bottom first, and the tree they become.
type contents struct {
	layers [][]testkit.Entry
	tree   testkit.Nodes
}

func newContents(layers ...[]testkit.Entry) contents {
	return contents{layers, testkit.Expect(layers...)}
}

// kinds has a few files of every kind in three layers; in a nightly run there are
// more layers and more files.
func kinds() contents {
	base := []testkit.Entry{
		testkit.Dir("."), testkit.Dir("bin"), testkit.Text("bin/tool", 300_000, 1).Chmod(0o4755).Setxattr("security.capability", testkit.Capability(1<<13)),
		testkit.Hardlink("bin/again", "bin/tool"), testkit.Symlink("bin/sh", "tool"),
		testkit.Dir("etc"), testkit.File("etc/hostname", "faults\n"), testkit.File("etc/old", "old").Chown(7, 8), testkit.Dir("etc/gone"), testkit.File("etc/gone/f", "x"),
		testkit.Dir("dev"), testkit.Char("dev/null", 1, 3), testkit.Fifo("dev/pipe"),
	}
	middle := []testkit.Entry{
		testkit.Dir("."), testkit.Dir("etc").Chmod(0o750), testkit.Whiteout("etc/old"), testkit.Dir("etc/gone"), testkit.Opaque("etc/gone"), testkit.File("etc/gone/new", "n").At(testkit.Epoch, 5),
		testkit.SparseFile("sparse", testkit.SparsePAX10, 1<<20, testkit.Extent{Offset: 65536, Size: 512}, testkit.Extent{Offset: 1 << 20}),
	}
	top := []testkit.Entry{testkit.Dir("."), testkit.Random("random", 200_000, 3), testkit.File("empty", ""), testkit.File("caf\xe9", "x").Setxattr("trusted.x", "1")}
	layers := [][]testkit.Entry{base, middle, top}
	if nightly() {
		layers = append(layers, testkit.Files("usr", 250), testkit.Files("opt", 50), base, []testkit.Entry{testkit.Text("big", 20<<20, 9)})
	}
	return newContents(layers...)
}

// other shares a layer with [kinds].
func other() contents {
	return newContents(kinds().layers[0], []testkit.Entry{testkit.Dir("."), testkit.Dir("other"), testkit.Text("other/file", 50_000, 4)})
}

// many has more layers than are stacked one by one, and what they do to each other.
func many() contents {
	const layers = 33
	made := make([][]testkit.Entry, layers)
	for i := range made {
		made[i] = []testkit.Entry{
			testkit.Dir("."), testkit.Dir("d").Chmod(uint32(0o700 + i)), testkit.Text(fmt.Sprintf("d/%d", i), 3000, uint64(i)), testkit.File("top", fmt.Sprint(i)),
			testkit.Dir(fmt.Sprintf("own/%d", i)), testkit.Hardlink(fmt.Sprintf("own/%d/link", i), "top"),
		}
		if i%5 == 4 {
			made[i] = append(made[i], testkit.Whiteout(fmt.Sprintf("d/%d", i-2)), testkit.Dir(fmt.Sprintf("own/%d", i-3)), testkit.Opaque(fmt.Sprintf("own/%d", i-3)))
		}
	}
	return newContents(made...)
}

// write stores the image, its layers compressed by turns in every form from first
// on: the same layer has other digests and the same diff ID in another image.
func (c contents) write(tb testing.TB, l *ocidir.Layout, tag string, first int) {
	tb.Helper()
	b := testkit.Image(tb).Config(func(i *oci.Image) { i.Config.Cmd = []string{"/bin/tool"} })
	for i, entries := range c.layers {
		b.Layer(entries...)
		switch (first + i) % 4 {
		case 0:
			b.Gzip()
		case 1:
			b.Zstd()
		case 2:
			b.Plain()
		case 3:
			b.MultiMember(64 << 10)
		}
	}
	b.Write(l, tag)
}

// writeSeekable stores an image of one layer as zstd:chunked, and returns its digest.
func (c contents) writeSeekable(tb testing.TB, l *ocidir.Layout, tag string) oci.Digest {
	tb.Helper()
	tar := testkit.Tar(c.layers[0]...)
	var blob bytes.Buffer
	result, err := estargz.Write(tb.Context(), &blob, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(tar)), nil
	}, estargz.Options{Format: estargz.ZstdChunked, Lossless: true})
	if err != nil {
		tb.Fatal(err)
	}
	testkit.Image(tb).Blob(result.MediaType, blob.Bytes()).
		Config(func(i *oci.Image) { i.Config.Cmd, i.RootFS.DiffIDs[0] = []string{"/bin/tool"}, result.DiffID }).
		Manifest(func(m *oci.Manifest) { m.Layers[0].Annotations = result.Annotations }).Write(l, tag)
	return result.Digest
}

// differs compares what is mounted at dir with the image.
func (c contents) differs(tb testing.TB, dir string) string {
	tb.Helper()
	return strings.TrimSpace(testkit.Diff(c.tree, testkit.Tree(tb, dir)))
}
