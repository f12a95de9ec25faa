package main

import (
	"compress/gzip"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dray"
	"dray/internal/testkit"
)

// memoryMax is the guest of these tests: page cache counts, so the kernel has to
// reclaim it.
const memoryMax = 48 << 20

const (
	// promisedBytes bound what the service takes of any image. A zstd layer's window is
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
