//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
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
	"dray/internal/userns"
)

// SeedManifest lists what is in a seed.
type SeedManifest = seed.Manifest

// ErrSeedTarget reports a path at which no seed can be made.
var ErrSeedTarget = errors.New("cannot make a seed there")

// SeedOptions of [Client.WriteSeed].
type SeedOptions struct {
	Platforms []string  // "os/arch[/variant]"; none: the client's
	Layout    Layout    // [LayoutDir]: trees; [LayoutBoth]; "": tars and indexes
	Prefix    string    // path at which the seed will live: an archive or a directory has it below that
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
	if o.Prefix != "" && (!path.IsAbs(o.Prefix) || path.Clean(o.Prefix) != o.Prefix) {
		return nil, fmt.Errorf("prefix %q: want an absolute path without empty components, \".\" and \"..\": %w", o.Prefix, ErrSeedTarget)
	}
	if form == seed.AsDir && strings.Trim(o.Prefix, "/") != "" {
		place := &seedPlace{root: out, stamp: o.Created}
		defer func() { err = errors.Join(err, place.end(err == nil)) }()
		if out, err = place.make(o.Prefix); err != nil {
			return nil, err
		}
	}
	if err := checkSeedTarget(out, form); err != nil {
		return nil, err
	}
	work, err := claimSeedWork(out)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, work.end()) }()
	made := filepath.Join(work.dir, "seed")
	if form == seed.AsDir {
		report, err = c.writeSeedDir(ctx, references, work, made, o)
	} else {
		report, err = c.writeSeedFile(ctx, references, work, made, form, o)
	}
	if err != nil {
		return nil, err
	}
	report.Path = out
	return report, durable.Rename(made, out)
}

// checkSeedLayout refuses what cannot be made exactly.
func checkSeedLayout(layout Layout, form seed.Form) error {
	switch {
	case layout == "", layout == LayoutAuto, layout == LayoutEROFS:
		return nil
	case layout != LayoutDir && layout != LayoutBoth:
		return fmt.Errorf("layout %q: want erofs, dir or both: %w", layout, ErrSeedTarget)
	case form == seed.AsDir && !keepsOwners():
		return fmt.Errorf("a directory of layout %s needs root or a user namespace with a range of IDs (/etc/subuid, /etc/subgid), for the owners in its trees; "+
			"x.tar and x.erofs hold them as data and need neither, nor does layout erofs: %w", layout, ErrSeedTarget)
	}
	return nil
}

// keepsOwners tells whether files can have the owners that images say.
func keepsOwners() bool { return systemWide() || userns.Inside() && !userns.SingleID() }

// SeedNeedsOwners tells whether what is made at out with a layout has files of many
// owners: whoever is not root has to be in a user namespace then.
func SeedNeedsOwners(out string, layout Layout) bool {
	return (layout == LayoutDir || layout == LayoutBoth) && seedForm(out) == seed.AsDir
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

// seedPlace is where a directory with a prefix goes: into a root file system, which
// may be there.
type seedPlace struct {
	root  string
	stamp time.Time
	made  []string // what was not there, outermost first
}

// make makes the directories above the seed and returns its path. No link leads out of
// the root.
func (p *seedPlace) make(prefix string) (out string, err error) {
	if err := os.Mkdir(p.root, 0o755); err == nil { //nolint:gosec // of a root file system
		p.made = append(p.made, p.root)
	} else if !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("%w: %w", err, ErrSeedTarget)
	}
	root, err := os.OpenRoot(p.root)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, ErrSeedTarget)
	}
	defer func() { _ = root.Close() }()
	below := strings.TrimPrefix(prefix, "/")
	for i := range below {
		if below[i] != '/' {
			continue
		}
		dir := below[:i]
		switch err := root.Mkdir(dir, 0o755); {
		case err == nil:
			p.made = append(p.made, filepath.Join(p.root, dir))
		case !errors.Is(err, os.ErrExist):
			return "", fmt.Errorf("%w: %w", err, ErrSeedTarget)
		}
		if info, err := root.Stat(dir); err != nil {
			return "", fmt.Errorf("%w: %w", err, ErrSeedTarget)
		} else if !info.IsDir() {
			return "", fmt.Errorf("%s is no directory: %w", filepath.Join(p.root, dir), ErrSeedTarget)
		}
	}
	return filepath.Join(p.root, below), nil
}

