package dray_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray"
	"dray/internal/testkit"
)

// readImageVariable names the image that [BenchmarkReadBack] mounts instead of its own.
const readImageVariable = "DRAY_BENCH_IMAGE"

// BenchmarkReadBack reads every file of a mounted image, and starts the image's
// Python if it has one, from each layout: from the page cache, from the disk, and, as
// after a boot, from the disk and with the mount. The layouts take turns in each
// loop. Medians; a ratio is that of erofs to dir.
//
//	DRAY_BENCH_IMAGE=local:///var/tmp/dray-corpus/toolchain go test -run '^$' -bench '^BenchmarkReadBack$' -benchtime 15x .
func BenchmarkReadBack(b *testing.B) {
	testkit.Need(b, testkit.Root(), testkit.Overlay())
	reference := os.Getenv(readImageVariable)
	if reference == "" {
		reference = readImage(b)
	}
	var sides []readSide
	for _, layout := range []dray.Layout{dray.LayoutEROFS, dray.LayoutDir} {
		s := readSide{client: openBench(b, dray.Options{Layout: layout}), reference: reference, root: filepath.Join(b.TempDir(), "rootfs")}
		if err := s.mount(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := s.unmount(); err != nil {
				b.Error(err)
			}
		})
		s.python = pythonOf(s.root)
		sides = append(sides, s)
	}
	kinds := []string{"tree"}
	if sides[0].python != nil {
		kinds = append(kinds, "python")
	}
	for _, kind := range kinds {
		for _, state := range []string{"warm", "cold", "boot"} {
			b.Run(kind+"/"+state, func(b *testing.B) { benchRead(b, sides, kind, state) })
		}
	}
}

// readSide is an image in one layout.
type readSide struct {
	client          *dray.Client
	reference, root string
	python          []string // how it is started, nil without it
}

func (s readSide) mount() error {
	_, err := s.client.Mount(context.Background(), s.reference, s.root, dray.MountOptions{})
	return err
}

func (s readSide) unmount() error { return s.client.Unmount(context.Background(), s.root) }

// read does what is measured, after what is not, and returns how long the clock and the
// processors took.
func (s readSide) read(b *testing.B, kind, state string) (clock, cpu time.Duration) {
	b.Helper()
	var err error
	if state == "boot" {
		err = s.unmount()
	}
	if state != "warm" {
		unix.Sync()
		err = errors.Join(err, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	}
	began, before := time.Now(), familyTime(b)
	if state == "boot" {
		err = errors.Join(err, s.mount())
	}
	if kind == "python" {
		err = errors.Join(err, exec.CommandContext(b.Context(), s.python[0], s.python[1:]...).Run())
	} else {
		err = errors.Join(err, readTree(s.root))
	}
	clock, cpu = time.Since(began), familyTime(b)-before
	if err != nil {
		b.Fatal(err)
	}
	return clock, cpu
}

func benchRead(b *testing.B, sides []readSide, kind, state string) {
	b.Helper()
	clocks, cpus := make([][]float64, len(sides)), make([][]float64, len(sides))
	var ratios []float64
	for _, s := range sides {
		s.read(b, kind, "warm") // not counted
	}
	for b.Loop() {
		for i, s := range sides {
			clock, cpu := s.read(b, kind, state)
			clocks[i], cpus[i] = append(clocks[i], clock.Seconds()*1e3), append(cpus[i], cpu.Seconds()*1e3)
		}
		ratios = append(ratios, clocks[0][len(ratios)]/clocks[1][len(ratios)])
	}
	for i, name := range []string{"erofs", "dir"} {
		b.ReportMetric(median(clocks[i]), name+"-ms")
		b.ReportMetric(median(cpus[i]), name+"-cpu-ms")
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(0, "ns/op")
}

// familyTime returns the processor time of this process and of the children it waited for.
func familyTime(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

func readTree(root string) error {
	buf := make([]byte, 128<<10)
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		return errors.Join(err, f.Close())
	})
}

// pythonOf returns how the Python of a Debian image is started where it lies, with
// its own loader and libraries; nil where there is none.
func pythonOf(root string) []string {
	libraries, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu*"))
	if err != nil || len(libraries) == 0 {
		return nil
	}
	loaders, err := filepath.Glob(filepath.Join(libraries[0], "ld-linux-*"))
	if err != nil || len(loaders) == 0 {
		return nil
	}
	const script = "import asyncio, decimal, email, http.client, json, unittest"
	line := []string{loaders[0], "--library-path", libraries[0], filepath.Join(root, "usr/bin/python3"), "-I", "-B", "-c", script}
	if exec.Command(line[0], line[1:]...).Run() != nil { //nolint:noctx // a moment
		return nil
	}
	return line
}

// readImage makes an image of 3 layers, 6,000 files and 100 MB.
func readImage(b *testing.B) string {
	b.Helper()
	const layers, files, fileBytes = 3, 2000, 17 << 10
	dir := b.TempDir()
	image := testkit.Image(b)
	for l := range layers {
		var entries []testkit.Entry
		for f := range files {
			name := "usr/" + strconv.Itoa(l) + "/" + strconv.Itoa(f/100) + "/" + strconv.Itoa(f)
			entries = append(entries, testkit.Text(name, fileBytes, uint64(l*files+f)))
		}
		image = image.Layer(entries...)
	}
	image.Write(testkit.LayoutAt(b, dir), "v1")
	return "local://" + dir + ":v1"
}
