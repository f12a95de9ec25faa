//go:build linux

package bench_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dray"
	"dray/internal/bench"
	"dray/internal/estargz"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registryd"
	"dray/internal/testkit"
)

// BenchmarkReuse is what docs/bench.md says of pulls that take files from the store:
// version 2 of an image of one layer and 150 MB, of which the store has version 1 and so
// 90, 50 or 10 of a hundred bytes in files, pulled whole and in parts.
//
//	go test -run '^$' -bench '^BenchmarkReuse$' -benchtime 3x ./internal/bench
func BenchmarkReuse(b *testing.B) {
	for _, format := range []estargz.Format{estargz.EStargz, estargz.ZstdChunked} {
		dir := b.TempDir()
		l := testkit.LayoutAt(b, filepath.Join(dir, "app"))
		seekableImage(b, l, "v1", format, 100)
		blobs := map[int]int64{}
		for _, share := range []int{90, 50, 10} {
			blobs[share] = seekableImage(b, l, fmt.Sprint("v", share), format, share)
		}
		for _, network := range []bench.Network{{}, {BitsPerSecond: 1e9, Latency: 5 * time.Millisecond}, {BitsPerSecond: 1e8, Latency: 20 * time.Millisecond}} {
			host, sent := serveShaped(b, dir, network)
			before := filepath.Join(b.TempDir(), "store")
			pullWith(b, before, dray.ReuseNever, host+"/app:v1")
			for share, blobBytes := range blobs {
				for _, mode := range []string{dray.ReuseNever, dray.ReuseAlways, dray.ReuseAuto} {
					b.Run(fmt.Sprintf("%s/%.0fMbit/%d/%s", strings.ReplaceAll(format.String(), ":", "-"), network.BitsPerSecond/1e6, share, mode), func(b *testing.B) {
						b.SetBytes(reuseFiles * reuseBytes)
						sentBefore, used := sent.Load(), time.Duration(0)
						for b.Loop() {
							b.StopTimer()
							store := filepath.Join(b.TempDir(), "store")
							if err := os.CopyFS(store, os.DirFS(before)); err != nil {
								b.Fatal(err)
							}
							start := usedByUs(b)
							b.StartTimer()
							pullWith(b, store, mode, fmt.Sprint(host, "/app:v", share))
							b.StopTimer()
							used += usedByUs(b) - start
							if err := os.RemoveAll(store); err != nil {
								b.Fatal(err)
							}
							b.StartTimer()
						}
						b.ReportMetric(float64(sent.Load()-sentBefore)/float64(b.N)/float64(blobBytes), "sent/blob")
						b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
					})
				}
			}
		}
	}
}

// The files of BenchmarkReuse take a half, a quarter and a quarter of 150 MB: a few
// large ones, some of 1 MB, and many of 200 kB.
const reuseFiles, reuseBytes = 1, 150_000_000

// seekableImage writes an image that has share of a hundred bytes, by size of file, in
// common with that of 100, and returns the size of its layer.
func seekableImage(b *testing.B, l *ocidir.Layout, tag string, format estargz.Format, share int) int64 {
	b.Helper()
	var entries []testkit.Entry
	for _, class := range []struct{ count, size int }{{10, reuseBytes / 20}, {40, reuseBytes / 160}, {200, reuseBytes / 800}} {
		for i := range class.count {
			seed := uint64(class.count*1000 + i)
			if (i*share+50)/100 == ((i+1)*share+50)/100 {
				seed += 1 << 20 * uint64(share+1)
			}
			entries = append(entries, testkit.Text(fmt.Sprintf("%d/%d", class.size, i), int64(class.size), seed))
		}
	}
	var blob bytes.Buffer
	result, err := estargz.Write(b.Context(), &blob, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(testkit.Tar(entries...))), nil
	}, estargz.Options{Format: format})
	if err != nil {
		b.Fatal(err)
	}
	testkit.Image(b).Blob(result.MediaType, blob.Bytes()).
		Config(func(i *oci.Image) { i.RootFS.DiffIDs[0] = result.DiffID }).
		Manifest(func(m *oci.Manifest) { m.Layers[0].Annotations = result.Annotations }).Write(l, tag)
	return result.Size
}

// serveShaped serves the layouts in dir over a network until the benchmark ends.
func serveShaped(b *testing.B, dir string, n bench.Network) (host string, sent *atomic.Int64) {
	b.Helper()
	listener, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	shaped, sent := bench.Shape(listener, n)
	server, err := registryd.New(registryd.Options{Dir: dir, ReadOnly: true})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- registryd.Serve(ctx, server, shaped) }()
	b.Cleanup(func() {
		cancel()
		if err := errors.Join(<-served, server.Close()); err != nil {
			b.Error(err)
		}
	})
	return "http://" + listener.Addr().String(), sent
}

// pullWith pulls into the store, as a program does.
func pullWith(b *testing.B, store, mode, reference string) {
	b.Helper()
	reuse, err := dray.ReuseFiles(mode)
	if err != nil {
		b.Fatal(err)
	}
	client, err := dray.New(b.Context(), dray.Options{Store: store, AuthFiles: []string{}, Seeds: []string{}, Reuse: reuse, Sync: dray.SyncNever})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := client.Pull(b.Context(), reference, dray.PullOptions{}); err != nil {
		b.Fatal(err)
	}
	if err := client.Close(); err != nil {
		b.Fatal(err)
	}
}

func usedByUs(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
