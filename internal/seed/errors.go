package seed

import "errors"

// Errors of seeds.
var (
	// ErrNotSeed reports a path at which there is no seed.
	ErrNotSeed = errors.New("not a seed")
	// ErrRefused reports something in a seed that is not what it should be: wrong
	// bytes, cut off, a link, gone. Whatever it is, it comes from elsewhere then.
	ErrRefused = errors.New("refused")
)
