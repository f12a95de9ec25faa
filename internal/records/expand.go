package records

import (
	"context"

	"dray/internal/inspect"
	"dray/internal/record"
)

// Expand makes entries of a list of paths and globs, in its order: the files of an
// image that a container would see, and the lines that match none.
func Expand(ctx context.Context, image *inspect.Image, list []string, o inspect.NamesOptions) (entries *record.List, missed []string, err error) {
	held, err := inspect.Hold(ctx, image.Names(ctx, o), 1)
	if err != nil {
		return nil, nil, err
	}
	defer held.Close()
	all, missed, err := record.Expand(ctx, list, held.Layers())
	if err != nil {
		return nil, nil, err
	}
	defer all.Close()
	plan, err := record.Apply(ctx, all, held.Layers())
	if err != nil {
		return nil, nil, err
	}
	defer plan.Close()
	hidden, err := plan.Missing.Strings() // by a layer above
	if err != nil {
		return nil, nil, err
	}
	entries, err = plan.Rewrite(all, image.Descriptor.Digest)
	return entries, append(missed, hidden...), err
}
