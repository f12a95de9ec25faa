package erofs_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// realTree returns GNU tar's archive of the Go distribution and of what programs
// find in /usr/share: trees that no test has made.
func realTree(tb testing.TB) io.Reader {
	tb.Helper()
	testkit.Need(tb, testkit.Tool("tar"), testkit.Tool("go"))
	goroot, err := exec.CommandContext(tb.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	command := exec.CommandContext(ctx, "tar", "-C", "/", "-c", "--xattrs", "--acls", "--format=posix",
		strings.Trim(strings.TrimSpace(string(goroot)), "/"), "usr/share/doc", "usr/share/zoneinfo")
	out, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cancel()
		_ = command.Wait()
	})
	return out
}

func TestRealTree(t *testing.T) {
	testkit.Need(t, testkit.Root())
	if testing.Short() {
		t.Skip("stores hundreds of megabytes")
	}
	s, err := store(t, t.TempDir(), realTree(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s.result)
	if _, err := s.tar.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	dir, _, err := unpacked(t, s.tar)
	if err != nil {
		t.Fatal(err)
	}
	if diff := testkit.Diff(testkit.Tree(t, dir), testkit.Tree(t, mounted(t, s))); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkIndex(b *testing.B) {
	path := b.TempDir() + "/tar"
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	size, err := io.Copy(f, realTree(b))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b.SetBytes(size)
	b.ReportAllocs()
	var entries int64
	var writing time.Duration
	for b.Loop() {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		x, err := erofs.Copy(b.Context(), anyID, stream.NewSlicer(f, blockBytes), nil, layer.Limits{}, erofs.Options{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if _, err := x.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		writing += time.Since(begin)
		entries += x.Result().Entries
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric(float64(writing.Microseconds())/1000/float64(b.N), "write-ms/op")
}
