//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"dray/internal/mount"
	"dray/internal/store"
)

// MountOptions of [Client.Mount].
type MountOptions struct {
	Pull     PullOptions
	ReadOnly bool // no upper directory: nothing can be written
	Replace  bool // another image that dray mounted there gives way
}

// Mount is a mounted root file system.
type Mount struct {
	ID       string `json:"id"`
	Target   string `json:"target"`
	Manifest Digest `json:"manifest_digest"`
	ReadOnly bool   `json:"read_only"`
	Merged   bool   `json:"merged"` // the layers are one merged index, as those of images with many are

	Image *Image `json:"image,omitempty"`
}

// Mount makes the image's root file system appear at dir, which is made if it
// does not exist, and pulls the image if needed. Each mount has a writable layer
// of its own, which goes with it. The same image mounted there already is left as
// it is.
func (c *Client) Mount(ctx context.Context, reference, dir string, o MountOptions) (*Mount, error) {
	lease, err := c.store.Lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", reference, err)
	}
	defer c.release(ctx, lease)
	image, err := c.pullIfNeeded(ctx, lease, reference, o.Pull)
	if err != nil {
		return nil, err
	}
	return c.mountImage(ctx, image, dir, o)
}

// release ends the lease of an image that is mounted by now, or will not be. Its file
// may stay: it is locked no more, keeps nothing, and goes at the next opening.
func (c *Client) release(ctx context.Context, lease *store.Lease) {
	if err := lease.Release(); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "the file of a lease is left", slog.Any("error", err))
	}
}

// pullIfNeeded returns the image of the store that has this reference, or pulls
// it. A store that lost a layer of it pulls that again. The lease keeps it: the caller
// holds that until a mount's record names the image.
func (c *Client) pullIfNeeded(ctx context.Context, lease *store.Lease, reference string, o PullOptions) (*Image, error) {
	if o.Fresh {
		return c.pull(ctx, lease, reference, o)
	}
	offline := o
	offline.Offline = true
	image, err := c.pull(ctx, lease, reference, offline)
	if err == nil || o.Offline || !errors.Is(err, store.ErrNotFound) {
		return image, err
	}
	return c.pull(ctx, lease, reference, o)
}

func (c *Client) mountImage(ctx context.Context, image *Image, dir string, o MountOptions) (*Mount, error) {
	target, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("mount at %s: %w", dir, err)
	}
	layers, err := image.layers(c.store)
	if err != nil {
		return nil, err
	}
	made, err := c.mounter.Mount(ctx, mount.Request{
		Image: image.Manifest, Layers: layers, Target: target, ReadOnly: o.ReadOnly, Replace: o.Replace,
	})
	if err != nil {
		return nil, err
	}
	return &Mount{ID: made.ID, Target: made.Target, Manifest: made.Image, ReadOnly: made.ReadOnly, Merged: made.Merged, Image: image}, nil
}

// Unmount takes the root file system at dir away, with what was written to it.
// The image stays.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	target, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return c.mounter.Unmount(ctx, target)
}
