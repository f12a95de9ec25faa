package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func TestAheadPassesAllOn(t *testing.T) {
	t.Parallel()
	content := make([]byte, 100_003)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	for way, reader := range readers {
		for _, count := range []int{1, 2, 5} {
			a := NewAhead(t.Context(), reader(bytes.NewReader(content)), count, 1000)
			if err := iotest.TestReader(a, content); err != nil {
				t.Errorf("%s, %d buffers: %v", way, count, err)
			}
			if err := errors.Join(a.Close(), a.Close()); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestAheadMixesNextAndRead(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte(text), 500)
	a := NewAhead(t.Context(), bytes.NewReader(content), 3, 64)
	defer func() { _ = a.Close() }()
	rnd := rand.New(rand.NewPCG(1, 2))
	var got []byte
	for {
		var part []byte
		var err error
		if rnd.IntN(2) == 0 {
			part, err = a.Next()
		} else {
			part = make([]byte, rnd.IntN(100))
			var n int
			n, err = a.Read(part)
			part = part[:n]
		}
		got = append(got, part...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, content) {
		t.Errorf("got %d bytes, want %d, or in another order", len(got), len(content))
	}
}

func TestAheadPassesErrorsOn(t *testing.T) {
	t.Parallel()
	a := NewAhead(t.Context(), io.MultiReader(strings.NewReader(text), iotest.ErrReader(errSource)), 2, 8)
	defer func() { _ = a.Close() }()
	got, err := ReadAll(a, 1<<20)
	if string(got) != text || !errors.Is(err, errSource) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := a.Next(); !errors.Is(err, errSource) {
		t.Errorf("again: %v", err)
	}
}

// counting tells how many bytes were taken from it.
type counting struct{ read atomic.Int64 }

func (c *counting) Read(p []byte) (int, error) {
	c.read.Add(int64(len(p)))
	return len(p), nil
}

// As long as the consumer keeps up, three buffers do: what was used last is used next.
func TestAheadUsesFewBuffers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		a := NewAhead(t.Context(), r, 5, 10)
		used := map[*byte]bool{}
		for range 20 {
			if _, err := w.Write(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			block, err := a.Next()
			if err != nil {
				t.Fatal(err)
			}
			used[&block[0]] = true
			synctest.Wait()
		}
		if len(used) > 3 {
			t.Errorf("%d buffers were used", len(used))
		}
		if err := errors.Join(w.Close(), a.Close()); err != nil {
			t.Error(err)
		}
	})
}

// The ring is never larger than it was made, however slow the consumer is.
func TestAheadIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &counting{}
		a := NewAhead(t.Context(), src, 3, 10)
		synctest.Wait()
		if got := src.read.Load(); got != 30 {
			t.Errorf("read %d bytes ahead, want 30", got)
		}
		for range 2 { // the first block is lent, its buffer comes back with the second call
			if _, err := a.Next(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got := src.read.Load(); got != 40 {
			t.Errorf("read %d bytes, want 40", got)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		for err := error(nil); err == nil; {
			_, err = a.Next()
			if err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}

// Close returns at every moment: nothing read yet, a full ring, a lent buffer,
// with and without the context having ended.
func TestAheadCloses(t *testing.T) {
	t.Parallel()
	errStop := errors.New("enough")
	for _, takenBlocks := range []int{0, 1, 2, 7} {
		for _, cancelled := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				a := NewAhead(ctx, &counting{}, 3, 10)
				for range takenBlocks {
					if _, err := a.Next(); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				if cancelled {
					cancel(errStop)
					synctest.Wait()
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestAheadReturnsCauseOfContext(t *testing.T) {
	t.Parallel()
	errStop := errors.New("enough")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		a := NewAhead(ctx, &counting{}, 2, 10)
		synctest.Wait()
		cancel(errStop)
		synctest.Wait()
		n, err := Drain(a)
		if !errors.Is(err, errStop) || n > 40 {
			t.Errorf("got %d bytes, %v, want what was read ahead and %v", n, err, errStop)
		}
		_ = a.Close()
	})
}

func BenchmarkAhead(b *testing.B) {
	const blockBytes, blocks = 256 << 10, 64
	b.SetBytes(blockBytes * blocks)
	b.ReportAllocs()
	for b.Loop() {
		a := NewAhead(b.Context(), io.LimitReader(endless{}, blockBytes*blocks), 4, blockBytes)
		if _, err := Drain(a); err != nil {
			b.Fatal(err)
		}
		_ = a.Close()
	}
}
