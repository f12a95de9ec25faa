package pull

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sort"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/multibuf"
	"dray/internal/oci"
	"dray/internal/seed"
	"dray/internal/store"
)

// Defaults of [Options].
const (
	DefaultMaxConfigBytes = 8 << 20
	DefaultMaxLayers      = 500 // what overlayfs stacks
	DefaultMaxLayerBytes  = 1 << 40
)

// Options of an [Engine]. The zero value of a field is its default.
type Options struct {
	Store *store.Store // required; not closed by the engine
	Seeds *seed.Set    // what is there before anyone pulls; nil: nothing

	Workers        int           // layers in flight at once over all pulls; 0: one per CPU
	Linger         time.Duration // how long a layer goes on when nobody waits for it any more; 0: not at all
	Sync           SyncMode      // when what was pulled is made safe from power loss
	MaxConfigBytes int64         // 0: DefaultMaxConfigBytes
	MaxLayers      int           // 0: DefaultMaxLayers
	MaxLayerBytes  int64         // compressed size of one layer; 0: DefaultMaxLayerBytes

	// Layout chooses how layers are stored, and says why. It is asked before the
	// first one is fetched, each time; nil: [store.LayoutDir]. A layer that
	// [store.LayoutEROFS] cannot express is stored in [store.LayoutDir].
	Layout func(context.Context) (layout, reason string, err error)

	Reuse *Reuse // of files that the store has; nil: every layer is fetched whole

	// Whole stores every layer by itself, as its tar: nothing is used where it lies in
	// a seed, and what no index can express is a tar alone ([store.LayoutTar]).
	Whole bool

	Decompress layer.Options // limits; Turn, Cores and MaxHelpers are the engine's
	ZstdLayers int           // zstd layers that are read at once, for their windows' sake; 0: one
	Tar        layer.Limits
	Apply      apply.Options // form of whiteouts, limits; Journal is the engine's

	Log *slog.Logger // nil: discard
}

// SyncMode says when what was pulled is made safe from power loss. Killed
// processes lose nothing in any mode; what power loss costs is pulled again.
type SyncMode uint8

// Modes of syncing.
const (
	SyncBefore SyncMode = iota // before Pull returns
	SyncAfter                  // in the background, after Pull has returned; Close waits for it
	SyncNever                  // when the kernel pleases
)

// Engine pulls images into one store.
type Engine struct {
	options Options
	log     *slog.Logger
	zstd    *layer.ZstdTurns
	lanes   *multibuf.Lanes // where the streams of all layers are hashed
	flying  sync.WaitGroup  // every flight and every sync in the background

	mu      sync.Mutex // guards the fields below and, in flights, what names it; nothing else is locked while it is held
	flights map[oci.DiffID]*flight
	queue   []*flight // those without a slot, in order
	busy    int       // slots taken
	lent    int       // cores of free slots that help to inflate other layers

	mountable map[places]bool // where layers of seeds were mounted, to see whether they can be

	closed bool
}

// ErrClosed reports a pull on an engine that was closed.
var ErrClosed = errors.New("engine closed")

// New returns an engine.
func New(o Options) (*Engine, error) {
	if o.Store == nil {
		return nil, errors.New("create engine: no store")
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	o.MaxConfigBytes = orDefault(o.MaxConfigBytes, DefaultMaxConfigBytes)
	o.MaxLayers = orDefault(o.MaxLayers, DefaultMaxLayers)
	o.MaxLayerBytes = orDefault(o.MaxLayerBytes, DefaultMaxLayerBytes)
	if o.Layout == nil {
		o.Layout = func(context.Context) (string, string, error) { return store.LayoutDir, "no other was asked for", nil }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		options: o,
		log:     o.Log,
		zstd:    layer.NewZstdTurns(max(1, o.ZstdLayers)),
		lanes:   multibuf.New(),
		flights: map[oci.DiffID]*flight{},

		mountable: map[places]bool{},
	}
	if helpers := min(o.Workers-layerCores, runtime.GOMAXPROCS(0)-1); helpers > 0 {
		e.options.Decompress.Cores, e.options.Decompress.MaxHelpers = lentCores{e}, helpers
	}
	return e, nil
}

func orDefault[T int | int64](v, byDefault T) T {
	if v == 0 {
		return byDefault
	}
	return v
}

// Close abandons every flight and waits until each has cleaned up.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	for _, f := range e.flights {
		e.abandon(f)
	}
	e.mu.Unlock()
	e.flying.Wait()
	return nil
}

