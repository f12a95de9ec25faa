//go:build linux

package dray

import (
	"context"

	"google.golang.org/grpc/codes"

	"dray/internal/guest"
)

// ServeOptions of [Client.Serve].
type ServeOptions = guest.Options

// Serve offers the guest's pull service, api.ImagePullService over ttrpc, until
// ctx ends, then lets running calls finish for a grace time.
func (c *Client) Serve(ctx context.Context, o ServeOptions, b BundleOptions) error {
	if o.Log == nil {
		o.Log = c.log
	}
	o.Code = Code
	b.Pull.RequireDigest = b.Pull.RequireDigest || o.RequireDigest
	b.Replace = true
	return guest.Serve(ctx, bundles{c, b}, o)
}

var _ guest.Images = bundles{}

// bundles is the engine behind the service.
type bundles struct {
	client  *Client
	options BundleOptions
}

// PullInto implements [guest.Images].
func (b bundles) PullInto(ctx context.Context, imageURL, bundlePath string) (guest.Reply, error) {
	made, err := b.client.Bundle(ctx, imageURL, bundlePath, b.options)
	if err != nil {
		return guest.Reply{}, err
	}
	return guest.Reply{ManifestDigest: made.Image.Manifest, ConfigDigest: made.Image.Config}, nil
}

// Code returns the gRPC code of an error, as the service answers it.
func Code(err error) codes.Code {
	switch KindOf(err) {
	case KindUsage:
		return codes.InvalidArgument
	case KindNotFound:
		return codes.NotFound
	case KindUnauthorized:
		return codes.Unauthenticated
	case KindDenied:
		return codes.PermissionDenied
	case KindUnverified, KindCorrupt:
		return codes.DataLoss
	case KindBusy:
		return codes.Aborted
	case KindNoSpace:
		return codes.ResourceExhausted
	case KindUnreachable:
		return codes.Unavailable
	case KindInterrupted:
		return codes.Canceled
	case KindOther:
		return codes.Internal
	}
	return codes.Internal
}
