package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registry"
	"dray/internal/repo"
	"dray/internal/stream"
)

// CopyOptions of [Copy].
type CopyOptions struct {
	Platform    *oci.Platform // of an index, only this image; nil: all of it
	NoReferrers bool          // leave signatures, records and the like behind
	Jobs        int           // blobs at once; 0 is [DefaultCopyJobs], or one per core if that is more
	Progress    func(Event)   // nil: none. Called one at a time
	Log         *slog.Logger
}

// DefaultCopyJobs is how many blobs are copied at once.
const DefaultCopyJobs = 4

// CopyResult is what [Copy] did.
type CopyResult struct {
	Root      oci.Descriptor `json:"root"`
	Manifests int            `json:"manifests"`
	Referrers int            `json:"referrers"`
	Blobs     int            `json:"blobs"`

	FoundBytes   int64 `json:"found_bytes"`   // of blobs that the target had
	MountedBytes int64 `json:"mounted_bytes"` // that it took over from where it is, without transfer
	SentBytes    int64 `json:"sent_bytes"`
}

// Copy copies what the source's reference names, byte for byte, and tags it as the
// target's. What the target has is not transferred again, so that a copy that broke
// off goes on where it was. target is not committed.
func Copy(ctx context.Context, source, target *repo.Repository, o CopyOptions) (*CopyResult, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &copier{source: source, target: target, progress: o.Progress, jobs: cmp.Or(o.Jobs, max(DefaultCopyJobs, runtime.GOMAXPROCS(0)))}
	err := c.copyRoot(ctx, &o)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", source.Reference(), err)
	}
	return &c.result, nil
}

// copier copies documents with all that they name. Its methods may be called by
// one goroutine.
type copier struct {
	source, target *repo.Repository
	jobs           int
	progress       func(Event)
	result         CopyResult
	seen           map[oci.Digest]bool // manifests that are done
	count          int

	mu    sync.Mutex // guards the fields below, and serialises progress
	blobs map[oci.Digest]bool
}

func (c *copier) copyRoot(ctx context.Context, o *CopyOptions) error {
	d, raw, err := c.source.Root(ctx)
	if err != nil {
		return err
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return fmt.Errorf("read %s: %w", d.Digest, err)
	}
	d.MediaType = document.MediaType
	for depth := 0; o.Platform != nil && document.Index != nil; depth++ {
		if depth == maxDepth {
			return fmt.Errorf("index %s: more than %d indexes inside each other: %w", d.Digest, maxDepth, oci.ErrManifest)
		}
		if d, err = chooseOne(document.Index, *o.Platform); err != nil {
			return err
		}
		d.Platform, d.Annotations = nil, nil
		if _, raw, err = c.source.Resolve(ctx, "", d.Digest); err != nil {
			return err
		}
		if document, err = oci.DecodeDocument(raw, d.MediaType); err != nil {
			return fmt.Errorf("read %s: %w", d.Digest, err)
		}
	}
	if err := c.document(ctx, d, raw, document, !o.NoReferrers, maxDepth); err != nil {
		return err
	}
	c.result.Root = d
	return c.target.Tag(ctx, d)
}

// chooseOne returns the entry for a platform, or the only index to look into.
func chooseOne(index *oci.Index, platform oci.Platform) (oci.Descriptor, error) {
	d, err := platform.Choose(index)
	if nested := oci.Nested(index); err != nil && len(nested) == 1 && oci.IsIndex(nested[0].MediaType) {
		return nested[0], nil
	}
	return d, err
}

// tree copies the document that d names, and what it names.
func (c *copier) tree(ctx context.Context, d oci.Descriptor, referrers bool) error {
	return c.entry(ctx, d, referrers, maxDepth)
}

// all copies a node of a plan.
func (c *copier) all(ctx context.Context, d oci.Descriptor, raw []byte, document *oci.Document) error {
	if document == nil {
		return c.blobsOf(ctx, []oci.Descriptor{d})
	}
	return c.document(ctx, d, raw, document, false, maxDepth)
}

