package pull

import (
	"context"
	"fmt"

	"dray/internal/oci"
	"dray/internal/store"
)

// Rewrite fetches layers of an image again that the store has in another layout,
// and puts them in the place of those. The request's reference names the image. A
// layer that the layout cannot express is unpacked anew; the evidence has the reason.
// Errors are those of [Engine.Pull], and [store.ErrInUse].
func (e *Engine) Rewrite(ctx context.Context, r Request, ids []oci.DiffID, layout string) (*Evidence, error) {
	source := &sharedSource{Source: r.Source, local: r.Local}
	source.retain()
	defer source.release()
	found, err := e.resolve(ctx, r)
	if err != nil {
		return nil, err
	}
	evidence := newEvidence(r, found)
	evidence.Layout, evidence.LayoutReason = layout, "asked for"
	positions := map[oci.DiffID]int{}
	for i, id := range found.image.RootFS.DiffIDs {
		positions[id] = i
	}
	reports := &reporter{output: r.Progress}
	for _, id := range ids {
		at, ok := positions[id]
		if !ok {
			return nil, fmt.Errorf("rewrite layer %s: not of this image: %w", id, store.ErrNotFound)
		}
		w := &watcher{report: func(s State, fetched int64) { reports.deliver(e.event(r, found, at, s, fetched)) }}
		f, shared := e.board(ctx, job{diffID: id, blob: found.document.Layers[at], layout: layout, source: source, rewrite: true}, w)
		if err := e.wait(ctx, f, w); err != nil {
			return nil, err
		}
		evidence.flown(at, f, shared)
	}
	return evidence, nil
}
