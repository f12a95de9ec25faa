package dray_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"dray"
	"dray/internal/testkit"
)

// BenchmarkMountStored mounts an image that the store has, with all that the client does
// for it: the look for it, the lease, and the mount.
func BenchmarkMountStored(b *testing.B) {
	testkit.Need(b, testkit.Root(), testkit.Overlay())
	for _, count := range []int{1, 6, 60} {
		b.Run(fmt.Sprintf("layers=%d", count), func(b *testing.B) {
			dir, target := b.TempDir(), filepath.Join(b.TempDir(), "rootfs")
			image := testkit.Image(b)
			for i := range count {
				image.Layer(testkit.File("file", fmt.Sprint(i)))
			}
			image.Write(testkit.LayoutAt(b, dir), "v1")
			reference := "local://" + dir + ":v1"
			client := openBench(b, dray.Options{Store: filepath.Join(b.TempDir(), "store"), AuthFiles: []string{}, Seeds: []string{}})
			defer func() { _ = client.Close() }()
			if _, err := client.Pull(b.Context(), reference, dray.PullOptions{}); err != nil {
				b.Fatal(err)
			}
			var mounting time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := client.Mount(b.Context(), reference, target, dray.MountOptions{}); err != nil {
					b.Fatal(err)
				}
				mounting += time.Since(start)
				if err := client.Unmount(b.Context(), target); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(mounting.Microseconds())/float64(b.N), "mount-µs")
		})
	}
}
