//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
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
	var made *Mount
	err := whileLost(func() error {
		image, err := c.pullIfNeeded(ctx, reference, o.Pull)
		if err != nil {
			return err
		}
		made, err = c.mountImage(ctx, image, dir, o)
		return err
	})
	return made, err
}

// whileLost pulls and mounts, and does it again when what was pulled is not there any
// more: its name was removed and its layers collected before it was mounted.
func whileLost(pullAndMount func() error) error {
	const attempts = 3
	var err error
	for range attempts {
		if err = pullAndMount(); !errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	return err
}

// pullIfNeeded returns the image of the store that has this reference, or pulls
// it. A store that lost a layer of it pulls that again.
func (c *Client) pullIfNeeded(ctx context.Context, reference string, o PullOptions) (*Image, error) {
	if o.Fresh {
		return c.Pull(ctx, reference, o)
	}
	offline := o
	offline.Offline = true
	image, err := c.Pull(ctx, reference, offline)
	if err == nil || o.Offline || !errors.Is(err, store.ErrNotFound) {
		return image, err
	}
	return c.Pull(ctx, reference, o)
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
