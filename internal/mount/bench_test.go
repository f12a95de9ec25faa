package mount

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/testkit"
)

// BenchmarkMount measures how long a mount takes, and its unmounting with the
// removal of its files.
func BenchmarkMount(b *testing.B) {
	w := newBench(b)
	var layers []*store.Layer
	for i := range MaxLayers {
		layers = append(layers, w.layer(fmt.Sprint(i), tree{"file": file("x")}))
	}
	benchmarkMount(b, w, layers)
}

func benchmarkMount(b *testing.B, w *bench, layers []*store.Layer) {
	b.Helper()
	for _, count := range []int{1, 6, 100, 500} {
		for mode, readOnly := range modes() {
			b.Run(fmt.Sprintf("layers=%d/%s", count, mode), func(b *testing.B) {
				benchmarkOne(b, w.Mounter, Request{Image: imageOf("one"), Layers: layers[:count], Target: w.target("rootfs"), ReadOnly: readOnly})
			})
		}
	}
}

func benchmarkOne(b *testing.B, m *Mounter, r Request) {
	b.Helper()
	if r.merged, _ = m.mergedIndex(b.Context(), r.Layers); r.merged != nil {
		b.Log("merged") // before the clock starts
	}
	var mounting, unmounting time.Duration
	cpu := processTime(b)
	for b.Loop() {
		start := time.Now()
		if _, err := m.Mount(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		mounted := time.Now()
		if err := m.Unmount(b.Context(), r.Target); err != nil {
			b.Fatal(err)
		}
		mounting += mounted.Sub(start)
		unmounting += time.Since(mounted)
	}
	cpu = processTime(b) - cpu
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(mounting.Microseconds())/float64(b.N), "mount-µs")
	b.ReportMetric(float64(unmounting.Microseconds())/float64(b.N), "unmount-µs")
}

// processTime returns the processor time that the process has used, which other
// load on the machine does not lengthen as much as it does the clock's.
func processTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkUnmountAndGC takes a layer of 50,000 files away: the mount, the image and
// the layer.
func BenchmarkUnmountAndGC(b *testing.B) {
	w := newBench(b)
	needEROFS(b)
	const files = 50_000
	entries := make([]testkit.Entry, files)
	for i := range entries {
		entries[i] = testkit.File(fmt.Sprintf("usr/share/dir-%d/file-%d", i/100, i), "0123456789")
	}
	var unmounting, collecting time.Duration
	for b.Loop() {
		layer := w.erofsLayer(entries...)
		if err := w.store.Sync(b.Context(), []oci.DiffID{layer.DiffID}); err != nil {
			b.Fatal(err)
		}
		r := Request{Image: imageOf("x"), Layers: []*store.Layer{layer}, Target: w.target("rootfs")}
		if _, err := w.Mount(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		if names := testkit.Tree(b, filepath.Join(r.Target, "usr/share/dir-7")); len(names) != 101 {
			b.Fatalf("%d names", len(names))
		}
		start := time.Now()
		if err := w.Unmount(b.Context(), r.Target); err != nil {
			b.Fatal(err)
		}
		unmounted := time.Now()
		report, err := w.store.GC(b.Context(), store.GCOptions{})
		if err != nil || len(report.Layers) != 1 {
			b.Fatalf("%+v, %v", report, err)
		}
		unmounting += unmounted.Sub(start)
		collecting += time.Since(unmounted)
	}
	b.ReportMetric(float64(unmounting.Microseconds())/float64(b.N), "unmount-µs")
	b.ReportMetric(float64(collecting.Microseconds())/float64(b.N), "gc-µs")
}
