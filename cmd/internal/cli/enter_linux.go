package cli

import (
	"context"

	"dray"
	"dray/internal/userns"
)

// Open opens the store as the flags say.
func (a *App) Open(ctx context.Context) (*dray.Client, error) {
	o, err := a.Options()
	if err != nil {
		return nil, err
	}
	return dray.New(ctx, o)
}

// Enter makes sure that the command runs where it may mount: as root, or as root
// of a user namespace of our own, in which it starts this program again. The
// second result is true when that other run has done everything and ended with
// err.
func (a *App) Enter(ctx context.Context) (err error, finished bool) { //nolint:revive // the error belongs to the other run
	switch a.Globals.Rootless {
	case "never":
		if userns.Needed() {
			return Usage("--rootless never: the process has no right to mount (it is not root, or root without CAP_SYS_ADMIN)"), true
		}
		return nil, false
	case "always":
		if userns.Inside() {
			return nil, false
		}
	case "auto":
		if !userns.Needed() {
			return nil, false
		}
	default:
		return Usage("--rootless %q: want auto, always or never", a.Globals.Rootless), true
	}
	code, err := userns.Reexec(ctx, userns.Options{Log: a.log})
	if err != nil {
		return err, true
	}
	return Exit(code), true
}

// EnterIfPossible is [App.Enter] for commands that need no rights but see more inside:
// the owners of the trees in a store that was filled there. Where no user namespace can be
// made, or none with many owners, they go on outside.
func (a *App) EnterIfPossible(ctx context.Context) (err error, finished bool) { //nolint:revive // as Enter
	possible := a.Globals.Rootless != "auto" || !userns.Needed() || userns.HasRange() && userns.Available() == nil //nolint:contextcheck // its trial is short
	if a.Globals.Rootless == "never" || !possible {
		return nil, false
	}
	return a.Enter(ctx)
}
