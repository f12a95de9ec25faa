package erofs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

// Copy writes the tar src to w, block by block, and returns its index. It returns
// when src has ended: if src verifies, all of it is verified then.
//
// When the layer cannot be expressed, the error is an [ErrInexpressible], src has
// ended well, and all of it is in w. After any other error, those of src, of w and
// of malformed tars, as package apply reports them, what is in w is worthless.
//
// The image's UUID is the beginning of id. w may be nil, to make the index of a
// tar that is stored already. The index is to be closed.
func Copy(ctx context.Context, id oci.DiffID, src stream.Blocks, w io.Writer, limits layer.Limits, o Options) (x *Index, err error) {
	x, err = newIndex(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.Close())
			x = nil
		}
	}()
	defer onFault(&err)()
	if x.uuid, err = uuid(id); err != nil {
		return x, err
	}
	if o.DeviceOffset%blockBytes != 0 {
		return x, fmt.Errorf("index a tar at offset %d: want a multiple of %d", o.DeviceOffset, blockBytes)
	}
	t := &tee{ctx: ctx, src: src, out: w, before: o.DeviceOffset}
	tar := layer.NewTar(t, limits)
	if err = x.read(tar, t); err == nil || errors.Is(err, ErrInexpressible) {
		if _, drainErr := tar.Drain(); drainErr != nil {
			return x, drainErr
		}
	}
	if err == nil {
		err = x.end(t)
	}
	return x, err
}

// read puts every entry of the tar into the index.
func (x *Index) read(tar *layer.Tar, t *tee) error {
	for {
		e, err := tar.Next()
		if err == io.EOF { //nolint:errorlint // the tar's own mark of its end
			return nil
		}
		if err != nil {
			return err
		}
		x.result.Entries++
		x.memory.step()
		at := tar.Offset()
		if e.Type == layer.Reg {
			if err := expressible(e, t.before+at); err != nil {
				return err
			}
			t.watch(at+e.Size, at+int64(blocksOf(uint64(e.Size))*blockBytes))
		}
		if err := x.add(e, uint32((t.before+at)/blockBytes)); err != nil {
			return fmt.Errorf("index %s %q: %w", e.Type, e.Name, err)
		}
	}
}

// expressible looks at what a file holds.
func expressible(e *layer.Entry, at int64) error {
	const maxBlock = 1<<32 - 1
	switch {
	case e.Sparse != nil:
		return &InexpressibleError{Name: e.Name, Reason: "a sparse file"}
	case at%blockBytes != 0:
		return &InexpressibleError{Name: e.Name, Reason: "content that does not begin at a whole block"}
	case (at+e.Size)/blockBytes >= maxBlock:
		return errTooLarge
	}
	return nil
}

// end looks at the tar as a whole, and lays the image out.
func (x *Index) end(t *tee) error {
	if t.dirty || t.to > t.offset {
		return &InexpressibleError{Reason: "padding that is missing or not zero"}
	}
	x.tarBytes, x.tarBlocks = t.offset, uint64(t.before+t.offset)/blockBytes
	return x.arrange()
}

// uuid is the beginning of a digest.
func uuid(id oci.DiffID) (u [uuidBytes]byte, err error) {
	_, err = hex.Decode(u[:], []byte(id.Hex()[:2*uuidBytes]))
	return u, err
}

// tee writes the blocks that it passes on, and looks at the padding between files.
type tee struct {
	ctx context.Context //nolint:containedctx // Blocks has none; the tee does not outlive Copy
	src stream.Blocks
	out io.Writer // nil for none

	before int64 // bytes of the device before the tar

	block    []byte // lent by src
	offset   int64  // of its end
	from, to int64  // the padding that is looked at
	dirty    bool   // some was not zero
}

// Next implements [stream.Blocks].
func (t *tee) Next() ([]byte, error) {
	if t.ctx.Err() != nil {
		return nil, context.Cause(t.ctx)
	}
	block, err := t.src.Next()
	if err != nil {
		return nil, err
	}
	if t.out != nil {
		if _, err := t.out.Write(block); err != nil {
			return nil, fmt.Errorf("store tar: %w", err)
		}
	}
	t.block = block
	t.offset += int64(len(block))
	t.check()
	return block, nil
}

// watch makes the tee look at a range that is not before the last block.
func (t *tee) watch(from, to int64) {
	t.from, t.to = from, to
	t.check()
}

// check looks at what the last block has of the range.
func (t *tee) check() {
	begin := t.offset - int64(len(t.block))
	from, to := max(t.from, begin), min(t.to, t.offset)
	if from >= to {
		return
	}
	for _, c := range t.block[from-begin : to-begin] {
		t.dirty = t.dirty || c != 0
	}
}

// onFault turns an error of the disk that holds the memory of an index, which
// arrives as a fault, into an error. Call what it returns at the end.
func onFault(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		fault := recover()
		if fault == nil {
			return
		}
		if at, ok := fault.(interface{ Addr() uintptr }); ok {
			*err = errors.Join(*err, fmt.Errorf("read index from disk: fault at %#x", at.Addr()))
			return
		}
		panic(fault)
	}
}
