package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"dray/internal/oci"
	"dray/internal/repo"
	"dray/internal/stream"
)

// run is one conversion under way.
type run struct {
	source, target *repo.Repository // target is nil in a dry run without one
	o              *Options
	result         *Result
	root           *node
	budget         *stream.Budget
	jobs           []*job
	byKey          map[string]*job
	copies         copier

	mu sync.Mutex // serialises Options.Progress
}

// Run converts what the source's reference names and tags it as the target's. An
// error leaves the target's tag as it was. target is not committed.
func Run(ctx context.Context, source, target *repo.Repository, o Options) (*Result, error) {
	result, err := runAll(ctx, source, target, &o)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", source.Reference(), err)
	}
	return result, nil
}

func runAll(ctx context.Context, source, target *repo.Repository, o *Options) (*Result, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	r := &run{
		source: source, target: target, o: o, result: &Result{}, byKey: map[string]*job{},
		budget: stream.NewBudget(o.MemoryBytes),
	}
	r.copies = copier{source: source, target: target, jobs: o.Jobs}
	var err error
	if r.root, err = plan(ctx, source, o, r.result); err != nil {
		return nil, err
	}
	images := r.root.images(nil)
	defer func() {
		for _, i := range images {
			i.first.close()
		}
	}()
	if err := r.orders(ctx, images); err != nil {
		return nil, err
	}
	for _, i := range images {
		if err := r.schedule(i); err != nil {
			return nil, err
		}
	}
	if o.DryRun {
		for _, j := range r.jobs {
			if err := r.foresee(ctx, j); err != nil {
				return nil, err
			}
		}
		return r.report(images), nil
	}
	if err := r.convert(ctx); err != nil {
		return nil, err
	}
	if err := r.publish(ctx); err != nil {
		return nil, err
	}
	r.stillThere(ctx)
	return r.report(images), nil
}

// images returns the images below n, each once.
func (n *node) images(all []*image) []*image {
	if n.image != nil {
		same := func(i *image) bool { return i.manifest.Digest == n.image.manifest.Digest }
		if at := slices.IndexFunc(all, same); at >= 0 {
			n.image = all[at]
			return all
		}
		return append(all, n.image)
	}
	for _, c := range n.children {
		all = c.images(all)
	}
	return all
}

// orders finds what comes first, image by image.
func (r *run) orders(ctx context.Context, images []*image) error {
	if r.o.Order == nil && len(r.o.Globs) == 0 {
		return nil
	}
	for _, i := range images {
		if err := i.order(ctx, r.source, r.o, func(text string) { r.noteOne(ctx, "%s", text) }); err != nil {
			return err
		}
	}
	return nil
}

// schedule makes the jobs of an image. Layers that are the same in every respect
// are one job.
func (r *run) schedule(i *image) error {
	for n, d := range i.document.Layers {
		j := &job{source: d, diffID: i.config.RootFS.DiffIDs[n], paths: i.first.of(n)}
		var err error
		if j.key, err = r.o.key(d.Digest, &j.paths); err != nil {
			return err
		}
		if isForeign(d) {
			j.key = "foreign " + string(d.Digest)
		}
		if old := r.byKey[j.key]; old != nil && old.diffID == j.diffID {
			j = old
		} else {
			r.byKey[j.key] = j
			r.jobs = append(r.jobs, j)
		}
		i.layers = append(i.layers, j)
	}
	return nil
}

// convert brings all layers to the target.
func (r *run) convert(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(r.o.Jobs)
	for n, j := range r.jobs {
		group.Go(func() error {
			m := &meter{run: r, event: Event{Index: n, Count: len(r.jobs), Digest: j.source.Digest, Total: j.source.Size}}
			err := r.layer(ctx, j, m)
			m.end(err, j.how != Converted)
			if err != nil {
				return fmt.Errorf("layer %s: %w", j.source.Digest, err)
			}
			r.o.Log.LogAttrs(ctx, slog.LevelDebug, "layer brought to the target", slog.String("how", string(j.how)), slog.String("source", string(j.source.Digest)),
				slog.String("target", string(j.target.Digest)), slog.Int64("size_bytes", j.target.Size))
			return nil
		})
	}
	return group.Wait()
}

// publish writes configurations, manifests and indexes, the external TOCs, and
// then the tag.
func (r *run) publish(ctx context.Context) error {
	if err := r.put(ctx, r.root); err != nil {
		return err
	}
	if err := r.putTOCs(ctx); err != nil {
		return err
	}
	if err := r.target.Tag(ctx, r.root.target); err != nil {
		return err
	}
	r.result.Target = r.root.target
	return nil
}

// put writes a node and what is below it, and sets its target.
func (r *run) put(ctx context.Context, n *node) (err error) {
	switch {
	case n.image != nil:
		n.target, err = r.putImage(ctx, n)
	case n.document != nil && n.document.Index != nil:
		n.target, err = r.putIndex(ctx, n)
	default:
		err = r.copies.all(ctx, n.source, n.raw, n.document)
		n.target = n.source
		r.result.Kept = append(r.result.Kept, n.source)
	}
	if err != nil {
		return err
	}
	return r.referrers(ctx, n)
}

// referrers copies what refers to a document that stays what it is; of others it
// notes what is left behind.
func (r *run) referrers(ctx context.Context, n *node) error {
	if n.document == nil {
		return nil
	}
	list, err := r.source.Referrers(ctx, n.source.Digest, "")
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.note(ctx, "referrers of %s cannot be listed: %v", n.source.Digest, err)
		return nil
	}
	if n.target.Digest != n.source.Digest {
		r.result.LeftBehind = append(r.result.LeftBehind, list...)
		return nil
	}
	for _, d := range list {
		if err := r.copies.tree(ctx, d, true); err != nil {
			return err
		}
	}
	return nil
}

