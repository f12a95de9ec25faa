package seed

import (
	"errors"
	"fmt"
)

// Errors of seeds.
var (
	// ErrNotSeed reports a path at which there is no seed.
	ErrNotSeed = errors.New("not a seed")
	// ErrRefused reports something in a seed that is not what it should be: wrong
	// bytes, cut off, a link, gone. Whatever it is, it comes from elsewhere then.
	ErrRefused = errors.New("refused")
)

// problem returns an error that is an [ErrRefused] without saying so: whoever refuses
// does.
func problem(format string, args ...any) error { return problemError{fmt.Errorf(format, args...)} }

type problemError struct{ error }

// Is makes it an [ErrRefused].
func (problemError) Is(target error) bool { return target == ErrRefused }

// Unwrap returns the error inside.
func (p problemError) Unwrap() error { return p.error }
