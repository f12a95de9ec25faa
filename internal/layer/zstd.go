package layer

import (
	"context"
	"errors"
	"io"
	"runtime/debug"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

const (
	zstdMagic         = 0xfd2fb528 // RFC 8878, section 3.1.1
	zstdSkippable     = 0x184d2a50 // section 3.1.2: the low four bits are free
	zstdSkippableMask = 0xfffffff0
	zstdLeastWindow   = 1 << 10
)

func isZstd(magic uint32) bool {
	return magic == zstdMagic || magic&zstdSkippableMask == zstdSkippable
}

// zstdReader reads all frames of a Zstandard stream, in the caller's goroutine.
type zstdReader struct {
	z         *zstd.Decoder
	maxWindow int64
	turn      *Turn
}

// ZstdTurns bounds how many zstd layers are read at once, since each holds its
// frames' window, up to 8 MiB of what people write, and much more of what they can.
// Whoever waits gets the decoder of the one before, window included. All layers of
// one ZstdTurns have the same [Options.MaxWindowBytes].
type ZstdTurns struct {
	free    chan *zstd.Decoder // nil: to be made
	waiting atomic.Int32
	dropped atomic.Bool // a decoder was, and its window may still be in memory
}

// NewZstdTurns lets count layers be read at once.
func NewZstdTurns(count int) *ZstdTurns {
	t := &ZstdTurns{free: make(chan *zstd.Decoder, count)}
	for range count {
		t.free <- nil
	}
	return t
}

// Turn returns the claim of one layer, which waits until ctx ends.
func (t *ZstdTurns) Turn(ctx context.Context) *Turn { return &Turn{ctx: ctx, of: t} }

// Turn is a layer's claim to be read, for one goroutine. Nil does not wait.
type Turn struct {
	ctx  context.Context //nolint:containedctx // of the layer that waits
	of   *ZstdTurns
	left *zstd.Decoder // that Wait got, nil if it is to be made
	has  bool          // what Wait got is not taken yet
}

// Wait waits for the turn now, before the layer holds anything: a connection, buffers.
// Without it, opening a zstd layer waits.
func (t *Turn) Wait() (err error) {
	t.left, err = t.take()
	t.has = err == nil
	return err
}

// End gives back what Wait got, if the layer was not opened, or is not zstd.
func (t *Turn) End() {
	if t.has {
		t.has = false
		t.give(t.left)
	}
}

// take waits. The decoder is nil where none is left over.
func (t *Turn) take() (*zstd.Decoder, error) {
	if t == nil {
		return nil, nil //nolint:nilnil // nil: to be made
	}
	if t.has {
		t.has = false
		return t.left, nil
	}
	t.of.waiting.Add(1)
	defer t.of.waiting.Add(-1)
	select {
	case z := <-t.of.free:
		return z, nil
	case <-t.ctx.Done():
		return nil, context.Cause(t.ctx)
	}
}

// give ends the turn. A decoder keeps the largest window that it ever saw, so it is
// kept only for somebody who waits.
func (t *Turn) give(z *zstd.Decoder) {
	if z != nil && (t == nil || t.of.waiting.Load() == 0 || z.Reset(nil) != nil) {
		z.Close()
		z = nil
		if t != nil {
			t.of.dropped.Store(true)
		}
	}
	if t != nil {
		t.of.free <- z
	}
}

func newZstd(src io.Reader, maxWindow int64, turn *Turn) (*zstdReader, error) {
	z, err := turn.take()
	if err != nil {
		return nil, err
	}
	if z != nil {
		err = z.Reset(src)
	} else {
		if turn != nil && turn.of.dropped.Swap(false) {
			debug.FreeOSMemory() // or there are two windows: beside the old one's pages, if these are not all free
		}
		z, err = zstd.NewReader(src,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(uint64(max(maxWindow, zstdLeastWindow))),
		)
	}
	if err != nil {
		turn.give(z)
		return nil, err
	}
	return &zstdReader{z: z, maxWindow: maxWindow, turn: turn}, nil
}

// Read implements [io.Reader].
func (r *zstdReader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = &LimitError{What: "zstd window bytes", Limit: r.maxWindow, Got: r.maxWindow + 1}
	}
	return n, err
}

// Close implements [io.Closer].
func (r *zstdReader) Close() error {
	r.turn.give(r.z)
	return nil
}
