package records

import (
	"context"
	"fmt"
	"iter"
	"path"
	"strings"

	"dray/internal/inspect"
	"dray/internal/layer"
	"dray/internal/record"
	"dray/internal/stream"
)

// maxNames bounds the names of an image that globs are held against.
const maxNames = 4_000_000

// Expand makes entries of a list of paths and globs, in its order: the files of an
// image that a container would see, and the lines that match none.
func Expand(ctx context.Context, image *inspect.Image, list []string, l layer.Limits) (entries []record.Entry, missed []string, err error) {
	var files []string
	held := make([]iter.Seq2[record.Name, error], len(image.Manifest.Layers))
	count := 0
	for n, names := range image.Names(ctx, l, nil) {
		var layerNames []record.Name
		for name, err := range names {
			if err != nil {
				return nil, nil, fmt.Errorf("match list: %w", err)
			}
			if count++; count > maxNames {
				return nil, nil, fmt.Errorf("match list: the image has more than %d names: %w", maxNames, stream.ErrTooLarge)
			}
			layerNames = append(layerNames, name)
			if !name.IsDir && !strings.HasPrefix(path.Base(name.Path), ".wh.") {
				files = append(files, strings.TrimPrefix(path.Clean("/"+name.Path), "/"))
			}
		}
		held[n] = again(layerNames)
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

func again(names []record.Name) iter.Seq2[record.Name, error] {
	return func(yield func(record.Name, error) bool) {
		for _, n := range names {
			if !yield(n, nil) {
				return
			}
		}
	}
}
