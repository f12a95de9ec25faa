package estargz

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
)

// goTree is the tar of the Go tree that runs the test: many small files and some
// large ones.
func goTree(b *testing.B) []byte {
	b.Helper()
	root := runtime.GOROOT() //nolint:staticcheck // the tree is wanted, wherever it is
	name := filepath.Join(b.TempDir(), "go.tar")
	cmd := exec.CommandContext(b.Context(), "tar", "--sort=name", "-C", root, "-cf", name, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Skipf("tar: %v: %s", err, out)
	}
	src, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return src
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkWrite converts the Go tree in turns, here and with containerd's library.
func BenchmarkWrite(b *testing.B) {
	src := goTree(b)
	z := newOracleZstd()
	for _, bench := range []struct {
		name string
		run  func(b *testing.B) int64
	}{
		{"dray=default", dray(src, Options{})},
		{"containerd=default", containerd(src)},
		{"dray=5", dray(src, Options{Level: 5})},
		{"dray=7", dray(src, Options{Level: 7})},
		{"dray=9", dray(src, Options{Level: 9})},
		{"dray=zstd", dray(src, Options{Format: ZstdChunked})},
		{"dray=zstd-containerd", dray(src, Options{Format: ZstdChunkedContainerd})},
		{"containerd=zstd", containerd(src, oracle.WithCompression(z))},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			var size int64
			before := cpuSeconds()
			for b.Loop() {
				size = bench.run(b)
			}
			b.ReportMetric((cpuSeconds()-before)/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(size), "out-B")
		})
	}
}

func dray(src []byte, o Options) func(*testing.B) int64 {
	return func(b *testing.B) int64 {
		b.Helper()
		r, err := Write(b.Context(), io.Discard, opener(src), o)
		if err != nil {
			b.Fatal(err)
		}
		return r.Size
	}
}

func containerd(src []byte, opts ...oracle.Option) func(*testing.B) int64 {
	return func(b *testing.B) int64 {
		b.Helper()
		blob, err := oracle.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), opts...)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = blob.Close() }()
		n, err := io.Copy(io.Discard, blob)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
}