// end gives what was made the seed's time, or removes it.
func (p *seedPlace) end(done bool) error {
	var errs []error
	for _, dir := range slices.Backward(p.made) {
		if done {
			stamp := newSeedContent(seed.AsDir, SeedOptions{Created: p.stamp}).Created
			errs = append(errs, os.Chtimes(dir, stamp, stamp))
		} else if err := os.Remove(dir); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
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

// store returns where the images are pulled to.
func (w *seedWork) store() string { return filepath.Join(w.dir, "store") }

func (w *seedWork) end() error {
	return errors.Join(os.RemoveAll(w.dir), os.Remove(w.dir+lockSuffix), w.lock.Release())
}

// gatherSeed pulls the images into a store of their own, whole. stored is called with
// the layers as they come, in an order that the images and options give.
func (c *Client) gatherSeed(ctx context.Context, references []string, dir string, content *seed.Content, stored func(context.Context, *store.Layer) error, o SeedOptions) (report *SeedReport, err error) {
	scratch, err := store.Open(ctx, store.Options{Root: dir, Log: c.log})
	if err != nil {
		return nil, err
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
		return nil, err
	}
	engine, err := pull.New(pull.Options{
		Store: scratch, Seeds: seeds, Workers: c.options.Workers, Sync: pull.SyncNever, Whole: true,
		Layout:     func(context.Context) (string, string, error) { return store.LayoutEROFS, askedFor, nil },
		Decompress: layer.Options{MaxBytes: c.options.MaxLayerBytes},
		Tar:        layer.Limits{MaxBytes: c.options.MaxLayerBytes, MaxEntries: c.options.MaxEntries},
		Log:        c.log,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	g := &seedGatherer{
		client: c, engine: engine, options: o, report: &SeedReport{}, images: map[oci.Digest]*store.Image{}, content: content, stored: stored,
	}
	if err := g.gather(ctx, references); err != nil {
		return nil, err
	}
	if content.Layers, err = scratch.Layers(); err != nil {
		return nil, err
	}
	g.report.SeedManifest = content.Manifest()
	return g.report, nil
}

// newSeedContent returns what is known before anything is pulled.
func newSeedContent(form seed.Form, o SeedOptions) *seed.Content {
	content := &seed.Content{
		Names: map[string]oci.Digest{}, Documents: map[oci.Digest][]byte{}, Created: o.Created, Prefix: o.Prefix, Layout: store.LayoutEROFS, Form: form,
	}
	if content.Created.IsZero() {
		content.Created = time.Unix(0, 0)
	}
	if o.Layout == LayoutDir || o.Layout == LayoutBoth {
		content.Layout = string(o.Layout)
	}
	return content
}

// unpackBeside makes the tree of a layer beside its tar, with whiteouts in the form of
// this process, and returns what it lacks that was not known.
func (c *Client) unpackBeside(ctx context.Context, l *store.Layer) (lacks []string, err error) {
	tar, offset, err := l.OpenTar()
	if err != nil {
		return nil, err
	}
	defer func() { _ = tar.Close() }()
	o := apply.Options{ContentHash: apply.SHA256, Log: c.log}
	if userns.Inside() {
		o.Whiteouts, o.UserNS = apply.User, true
	}
	tree, err := pull.Unpack(ctx, l.Path, storedTar(l, tar, offset), layer.Limits{}, o)
	if err != nil {
		return nil, err
	}
	l.Whiteouts = tree.Whiteouts
	for _, note := range tree.Notes {
		if !slices.Contains(l.Notes, note) {
			lacks = append(lacks, note)
		}
	}
	l.Notes = slices.Concat(l.Notes, lacks)
	return lacks, nil
}

// seedGatherer collects what a seed is to hold.
type seedGatherer struct {
	client  *Client
	engine  *pull.Engine
	options SeedOptions
	content *seed.Content
	report  *SeedReport
	images  map[oci.Digest]*store.Image
	stored  func(context.Context, *store.Layer) error
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
		Offline: g.options.Offline, Progress: g.options.Progress, Stored: g.stored,
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

func (c *Client) writeSeedDir(ctx context.Context, references []string, work *seedWork, dir string, o SeedOptions) (*SeedReport, error) {
	content := newSeedContent(seed.AsDir, o)
	report, err := c.gatherSeed(ctx, references, work.store(), content, nil, o)
	if err != nil {
		return nil, err
	}
	if content.Layout != store.LayoutEROFS {
		for _, l := range content.Layers {
			lacks, err := c.unpackBeside(ctx, l)
			if err != nil {
				return nil, err
			}
			for _, note := range lacks {
				report.Notes = append(report.Notes, fmt.Sprintf("tree of layer %s: %s", l.DiffID, note))
			}
		}
		report.SeedManifest = content.Manifest()
	}
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // made to be shared
		return nil, err
	}
	if err := content.WriteDir(ctx, dir); err != nil {
		return nil, err
	}
	return report, durable.SyncFS(dir)
}

// writeSeedFile writes each layer into the file while others are on their way.
func (c *Client) writeSeedFile(ctx context.Context, references []string, work *seedWork, made string, form seed.Form, o SeedOptions) (report *SeedReport, err error) {
	f, err := os.OpenFile(made, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // made to be shared
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content := newSeedContent(form, o)
	w, err := seed.NewWriter(f, content)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if report, err = c.gatherSeed(ctx, references, work.store(), content, w.Layer, o); err != nil {
		return nil, err
	}
	if err := w.End(ctx); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	report.FileBytes = info.Size()
	return report, nil
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
