package dray

import (
	"context"
	"fmt"
	"log/slog"

	"dray/internal/oci"
	"dray/internal/registry"
	"dray/internal/repo"
	"dray/internal/stream"
)

// Images works on images where they are: in registries, image layouts and
// archives. It needs no store, no right to mount and no daemon. It is safe for
// concurrent use.
type Images struct {
	options  Options
	platform oci.Platform
	registry *registry.Client
	log      *slog.Logger
}

// NewImages returns an Images. Of o it takes what concerns registries, the
// platform, the limits of layers, workers, memory and the log; the rest is for [New].
func NewImages(o Options) (*Images, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	i := &Images{options: o, platform: oci.HostPlatform(), log: o.Log}
	var err error
	if o.Platform != "" {
		if i.platform, err = oci.ParsePlatform(o.Platform); err != nil {
			return nil, err
		}
	}
	i.registry, err = registry.NewClient(registry.Options{
		AuthFiles: o.AuthFiles, CertDirs: o.CertDirs, CAs: o.CAs, Hosts: o.Hosts,
		PlainHTTP: o.PlainHTTP, InsecureSkipVerify: o.InsecureSkipVerify, Proxy: o.Proxy,
		Budget: stream.NewBudget(rangesBudgetBytes), Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

// rangesBudgetBytes is what blobs that are fetched in parts at once may hold.
const rangesBudgetBytes = 16 << 20

// Close drops connections.
func (i *Images) Close() error { return i.registry.Close() }

// open opens the repository of a reference to be read.
func (i *Images) open(ctx context.Context, reference string) (*repo.Repository, error) {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	return repo.Open(ctx, ref, repo.Options{Registry: i.registry})
}

// create opens the repository of a reference to be written.
func (i *Images) create(ctx context.Context, reference string) (*repo.Repository, error) {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	r, err := repo.Create(ctx, ref, repo.Options{Registry: i.registry})
	if err != nil {
		return nil, fmt.Errorf("open target: %w", err)
	}
	return r, nil
}
