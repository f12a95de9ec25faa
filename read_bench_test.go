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
// Python if it has one, from each layout: from the page cache, and from the disk.
//
//	DRAY_BENCH_IMAGE=local:///var/tmp/dray-corpus/toolchain go test -run '^$' -bench '^BenchmarkReadBack$' -benchtime 3x -count 5 .
func BenchmarkReadBack(b *testing.B) {
	testkit.Need(b, testkit.Root(), testkit.Overlay())
	reference := os.Getenv(readImageVariable)
	if reference == "" {
		reference = readImage(b)
	}
	for _, layout := range []dray.Layout{dray.LayoutEROFS, dray.LayoutDir} {
		client, root := openBench(b, dray.Options{Layout: layout}), filepath.Join(b.TempDir(), "rootfs")
		if _, err := client.Mount(b.Context(), reference, root, dray.MountOptions{}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := client.Unmount(context.WithoutCancel(b.Context()), root); err != nil {
				b.Error(err)
			}
		})
		for _, cold := range []bool{false, true} {
			name := "/" + map[bool]string{false: "warm", true: "cold"}[cold] + "/" + string(layout)
			b.Run("tree"+name, func(b *testing.B) { benchRead(b, cold, func() error { return readTree(root) }) })
			if python := pythonOf(root); python != nil {
				b.Run("python"+name, func(b *testing.B) {
					benchRead(b, cold, func() error { return exec.CommandContext(b.Context(), python[0], python[1:]...).Run() })
				})
			}
		}
	}
}

// benchRead measures read, after it has been called once or after the page cache was dropped.
func benchRead(b *testing.B, cold bool, read func() error) {
	b.Helper()
	if err := read(); err != nil {
		b.Fatal(err)
	}
	var cpu time.Duration
	for b.Loop() {
		if cold {
			b.StopTimer()
			unix.Sync()
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		before := familyTime(b)
		if err := read(); err != nil {
			b.Fatal(err)
		}
		cpu += familyTime(b) - before
	}
	b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
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
