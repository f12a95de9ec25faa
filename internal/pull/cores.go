package pull

import "dray/internal/inflate"

var _ inflate.Cores = lentCores{}

// layerCores is how many cores a layer in flight keeps busy by itself: inflating
// takes one, fetching, hashing and writing another nearly whole. On a machine of no
// more, inflating on both was measured to gain nothing (docs/bench-inflate.md).
const layerCores = 2

// lentCores lends the slots that no layer needs to the layers that are in flight,
// to be inflated on several cores. With the slot goes the memory of the layer that
// is not in it.
//
// A layer that comes gets a slot at once, lent or not: whoever has it gives it back
// when it is read next.
type lentCores struct{ engine *Engine }

// Take implements [inflate.Cores].
func (c lentCores) Take() bool {
	e := c.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if layerCores*e.busy+e.lent >= e.options.Workers {
		return false
	}
	e.lent++
	return true
}

// Wanted implements [inflate.Cores].
func (c lentCores) Wanted() bool {
	e := c.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	return layerCores*e.busy+e.lent > e.options.Workers
}

// Give implements [inflate.Cores].
func (c lentCores) Give() {
	e := c.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lent--
}
