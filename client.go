package dray

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

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

// rootStore is where the store of the system is.
const rootStore = "/var/lib/dray"

// Options of a [Client]. The zero value of each field is a good default.
type Options struct {
	Store    string // directory; "": [DefaultStore]
	ReadOnly bool   // never write: what is there can be inspected

	Platform string // "os/arch[/variant]"; "": this machine's

	AuthFiles          []string                              // credentials; nil: where docker, podman and skopeo keep them
	CertDirs           []string                              // certificates in the layout of certs.d; nil: the usual places
	CAs                []byte                                // authorities beside the system's, PEM
	Hosts              []Host                                // settings of single registries: mirrors, CAs, credentials
	SearchRegistries   []string                              // hosts that complete names without one, in order; nil: docker.io
	PlainHTTP          bool                                  // HTTP for every registry
	InsecureSkipVerify bool                                  // any certificate will do
	Proxy              func(*http.Request) (*url.URL, error) // nil: as the environment says

	// Seeds are what is there before anyone pulls: directories and files that "dray
	// store seed" made, stores, OCI image layouts. nil: /usr/share/dray/seed and
	// /var/lib/dray/seeds/*, as far as they exist; empty: none. What is in TrustedSeeds
	// is believed without being hashed: it lies where only a trusted party can write.
	Seeds        []string
	TrustedSeeds []string
	ForeignDisks bool // whoever provides this machine's disks is not trusted, as a confidential guest's host

	Layout Layout // how new layers are stored; "": [LayoutAuto]

	MaxLayerBytes int64 // uncompressed size of one layer; 0: [layer.DefaultMaxBytes]
	MaxEntries    int64 // files of one layer; 0: [layer.DefaultMaxEntries]

	Workers int           // layers in flight at once; 0: one per CPU
	Memory  int64         // bytes that buffers may take together; 0: what the workers need
	Linger  time.Duration // how long a layer goes on when nobody waits for it any more; 0: not at all
	Sync    SyncMode      // when what was pulled is made safe from power loss; zero: before Pull returns

	Log *slog.Logger // nil: silence
}

// Host is what is special about a registry.
type Host = registry.Host

// Evidence tells what a pull did and what it proved.
type Evidence = pull.Evidence

// Event is one step of a pull.
type Event = pull.Event

// SyncMode says when what was pulled is made safe from power loss.
type SyncMode = pull.SyncMode

// Modes of syncing.
const (
	SyncBefore = pull.SyncBefore // before Pull returns
	SyncAfter  = pull.SyncAfter  // in the background; Close waits for it
	SyncNever  = pull.SyncNever  // when the kernel pleases
)

// Digest names stored bytes.
type Digest = oci.Digest

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

// DefaultStore returns the store's usual place: /var/lib/dray for root, else
// dray in the user's data directory.
func DefaultStore() string {
	if os.Geteuid() == 0 && !userns.Inside() {
		return rootStore
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "dray")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return rootStore
	}
	return filepath.Join(home, ".local", "share", "dray")
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
	c.budget = stream.NewBudget(formula.RangesBytes)
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
		Store: c.store, Seeds: c.seeds, Workers: o.Workers, Linger: o.Linger, Sync: o.Sync, Layout: c.chooseLayout,
		Apply:      apply.Options{Whiteouts: form, UserNS: inside, IgnoreChownErrors: inside && userns.SingleID(), Log: o.Log},
		Decompress: layer.Options{MaxBytes: o.MaxLayerBytes},
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