// putImage writes an image's configuration and manifest.
func (r *run) putImage(ctx context.Context, n *node) (oci.Descriptor, error) {
	i := n.image
	m := i.document
	docker := isDocker(n.document.MediaType) && !r.o.OCI
	layers := make([]oci.Descriptor, len(m.Layers))
	diffIDs := make([]oci.DiffID, len(m.Layers))
	for at, j := range i.layers {
		layers[at], diffIDs[at] = j.descriptor(m.Layers[at], r.o, docker), j.newDiffID
	}
	rawConfig := i.rawConfig
	if !slices.Equal(diffIDs, i.config.RootFS.DiffIDs) {
		var old struct {
			RootFS json.RawMessage `json:"rootfs"`
		}
		if err := json.Unmarshal(rawConfig, &old); err != nil {
			return oci.Descriptor{}, fmt.Errorf("edit config: %w: %w", oci.ErrManifest, err)
		}
		rootFS, err := edit(old.RootFS, map[string]any{"diff_ids": diffIDs})
		if err != nil {
			return oci.Descriptor{}, err
		}
		if rawConfig, err = edit(rawConfig, map[string]any{"rootfs": json.RawMessage(rootFS)}); err != nil {
			return oci.Descriptor{}, err
		}
	}
	config := m.Config
	config.Data = nil
	if r.o.OCI {
		config.MediaType = ociType(config.MediaType)
	}
	put, err := r.target.PutBlob(ctx, config.MediaType, rawConfig)
	if err != nil {
		return oci.Descriptor{}, err
	}
	config.Digest, config.Size = put.Digest, put.Size
	return r.putDocument(ctx, n, map[string]any{"config": config, "layers": layers})
}

// putDocument writes an edited manifest or index and returns its descriptor, which
// is as the source's otherwise. A document that need not change is not edited.
func (r *run) putDocument(ctx context.Context, n *node, fields map[string]any) (oci.Descriptor, error) {
	d := n.source
	d.Data, d.URLs = nil, nil
	d.MediaType = n.document.MediaType
	if r.o.OCI {
		d.MediaType = ociType(d.MediaType)
		fields["mediaType"] = d.MediaType
	}
	raw, err := edit(n.raw, fields)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if same, err := equalJSON(raw, n.raw); err != nil {
		return oci.Descriptor{}, err
	} else if same {
		raw = n.raw
	}
	put, err := r.target.PutManifest(ctx, d.MediaType, raw)
	d.Digest, d.Size = put.Digest, put.Size
	return d, err
}

// equalJSON tells whether edited, the result of [edit], says what raw does.
func equalJSON(edited, raw []byte) (bool, error) {
	again, err := edit(raw, nil)
	if err != nil {
		return false, err
	}
	var a, b any
	if err := errors.Join(json.Unmarshal(edited, &a), json.Unmarshal(again, &b)); err != nil {
		return false, fmt.Errorf("compare documents: %w", err)
	}
	x, err := marshal(a)
	if err != nil {
		return false, err
	}
	y, err := marshal(b)
	return string(x) == string(y), err
}

// putIndex writes an index over what has become of its entries.
func (r *run) putIndex(ctx context.Context, n *node) (oci.Descriptor, error) {
	became := map[oci.Digest]oci.Digest{}
	for _, c := range n.children {
		if err := r.put(ctx, c); err != nil {
			return oci.Descriptor{}, err
		}
		became[c.source.Digest] = c.target.Digest
	}
	entries := make([]oci.Descriptor, len(n.children))
	for i, c := range n.children {
		entries[i] = c.target
		if of, ok := attests(c.target); ok && became[of] != "" {
			entries[i].Annotations = annotated(c.target.Annotations, map[string]string{annotationReferenceDigest: string(became[of])})
		}
	}
	return r.putDocument(ctx, n, map[string]any{"manifests": entries})
}

// stillThere notes that the source's tag names something else by now: what was
// converted is what it named at the start.
func (r *run) stillThere(ctx context.Context) {
	ref := r.source.Reference()
	if ref.Digest != "" {
		return
	}
	if now, _, err := r.source.Root(ctx); err == nil && now.Digest != r.root.source.Digest {
		r.note(ctx, "%s was %s when the conversion began, and is %s now", ref, r.root.source.Digest, now.Digest)
	}
}

func (r *run) note(ctx context.Context, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.result.Notes = append(r.result.Notes, text)
	r.o.Log.LogAttrs(ctx, slog.LevelWarn, "conversion", slog.String("note", text))
}

// report completes the result.
func (r *run) report(images []*image) *Result {
	for _, i := range images {
		out := Image{Source: i.manifest.Digest, Platform: platformOf(i.config).String(), Requested: i.first.asked}
		if n := r.root.find(i); n != nil {
			out.Target = n.target.Digest
		}
		out.Missing, out.MissingCount = i.first.missing, i.first.missed
		if p := i.first.plan; p != nil {
			out.Prioritized, out.Share = p.Matched, p.Share()
		}
		for at, j := range i.layers {
			out.Layers = append(out.Layers, Layer{
				Source: i.document.Layers[at].Digest, SourceSize: i.document.Layers[at].Size,
				Target: j.target.Digest, TargetSize: j.target.Size, DiffID: j.newDiffID, TOCDigest: j.tocDigest,
				How: j.how, Prioritized: j.paths.Len(),
			})
		}
		r.result.Images = append(r.result.Images, out)
	}
	return r.result
}

// find returns the node of an image.
func (n *node) find(i *image) *node {
	if n.image == i {
		return n
	}
	for _, c := range n.children {
		if found := c.find(i); found != nil {
			return found
		}
	}
	return nil
}
