package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
)

// benchReadBytes is the size of the reads in benchmarks: the block form.
const benchReadBytes = 256 << 10

// resetter is what the compared readers have in common.
type resetter interface {
	io.Reader
	Reset(r io.Reader) error
}

// benchRivals returns the readers that are compared.
func benchRivals() map[string]func() resetter {
	return map[string]func() resetter{
		"dray":      func() resetter { return dray{NewReader(nil)} },
		"klauspost": func() resetter { return new(kgzip.Reader) },
		"std":       func() resetter { return new(gzip.Reader) },
	}
}

// dray has Reset return an error, as the others' do.
type dray struct{ *Reader }

func (d dray) Reset(r io.Reader) error {
	d.Reader.Reset(r)
	return nil
}

// discard reads r to its end through p, and returns the number of bytes.
func discard(r io.Reader, p []byte) (int, error) {
	total := 0
	for {
		n, err := r.Read(p)
		total += n
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// cpuTime returns the time that this process has spent on a core.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkAll(b *testing.B, in []byte) {
	b.Helper()
	for name, open := range benchRivals() {
		b.Run(name, func(b *testing.B) {
			r := open()
			p := make([]byte, benchReadBytes)
			src := bytes.NewReader(in)
			run := func() int {
				src.Reset(in)
				if err := r.Reset(src); err != nil {
					b.Fatal(err)
				}
				n, err := discard(r, p)
				if err != nil {
					b.Fatal(err)
				}
				return n
			}
			b.SetBytes(int64(run()))
			b.ReportAllocs()
			total := 0
			before := cpuTime(b)
			for b.Loop() {
				total += run()
			}
			// Of the time on a core rather than of the clock's: others use it too.
			b.ReportMetric(float64(total)/1e6/(cpuTime(b)-before).Seconds(), "cpu-MB/s")
		})
	}
}

// BenchmarkGenerated inflates seeded data.
func BenchmarkGenerated(b *testing.B) {
	for _, kind := range kinds {
		for _, size := range []int{1 << 10, 10 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("%s-%d", kind, size), func(b *testing.B) {
				benchmarkAll(b, compress(b, generate(kind, size, 1), 6))
			})
		}
	}
}

// BenchmarkLayers inflates each *.gz of the directory DRAY_INFLATE_CORPUS. See
// docs/bench-inflate.md.
func BenchmarkLayers(b *testing.B) {
	dir := os.Getenv("DRAY_INFLATE_CORPUS")
	if dir == "" {
		b.Skip("DRAY_INFLATE_CORPUS is not set")
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.gz"))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(filepath.Base(name), func(b *testing.B) { benchmarkAll(b, in) })
	}
}

// BenchmarkOpen takes a reader's memory from the pool and gives it back.
func BenchmarkOpen(b *testing.B) {
	in := compress(b, []byte("x"), 6)
	src := bytes.NewReader(in)
	for b.Loop() {
		src.Reset(in)
		r := NewReader(src)
		r.acquire()
		_ = r.Close()
	}
}
