package multibuf

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// random returns bytes that depend on seed alone.
func random(seed uint64, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

// needLanes skips where [compress2] cannot run.
func needLanes(tb testing.TB) {
	tb.Helper()
	if !hasLanes() {
		tb.Skip("this processor, or build, hashes one stream at a time")
	}
}

// Two states that differ go on as each would alone, whatever they had and however much comes.
func FuzzWrite2(f *testing.F) {
	needLanes(f)
	f.Add(uint64(1), uint8(0), uint8(0), uint8(1))
	f.Add(uint64(2), uint8(1), uint8(7), uint8(2))
	f.Add(uint64(3), uint8(200), uint8(3), uint8(100))
	f.Fuzz(func(t *testing.T, seed uint64, had1, had2, count uint8) {
		had := []int{int(had1) * sha256.BlockSize, int(had2) * sha256.BlockSize}
		size := max(1, int(count)) * sha256.BlockSize
		var digests [2]*Digest
		var want [2]hash.Hash
		var more [2][]byte
		for i := range digests {
			all := random(seed+uint64(i), had[i]+size)
			digests[i], want[i], more[i] = New().Digest(sha256.New()), sha256.New(), all[had[i]:]
			_, _ = digests[i].hash.Write(all[:had[i]])
			_, _ = want[i].Write(all)
		}
		write2(digests[0], digests[1], more[0], more[1])
		for i, d := range digests {
			_, _ = d.hash.Write([]byte("the rest"))
			_, _ = want[i].Write([]byte("the rest"))
			if got, want := d.hash.Sum(nil), want[i].Sum(nil); !bytes.Equal(got, want) {
				t.Errorf("stream %d of %d+%d bytes: got %x, want %x", i, had[i], size, got, want)
			}
		}
	})
}

// Streams of all kinds at once, in blocks of all sizes, have the hashes that they have alone, and
// each block is reported once, in order.
func TestDigestsAgree(t *testing.T) {
	t.Parallel()
	kinds := []func() hash.Hash{sha256.New, sha256.New, sha256.New, sha512.New, sha256.New224, sha256.New}
	for _, maxBlockBytes := range []int{1, 63, 64, 200, 5000, 70_000} {
		t.Run(fmt.Sprint(maxBlockBytes), func(t *testing.T) {
			t.Parallel()
			l := New()
			var streams sync.WaitGroup
			for i, kind := range kinds {
				streams.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(i), uint64(maxBlockBytes)))
					content := random(uint64(i), 20*maxBlockBytes+i)
					want := kind()
					_, _ = want.Write(content)
					d := l.Digest(kind())
					var mu sync.Mutex
					var hashed []int
					for added, left := 0, content; len(left) > 0; added++ {
						n := min(len(left), 1+rnd.IntN(maxBlockBytes))
						d.Add(left[:n], func() {
							mu.Lock()
							defer mu.Unlock()
							hashed = append(hashed, added)
						})
						left = left[n:]
						d.Settle(rnd.IntN(4))
					}
					if got, want := d.Hash().Sum(nil), want.Sum(nil); !bytes.Equal(got, want) {
						t.Errorf("stream %d: got %x, want %x", i, got, want)
					}
					mu.Lock()
					defer mu.Unlock()
					if !slices.IsSorted(hashed) || len(slices.Compact(hashed)) < 20 {
						t.Errorf("stream %d: hashed blocks %v", i, hashed)
					}
				})
			}
			streams.Wait()
			if len(l.waiting) > 0 {
				t.Errorf("%d digests still wait", len(l.waiting))
			}
		})
	}
}

