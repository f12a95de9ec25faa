package dray_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"dray"
	"dray/internal/testkit"
)

// BenchmarkSeed is what docs/bench.md says of seeds: an image of 6 layers and 250 MB,
// pulled and mounted. "hash" is the floor of what is not trusted, "pull" what "make"
// is compared with.
//
//	go test -run '^$' -bench '^BenchmarkSeed$' .
func BenchmarkSeed(b *testing.B) {
	const layers, filesPerLayer, fileBytes = 6, 200, 210 << 10
	dir := b.TempDir()
	image := testkit.Image(b)
	for l := range layers {
		var entries []testkit.Entry
		for f := range filesPerLayer {
			entries = append(entries, testkit.Text(strconv.Itoa(l)+"/"+strconv.Itoa(f), fileBytes, uint64(l*filesPerLayer+f)))
		}
		image = image.Layer(entries...)
	}
	built := image.Write(testkit.LayoutAt(b, filepath.Join(dir, "app")), "v1")
	server := testkit.Registry(b, dir)
	reference := server.Ref("app@" + string(built.Manifest.Digest))
	path := filepath.Join(b.TempDir(), "seed")
	client := openBench(b, dray.Options{})
	if _, err := client.WriteSeed(b.Context(), []string{reference}, path, dray.SeedOptions{}); err != nil {
		b.Fatal(err)
	}
	tars, err := filepath.Glob(filepath.Join(path, "layers", "sha256", "*", "layer.tar"))
	if err != nil || len(tars) != layers {
		b.Fatal(tars, err)
	}
	b.Run("hash", func(b *testing.B) {
		for b.Loop() {
			var group errgroup.Group
			for _, tar := range tars {
				group.Go(func() error { return hashFile(tar) })
			}
			if err := group.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	})
	const after = dray.SyncAfter // as the commands that mount have it
	file := path + ".erofs"
	if _, err := openBench(b, dray.Options{TrustedSeeds: []string{path}}).WriteSeed(b.Context(), []string{reference}, file, dray.SeedOptions{Offline: true}); err != nil {
		b.Fatal(err)
	}
	for _, run := range []struct {
		name    string
		options dray.Options
	}{
		{"held", dray.Options{Seeds: []string{path}, Sync: after}},
		{"held x.erofs", dray.Options{Seeds: []string{file}, Sync: after}},
		{"trusted", dray.Options{TrustedSeeds: []string{path}, Sync: after}},
		{"trusted x.erofs", dray.Options{TrustedSeeds: []string{file}, Sync: after}},
		{"copied", dray.Options{Seeds: []string{path}, ForeignDisks: true, Sync: after}},
	} {
		b.Run(run.name, func(b *testing.B) { benchMount(b, run.options, reference, false) })
	}
	b.Run("again", func(b *testing.B) { benchMount(b, dray.Options{Seeds: []string{path}, Sync: after}, reference, true) })
	b.Run("pull", func(b *testing.B) {
		var used time.Duration
		for b.Loop() {
			b.StopTimer()
			client := openBench(b, dray.Options{Seeds: []string{}, Sync: dray.SyncBefore})
			before := cpuTime(b)
			b.StartTimer()
			if _, err := client.Pull(b.Context(), reference, dray.PullOptions{}); err != nil {
				b.Fatal(err)
			}
			used += cpuTime(b) - before
		}
		b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
	})
	for _, form := range []string{"dir", "x.erofs"} {
		b.Run("make "+form, func(b *testing.B) {
			var used time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				client, out := openBench(b, dray.Options{Seeds: []string{}}), filepath.Join(b.TempDir(), fmt.Sprint(i)+form)
				before := cpuTime(b)
				b.StartTimer()
				if _, err := client.WriteSeed(b.Context(), []string{reference}, out, dray.SeedOptions{}); err != nil {
					b.Fatal(err)
				}
				used += cpuTime(b) - before
			}
			b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpuTime returns the processor time of this process, which is what can be compared
// where others wait for the processors too. The registry is in it.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func openBench(b *testing.B, o dray.Options) *dray.Client {
	b.Helper()
	o.Store, o.AuthFiles = filepath.Join(b.TempDir(), "store"), []string{}
	client, err := dray.New(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	return client
}

// benchMount opens a store, pulls and mounts; again measures the second time.
func benchMount(b *testing.B, o dray.Options, reference string, again bool) {
	b.Helper()
	for b.Loop() {
		b.StopTimer()
		client, target := openBench(b, o), filepath.Join(b.TempDir(), "rootfs")
		mount := func() {
			if _, err := client.Mount(b.Context(), reference, target, dray.MountOptions{Pull: dray.PullOptions{Offline: true}}); err != nil {
				b.Fatal(err)
			}
		}
		if again {
			mount()
			if err := client.Unmount(b.Context(), target); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		mount()
		b.StopTimer()
		if err := client.Unmount(b.Context(), target); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func hashFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.CopyBuffer(sha256.New(), struct{ io.Reader }{f}, make([]byte, 128<<10))
	return err
}
