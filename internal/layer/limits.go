package layer

import (
	"errors"
	"fmt"
)

// ErrFormat reports input that is not what a layer may be.
var ErrFormat = errors.New("malformed layer")

// LimitError reports input beyond a limit.
type LimitError struct {
	What  string // "entries", "name bytes": what is limited
	Limit int64
	Got   int64 // at least this much was there
}

// Error implements error.
func (e *LimitError) Error() string {
	return fmt.Sprintf("read layer: %s: %d exceeds the limit of %d", e.What, e.Got, e.Limit)
}

// Defaults of [Limits] and [Options].
const (
	DefaultMaxEntries       = 10_000_000
	DefaultMaxBytes         = 1 << 40
	DefaultMaxHeaderBytes   = 1 << 20
	DefaultMaxNameBytes     = 4096 // PATH_MAX
	DefaultMaxXattrs        = 1024
	DefaultMaxXattrBytes    = 256 << 10
	DefaultMaxSparseExtents = 64 << 10
	DefaultMaxWindowBytes   = 128 << 20
)

// Limits bounds what a tar may make its reader do. Zero is the default.
type Limits struct {
	MaxEntries       int64 // [DefaultMaxEntries]
	MaxBytes         int64 // of the tar, up to its end: [DefaultMaxBytes]
	MaxHeaderBytes   int   // of one PAX header or sparse map: [DefaultMaxHeaderBytes]
	MaxNameBytes     int   // of a name or a link's target: [DefaultMaxNameBytes]
	MaxXattrs        int   // of one entry: [DefaultMaxXattrs]
	MaxXattrBytes    int   // names and values of one entry: [DefaultMaxXattrBytes]
	MaxSparseExtents int   // of one file: [DefaultMaxSparseExtents]
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.MaxEntries, DefaultMaxEntries)
	orDefault(&l.MaxBytes, DefaultMaxBytes)
	orDefault(&l.MaxHeaderBytes, DefaultMaxHeaderBytes)
	orDefault(&l.MaxNameBytes, DefaultMaxNameBytes)
	orDefault(&l.MaxXattrs, DefaultMaxXattrs)
	orDefault(&l.MaxXattrBytes, DefaultMaxXattrBytes)
	orDefault(&l.MaxSparseExtents, DefaultMaxSparseExtents)
	return l
}

func orDefault[T int | int64](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}
