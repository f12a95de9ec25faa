package convert

import (
	"context"
	"fmt"
	"iter"

	"dray/internal/inspect"
	"dray/internal/record"
	"dray/internal/repo"
)

// first is what comes first in an image. The zero value is nothing.
type first struct {
	asked   int
	plan    *record.Plan
	missing []string // the first of them
	missed  int      // how many are missing
}

// of returns what comes first in layer n.
func (f *first) of(n int) record.Paths {
	if f.plan == nil {
		return record.Paths{}
	}
	return f.plan.Layers[n].Paths
}

// close lets go of the names.
func (f *first) close() { f.plan.Close() }

// order finds what comes first in each layer of an image. note is told what was
// fallen back to.
func (i *image) order(ctx context.Context, source *repo.Repository, o *Options, note func(string)) error {
	var entries *record.List
	var hash func(int64) bool
	if o.Order != nil {
		var err error
		if entries, err = o.Order(ctx, i.manifest); err != nil {
			return err
		}
		if hash, err = record.ContentSizes(entries); err != nil {
			return err
		}
		i.first.asked = entries.Len()
	}
	names := make([]iter.Seq2[record.Name, error], len(i.document.Layers))
	look := &inspect.Image{Descriptor: i.manifest, Manifest: i.document, Repository: source}
	options := inspect.NamesOptions{Limits: o.Limits, Hash: hash, Note: note}
	for n, d := range i.document.Layers {
		names[n] = func(func(record.Name, error) bool) {}
		if !isForeign(d) {
			names[n] = look.LayerNames(ctx, d, options)
		}
	}
	if o.Order == nil {
		i.first.asked = len(o.Globs)
		held, err := inspect.Hold(ctx, names, o.Jobs)
		if err != nil {
			return err
		}
		defer held.Close()
		names = held.Layers()
		var missed []string
		if entries, missed, err = record.Expand(ctx, o.Globs, names); err != nil {
			return err
		}
		defer entries.Close()
		defer func() { i.first.miss(missed...) }() // those that match nothing at all come last
	}
	if entries.Len() == 0 {
		return nil
	}
	if err := i.first.apply(ctx, entries, names); err != nil {
		return fmt.Errorf("apply record to %s: %w", i.manifest.Digest, err)
	}
	return nil
}

// maxMissing bounds the missing paths that a result names.
const maxMissing = 1000

// miss notes paths that are not in the image.
func (f *first) miss(paths ...string) {
	f.missed += len(paths)
	f.missing = append(f.missing, paths[:min(len(paths), maxMissing-len(f.missing))]...)
}

func (f *first) apply(ctx context.Context, entries *record.List, names []iter.Seq2[record.Name, error]) (err error) {
	if f.plan, err = record.Apply(ctx, entries, names); err != nil {
		return err
	}
	for name, err := range f.plan.Missing.All() {
		if err != nil {
			return err
		}
		if f.miss(name); len(f.missing) == maxMissing {
			break
		}
	}
	f.missed = f.plan.Missing.Len()
	return nil
}