// Request says what to pull.
type Request struct {
	Reference oci.Reference
	Source    Source // required; the engine closes it
	Local     bool   // Source is no network
	Platform  oci.Platform
	Offline   bool                     // take what the store and the seeds have, never ask the source
	Document  func(oci.Digest, []byte) // called with each index and manifest on the way; nil: not
	Progress  func(Event)              // nil: none; called by many goroutines, one at a time

	// Lease has the image and its layers under it from before they are looked for, and
	// keeps them when Pull has returned, until the caller releases it. nil: the pull has a
	// lease of its own, and what nothing names may be collected at its end.
	Lease *store.Lease

	// Stored is called with each layer that the store did not have, one at a time, when
	// it and those before it are in the store: the largest blob first, as the manifest
	// has them. Its error ends the pull. nil: not called.
	Stored func(context.Context, *store.Layer) error
}

// Pull brings the image into the store and returns its record and the evidence.
//
// When the reference is pinned to a digest and all is in the store, the source
// is not asked at all. The order of what becomes visible is layers, image,
// reference; after an error the layers that are complete stay, for the next
// attempt.
func (e *Engine) Pull(ctx context.Context, r Request) (image *store.Image, evidence *Evidence, err error) {
	source := &sharedSource{Source: r.Source, local: r.Local}
	source.retain()
	defer source.release()
	begin := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	if r.Lease == nil {
		if r.Lease, err = e.options.Store.Lease(ctx); err != nil {
			return nil, nil, err
		}
		defer func() { err = errors.Join(err, r.Lease.Release()) }()
	}
	image, lost, err := e.known(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil && lost != nil && ctx.Err() == nil { // why anyone was asked at all
			err = fmt.Errorf("%w; the store has not all of it: %v", err, lost) //nolint:errorlint // what was not found is not what this failed for
		}
	}()
	if image != nil {
		if evidence, err = e.knownEvidence(r, image, begin); err != nil {
			return nil, nil, err
		}
		return image, evidence, nil
	}
	over := e.overSource(r)
	found, err := over.resolve(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	evidence = newEvidence(r, found)
	evidence.ResolvedBy = over.by()
	for _, err := range e.options.Seeds.Broken() {
		evidence.Fallbacks = append(evidence.Fallbacks, err.Error())
	}
	if evidence.Layout, evidence.LayoutReason, err = e.options.Layout(ctx); err != nil {
		return nil, nil, err
	}
	evidence.Stages.Resolve = Millis(time.Since(begin))
	if !r.Local {
		evidence.NetworkBytes = found.bytes - over.bytes
	}
	if err := r.Lease.AddImage(ctx, found.manifest.Digest, found.image.RootFS.DiffIDs...); err != nil {
		return nil, nil, err
	}
	layersBegin := time.Now()
	if err := e.pullLayers(ctx, r, source, found, evidence); err != nil {
		return nil, nil, err
	}
	evidence.Stages.Layers = Millis(time.Since(layersBegin))
	image, err = e.record(ctx, r, found, evidence, begin)
	if err != nil {
		return nil, nil, err
	}
	e.log.LogAttrs(ctx, slog.LevelInfo, "image pulled",
		slog.String("reference", evidence.Reference), slog.String("manifest", string(evidence.Manifest)),
		slog.Int("layers", len(evidence.Layers)), slog.Int64("network_bytes", evidence.NetworkBytes),
		slog.Int64("size_bytes", evidence.SizeBytes), slog.Duration("elapsed", time.Since(begin)),
		slog.Group("stages", slog.Duration("resolve", time.Duration(evidence.Stages.Resolve)),
			slog.Duration("layers", time.Duration(evidence.Stages.Layers)), slog.Duration("sync", time.Duration(evidence.Stages.Sync))))
	return image, evidence, nil
}

// usualRatio is how much larger layers are than their blobs, where nobody says it.
const usualRatio = 3

// shareCache gives each job its part of the page cache. The largest layer is pulled
// first, but what every program needs, a shell and the C library, is in small ones.
func (e *Engine) shareCache(jobs []job) {
	sizes := make([]int64, len(jobs))
	for i, j := range jobs {
		sizes[i] = cmp.Or(uncompressedHint(j.blob), usualRatio*j.blob.Size)
	}
	for i, share := range apply.NewPageCache(e.options.Sync == SyncBefore).Share(sizes) {
		jobs[i].cache = share
	}
}

// pullLayers brings every distinct layer into the store, the largest first, so
// that the last to end is a small one.
func (e *Engine) pullLayers(ctx context.Context, r Request, source *sharedSource, found *resolved, evidence *Evidence) error {
	positions := map[oci.DiffID][]int{}
	var wanted []job
	var wantedBytes int64
	reports := &reporter{output: r.Progress}
	var kin []oci.DiffID
	if e.options.Reuse != nil {
		var err error
		if kin, err = e.options.Reuse.kin(e, r, found); err != nil {
			return err
		}
	}
	for i, id := range found.image.RootFS.DiffIDs {
		positions[id] = append(positions[id], i)
		if len(positions[id]) > 1 {
			continue
		}
		blob := found.document.Layers[i]
		present, err := e.options.Store.Layer(id)
		if err == nil {
			evidence.have(i, present, "store", layerNotes{})
			evidence.StoreBytes += blob.Size
			reports.deliver(e.event(r, found, i, Present, blob.Size))
			continue
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		j := job{diffID: id, blob: blob, layout: evidence.Layout, source: source, offline: r.Offline, kin: kin}
		switch offered, refused := e.offered(j); {
		case offered: // what it takes here is known when it is looked at
		case r.Offline:
			return fmt.Errorf("layer %s, offline: %w", id, errors.Join(append(refused, store.ErrNotFound)...))
		default:
			wantedBytes += max(blob.Size, uncompressedHint(blob))
		}
		wanted = append(wanted, j)
	}
	if err := e.options.Store.CheckSpace(wantedBytes); err != nil {
		return err
	}
	sort.SliceStable(wanted, func(i, j int) bool { return wanted[i].blob.Size > wanted[j].blob.Size })
	e.shareCache(wanted)

	var mu sync.Mutex // guards evidence
	group, ctx := errgroup.WithContext(ctx)
	stored := make([]chan *store.Layer, len(wanted)) // each is sent once
	for i := range stored {
		stored[i] = make(chan *store.Layer, 1)
	}
	if r.Stored != nil {
		group.Go(func() error { return inOrder(ctx, stored, r.Stored) })
	}
	for i, j := range wanted {
		position := positions[j.diffID][0]
		w := &watcher{report: func(s State, fetched int64) { reports.deliver(e.event(r, found, position, s, fetched)) }}
		f, shared := e.board(ctx, j, w)
		group.Go(func() error { // bounded by MaxLayers; the engine's slots bound the work
			err := e.wait(ctx, f, w)
			for err != nil && f.offline && !j.offline && ctx.Err() == nil {
				f, shared = e.board(ctx, j, w) // that one might not ask the source; ours may
				err = e.wait(ctx, f, w)
			}
			if err != nil {
				return err
			}
			stored[i] <- f.layer
			mu.Lock()
			defer mu.Unlock()
			evidence.flown(position, f, shared)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	evidence.repeat(positions)
	return nil
}

// inOrder calls each with what comes, in the order of where it comes.
func inOrder(ctx context.Context, stored []chan *store.Layer, each func(context.Context, *store.Layer) error) error {
	for _, one := range stored {
		select {
		case l := <-one:
			if err := each(ctx, l); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// record makes the image visible and, as the mode says, durable.
func (e *Engine) record(ctx context.Context, r Request, found *resolved, evidence *Evidence, begin time.Time) (*store.Image, error) {
	syncBegin := time.Now()
	if e.options.Sync == SyncBefore {
		if err := e.options.Store.Sync(ctx, found.image.RootFS.DiffIDs); err != nil {
			return nil, err
		}
	}
	evidence.Stages.Sync = Millis(time.Since(syncBegin))
	evidence.Stages.Total = Millis(time.Since(begin))
	evidence.PeakBytes = peakRSS()
	kept, err := json.Marshal(evidence)
	if err != nil {
		return nil, fmt.Errorf("record image: %w", err)
	}
	image := &store.Image{
		Manifest:    found.manifest,
		Config:      found.document.Config,
		Index:       found.index,
		RawManifest: found.rawManifest,
		RawConfig:   found.rawConfig,
		DiffIDs:     found.image.RootFS.DiffIDs,
		Platform:    oci.Platform{OS: found.image.OS, Architecture: found.image.Architecture, Variant: found.image.Variant},
		Reference:   r.Reference.String(),
		Pulled:      begin.UTC(),
		Evidence:    kept,
	}
	// First the record, then its name. Both are leased: nobody removes the one meanwhile.
	if err := e.options.Store.PutImage(ctx, image); err != nil {
		return nil, err
	}
	if err := e.options.Store.SetRef(ctx, image.Reference, image.Manifest.Digest); err != nil {
		return nil, err
	}
	if e.options.Sync == SyncAfter {
		ctx := context.WithoutCancel(ctx)
		e.flying.Go(func() { e.syncLater(ctx, image) })
	}
	return image, nil
}

// syncLater makes a published image durable, as far as it is still there. That it
// could not is no reason to fail anyone: the image is whole until the power goes,
// and is pulled again then.
func (e *Engine) syncLater(ctx context.Context, image *store.Image) {
	err := e.options.Store.Sync(ctx, image.DiffIDs)
	if err == nil {
		err = e.options.Store.Settle(ctx, image.Manifest.Digest)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) { // removed meanwhile
		e.log.LogAttrs(ctx, slog.LevelWarn, "image not safe from power loss", slog.String("manifest", string(image.Manifest.Digest)), slog.Any("error", err))
	}
}

// known returns the image that a pinned reference, or any reference offline,
// names, if all of it is in the store; nil if the source must be asked. lost says what
// the store should have of it and has not.
func (e *Engine) known(ctx context.Context, r Request) (image *store.Image, lost, err error) {
	image, err = e.lookUp(r)
	if errors.Is(err, store.ErrNotFound) {
		if r.Offline && e.options.Seeds.Empty() {
			return nil, nil, fmt.Errorf("offline: %w", err)
		}
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if err := r.Lease.AddImage(ctx, image.Manifest.Digest, image.DiffIDs...); err != nil {
		return nil, nil, err
	}
	for _, id := range image.DiffIDs {
		_, err := e.options.Store.Layer(id)
		if errors.Is(err, store.ErrNotFound) && (!r.Offline || !e.options.Seeds.Empty()) {
			return nil, err, nil // to be pulled again
		}
		if err != nil {
			return nil, nil, err
		}
	}
	err = e.options.Store.SetRef(ctx, r.Reference.String(), image.Manifest.Digest)
	if errors.Is(err, store.ErrNotFound) && !r.Offline {
		return nil, nil, nil // removed at this moment, to be pulled again
	}
	return image, nil, err
}

func (e *Engine) lookUp(r Request) (*store.Image, error) {
	if r.Reference.Digest == "" {
		if !r.Offline {
			return nil, store.ErrNotFound // a tag may have moved
		}
		digest, err := e.options.Store.Ref(r.Reference.String())
		if err != nil {
			return nil, err
		}
		return e.options.Store.Image(digest)
	}
	image, err := e.options.Store.Image(r.Reference.Digest)
	if !errors.Is(err, store.ErrNotFound) {
		return image, err
	}
	images, err := e.options.Store.Images()
	if err != nil {
		return nil, err
	}
	best, bestRank := (*store.Image)(nil), 0
	for _, image := range images {
		if image.Index != nil && image.Index.Digest == r.Reference.Digest {
			if rank := r.Platform.Rank(image.Platform); rank > bestRank {
				best, bestRank = image, rank
			}
		}
	}
	if best == nil {
		return nil, store.ErrNotFound
	}
	return best, nil
}

func (e *Engine) event(r Request, found *resolved, position int, s State, fetched int64) Event {
	blob := found.document.Layers[position]
	return Event{
		Image: r.Reference.String(), Layer: position, Layers: len(found.document.Layers),
		DiffID: found.image.RootFS.DiffIDs[position], Digest: blob.Digest,
		State: s, FetchedBytes: fetched, TotalBytes: blob.Size,
	}
}
