//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/pull"
	"dray/internal/store"
)

// Conversion tells what [Client.Convert] did.
type Conversion struct {
	Image     *Image       `json:"image"`
	Layout    Layout       `json:"layout"`
	Converted []oci.DiffID `json:"converted"`           // layers that have the layout now
	Kept      []oci.DiffID `json:"kept,omitempty"`      // those that cannot be expressed in it
	Fallbacks []string     `json:"fallbacks,omitempty"` // why not
}

// Convert gives the layers of an image of the store the other layout, [LayoutDir]
// or [LayoutEROFS]. A tar is unpacked where it is. A tree does not have the bytes
// of its tar any more, so that its layer is fetched again, from where the image
// came. Layers that are mounted are an error, [store.ErrInUse].
func (c *Client) Convert(ctx context.Context, reference string, layout Layout, o PullOptions) (*Conversion, error) {
	if layout != LayoutDir && layout != LayoutEROFS {
		return nil, fmt.Errorf("convert %s: %w: want dir or erofs, not %q", reference, ErrLayout, string(layout))
	}
	image, err := c.Find(reference)
	if err != nil {
		return nil, err
	}
	done := &Conversion{Image: image, Layout: layout}
	if err := c.convert(ctx, done, o); err != nil {
		return nil, fmt.Errorf("convert %s: %w", reference, err)
	}
	return done, nil
}

func (c *Client) convert(ctx context.Context, done *Conversion, o PullOptions) error {
	layers, err := done.Image.layers(c.store)
	if err != nil {
		return err
	}
	wanted := distinctIn(layers, done.Layout)
	if len(wanted) == 0 {
		return nil
	}
	if done.Layout == LayoutDir {
		for _, l := range wanted {
			if err := c.unpack(ctx, l.DiffID); err != nil {
				return err
			}
			done.Converted = append(done.Converted, l.DiffID)
		}
		return nil
	}
	support, err := c.support(ctx)
	if err != nil {
		return err
	}
	if !support.Mounts {
		return fmt.Errorf("%w: %s: %s", ErrLayout, done.Layout, support.Reason)
	}
	return c.index(ctx, done, wanted, o)
}

// unpack puts a tree in the place of a tar.
func (c *Client) unpack(ctx context.Context, id oci.DiffID) (err error) {
	txn, old, err := c.store.Rewrite(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	if old.Layout == store.LayoutDir {
		return nil // another process was faster
	}
	tar, offset, err := old.OpenTar()
	if err != nil {
		return err
	}
	defer func() { _ = tar.Close() }()
	record, err := pull.Unpack(ctx, txn.Path(), storedTar(old, tar, offset), layer.Limits{}, apply.Options{Log: c.log})
	if err != nil {
		return err
	}
	record.Blob, record.SizeBytes = old.Blob, old.SizeBytes
	_, err = txn.Commit(ctx, record)
	return err
}

// index puts tars in the place of trees.
func (c *Client) index(ctx context.Context, done *Conversion, wanted []*store.Layer, o PullOptions) error {
	ref, err := oci.ParseReference(done.Image.Reference)
	if err != nil {
		return err
	}
	ref.Digest = done.Image.Manifest
	source, err := c.source(ctx, ref, o.Offline)
	if err != nil {
		return err
	}
	ids := make([]oci.DiffID, len(wanted))
	for i, l := range wanted {
		ids[i] = l.DiffID
	}
	evidence, err := c.engine.Rewrite(ctx, pull.Request{
		Reference: ref, Source: source, Local: ref.Transport != oci.Registry, Platform: done.Image.record.Platform, Progress: o.Progress,
	}, ids, string(done.Layout))
	if err != nil {
		return err
	}
	done.Fallbacks = evidence.Fallbacks
	for _, id := range ids {
		l, err := c.store.Layer(id)
		switch {
		case err != nil:
			return err
		case l.Layout == string(done.Layout):
			done.Converted = append(done.Converted, id)
		default:
			done.Kept = append(done.Kept, id)
		}
	}
	return nil
}
