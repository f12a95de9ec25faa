package apply_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/apply"
	"dray/internal/testkit"
)

// Whatever the sizes, of the file, of the writes and of what may stay in memory, the file
// is what was written, no longer, and with no blocks that it does not need.
func TestBulkWritesWhatItIsGiven(t *testing.T) {
	const step = 8 << 20
	random := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 12*step+12345)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	for _, size := range []int{0, 1, step - 1, step, step + 1, 3 * step, len(content)} {
		for _, known := range []bool{false, true} {
			for _, cache := range []*apply.PageCache{nil, apply.PageCacheOf(0, false), apply.PageCacheOf(2*step, false), apply.PageCacheOf(2*step, true)} {
				if size == len(content) && known == (cache == nil) {
					continue // the large one is slow
				}
				t.Run(fmt.Sprintf("%d bytes, known %v, limited %v", size, known, cache != nil), func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "file")
					f, err := os.Create(path)
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _ = f.Close() }()
					hint := int64(0)
					if known {
						hint = int64(size)
					}
					w := apply.NewBulk(int(f.Fd()), hint, cache)
					for left := content[:size]; len(left) > 0; {
						n := min(len(left), 1+random.IntN(3*step/2))
						if _, err := w.Write(left[:n]); err != nil {
							t.Fatal(err)
						}
						left = left[n:]
					}
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					got, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, content[:size]) {
						t.Fatalf("%d bytes of %d, or others", len(got), size)
					}
					var st unix.Stat_t
					if err := unix.Stat(path, &st); err != nil {
						t.Fatal(err)
					}
					if most := int64(size) + 1<<16; st.Blocks*512 > most {
						t.Errorf("takes %d bytes for %d", st.Blocks*512, size)
					}
				})
			}
		}
	}
}

// What the page cache has no room for leaves it while the file is written.
func TestBulkLeavesThePageCache(t *testing.T) {
	const step, steps, room = 8 << 20, 24, 4
	f, err := os.CreateTemp("/var/tmp", "dray-bulk-") // what is in a tmpfs has no other place
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
	w := apply.NewBulk(int(f.Fd()), 0, apply.PageCacheOf(room*step, false))
	block := bytes.Repeat([]byte("layer"), step/5)
	for written := 0; written < steps*step; written += len(block) {
		if _, err := w.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in := func(from, to int64) int64 { return testkit.Cached(t, f.Name(), from*step, to*step) }
	if got := in(0, room); got != room*step {
		t.Errorf("of the %d bytes that there was room for %d are in memory", room*step, got)
	}
	if got := in(room, room+8); got > step { // a page that is used just then may stay
		t.Errorf("%d of %d bytes are still in memory", got, 8*step)
	}
}

// What stays is on its way to the disk when the file is complete, if it is to be early.
func TestBulkWritesEarly(t *testing.T) {
	for _, size := range []int{256 << 10, 20<<20 + 1} {
		f, err := os.CreateTemp("/var/tmp", "dray-bulk-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
		w := apply.NewBulk(int(f.Fd()), 0, apply.PageCacheOf(64<<20, true).Share([]int64{1})[0])
		if _, err := w.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if dirty := testkit.Dirty(t, f); dirty > 0 {
			t.Errorf("of %d bytes %d are not on their way", size, dirty)
		}
	}
}

// Small files stay together, whatever comes first; what they leave is for the next.
func TestPageCacheShare(t *testing.T) {
	for _, test := range []struct {
		room  int64
		sizes []int64
		want  []int64 // room of each share; those of the small ones are one
	}{
		{100, nil, nil},
		{100, []int64{60, 10, 30}, []int64{100, 100, 100}},
		{100, []int64{60, 10, 31}, []int64{0, 10, 15}}, // no room for all: a quarter
		{100, []int64{500, 90, 5, 10, 90}, []int64{0, 10, 15, 15, 0}},
		{100, []int64{500}, []int64{25}},
		{0, []int64{5, 0}, []int64{0, 0}},
	} {
		shares := apply.PageCacheOf(test.room, false).Share(test.sizes)
		var got []int64
		for _, s := range shares {
			got = append(got, s.Room())
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%v in %d: %v, want %v", test.sizes, test.room, got, test.want)
		}
	}
	for _, s := range (*apply.PageCache)(nil).Share([]int64{1, 1 << 50}) {
		if s != nil {
			t.Error("where there was no limit there is one")
		}
	}
}
