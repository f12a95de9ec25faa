package pull

import (
	"context"
	"errors"
	"fmt"
	"io"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
)

// Keep brings a layer into the store that is at hand: plain is its tar, to the end.
// It is verified against id like one that was fetched, and stored in the layout of
// new layers. A layer that the store has already is returned as it is, without
// reading plain.
func (e *Engine) Keep(ctx context.Context, id oci.DiffID, plain io.Reader) (*store.Layer, error) {
	layout, _, err := e.options.Layout(ctx)
	if err != nil {
		return nil, err
	}
	return e.keepFrom(ctx, id, plain, func(txn *store.Txn, tar *stream.Ahead) (store.LayerRecord, error) {
		verified := stream.NewBlockVerifier(tar, "layer", id.Digest(), stream.AnySize)
		record, err := e.keep(ctx, txn, &flight{job: job{diffID: id, layout: layout}}, verified)
		record.SizeBytes = verified.Count()
		return record, err
	})
}

// KeepTrusted is Keep without the verification: the caller vouches that what plain
// becomes is the layer id. The layer says so forever, in each image's evidence, with
// note. It is unpacked: there is no tar that has the digest.
func (e *Engine) KeepTrusted(ctx context.Context, id oci.DiffID, plain io.Reader, note string) (*store.Layer, error) {
	counted := &counter{src: plain}
	return e.keepFrom(ctx, id, counted, func(txn *store.Txn, tar *stream.Ahead) (store.LayerRecord, error) {
		record, err := Unpack(ctx, txn.Path(), tar, e.options.Tar, e.options.Apply)
		record.SizeBytes = counted.bytes
		record.Notes = append(record.Notes, note)
		return record, err
	})
}

func (e *Engine) keepFrom(ctx context.Context, id oci.DiffID, plain io.Reader, keep func(*store.Txn, *stream.Ahead) (store.LayerRecord, error)) (done *store.Layer, err error) {
	txn, present, err := e.options.Store.Begin(ctx, id)
	if err != nil || present != nil {
		return present, err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	tar := stream.NewAhead(ctx, plain, plainBlocks, plainBlockBytes)
	defer func() { err = errors.Join(err, tar.Close()) }()
	record, err := keep(txn, tar)
	if err != nil {
		if isContent(err) && !errors.Is(err, layer.ErrFormat) {
			err = fmt.Errorf("%w: %w", layer.ErrFormat, err)
		}
		return nil, fmt.Errorf("keep layer %s: %w", id, e.options.Store.Explain(err))
	}
	return txn.Commit(ctx, record)
}

// counter counts what is read. The count is right once the end was seen.
type counter struct {
	src   io.Reader
	bytes int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.src.Read(p)
	c.bytes += int64(n)
	return n, err
}
