package mount

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of the package.
var (
	ErrTarget        = errors.New("target cannot be mounted on")   // not absolute, not a directory, a symbolic link
	ErrTargetBusy    = errors.New("target is a mount point")       // of another image, or not dray's
	ErrNotMounted    = errors.New("not mounted by dray")           // nothing of this store at the target
	ErrBusy          = errors.New("mount is in use")               // details in a [*BusyError]
	ErrTooManyLayers = errors.New("too many layers")               // for overlayfs, or for what the kernel lets dray tell it
	ErrLayer         = errors.New("layer cannot be mounted so")    // unknown layout, or whiteouts in the other form
	ErrNamespace     = errors.New("mount is in another namespace") // of which this process sees nothing
)

// BusyError says what keeps a mount from being unmounted. It is an [ErrBusy].
type BusyError struct {
	Target  string
	Holders []string // "process 12 (bash)", "mount /x"; not always all, and empty when none was found
}

// Error implements error.
func (e *BusyError) Error() string {
	text := fmt.Sprintf("unmount %q: %v", e.Target, ErrBusy)
	if len(e.Holders) > 0 {
		text += " by " + strings.Join(e.Holders, ", ")
	}
	return text
}

// Is makes every BusyError an [ErrBusy].
func (e *BusyError) Is(target error) bool { return target == ErrBusy }
