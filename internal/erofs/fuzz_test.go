package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/testkit"
)

// FuzzAgainstApply makes tars of its input and compares both layouts, through the
// kernel.
func FuzzAgainstApply(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("mounts")
	}
	f.Add([]byte("abcdefghijklmnopqrstuvwxyz"))
	f.Add(bytes.Repeat([]byte{3, 1, 4, 1, 5, 9, 2, 6}, 20))
	f.Add([]byte{7, 0, 0, 7, 9, 0, 7, 1, 0, 7, 9, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		raw := testkit.Tar(entriesOf(input)...)
		compareOrFail(t, raw)
	})
}

// entriesOf takes three bytes for an entry: type, name, other name.
func entriesOf(input []byte) []testkit.Entry {
	names := []string{
		"a", "b", "a/x", "a/y", "a/b/c", "b/x", "b/b", "l", "l/x", "l/../x", ".", "a/.wh.x", ".wh.a", "a/.wh..wh..opq", ".wh..wh..opq", "b/.wh.b",
		"/a/x", "a//x", "./a", "a/./b", "-", "..x", "a/..x", "a/-", "!", "a/!", "l/l", "b/l", ".wh.l", "\xff", "a/b", "b/l/x",
	}
	var entries []testkit.Entry
	for i := 0; len(input) >= 3 && i < 60; i, input = i+1, input[3:] {
		name, other := names[int(input[1])%len(names)], names[int(input[2])%len(names)]
		var e testkit.Entry
		switch input[0] % 10 {
		case 0, 1:
			e = testkit.File(name, other)
		case 2, 3:
			e = testkit.Dir(name)
		case 4:
			e = testkit.Symlink(name, other)
		case 5:
			e = testkit.Hardlink(name, other)
		case 6:
			e = testkit.Fifo(name)
		case 7:
			e = testkit.Char(name, int64(input[2])%3, int64(input[2])%2)
		case 8:
			e = testkit.File(name, other).Setxattr("user."+string('a'+rune(input[2]%4)), other).Setxattr("trusted.overlay.opaque", "y")
		case 9:
			e = testkit.Dir(name).Setxattr("system.posix_acl_default", testkit.ACL(uint32(input[2]), 5, 6))
		}
		entries = append(entries, e.Chmod(uint32(input[2])<<2&0o7777|0o500).Chown(int64(input[1]), int64(input[2])).At(int64(input[2])-99, int64(input[1])))
	}
	return entries
}

// compareOrFail compares both layouts of a tar.
func compareOrFail(t *testing.T, raw []byte) {
	t.Helper()
	dir, _, wantErr := unpacked(t, bytes.NewReader(raw))
	s, err := store(t, t.TempDir(), bytes.NewReader(raw))
	if (err == nil) != (wantErr == nil) || errors.Is(err, layer.ErrFormat) != errors.Is(wantErr, layer.ErrFormat) {
		t.Fatalf("got error %v, package apply says %v", err, wantErr)
	}
	if err != nil {
		return
	}
	fd, err := erofs.Mount(erofs.Files, int(s.index.Fd()), int(s.tar.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if diff := testkit.Diff(testkit.Tree(t, dir), testkit.Tree(t, fdDir(fd))); diff != "" {
		t.Error(diff)
	}
}

// FuzzCopy feeds bytes that are no tar, or a damaged one.
func FuzzCopy(f *testing.F) {
	f.Add(testkit.Tar(testkit.Dir("d"), testkit.File("d/f", "x").Setxattr("user.x", "y"), testkit.Hardlink("h", "d/f"), testkit.Symlink("l", "d")))
	f.Add(testkit.Tar(testkit.File("d/.wh.x", ""), testkit.Opaque("d"), testkit.Char("c", 1, 2).Setxattr("system.posix_acl_access", testkit.ACL(0o640, 1, 2))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if x := mayIndex(t, raw); x != nil {
			if _, err := x.WriteTo(io.Discard); err != nil {
				t.Error(err)
			}
			if err := x.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRandomTars does what FuzzAgainstApply does, for inputs that most often say
// something.
func TestRandomTars(t *testing.T) {
	testkit.Need(t, testkit.Root())
	count := 150
	if s := os.Getenv("DRAY_RANDOM_TARS"); s != "" {
		count, _ = strconv.Atoi(s)
	}
	for seed := range uint64(count) {
		random := rand.New(rand.NewPCG(seed, 3))
		input := make([]byte, 3*(1+random.IntN(40)))
		for i := range input {
			input[i] = byte(random.Uint32())
		}
		if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { compareOrFail(t, testkit.Tar(entriesOf(input)...)) }) {
			return
		}
	}
}
