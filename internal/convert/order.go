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
	matched int
	paths   [][]string // by layer
	missing []string
	share   float64 // of the bytes
}

// of returns what comes first in layer n.
func (f *first) of(n int) []string {
	if f.paths == nil {
		return nil
	}
	return f.paths[n]
}

// order finds what comes first in each layer of an image. note is told what was
// fallen back to.
func (i *image) order(ctx context.Context, source *repo.Repository, o *Options, note func(string)) error {
	var entries *record.List
	var hash func(int64) bool
	var err error
	if o.Order != nil {
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
		var files []string
		if names, files, err = inspect.Hold(ctx, names, o.Jobs); err != nil {
			return err
		}
		entries = &record.List{}
		defer entries.Close()
		var matched []string
		matched, i.first.missing = record.Expand(o.Globs, files)
		for _, name := range matched {
			if err := entries.Add(&record.Entry{Path: name}); err != nil {
				return err
			}
		}
	}
	if entries.Len() == 0 {
		return nil
	}
	if err := i.first.apply(ctx, entries, names); err != nil {
		return fmt.Errorf("apply record to %s: %w", i.manifest.Digest, err)
	}
	return nil
}

func (f *first) apply(ctx context.Context, entries *record.List, names []iter.Seq2[record.Name, error]) error {
	plan, err := record.Apply(ctx, entries, names)
	if err != nil {
		return err
	}
	defer plan.Close()
	f.matched, f.share, f.paths = plan.Matched, plan.Share(), make([][]string, len(names))
	for n := range f.paths {
		if f.paths[n], err = plan.Layers[n].Paths.Strings(); err != nil {
			return err
		}
	}
	missing, err := plan.Missing.Strings()
	// Those of a list that match nothing at all come last.
	f.missing = append(missing, f.missing...)
	return err
}
