//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"dray/internal/bundle"
	"dray/internal/oci"
	"dray/internal/userns"
)

// Names in a bundle (runtime-spec, bundle.md).
const rootfsName = "rootfs"

// SpecOptions says how the container differs from what its image says.
type SpecOptions = bundle.Options

// BundleOptions of [Client.Bundle].
type BundleOptions struct {
	Pull     PullOptions
	Spec     SpecOptions
	ReadOnly bool // the container cannot write its root file system
	Replace  bool // another image's bundle there gives way
	Create   bool // make the directory if it does not exist
	NoConfig bool // only rootfs, no config.json
	// NoCommand takes an image without a command, which gets no config.json: the
	// caller has a command of its own.
	NoCommand bool
}

// Bundle is an OCI bundle: config.json and a mounted rootfs.
type Bundle struct {
	Dir   string `json:"dir"`
	Mount *Mount `json:"mount"`
	Image *Image `json:"image"`
}

// Bundle makes an OCI runtime bundle of the image in dir: its root file system
// mounted at dir/rootfs and a config.json that runc and crun take as it is. dir
// must be an existing directory, not a symbolic link, unless Create is set. Called
// again for the same image it changes nothing but config.json.
func (c *Client) Bundle(ctx context.Context, reference, dir string, o BundleOptions) (made *Bundle, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", reference, err)
	}
	if o.Create {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) { //nolint:gosec // others may enter, as in any bundle
			return nil, fmt.Errorf("bundle %s: %w", reference, err)
		}
	}
	if err := checkBundle(dir); err != nil {
		return nil, err
	}
	lease, err := c.store.Lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", reference, err)
	}
	defer c.release(ctx, lease)
	image, err := c.pullIfNeeded(ctx, lease, reference, o.Pull)
	if err != nil {
		return nil, err
	}
	config, err := image.config()
	if err != nil {
		return nil, err
	}
	rootfs := filepath.Join(dir, rootfsName)
	mounted, err := c.mountImage(ctx, image, rootfs, MountOptions{Replace: o.Replace}) // the runtime makes mount points, and then read-only what shall be
	if err != nil {
		return nil, err
	}
	if !o.NoConfig {
		if err := c.writeConfig(dir, rootfs, config, o); err != nil {
			return nil, errors.Join(fmt.Errorf("bundle %s: %w", reference, err), c.mounter.Unmount(context.WithoutCancel(ctx), rootfs))
		}
	}
	return &Bundle{Dir: dir, Mount: mounted, Image: image}, nil
}

// checkBundle makes sure that dir is a directory and no link to one, before
// anything is pulled for it.
func checkBundle(dir string) error {
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("open bundle %s: no such directory; make it first: %w", dir, bundle.ErrOption)
	case err != nil:
		return fmt.Errorf("open bundle: %w", err)
	case !info.IsDir():
		return fmt.Errorf("open bundle %s: must be a directory, not a file or a symbolic link: %w", dir, bundle.ErrOption)
	}
	return nil
}

func (c *Client) writeConfig(dir, rootfs string, config *oci.Image, o BundleOptions) error {
	root, err := os.Open(rootfs) //nolint:gosec // our own mount
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	options := o.Spec
	options.ReadonlyRootfs = options.ReadonlyRootfs || o.ReadOnly
	options.Rootless = options.Rootless || userns.Inside()
	options.Log = c.log
	spec, err := bundle.Spec(config, root, options)
	if o.NoCommand && errors.Is(err, bundle.ErrNoCommand) {
		if err := os.Remove(filepath.Join(dir, bundle.ConfigName)); !errors.Is(err, os.ErrNotExist) { // another image's
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	return bundle.Write(dir, spec)
}
