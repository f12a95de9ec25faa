//go:build linux

package dray

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"dray/internal/mount"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/pull"
	"dray/internal/registry"
	"dray/internal/store"
)

// PullOptions of [Client.Pull] and of whatever pulls if needed.
type PullOptions struct {
	Platform      string      // "": the client's
	Offline       bool        // never ask a registry: what is not in the store is not found
	Fresh         bool        // for what pulls if needed: ask the registry even if the store has the image
	RequireDigest bool        // refuse references that are not pinned
	Progress      func(Event) // nil: none. Called by several goroutines, one at a time
}

// Image is an image in the store.
type Image struct {
	Reference string    `json:"reference"` // as it was pulled
	Manifest  Digest    `json:"manifest_digest"`
	Config    Digest    `json:"config_digest"`
	Platform  string    `json:"platform"`
	Pulled    time.Time `json:"pulled"`
	Evidence  *Evidence `json:"evidence,omitempty"`

	record *store.Image
}

// Pull brings an image into the store and returns it with its evidence. What is
// there already is not fetched again. After an error nothing half-done is
// visible, and layers that were complete are kept for the next attempt.
func (c *Client) Pull(ctx context.Context, reference string, o PullOptions) (image *Image, err error) {
	lease, err := c.store.Lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", reference, err)
	}
	defer func() {
		if err = errors.Join(err, lease.Release()); err != nil {
			image = nil
		}
	}()
	return c.pull(ctx, lease, reference, o)
}

// pull is Pull for a caller who still needs the image: lease keeps it.
func (c *Client) pull(ctx context.Context, lease *store.Lease, reference string, o PullOptions) (*Image, error) {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	if o.RequireDigest && ref.Digest == "" {
		return nil, fmt.Errorf("pull %s: add @sha256:…: %w", ref, ErrNeedsDigest)
	}
	platform := c.platform
	if o.Platform != "" {
		if platform, err = oci.ParsePlatform(o.Platform); err != nil {
			return nil, err
		}
	}
	var image *Image
	for _, candidate := range c.complete(ref) {
		image, err = c.pullOne(ctx, lease, candidate, platform, o)
		if !errors.Is(err, registry.ErrNotFound) && !errors.Is(err, store.ErrNotFound) {
			return image, err
		}
	}
	return image, err
}

// complete returns the references that a name without a host may mean.
func (c *Client) complete(ref oci.Reference) []oci.Reference {
	if !ref.Short || len(c.options.SearchRegistries) == 0 {
		return []oci.Reference{ref}
	}
	var candidates []oci.Reference
	for _, host := range c.options.SearchRegistries {
		candidate := ref
		if candidate.Host = host; host != oci.DefaultHost {
			candidate.Repository = strings.TrimPrefix(ref.Repository, "library/")
		}
		candidates = append(candidates, candidate)
	}
	return candidates
}

func (c *Client) pullOne(ctx context.Context, lease *store.Lease, ref oci.Reference, platform oci.Platform, o PullOptions) (*Image, error) {
	source, err := c.source(ctx, ref, o.Offline)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	record, evidence, err := c.engine.Pull(ctx, pull.Request{
		Reference: ref, Source: source, Local: ref.Transport != oci.Registry,
		Platform: platform, Offline: o.Offline, Progress: o.Progress, Lease: lease,
	})
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	image := newImage(record, evidence)
	if !o.Offline && len(image.record.DiffIDs) > mount.DefaultMergeAbove {
		layers, err := image.layers(c.store)
		if err == nil {
			err = c.mounter.Prepare(ctx, layers)
		}
		if err != nil {
			return nil, fmt.Errorf("pull %s: %w", ref, err)
		}
	}
	return image, nil
}

// source opens what the reference points to.
func (c *Client) source(ctx context.Context, ref oci.Reference, offline bool) (pull.Source, error) {
	if offline {
		return nowhere{}, nil
	}
	if ref.Transport == oci.Registry {
		repository, err := c.registry.Repository(ref)
		return remote{repository}, err
	}
	layout, err := ocidir.Open(ctx, ref.Path, ref.Transport)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ocidir.ErrNotFound, err)
	}
	return layout, err
}

func newImage(record *store.Image, evidence *Evidence) *Image {
	return &Image{
		Reference: record.Reference,
		Manifest:  record.Manifest.Digest,
		Config:    record.Config.Digest,
		Platform:  record.Platform.String(),
		Pulled:    record.Pulled,
		Evidence:  evidence,
		record:    record,
	}
}

// Find returns an image of the store by the reference it was pulled as, another
// that names it, or its manifest digest. It asks no registry.
func (c *Client) Find(reference string) (*Image, error) {
	digest, err := c.digestOf(reference)
	if err != nil {
		return nil, err
	}
	record, err := c.store.Image(digest)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", reference, err)
	}
	return c.imageOf(record)
}

func (c *Client) imageOf(record *store.Image) (*Image, error) {
	var evidence Evidence
	if err := json.Unmarshal(record.Evidence, &evidence); err != nil {
		return nil, fmt.Errorf("read evidence of %s: %w: %w", record.Manifest.Digest, store.ErrCorrupt, err)
	}
	return newImage(record, &evidence), nil
}

// digestOf returns the manifest digest that reference names in the store.
func (c *Client) digestOf(reference string) (oci.Digest, error) {
	if digest, err := oci.ParseDigest(reference); err == nil {
		return digest, nil
	}
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return "", err
	}
	digest, err := c.store.Ref(ref.String())
	if err != nil {
		return "", fmt.Errorf("find %s: %w", ref, err)
	}
	return digest, nil
}

// layers returns the image's layers as they are in the store, bottom first.
func (i *Image) layers(s *store.Store) ([]*store.Layer, error) {
	layers := make([]*store.Layer, len(i.record.DiffIDs))
	for n, id := range i.record.DiffIDs {
		l, err := s.Layer(id)
		if err != nil {
			return nil, fmt.Errorf("image %s: layer %d: %w", i.Manifest, n, err)
		}
		layers[n] = l
	}
	return layers, nil
}

// config returns the image's configuration.
func (i *Image) config() (*oci.Image, error) { return oci.DecodeImage(i.record.RawConfig) }
