//go:build !linux

package dray

// systemWide tells whether the process may use the system's store: there is none.
func systemWide() bool { return false }

// nativeErrors returns the sentinels of a kind that only packages for Linux have.
func nativeErrors(Kind) []error { return nil }

// Reuse is how a client reuses files. Nothing is pulled here.
type Reuse struct{}

func newReuse(bool) *Reuse { return &Reuse{} }