// Who needs room hashes a block of another's along with its own.
func TestSettleTakesAnother(t *testing.T) {
	t.Parallel()
	needLanes(t)
	l := New()
	mine, small, large := l.Digest(sha256.New()), l.Digest(sha256.New()), l.Digest(sha256.New())
	var done []string
	block := random(1, 640)
	mine.Add(block, func() { done = append(done, "mine") })
	small.Add(block[:64], func() { done = append(done, "small") })
	large.Add(block, func() { done = append(done, "large") })
	mine.Settle(0)
	if got := fmt.Sprint(done); got != "[mine large]" {
		t.Errorf("hashed %s", got)
	}
	if mine.size+large.size != 0 || small.size != 64 || len(l.waiting) != 1 {
		t.Errorf("left: %d, %d, %d, of %d digests", mine.size, large.size, small.size, len(l.waiting))
	}
	want := sha256.Sum256(block)
	for _, d := range []*Digest{mine, large} {
		if got := d.Hash().Sum(nil); !bytes.Equal(got, want[:]) {
			t.Errorf("got %x, want %x", got, want)
		}
	}
}

// A block waits for somebody while there is room, and one of those that may wait for others.
func TestSettleWaitsForAnother(t *testing.T) {
	t.Parallel()
	needLanes(t)
	l := New()
	d, other := l.Digest(sha256.New()), l.Digest(sha256.New())
	block := random(1, 640)
	for _, step := range []struct{ add, others, most, want int }{
		{3, 0, 2, 2}, {0, 1, 2, 1}, {1, 0, 2, 2}, {0, 1, 0, 0},
	} {
		for range step.add {
			d.Add(block, func() {})
		}
		for range step.others {
			other.Add(block, func() {})
		}
		if d.Settle(step.most); len(d.blocks) != step.want || len(other.blocks) > 0 {
			t.Errorf("%+v: %d blocks wait, %d of the other", step, len(d.blocks), len(other.blocks))
		}
	}
}

// Blocks come while the one before is somebody's second lane.
func TestAddMeanwhile(t *testing.T) {
	t.Parallel()
	l := New()
	const count, size = 200, 32 << 10
	content := random(1, count*size)
	want := sha256.Sum256(content)
	var streams sync.WaitGroup
	for waiting := range 4 {
		streams.Go(func() {
			d := l.Digest(sha256.New())
			for block := range slices.Chunk(content, size) {
				d.Add(block, func() {})
				d.Settle(waiting)
			}
			if got := d.Hash().Sum(nil); !bytes.Equal(got, want[:]) {
				t.Errorf("got %x, want %x", got, want)
			}
		})
	}
	streams.Wait()
}

// What was dropped is nobody's second lane any more, even if it was at that moment.
func TestDropWaits(t *testing.T) {
	t.Parallel()
	for range 200 {
		l := New()
		mine, other := l.Digest(sha256.New()), l.Digest(sha256.New())
		block := random(1, 64<<10)
		mine.Add(slices.Clone(block), func() {})
		other.Add(block, func() {})
		var settled sync.WaitGroup
		settled.Go(func() { mine.Settle(0) })
		other.Drop()
		clear(block)
		settled.Wait()
		if want := sha256.Sum256(random(1, 64<<10)); !bytes.Equal(mine.Hash().Sum(nil), want[:]) {
			t.Error("another's end changed the hash")
		}
		if len(l.waiting) > 0 || other.busy {
			t.Errorf("%d digests still wait, busy %v", len(l.waiting), other.busy)
		}
	}
}

const benchBytes = 64 << 10

// BenchmarkAlone is one stream, as crypto/sha256 has it.
func BenchmarkAlone(b *testing.B) {
	block, h := random(1, benchBytes), sha256.New()
	b.SetBytes(benchBytes)
	for b.Loop() {
		_, _ = h.Write(block)
	}
}

// BenchmarkTwo is two streams that meet.
func BenchmarkTwo(b *testing.B) {
	needLanes(b)
	block, l := random(1, benchBytes), New()
	d, other := l.Digest(sha256.New()), l.Digest(sha256.New())
	b.SetBytes(2 * benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		d.Add(block, func() {})
		other.Add(block, func() {})
		d.Settle(0)
	}
}
