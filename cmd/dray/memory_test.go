package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dray"
	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/testkit"
)

// memoryMax is the guest of these tests: page cache counts, so the kernel has to
// reclaim it.
const memoryMax = 48 << 20

const (
	// promisedBytes bound what a pull takes of any image. A zstd layer's window is
	// not in the formula's total, which is less on one processor.
	promisedBytes = 24_000_000

	// lateBytes is how much of the program a crowded machine may map in between two
	// looks at what is in memory. Only with a zstd layer's window is so little left.
	lateBytes = 900 << 10
)

// What a pull takes of memory does not depend on the image: neither on the size of
// a layer nor on the number of layers.
func TestMemoryOfPulls(t *testing.T) { //nolint:paralleltest // measures
	if testing.Short() || testkit.Race {
		t.Skip("pulls 2 GB; scripts/test runs it by itself")
	}
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.MemoryCgroup())
	have := build(t)
	formula := explained(t, have.guest)
	for name, image := range map[string]func() *testkit.Builder{ //nolint:paralleltest // measures
		"one layer of 2 GB": func() *testkit.Builder {
			return testkit.Image(t).Layer(testkit.Text("half", 1<<30, 1), testkit.Zeros("zeros", 1<<30)).GzipLevel(gzip.BestSpeed)
		},
		"100 layers": func() *testkit.Builder { return testkit.Big(t, 100, 1<<20, testkit.Random) },
		"a million files in two layers": func() *testkit.Builder {
			return testkit.Image(t).LayerOf(testkit.FileSeq("files", 500_000)).LayerOf(testkit.FileSeq("others", 500_000)).GzipLevel(gzip.BestSpeed)
		},
		"six zstd layers of 8 MiB windows": func() *testkit.Builder {
			b := testkit.Image(t)
			for i := range 6 {
				b = b.Layer(testkit.Text("file"+strconv.Itoa(i), 100<<20, uint64(i))).ZstdWindow(8 << 20)
			}
			return b
		},
		"a zstd layer of 8 MiB windows beside 500,000 files": func() *testkit.Builder {
			return testkit.Image(t).LayerOf(testkit.FileSeq("files", 500_000)).GzipLevel(gzip.BestSpeed).Layer(testkit.Text("file", 400<<20, 1)).ZstdWindow(8 << 20)
		},
		"500,000 files in a zstd layer of 8 MiB windows": func() *testkit.Builder {
			return testkit.Image(t).LayerOf(testkit.FileSeq("files", 500_000)).ZstdWindow(8 << 20)
		},
		"100,000 files": func() *testkit.Builder {
			return testkit.Image(t).LayerOf(testkit.FileSeq("files", 100_000)).GzipLevel(gzip.BestSpeed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			layouts := t.TempDir()
			image().Write(testkit.LayoutAt(t, filepath.Join(layouts, "image")), "v1")
			registry := testkit.Registry(t, layouts)
			group := testkit.Cgroup(t, memoryMax)
			dir := t.TempDir()
			// the shell of Command is replaced by the service, so its process is the service's
			s := serveWith(t, dir, "/bin/sh", append([]string{"-c"}, group.Command(have.guest, "serve", "--listen", filepath.Join(dir, "socket")).Args[2:]...)...)
			bundle := s.bundle(t, "b")
			if got := ask(t, have.hub, s.path("socket"), registry.Ref("image:v1"), bundle); !strings.HasPrefix(got, "sha256:") {
				t.Errorf("got %q: %s", got, s.stderr)
			}
			held := peakMemory(t, s.cmd.Process.Pid)
			t.Logf("held %d bytes, formula %d, cgroup's peak %d, limit hit %d times", held, formula.TotalBytes, group.Peak(), group.Failures())
			most := formula.TotalBytes
			if strings.Contains(name, "zstd") {
				most = max(most, promisedBytes) + lateBytes
			}
			if held > most {
				t.Errorf("the service held %d bytes, at most it should be %d", held, most)
			}
			if kills := group.OOMKills(); kills > 0 {
				t.Errorf("killed %d times for want of memory", kills)
			}
			s.stop(t)
		})
	}
}

// Nor does the command take more than the service, in either layout: its start-up is no part
// of what it holds while it pulls.
func TestMemoryOfTheCommand(t *testing.T) { //nolint:paralleltest // measures
	if testing.Short() || testkit.Race {
		t.Skip("scripts/test runs it by itself")
	}
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	program := stripped(t)
	layouts := t.TempDir()
	b := testkit.Image(t)
	for i := range 22 {
		b = b.LayerOf(testkit.FileSeq("files"+strconv.Itoa(i), 5000))
	}
	b.GzipLevel(gzip.BestSpeed).Write(testkit.LayoutAt(t, filepath.Join(layouts, "image")), "v1")
	registry := testkit.Registry(t, layouts)
	for _, layout := range []string{"dir", "erofs"} { //nolint:paralleltest // measures
		t.Run(layout, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), program, "pull", "--json", "--plain-http", "--rootless", "never",
				"--storepath", t.TempDir(), "--layout", layout, registry.Ref("image:v1")).Output()
			if err != nil {
				t.Fatal(err)
			}
			var evidence dray.Evidence
			if err := json.Unmarshal(out, &evidence); err != nil {
				t.Fatal(err)
			}
			t.Logf("held %d bytes", evidence.PeakBytes)
			if evidence.PeakBytes == 0 || evidence.PeakBytes > promisedBytes {
				t.Errorf("the command held %d bytes, at most it should be %d", evidence.PeakBytes, promisedBytes)
			}
		})
	}
}

