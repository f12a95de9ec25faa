package records

import (
	"context"

	"dray/internal/inspect"
	"dray/internal/record"
)

// Expand makes entries of a list of paths and globs, in its order: the files of an
// image that a container would see, and the lines that match none.
func Expand(ctx context.Context, image *inspect.Image, list []string, o inspect.NamesOptions) (entries []record.Entry, missed []string, err error) {
	held, files, err := inspect.Hold(ctx, image.Names(ctx, o), 1)
	if err != nil {
		return nil, nil, err
	}
	matched, missed := record.Expand(list, files)
	all := make([]record.Entry, len(matched))
	for i, name := range matched {
		all[i].Path = name
	}
	plan, err := record.Apply(all, held)
	if err != nil {
		return nil, nil, err
	}
	missed = append(missed, plan.Missing...) // a layer above hides them
	layerOf := map[string]int{}
	for n, l := range plan.Layers {
		for _, name := range l.Paths {
			layerOf[name] = n
		}
	}
	for _, e := range all {
		if n, visible := layerOf[e.Path]; visible {
			e.ManifestDigest, e.LayerIndex = image.Descriptor.Digest, &n
			entries = append(entries, e)
		}
	}
	return entries, missed, nil
}
