//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"dray/internal/apply"
	"dray/internal/mount"
	"dray/internal/oci"
	"dray/internal/store"
)

// The reports of the store, under public names.
//
//nolint:revive // documented where they are defined
type (
	GCReport     = store.GCReport
	VerifyReport = store.VerifyReport
	Usage        = store.Usage
	MountStatus  = mount.Status
	Ref          = store.Ref
	Removed      = store.Removed
)

// Images returns every image of the store with the references that name it.
func (c *Client) Images() ([]*Image, error) {
	records, err := c.store.Images()
	if err != nil {
		return nil, err
	}
	images := make([]*Image, 0, len(records))
	for _, record := range records {
		image, err := c.imageOf(record)
		if err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	return images, nil
}

// Refs returns every reference of the store and the manifest that it names.
func (c *Client) Refs() ([]Ref, error) { return c.store.Refs() }

// Mounts returns what dray has mounted from this store, dead or alive.
func (c *Client) Mounts(ctx context.Context) ([]MountStatus, error) { return c.mounter.List(ctx) }

// Inspection is all that the store knows of an image.
type Inspection struct {
	*Image
	RawManifest []byte         `json:"-"`
	RawConfig   []byte         `json:"-"`
	Layers      []*store.Layer `json:"layers"`
	References  []string       `json:"references"`
	Merged      *store.Merged  `json:"merged,omitempty"` // the index that is mounted in the place of many layers
}

// Inspect returns all that the store knows of an image.
func (c *Client) Inspect(reference string) (*Inspection, error) {
	image, err := c.Find(reference)
	if err != nil {
		return nil, err
	}
	layers, err := image.layers(c.store)
	if err != nil {
		return nil, err
	}
	refs, err := c.store.Refs()
	if err != nil {
		return nil, err
	}
	found := &Inspection{Image: image, RawManifest: image.record.RawManifest, RawConfig: image.record.RawConfig, Layers: layers}
	if found.Merged, err = c.store.Merged(image.record.DiffIDs); errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	for _, ref := range refs {
		if ref.Digest == image.Manifest {
			found.References = append(found.References, ref.Name)
		}
	}
	return found, err
}

// Remove takes a reference away, or with a digest every reference to it, and the
// image when none is left. Its layers stay until [Client.GC].
func (c *Client) Remove(ctx context.Context, reference string) (Removed, error) {
	name := reference
	if _, err := oci.ParseDigest(reference); err != nil {
		ref, err := oci.ParseReference(reference)
		if err != nil {
			return Removed{}, err
		}
		name = ref.String()
	}
	return c.store.Remove(ctx, name)
}

// GCOptions of [Client.GC].
type GCOptions struct {
	DryRun bool
	Keep   time.Duration // unreferenced layers younger than this stay, for a pull that is tried again
}

// GC removes layers that no image, pull or mount uses.
func (c *Client) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	return c.store.GC(ctx, store.GCOptions{DryRun: o.DryRun, KeepUnreferenced: o.Keep})
}

// VerifyOptions of [Client.Verify].
type VerifyOptions struct {
	Repair bool // remove what is wrong; what is removed is kept in ROOT/quarantine
	Quick  bool // records only, not every byte of every layer
	Seeds  bool // every layer of the seeds too
}

// Verify checks the whole store: every record, every reference and, unless Quick,
// every file of every layer against what the layer said when it was pulled.
func (c *Client) Verify(ctx context.Context, o VerifyOptions) (VerifyReport, error) {
	check := c.checkLayer
	if o.Quick {
		check = nil
	}
	report, err := c.store.Verify(ctx, store.VerifyOptions{Repair: o.Repair, Check: check, CheckMerged: mount.CheckMerged})
	if err == nil && o.Seeds {
		err = c.verifySeeds(ctx, &report)
	}
	return report, err
}

// checkLayer holds a layer against what it said when it was pulled.
func (c *Client) checkLayer(ctx context.Context, l *store.Layer) ([]string, error) {
	if l.Layout == store.LayoutEROFS || l.Layout == store.LayoutSeed {
		return c.checkIndexed(ctx, l)
	}
	return c.checkTree(ctx, l)
}

// checkTree holds a layer's tree against its journal.
func (c *Client) checkTree(ctx context.Context, l *store.Layer) (problems []string, err error) {
	root, err := os.Open(l.FS())
	if err != nil {
		return []string{err.Error()}, nil
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	form := apply.Trusted
	if l.Whiteouts == store.WhiteoutsUser {
		form = apply.User
	}
	return checkJournal(ctx, l, root, form)
}

// checkJournal holds a tree, which has whiteouts in the form, against what was
// written down when the layer was unpacked.
func checkJournal(ctx context.Context, l *store.Layer, root *os.File, form apply.Form) (problems []string, err error) {
	journal, err := os.Open(l.Journal())
	if l.Seed != nil && errors.Is(err, os.ErrNotExist) {
		return nil, nil // a trusted tree that is not dray's: there is nothing to hold it against
	}
	if err != nil {
		return []string{err.Error()}, nil
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	differences, err := apply.Check(ctx, root, journal, apply.CheckOptions{Whiteouts: form})
	if err != nil {
		return nil, fmt.Errorf("check layer %s: %w", l.DiffID, err)
	}
	for _, d := range differences {
		problems = append(problems, d.String())
	}
	return problems, nil
}

// DiskUsage returns what images and layers take, shared blocks counted once.
func (c *Client) DiskUsage(ctx context.Context) (Usage, error) { return c.store.Usage(ctx) }
