package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/oci"
	"dray/internal/testkit"
)

const anyChain = oci.ChainID(anyID)

// merge returns the merged index of layers, the lowest first.
func merge(tb testing.TB, o erofs.Options, layers ...[]byte) ([]byte, error) {
	tb.Helper()
	files := make([]io.ReaderAt, len(layers))
	for i, l := range layers {
		files[i] = bytes.NewReader(l)
	}
	x, err := erofs.Merge(tb.Context(), anyChain, files, o)
	if err != nil {
		if x != nil {
			tb.Error("an index with an error")
		}
		return nil, err
	}
	var b bytes.Buffer
	_, err = x.WriteTo(&b)
	return b.Bytes(), errors.Join(err, x.Close())
}

// indexOf returns the index of a layer.
func indexOf(tb testing.TB, entries ...testkit.Entry) []byte {
	tb.Helper()
	return image(tb, bytes.NewReader(testkit.Tar(entries...)), erofs.Options{})
}

// TestMergeOfOne: merging a layer with nothing gives what the layer's own index has,
// in the same places.
func TestMergeOfOne(t *testing.T) {
	t.Parallel()
	raw := many(3000, 100)
	want := image(t, bytes.NewReader(raw), erofs.Options{})
	got, err := merge(t, erofs.Options{}, want)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want the %d of the layer: %v", len(got), len(want), err)
	}
	small, err := merge(t, erofs.Options{MaxBytes: 1, Dir: t.TempDir()}, want)
	if err != nil || !bytes.Equal(small, want) {
		t.Errorf("on disk: got %d bytes, want %d: %v", len(small), len(want), err)
	}
}

func TestMergeIsDeterministic(t *testing.T) {
	t.Parallel()
	layers := [][]byte{
		indexOf(t, testkit.Dir("a"), testkit.File("a/x", "1").Setxattr("user.a", "1").Setxattr("user.b", "2"), testkit.Hardlink("b", "a/x")),
		indexOf(t, testkit.Whiteout("a/x"), testkit.File("a/y", "2").Setxattr("user.b", "2"), testkit.Symlink("l", "a")),
		indexOf(t, testkit.Dir("a"), testkit.Opaque("a"), testkit.File("a/z", "3").Setxattr("user.b", "2")),
	}
	want, err := merge(t, erofs.Options{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if got, err := merge(t, erofs.Options{}, layers...); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("differs from one time to the next: %v", err)
		}
	}
}

// TestManyDevices: the superblock has room for the number of the root directory's
// inode only, which comes after the devices.
func TestManyDevices(t *testing.T) {
	testkit.Need(t, testkit.Root())
	one := indexOf(t, testkit.File("f", "x"))
	const most = (1<<16*32 - 1024 - 128) / 128
	layers := make([][]byte, most+100)
	for i := range layers {
		layers[i] = one
	}
	if _, err := merge(t, erofs.Options{}, layers[:most-10]...); err != nil {
		t.Error(err)
	}
	if _, err := merge(t, erofs.Options{}, layers...); !errors.Is(err, erofs.ErrInexpressible) {
		t.Errorf("got %v for %d devices", err, len(layers))
	}
}

func TestMountNeedsEveryTar(t *testing.T) {
	testkit.Need(t, testkit.Root())
	s, err := store(t, t.TempDir(), bytes.NewReader(testkit.Tar(testkit.File("f", "x"))))
	if err != nil {
		t.Fatal(err)
	}
	for _, tars := range [][]int{nil, {int(s.tar.Fd()), int(s.tar.Fd())}} {
		if fd, err := erofs.Mount(erofs.Files, int(s.index.Fd()), tars...); !errors.Is(err, erofs.ErrDamaged) {
			_ = unix.Close(fd)
			t.Errorf("got %v for %d tars of one", err, len(tars))
		}
	}
}

// TestMergeOfDamaged changes an index byte by byte. Whatever comes of it, it is an
// error, or an image.
func TestMergeOfDamaged(t *testing.T) {
	t.Parallel()
	good := indexOf(t, testkit.Dir("d"), testkit.File("d/f", "x").Setxattr("user.a", "1"), testkit.Hardlink("h", "d/f"),
		testkit.Symlink("l", "d"), testkit.Char("c", 1, 3), testkit.Whiteout("w"), testkit.Opaque("d"))
	refused := 0
	for i := 1024; i < len(good); i++ {
		for _, c := range []byte{0x00, 0x01, 0xff} {
			bad := bytes.Clone(good)
			bad[i] ^= c
			resum(bad)
			if _, err := merge(t, erofs.Options{}, good, bad); err != nil {
				if !errors.Is(err, erofs.ErrDamaged) && !errors.Is(err, erofs.ErrInexpressible) {
					t.Fatalf("byte %d: got %v", i, err)
				}
				refused++
			}
		}
	}
	t.Logf("%d of %d refused", refused, 3*(len(good)-1024))
	const lastBlock = 512 // may hold padding only
	for size := range (len(good) - lastBlock) / 100 {
		if _, err := merge(t, erofs.Options{}, good[:100*size]); !errors.Is(err, erofs.ErrDamaged) {
			t.Errorf("cut after %d bytes: got %v", 100*size, err)
		}
	}
}

// resum makes the checksum of a superblock right.
func resum(image []byte) {
	const at, size = 1024, 512
	if len(image) < at+size {
		return
	}
	s := image[at : at+size]
	clear(s[4:8])
	binary.LittleEndian.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
}

// FuzzMerge reads images that nobody has written.
func FuzzMerge(f *testing.F) {
	f.Add(indexOf(f, testkit.Dir("d"), testkit.File("d/f", "x"), testkit.Hardlink("h", "d/f"), testkit.Symlink("l", "d")))
	f.Add(indexOf(f, testkit.Whiteout("w"), testkit.Opaque("d"), testkit.Char("c", 1, 3).Setxattr("trusted.a", "b")))
	var names []testkit.Entry
	for i := range 100 {
		names = append(names, testkit.File(fmt.Sprintf("name-%d", i), "").Setxattr("user.a", "1").Setxattr("user."+fmt.Sprint(i), "1"))
	}
	f.Add(indexOf(f, names...))
	good := indexOf(f, testkit.Dir("d"), testkit.File("d/f", "y"))
	f.Fuzz(func(t *testing.T, image []byte) {
		resum(image)
		merged, err := merge(t, erofs.Options{}, good, image)
		if err != nil {
			return
		}
		if _, err := merge(t, erofs.Options{}, merged); err != nil && !errors.Is(err, erofs.ErrDamaged) && !errors.Is(err, erofs.ErrInexpressible) {
			t.Errorf("what was merged cannot be read: %v", err)
		}
	})
}
