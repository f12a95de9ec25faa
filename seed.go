//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dray/internal/apply"
	"dray/internal/durable"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/pull"
	"dray/internal/seed"
	"dray/internal/store"
)

// SeedManifest lists what is in a seed.
type SeedManifest = seed.Manifest

// ErrSeedTarget reports a path at which no seed can be made.
var ErrSeedTarget = errors.New("cannot make a seed there")

// SeedOptions of [Client.WriteSeed].
type SeedOptions struct {
	Platforms []string  // "os/arch[/variant]"; none: the client's
	Layout    Layout    // [LayoutDir]: trees; [LayoutBoth]; "": tars and indexes
	Prefix    string    // path at which the seed will live: an archive has it below that
	Created   time.Time // the time in the seed; zero: 1970
	Offline   bool      // take what the store and the seeds have
	Progress  func(Event)
}

// LayoutBoth is the layout of a seed that has tars, indexes and trees.
const LayoutBoth = seed.Both

// SeedReport tells what [Client.WriteSeed] made.
type SeedReport struct {
	*SeedManifest
	Path         string   `json:"path"`
	FileBytes    int64    `json:"file_bytes,omitempty"` // of an archive
	NetworkBytes int64    `json:"network_bytes"`
	Notes        []string `json:"notes,omitempty"`
}

// WriteSeed makes a seed of images at out: a directory, or a file where out ends in
// .tar (a tar of it) or in .erofs or .img (an EROFS file system of it). What the
// store has is taken from there, but for layers that it has as trees. The same images
// and options give the same bytes. Nothing is at out before all of it is.
func (c *Client) WriteSeed(ctx context.Context, references []string, out string, o SeedOptions) (*SeedReport, error) {
	report, err := c.writeSeed(ctx, references, out, o)
	if err != nil {
		return nil, fmt.Errorf("make seed %s: %w", out, err)
	}
	return report, nil
}

func (c *Client) writeSeed(ctx context.Context, references []string, out string, o SeedOptions) (report *SeedReport, err error) {
	out, err = filepath.Abs(out)
	if err != nil {
		return nil, err
	}
	form := seedForm(out)
	if err := checkSeedLayout(o.Layout, form); err != nil {
		return nil, err
	}
	if err := checkSeedTarget(out, form); err != nil {
		return nil, err
	}
	work, err := claimSeedWork(out)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, work.end()) }()
	content, report, err := c.gatherSeed(ctx, references, filepath.Join(work.dir, "store"), o)
	if err != nil {
		return nil, err
	}
	report.Path = out
	made := filepath.Join(work.dir, "seed")
	if form == seed.AsDir {
		err = writeSeedDir(ctx, content, made)
	} else {
		report.FileBytes, err = writeSeedFile(ctx, content, made, form)
	}
	if err == nil {
		err = durable.Rename(made, out)
	}
	return report, err
}

// checkSeedLayout refuses what cannot be made exactly.
func checkSeedLayout(layout Layout, form seed.Form) error {
	switch {
	case layout == "", layout == LayoutAuto, layout == LayoutEROFS:
		return nil
	case layout != LayoutDir && layout != LayoutBoth:
		return fmt.Errorf("layout %q: want erofs, dir or both: %w", layout, ErrSeedTarget)
	case form != seed.AsDir:
		return fmt.Errorf("layout %s is for directories; a file has layout erofs, of which all others can be made: %w", layout, ErrSeedTarget)
	case os.Geteuid() != 0:
		return fmt.Errorf("layout %s needs root, for the owners and devices of the trees; layout erofs does not: %w", layout, ErrSeedTarget)
	}
	return nil
}

func seedForm(out string) seed.Form {
	switch filepath.Ext(out) {
	case ".tar":
		return seed.AsTar
	case ".erofs", ".img":
		return seed.AsEROFS
	}
	return seed.AsDir
}

// checkSeedTarget refuses to replace anything but a file by a file.
func checkSeedTarget(out string, form seed.Form) error {
	if info, err := os.Stat(filepath.Dir(out)); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is no directory; make it first: %w", filepath.Dir(out), ErrSeedTarget)
	}
	info, err := os.Lstat(out)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case form != seed.AsDir && info.Mode().IsRegular():
		return nil // replaced when the new one is complete
	case form == seed.AsDir && info.IsDir():
		names, err := os.ReadDir(out)
		if err != nil || len(names) == 0 {
			return err // an empty directory is replaced
		}
	}
	return fmt.Errorf("it exists; remove it first: %w", ErrSeedTarget)
}

