package convert

import (
	"context"
	"fmt"
	"iter"

	"dray/internal/inspect"
	"dray/internal/record"
	"dray/internal/repo"
)

// order finds what comes first in each layer of an image. note is told what was
// fallen back to.
func (i *image) order(ctx context.Context, source *repo.Repository, o *Options, note func(string)) error {
	var entries []record.Entry
	var missing []string
	var err error
	if o.Order != nil {
		if entries, err = o.Order(ctx, i.manifest); err != nil {
			return err
		}
	}
	names := make([]iter.Seq2[record.Name, error], len(i.document.Layers))
	look := &inspect.Image{Descriptor: i.manifest, Manifest: i.document, Repository: source}
	options := inspect.NamesOptions{Limits: o.Limits, Hash: record.ContentSizes(entries), Note: note}
	for n, d := range i.document.Layers {
		names[n] = func(func(record.Name, error) bool) {}
		if !isForeign(d) {
			names[n] = look.LayerNames(ctx, d, options)
		}
	}
	i.asked = len(entries)
	if o.Order == nil {
		i.asked = len(o.Globs)
		var files []string
		if names, files, err = inspect.Hold(ctx, names, o.Jobs); err != nil {
			return err
		}
		var matched []string
		matched, missing = record.Expand(o.Globs, files)
		for _, name := range matched {
			entries = append(entries, record.Entry{Path: name})
		}
	}
	if len(entries) == 0 {
		i.plan = &record.Plan{Layers: make([]record.LayerPlan, len(names)), Missing: missing}
		return nil
	}
	if i.plan, err = record.Apply(entries, names); err != nil {
		return fmt.Errorf("apply record to %s: %w", i.manifest.Digest, err)
	}
	i.plan.Missing = append(i.plan.Missing, missing...)
	return nil
}
