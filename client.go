//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/mount"
	"dray/internal/oci"
	"dray/internal/pull"
	"dray/internal/registry"
	"dray/internal/seed"
	"dray/internal/store"
	"dray/internal/stream"
	"dray/internal/userns"
)

// Evidence tells what a pull did and what it proved.
type Evidence = pull.Evidence

// Client pulls, mounts and runs images of one store. It is safe for concurrent
// use, also by several processes on one store.
type Client struct {
	options  Options
	platform oci.Platform
	store    *store.Store
	seeds    *seed.Set
	registry *registry.Client
	engine   *pull.Engine
	mounter  *mount.Mounter
	layouts  layouts
	budget   *stream.Budget // of blobs fetched in parts: what of the formula is not the engine's
	log      *slog.Logger
}

// New opens the store, makes it if there is none, and cleans up after processes
// that were killed.
func New(ctx context.Context, o Options) (*Client, error) {
	if o.Store == "" {
		o.Store = DefaultStore()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := o.Layout.check(); err != nil {
		return nil, err
	}
	platform := oci.HostPlatform()
	if o.Platform != "" {
		var err error
		if platform, err = oci.ParsePlatform(o.Platform); err != nil {
			return nil, err
		}
	}
	c := &Client{options: o, platform: platform, log: o.Log}
	formula := c.Explain()
	c.budget = stream.NewBudget(formula.RangesBytes - formula.surplusTaken())
	if o.Memory > 0 && o.Memory < formula.Buffers() {
		return nil, fmt.Errorf("--memory %d is less than the %d bytes that %d layers in flight need; lower --workers: %w",
			o.Memory, formula.Buffers(), formula.Workers, stream.ErrTooLarge)
	}
	return c, c.open(ctx)
}

// open makes the parts, each from those before it.
func (c *Client) open(ctx context.Context) (err error) {
	o := c.options
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	c.store, err = store.Open(ctx, store.Options{Root: o.Store, ReadOnly: o.ReadOnly, Log: o.Log})
	if err != nil {
		return err
	}
	c.seeds, err = seed.Open(ctx, seed.Options{
		Paths: o.Seeds, Trusted: o.TrustedSeeds, Usual: o.Seeds == nil, ForeignDisks: o.ForeignDisks, InUserNS: userns.Inside(),
	})
	if err != nil {
		return err
	}
	c.registry, err = registry.NewClient(registry.Options{
		AuthFiles: o.AuthFiles, CertDirs: o.CertDirs, CAs: o.CAs, Hosts: o.Hosts,
		PlainHTTP: o.PlainHTTP, InsecureSkipVerify: o.InsecureSkipVerify, Proxy: o.Proxy,
		Budget: c.budget, Log: o.Log,
	})
	if err != nil {
		return err
	}
	inside := userns.Inside()
	form := apply.Trusted
	if inside {
		form = apply.User
	}
	c.engine, err = pull.New(pull.Options{
		Store: c.store, Seeds: c.seeds, Reuse: o.Reuse.engine(), Workers: o.Workers, Linger: o.Linger, Sync: pull.SyncMode(o.Sync), Layout: c.chooseLayout,
		Apply:      apply.Options{Whiteouts: form, UserNS: inside, IgnoreChownErrors: inside && userns.SingleID(), Log: o.Log},
		Decompress: layer.Options{MaxBytes: o.MaxLayerBytes, LargeStretches: c.Explain().largeStretches()},
		ZstdLayers: c.Explain().ZstdLayers,
		Tar:        layer.Limits{MaxBytes: o.MaxLayerBytes, MaxEntries: o.MaxEntries},
		Log:        o.Log,
	})
	if err != nil {
		return err
	}
	c.mounter, err = mount.New(mount.Options{Store: c.store, UserXattr: inside, Log: o.Log})
	if err != nil || o.ReadOnly {
		return err
	}
	_, err = c.mounter.Recover(ctx)
	return err
}

// Close stops what is under way and waits until it has cleaned up. Mounts stay.
func (c *Client) Close() error {
	var err error
	if c.engine != nil {
		err = c.engine.Close()
	}
	if c.registry != nil {
		err = errors.Join(err, c.registry.Close())
	}
	if c.store != nil {
		err = errors.Join(err, c.store.Close())
	}
	return err
}

// Store returns the directory of the store.
func (c *Client) Store() string { return c.store.Root() }

// systemWide tells whether the process may use the system's store.
func systemWide() bool { return os.Geteuid() == 0 && !userns.Inside() }
