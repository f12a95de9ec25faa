//go:build linux

package bench_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray"

	"dray/internal/bench"
	"dray/internal/oci"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// Benchmarks of the other stages are beside their packages: inflate, layer (tar
// walk), apply (directories), erofs (index), mount.

func BenchmarkHash(b *testing.B) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	want := oci.DigestBytes(content)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.Copy(io.Discard, stream.NewVerifier(bytes.NewReader(content), "blob", want, int64(len(content)))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPull pulls an image of 4 layers and 64 MB from a layout into an empty
// store, in process.
func BenchmarkPull(b *testing.B) {
	images := b.TempDir()
	corpus, err := bench.BuildRecipe(b.Context(), images, "image", 4, 16<<20)
	if err != nil {
		b.Fatal(err)
	}
	for _, layout := range []string{"dir", "erofs"} {
		b.Run(layout, func(b *testing.B) {
			if layout == "erofs" {
				testkit.Need(b, testkit.Root())
			}
			b.SetBytes(corpus.Image("image").UncompressedBytes())
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				b.StartTimer()
				if err := pull(b.Context(), dir, layout, "local://"+filepath.Join(images, "image")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func pull(ctx context.Context, dir, layout, reference string) error {
	client, err := dray.New(ctx, dray.Options{Store: dir, Layout: dray.Layout(layout)})
	if err != nil {
		return err
	}
	if _, err := client.Pull(ctx, reference, dray.PullOptions{}); err != nil {
		return err
	}
	return client.Close()
}

// A whole bench of real programs: dray's service in both layouts, and containerd
// where it is installed.
func TestRealServers(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program and starts daemons")
	}
	testkit.Need(t, testkit.Root())
	bin := t.TempDir()
	guest, full := filepath.Join(bin, "dray-guest"), filepath.Join(bin, "dray")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "dray/cmd/dray-guest", "dray/cmd/dray")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	rivals := []*bench.Rival{rival(t, guest), rival(t, "dir@dray="+full+" --layout dir DRAY_PROGRESS=none")}
	for _, name := range []string{"containerd", "podman", "skopeo+umoci"} {
		if r, err := bench.ParseRival(t.Context(), name); err == nil {
			rivals = append(rivals, r)
		} else {
			t.Logf("%s is not measured: %v", name, err)
		}
	}
	network, err := bench.ParseNetwork("1gbit/2ms")
	if err != nil {
		t.Fatal(err)
	}
	c := corpus(t)
	report := measure(t, bench.Options{Corpus: c, Rivals: rivals, Networks: []bench.Network{network}, ProfileDir: t.TempDir()})
	for _, r := range report.Runs {
		if r.Error != "" || r.Cleanup != "" {
			t.Errorf("%s %s over %s: %s %s", r.Rival, r.Mode, r.Network, r.Error, r.Cleanup)
		}
		if r.Storage.Blocks < c.Image("generated").UncompressedBytes() || r.PeakRSS < 1<<20 || r.Mode == bench.Individual && r.FirstByteSeconds < r.Seconds {
			t.Errorf("%s %s: implausible figures %+v", r.Rival, r.Mode, r.Storage)
		}
		ours := r.Rival == "dray-guest" || r.Rival == "dir"
		if ours && r.Mode == bench.Individual {
			checkTimeline(t, &r)
		}
	}
	if len(report.Notes) > 0 {
		t.Logf("notes: %v", report.Notes)
	}
	if len(report.Profiles) != 1 || report.Profiles[0].Recording == nil || report.Profiles[0].Recording.Allocations < 1000 || report.Profiles[0].PeakRSS == 0 {
		t.Errorf("profiles: %+v", report.Profiles)
	}
}

// checkTimeline makes sure that all stages and both layers are there, in their order
// and within the time of the pull.
func checkTimeline(t *testing.T, r *bench.Run) {
	t.Helper()
	var names []string
	for _, s := range r.Timeline {
		names = append(names, s.Name)
		if s.Begin < 0 || s.End < s.Begin || s.End > r.Seconds {
			t.Errorf("%s: %+v, of %f s", r.Rival, s, r.Seconds)
		}
	}
	if diff := cmp.Diff([]string{"resolve", "layers", "sync", "mount", "answer", "layer", "layer"}, names); diff != "" {
		t.Errorf("%s: timeline: %s", r.Rival, diff)
	}
}
