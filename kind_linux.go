package dray

import (
	"dray/internal/bundle"
	"dray/internal/metastore"
	"dray/internal/mount"
	"dray/internal/pull"
	"dray/internal/retar"
	"dray/internal/seed"
	"dray/internal/store"
)

// nativeErrors returns the sentinels of a kind that only packages for Linux have.
func nativeErrors(k Kind) []error {
	switch k {
	case KindUnverified:
		return []error{seed.ErrRefused, ErrRefused, metastore.ErrFormat, retar.ErrUnknown, retar.ErrTree}
	case KindNotFound:
		return []error{seed.ErrNotSeed, metastore.ErrNotFound, store.ErrNotFound, mount.ErrNotMounted, bundle.ErrUser}
	case KindUsage:
		return []error{ErrSeedTarget, metastore.ErrOption, bundle.ErrOption, bundle.ErrNoCommand}
	case KindCorrupt:
		return []error{store.ErrCorrupt, store.ErrVersion}
	case KindNoSpace:
		return []error{store.ErrNoSpace}
	case KindBusy:
		return []error{metastore.ErrBusy, store.ErrBusy, store.ErrInUse, mount.ErrTargetBusy}
	case KindOther:
		return []error{pull.ErrUnsupported}
	default:
		return nil
	}
}