// seedWork is the directory beside a seed in which it is made.
type seedWork struct {
	dir  string
	lock *durable.Lock
}

// claimSeedWork makes the directory, and removes what a killed process left of it.
func claimSeedWork(out string) (*seedWork, error) {
	dir := filepath.Join(filepath.Dir(out), "."+filepath.Base(out)+".seeding")
	lock, err := durable.TryAcquire(dir+lockSuffix, durable.Exclusive)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("another process makes it: %w", store.ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	w := &seedWork{dir: dir, lock: lock}
	if err = os.RemoveAll(dir); err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return nil, errors.Join(err, w.end())
	}
	return w, nil
}

func (w *seedWork) end() error {
	return errors.Join(os.RemoveAll(w.dir), os.Remove(w.dir+lockSuffix), w.lock.Release())
}

// gatherSeed pulls the images into a store of their own, whole.
func (c *Client) gatherSeed(ctx context.Context, references []string, dir string, o SeedOptions) (content *seed.Content, report *SeedReport, err error) {
	scratch, err := store.Open(ctx, store.Options{Root: dir, Log: c.log})
	if err != nil {
		return nil, nil, err
	}
	from := seed.Options{Trusted: []string{c.store.Root()}}
	for _, s := range c.seeds.Seeds() {
		if s.Trusted() {
			from.Trusted = append(from.Trusted, s.Path())
		} else {
			from.Paths = append(from.Paths, s.Path())
		}
	}
	seeds, err := seed.Open(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	engine, err := pull.New(pull.Options{
		Store: scratch, Seeds: seeds, Workers: c.options.Workers, Sync: pull.SyncNever, Whole: true,
		Layout:     func(context.Context) (string, string, error) { return store.LayoutEROFS, askedFor, nil },
		Decompress: layer.Options{MaxBytes: c.options.MaxLayerBytes},
		Tar:        layer.Limits{MaxBytes: c.options.MaxLayerBytes, MaxEntries: c.options.MaxEntries},
		Log:        c.log,
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	g := &seedGatherer{
		client: c, engine: engine, options: o, report: &SeedReport{}, images: map[oci.Digest]*store.Image{},
		content: &seed.Content{Names: map[string]oci.Digest{}, Documents: map[oci.Digest][]byte{}, Created: o.Created, Prefix: o.Prefix, Layout: store.LayoutEROFS},
	}
	if g.content.Created.IsZero() {
		g.content.Created = time.Unix(0, 0)
	}
	if err := g.gather(ctx, references); err != nil {
		return nil, nil, err
	}
	if g.content.Layers, err = scratch.Layers(); err != nil {
		return nil, nil, err
	}
	if o.Layout == LayoutDir || o.Layout == LayoutBoth {
		g.content.Layout = string(o.Layout)
		for _, l := range g.content.Layers {
			if err := c.unpackBeside(ctx, l); err != nil {
				return nil, nil, err
			}
		}
	}
	g.report.SeedManifest = g.content.Manifest()
	return g.content, g.report, nil
}

// unpackBeside makes the tree of a layer beside its tar.
func (c *Client) unpackBeside(ctx context.Context, l *store.Layer) error {
	tar, offset, err := l.OpenTar()
	if err != nil {
		return err
	}
	defer func() { _ = tar.Close() }()
	_, err = pull.Unpack(ctx, l.Path, storedTar(l, tar, offset), layer.Limits{}, apply.Options{ContentHash: apply.SHA256, Log: c.log})
	return err
}

// seedGatherer collects what a seed is to hold.
type seedGatherer struct {
	client  *Client
	engine  *pull.Engine
	options SeedOptions
	content *seed.Content
	report  *SeedReport
	images  map[oci.Digest]*store.Image
}

// gather pulls the images in an order of its own: the seed does not depend on the
// user's.
func (g *seedGatherer) gather(ctx context.Context, references []string) error {
	platforms := g.options.Platforms
	if len(platforms) == 0 {
		platforms = []string{g.client.platform.String()}
	}
	for _, reference := range slices.Compact(slices.Sorted(slices.Values(references))) {
		ref, err := oci.ParseReference(reference)
		if err != nil {
			return err
		}
		for _, text := range slices.Sorted(slices.Values(platforms)) {
			platform, err := oci.ParsePlatform(text)
			if err != nil {
				return err
			}
			if err := g.pull(ctx, ref, platform); err != nil {
				return fmt.Errorf("pull %s: %w", ref, err)
			}
		}
	}
	for _, digest := range slices.Sorted(maps.Keys(g.images)) {
		g.content.Images = append(g.content.Images, g.images[digest])
	}
	return nil
}

func (g *seedGatherer) pull(ctx context.Context, ref oci.Reference, platform oci.Platform) error {
	source, err := g.client.source(ctx, ref, g.options.Offline)
	if err != nil {
		return err
	}
	documents := map[oci.Digest][]byte{}
	image, evidence, err := g.engine.Pull(ctx, pull.Request{
		Reference: ref, Source: source, Local: ref.Transport != oci.Registry, Platform: platform,
		Offline: g.options.Offline, Progress: g.options.Progress,
		Document: func(digest oci.Digest, raw []byte) { documents[digest] = slices.Clone(raw) },
	})
	if err != nil {
		return err
	}
	g.report.NetworkBytes += evidence.NetworkBytes
	for _, note := range evidence.Fallbacks {
		if !slices.Contains(g.report.Notes, note) && !strings.HasPrefix(note, "seed "+g.client.store.Root()+":") {
			g.report.Notes = append(g.report.Notes, note)
		}
	}
	delete(documents, image.Manifest.Digest) // it is in the image's record
	maps.Copy(g.content.Documents, documents)
	names := image.Manifest.Digest
	if image.Index != nil && documents[image.Index.Digest] != nil {
		names = image.Index.Digest // whoever asks chooses the platform
	}
	g.content.Names[ref.String()] = names
	if had := g.images[image.Manifest.Digest]; had == nil {
		g.images[image.Manifest.Digest] = image
	}
	return nil
}

func writeSeedDir(ctx context.Context, content *seed.Content, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // made to be shared
		return err
	}
	if err := content.WriteDir(ctx, dir); err != nil {
		return err
	}
	return durable.SyncFS(dir)
}

func writeSeedFile(ctx context.Context, content *seed.Content, path string, form seed.Form) (sizeBytes int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // made to be shared
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := content.WriteFile(ctx, f, form); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// SeedStatus is what is known of a seed without reading its layers.
type SeedStatus struct {
	Path     string        `json:"path"`
	Use      string        `json:"use"` // what becomes of its layers: "copied", or used where they lie: "held", "sealed", "trusted"
	Reason   string        `json:"reason"`
	Layers   []oci.DiffID  `json:"layers"`             // as it says
	Manifest *SeedManifest `json:"manifest,omitempty"` // as it says; nil: it is a seed by use, not by name
	Problem  string        `json:"problem,omitempty"`
}

// Seeds returns the seeds that are in force.
func (c *Client) Seeds() []SeedStatus {
	list := []SeedStatus{}
	for _, s := range c.seeds.Seeds() {
		hold, why := s.Hold()
		status := SeedStatus{Path: s.Path(), Use: hold.String(), Reason: why}
		var err error
		if status.Layers, err = s.LayerIDs(); err != nil {
			status.Problem = err.Error()
		} else if manifest, err := s.Manifest(); err == nil {
			status.Manifest = manifest
		}
		list = append(list, status)
	}
	for _, err := range c.seeds.Broken() {
		list = append(list, SeedStatus{Problem: err.Error()})
	}
	return list
}

// verifySeeds reads every layer of every seed.
func (c *Client) verifySeeds(ctx context.Context, report *VerifyReport) error {
	for _, s := range c.seeds.Seeds() {
		ids, err := s.LayerIDs()
		if err != nil {
			report.Problems = append(report.Problems, store.Problem{Path: s.Path(), Detail: err.Error()})
			continue
		}
		for _, id := range ids {
			report.SeedLayers++
			err := s.Verify(ctx, id)
			if ctx.Err() != nil {
				return err
			}
			if err != nil {
				report.Problems = append(report.Problems, store.Problem{Path: s.Path(), Detail: err.Error(), Action: "left: a seed is never written to"})
			}
		}
	}
	return nil
}
