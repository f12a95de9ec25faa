package dray

import "dray/internal/pull"

// Reuse is how a client reuses files.
type Reuse struct{ parts *pull.Reuse }

func newReuse(always bool) *Reuse { return &Reuse{pull.ReuseFiles(always)} }

// engine returns the engine's option.
func (r *Reuse) engine() *pull.Reuse {
	if r == nil {
		return nil
	}
	return r.parts
}
