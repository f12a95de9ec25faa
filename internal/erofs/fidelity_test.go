package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/apply"
	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
	"dray/internal/testkit"
)

const blockBytes = 128 << 10

// anyID is the diff ID of layers of which it does not matter.
const anyID = oci.DiffID("sha256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")

// stored is a layer in this package's layout.
type stored struct {
	index, tar *os.File
	result     erofs.Result
}

// store puts a tar into a directory.
func store(tb testing.TB, dir string, tar io.Reader) (*stored, error) {
	tb.Helper()
	s := &stored{}
	var err error
	if s.tar, err = os.Create(filepath.Join(dir, "layer.tar")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.tar.Close() })
	x, err := erofs.Copy(tb.Context(), anyID, stream.NewSlicer(tar, blockBytes), s.tar, layer.Limits{}, erofs.Options{})
	if err != nil {
		return s, err
	}
	defer func() {
		if err := x.Close(); err != nil {
			tb.Error(err)
		}
	}()
	if s.index, err = os.Create(filepath.Join(dir, "index.erofs")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.index.Close() })
	if _, err := x.WriteTo(s.index); err != nil {
		tb.Fatal(err)
	}
	s.result = x.Result()
	return s, nil
}

// mounted attaches what Mount returns, in the test's own namespace.
func mounted(tb testing.TB, s *stored) string {
	tb.Helper()
	fd, err := erofs.Mount(erofs.Files, int(s.index.Fd()), int(s.tar.Fd()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return fdDir(fd)
}

func fdDir(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/." }

// unpacked makes the same layer with package apply.
func unpacked(tb testing.TB, tar io.Reader) (string, apply.Result, error) {
	tb.Helper()
	dir := tb.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	t := layer.NewTar(stream.NewSlicer(tar, blockBytes), layer.Limits{})
	result, err := apply.Apply(tb.Context(), root, t, apply.Options{})
	if err == nil {
		_, err = t.Drain()
	}
	return dir, result, err
}

// compare makes a layer in both layouts, and compares them.
func compare(t *testing.T, open func() io.Reader) {
	t.Helper()
	dir, want, wantErr := unpacked(t, open())
	s, err := store(t, t.TempDir(), open())
	if errors.Is(err, erofs.ErrInexpressible) {
		t.Logf("inexpressible: %v", err)
		var raw bytes.Buffer
		if _, err := io.Copy(&raw, open()); err != nil {
			t.Fatal(err)
		}
		if kept, err := os.ReadFile(s.tar.Name()); err != nil || !bytes.Equal(kept, raw.Bytes()) {
			t.Errorf("the tar was not kept whole: %d bytes of %d, %v", len(kept), raw.Len(), err)
		}
		return
	}
	if (err == nil) != (wantErr == nil) || errors.Is(err, layer.ErrFormat) != errors.Is(wantErr, layer.ErrFormat) {
		t.Fatalf("got error %v, package apply says %v", err, wantErr)
	}
	if err != nil {
		return
	}
	got := testkit.Tree(t, mounted(t, s))
	if diff := testkit.Diff(testkit.Tree(t, dir), got); diff != "" {
		t.Error(diff)
	}
	compareWalk(t, s, dir)
	compareShift(t, s)
	wantResult := erofs.Result{
		Entries: want.Entries, Inodes: s.result.Inodes, Whiteouts: want.Whiteouts, OpaqueDirs: want.OpaqueDirs, OpaqueRoot: want.OpaqueRoot,
		Replaced: want.Replaced, OverlayXattrsDropped: want.OverlayXattrsDropped, XattrsImpossible: want.XattrsImpossible,
	}
	if s.result != wantResult {
		t.Errorf("got result %+v, want %+v", s.result, wantResult)
	}
}

// compareWalk holds the tree that package apply has made against a journal of what is
// read back of the index.
func compareWalk(t *testing.T, s *stored, dir string) {
	t.Helper()
	var b bytes.Buffer
	journal, err := apply.NewJournal(&b, apply.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	err = erofs.Walk(t.Context(), s.index, func(e *layer.Entry, offset int64) error {
		return journal.Add(e, io.NewSectionReader(s.tar, offset, e.Size))
	})
	if err := errors.Join(err, journal.Close()); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	differences, err := apply.Check(t.Context(), root, &b, apply.CheckOptions{})
	if err != nil || len(differences) > 0 {
		t.Errorf("the tree differs from what is walked: %v, %v", differences, err)
	}
}

// compareShift holds a shifted index against the one that is made of the tar where it
// is then. Cut off, it is damaged or of no use.
func compareShift(t *testing.T, s *stored) {
	t.Helper()
	const offset = 3 << 20
	tar, err := os.ReadFile(s.tar.Name())
	if err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(s.index.Name())
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := erofs.Shift(&got, bytes.NewReader(index), int64(len(index)), offset); err != nil {
		t.Fatal(err)
	}
	if len(tar) > 0 && !bytes.Equal(got.Bytes(), image(t, bytes.NewReader(tar), erofs.Options{DeviceOffset: offset})) {
		t.Error("a shifted index is another than that of the tar there")
	}
	for _, size := range []int{0, 1000, 1600} {
		if err := erofs.Shift(io.Discard, bytes.NewReader(index[:size]), int64(size), offset); !errors.Is(err, erofs.ErrDamaged) {
			t.Errorf("index of %d bytes: %v", size, err)
		}
	}
	if err := erofs.Shift(io.Discard, bytes.NewReader(index), int64(len(index)), 1); err == nil {
		t.Error("the tar may begin within a block")
	}
}

func TestOddImagesAsApplyMakesThem(t *testing.T) {
	testkit.Need(t, testkit.Root())
	for _, odd := range testkit.Odd() {
		t.Run(odd.Name, func(t *testing.T) {
			if odd.Large && testing.Short() {
				t.Skip("large")
			}
			testkit.Need(t, odd.Needs...)
			layout := testkit.Layout(t)
			built := odd.Write(t, layout, "odd")
			for i, blob := range built.Layers {
				open := func() io.Reader { return plain(t, layout, blob) }
				if open() == nil {
					continue
				}
				t.Run(strconv.Itoa(i), func(t *testing.T) { compare(t, open) })
			}
		})
	}
}

// plain returns the tar of a blob, nil where it is none.
func plain(t *testing.T, layout *ocidir.Layout, blob oci.Descriptor) io.Reader {
	t.Helper()
	body, err := layout.Blob(t.Context(), blob, 0)
	if err != nil {
		return nil
	}
	t.Cleanup(func() { _ = body.Close() })
	opened, err := layer.Decompress(body, layer.Options{})
	if err != nil {
		return nil
	}
	t.Cleanup(func() { _ = opened.Close() })
	return opened
}
