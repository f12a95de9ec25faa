//go:build linux

package dray

import (
	"context"
	"io"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/pull"
	"dray/internal/registry"
	"dray/internal/store"
)

var (
	_ pull.Source = nowhere{}
	_ pull.Source = remote{}
	_ pull.Source = (*ocidir.Layout)(nil)
)

// remote is a repository as a source: nothing of it has to be given up, the
// connections are the client's.
type remote struct{ *registry.Repository }

// Close implements [pull.Source].
func (remote) Close() error { return nil }

// nowhere is the source of pulls that may ask nobody.
type nowhere struct{}

// Resolve implements [pull.Source].
func (nowhere) Resolve(context.Context, string, oci.Digest) (oci.Descriptor, []byte, error) {
	return oci.Descriptor{}, nil, store.ErrNotFound
}

// Blob implements [pull.Source].
func (nowhere) Blob(context.Context, oci.Descriptor, int64) (io.ReadCloser, error) {
	return nil, store.ErrNotFound
}

// Close implements [pull.Source].
func (nowhere) Close() error { return nil }
