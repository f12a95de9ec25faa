package convert

import (
	"context"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"dray/internal/inspect"
	"dray/internal/record"
	"dray/internal/repo"
	"dray/internal/stream"
)

// maxNames bounds the names that patterns are held against: all of an image.
const maxNames = 4_000_000

// whiteoutPrefix marks names that hide those of lower layers (image-spec, layer.md).
const whiteoutPrefix = ".wh."

// order finds what comes first in each layer of an image.
func (i *image) order(ctx context.Context, source *repo.Repository, o *Options) error {
	var entries []record.Entry
	var missing []string
	var err error
	if o.Order != nil {
		if entries, err = o.Order(ctx, i.manifest); err != nil {
			return err
		}
	}
	names := make([]iter.Seq2[record.Name, error], len(i.document.Layers))
	wanted := record.ContentSizes(entries)
	for n, d := range i.document.Layers {
		names[n] = func(func(record.Name, error) bool) {}
		if !isForeign(d) {
			names[n] = inspect.Names(ctx, source, d, o.Limits, wanted)
		}
	}
	i.asked = len(entries)
	if o.Order == nil {
		i.asked = len(o.Globs)
		if entries, missing, err = expand(ctx, o, names); err != nil {
			return err
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

// expand returns what the patterns match and those that match nothing. The names
// are read once, several layers at a time; names gives them from memory afterwards.
func expand(ctx context.Context, o *Options, names []iter.Seq2[record.Name, error]) (entries []record.Entry, missing []string, err error) {
	held := make([][]record.Name, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Jobs)
	for n := range names {
		group.Go(func() error {
			for name, err := range names[n] {
				if err == nil {
					err = context.Cause(ctx)
				}
				if err != nil {
					return err
				}
				if len(held[n]) == maxNames/len(names) {
					return fmt.Errorf("match patterns: layer %d has more than %d names: %w", n, len(held[n]), stream.ErrTooLarge)
				}
				held[n] = append(held[n], name)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	var files []string
	for n := range held {
		names[n] = withoutErrors(held[n])
		for _, name := range held[n] {
			if !name.IsDir && !strings.HasPrefix(path.Base(name.Path), whiteoutPrefix) {
				files = append(files, strings.TrimPrefix(path.Clean("/"+name.Path), "/"))
			}
		}
	}
	matched, missing := record.Expand(o.Globs, files)
	for _, name := range matched {
		entries = append(entries, record.Entry{Path: name})
	}
	return entries, missing, nil
}

func withoutErrors(names []record.Name) iter.Seq2[record.Name, error] {
	return func(yield func(record.Name, error) bool) {
		for name := range slices.Values(names) {
			if !yield(name, nil) {
				return
			}
		}
	}
}
