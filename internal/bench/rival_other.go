//go:build !linux

package bench

// driver is empty: measuring needs Linux.
type driver struct{}