// Nor does a pull that takes files from the store take more.
func TestMemoryOfReuse(t *testing.T) { //nolint:paralleltest // measures
	if testing.Short() || testkit.Race {
		t.Skip("pulls 1 GB; scripts/test runs it by itself")
	}
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.MemoryCgroup())
	have := build(t)
	program := stripped(t)
	formula := explained(t, program)
	for _, format := range []estargz.Format{estargz.EStargz, estargz.ZstdChunked} { //nolint:paralleltest // measures
		layouts := t.TempDir()
		l := testkit.LayoutAt(t, filepath.Join(layouts, "image"))
		seekable(t, l, "v1", format, 1)
		blob := seekable(t, l, "v2", format, 2)
		for _, mode := range []string{dray.ReuseAuto, dray.ReuseAlways} { //nolint:paralleltest // measures
			t.Run(format.String()+"/"+mode, func(t *testing.T) {
				registry := testkit.Registry(t, layouts)
				group := testkit.Cgroup(t, memoryMax)
				dir := t.TempDir()
				s := serveWith(t, dir, "/bin/sh", append([]string{"-c"}, group.Command(program, "serve", "--reuse-files", mode, "--listen", filepath.Join(dir, "socket")).Args[2:]...)...)
				for _, tag := range []string{"v1", "v2"} {
					if got := ask(t, have.hub, s.path("socket"), registry.Ref("image:"+tag), s.bundle(t, tag)); !strings.HasPrefix(got, "sha256:") {
						t.Errorf("got %q: %s", got, s.stderr)
					}
					if mode == dray.ReuseAuto {
						registry.Add(testkit.Slow("/blobs/"+string(blob.Digest), 64<<10, 5*time.Millisecond)) // or it has no reason
					}
				}
				if n, sent := registry.Count("/blobs/" + string(blob.Digest)); sent > blob.Size*2/3 {
					t.Errorf("little was reused: %d of %d bytes were sent, in %d requests", sent, blob.Size, n)
				}
				held := peakMemory(t, s.cmd.Process.Pid)
				t.Logf("held %d bytes, formula %d, cgroup's peak %d", held, formula.TotalBytes, group.Peak())
				if most := int64(promisedBytes + lateBytes); held > most {
					t.Errorf("the service held %d bytes, at most it should be %d", held, most)
				}
				s.stop(t)
			})
		}
	}
}

// seekable writes an image of one layer of 250 MB in 100,200 files, of which one in ten
// of the large ones is of that version, and returns the layer.
func seekable(t *testing.T, l *ocidir.Layout, tag string, format estargz.Format, version uint64) oci.Descriptor {
	t.Helper()
	var entries []testkit.Entry
	for i := range uint64(200) {
		seed := i
		if i%10 == 0 {
			seed += version << 32
		}
		entries = append(entries, testkit.Text(fmt.Sprint("large/", i), 1<<20, seed))
	}
	entries = slices.AppendSeq(entries, testkit.FileSeq("files", 100_000))
	tar := testkit.Tar(entries...)
	var blob bytes.Buffer
	result, err := estargz.Write(t.Context(), &blob, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(tar)), nil
	}, estargz.Options{Format: format, Level: 1, ChunkSize: 900_000})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Image(t).Blob(result.MediaType, blob.Bytes()).
		Config(func(i *oci.Image) { i.RootFS.DiffIDs[0] = result.DiffID }).
		Manifest(func(m *oci.Manifest) { m.Layers[0].Annotations = result.Annotations }).Write(l, tag)
	return oci.Descriptor{Digest: result.Digest, Size: result.Size}
}

// stripped builds the program without symbols and returns its path. The Makefile leaves more
// out, so that what is installed takes less.
func stripped(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "dray")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

func explained(t *testing.T, program string) dray.Formula {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, "--json", "--storepath", t.TempDir(), "pull", "--explain").Output()
	if err != nil {
		t.Fatal(err)
	}
	var formula dray.Formula
	if err := json.Unmarshal(out, &formula); err != nil {
		t.Fatal(err)
	}
	return formula
}

// peakMemory returns the most bytes that a process had in memory, program text
// included: the high-water mark of its resident set.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
