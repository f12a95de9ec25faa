package dray

import (
	"errors"
	"fmt"
)

// ErrReuse reports a mode of reuse that does not exist.
var ErrReuse = errors.New("no such mode of reuse")

// Modes of [ReuseFiles].
const (
	ReuseAuto   = "auto"   // of images of the same repository, where the network turns out to be slower
	ReuseAlways = "always" // of all that is in the store, whatever it saves
	ReuseNever  = "never"
)

// ReuseFiles returns what [Options].Reuse is to be for a mode. A layer of which files
// were reused is verified by its diff ID alone: its blob was not read as a whole. The
// evidence says so.
func ReuseFiles(mode string) (*Reuse, error) {
	switch mode {
	case ReuseAuto, ReuseAlways:
		return newReuse(mode == ReuseAlways), nil
	case ReuseNever:
		return nil, nil //nolint:nilnil // nil: nothing is reused
	}
	return nil, fmt.Errorf("%w: %q: want auto, always or never", ErrReuse, mode)
}
