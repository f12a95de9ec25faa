package erofs

import "errors"

// ErrInexpressible reports a layer that this layout cannot hold. [*InexpressibleError]
// has the reason.
var ErrInexpressible = errors.New("layer cannot be expressed in EROFS")

// InexpressibleError says what about a layer the layout cannot hold.
type InexpressibleError struct {
	Name   string // of the entry, as the tar has it; "" when it is not about one
	Reason string
}

// Error implements error.
func (e *InexpressibleError) Error() string {
	if e.Name == "" {
		return e.Reason
	}
	const longest = 100
	return e.Reason + ": \"" + e.Name[:min(len(e.Name), longest)] + "\""
}

// Is makes every InexpressibleError an [ErrInexpressible].
func (e *InexpressibleError) Is(target error) bool { return target == ErrInexpressible }