func (c *copier) entry(ctx context.Context, d oci.Descriptor, referrers bool, depth int) error {
	if c.seen[d.Digest] {
		return nil
	}
	if !oci.IsIndex(d.MediaType) && !oci.IsManifest(d.MediaType) {
		return c.blobsOf(ctx, []oci.Descriptor{d}) // which an index may name
	}
	if depth == 0 {
		return fmt.Errorf("%s: more than %d documents inside each other: %w", d.Digest, maxDepth, oci.ErrManifest)
	}
	_, raw, err := c.source.Resolve(ctx, "", d.Digest)
	if err != nil {
		return err
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return fmt.Errorf("read %s: %w", d.Digest, err)
	}
	return c.document(ctx, d, raw, document, referrers, depth)
}

// document copies a manifest or an index: what it names first, then itself, then
// what refers to it.
func (c *copier) document(ctx context.Context, d oci.Descriptor, raw []byte, document *oci.Document, referrers bool, depth int) error {
	if c.seen == nil {
		c.seen = map[oci.Digest]bool{}
	}
	if c.seen[d.Digest] {
		return nil
	}
	c.seen[d.Digest] = true
	if c.count++; c.count > maxManifests {
		return fmt.Errorf("more than %d manifests: %w", maxManifests, stream.ErrTooLarge)
	}
	if document.Index != nil {
		for _, child := range document.Index.Manifests {
			if err := c.entry(ctx, child, referrers, depth-1); err != nil {
				return err
			}
		}
	} else if err := c.blobsOf(ctx, append([]oci.Descriptor{document.Manifest.Config}, document.Manifest.Layers...)); err != nil {
		return err
	}
	if _, err := c.target.PutManifest(ctx, document.MediaType, raw); err != nil {
		return err
	}
	c.result.Manifests++
	if !referrers {
		return nil
	}
	list, err := c.source.Referrers(ctx, d.Digest, "")
	if err != nil {
		return err
	}
	for _, referrer := range list {
		if err := c.entry(ctx, referrer, referrers, depth-1); err != nil {
			return err
		}
		c.result.Referrers++
	}
	return nil
}

// blobsOf copies blobs, several at once.
func (c *copier) blobsOf(ctx context.Context, blobs []oci.Descriptor) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.jobs)
	for _, d := range blobs {
		n, first := c.first(d.Digest)
		if !first {
			continue
		}
		group.Go(func() error { return c.blob(ctx, n, d) })
	}
	return group.Wait()
}

// first tells whether d was not copied before, and how many were.
func (c *copier) first(d oci.Digest) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blobs == nil {
		c.blobs = map[oci.Digest]bool{}
	}
	if c.blobs[d] {
		return 0, false
	}
	c.blobs[d] = true
	return len(c.blobs) - 1, true
}

func (c *copier) blob(ctx context.Context, n int, d oci.Descriptor) error {
	var how repo.Pushed
	var err error
	switch {
	case int64(len(d.Data)) == d.Size && d.Size > 0:
		_, err = c.target.PutBlob(ctx, d.MediaType, d.Data)
	default:
		how, err = c.target.PushBlob(ctx, d, c.source)
	}
	if isForeign(d) && (errors.Is(err, registry.ErrNotFound) || errors.Is(err, ocidir.ErrNotFound)) {
		return nil // it is kept elsewhere, as its descriptor says
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.progress != nil {
		c.progress(Event{Index: n, Count: len(c.blobs), Digest: d.Digest, Bytes: d.Size, Total: d.Size, Done: err == nil, Failed: err != nil, Present: how != repo.Sent})
	}
	if err != nil {
		return err
	}
	c.result.Blobs++
	switch how {
	case repo.Found:
		c.result.FoundBytes += d.Size
	case repo.Mounted:
		c.result.MountedBytes += d.Size
	case repo.Sent:
		c.result.SentBytes += d.Size
	}
	return nil
}
