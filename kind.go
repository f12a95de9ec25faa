package dray

import (
	"context"
	"errors"
	"syscall"

	"dray/internal/convert"
	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/record"
	"dray/internal/records"
	"dray/internal/registry"
	"dray/internal/repo"
	"dray/internal/stream"
)

// Kind classifies an error. Its number is the exit code of the command.
type Kind int

// Kinds of errors.
const (
	KindOther        Kind = 1   // none of the others
	KindUsage        Kind = 2   // malformed reference, option or argument
	KindNotFound     Kind = 10  // image, tag, platform or mount does not exist
	KindUnauthorized Kind = 11  // the registry wants other credentials
	KindDenied       Kind = 12  // a policy refuses the image
	KindUnverified   Kind = 13  // content is not what its digest, size or format promises
	KindBusy         Kind = 14  // store, target or image is in use
	KindCorrupt      Kind = 15  // the store itself is damaged
	KindNoSpace      Kind = 16  // the disk is too small
	KindUnreachable  Kind = 17  // no registry answered
	KindInterrupted  Kind = 130 // the caller gave up
)

// ErrNeedsDigest reports a reference without a digest where one is required.
var ErrNeedsDigest = errors.New("reference must be pinned to a digest")

// KindOf returns the kind of err, KindOther when it has none.
func KindOf(err error) Kind {
	if limit := (*layer.LimitError)(nil); errors.As(err, &limit) {
		return KindUnverified
	}
	// More specific kinds come first: a mismatch that made a registry look broken
	// is a mismatch.
	for _, k := range []struct {
		kind      Kind
		sentinels []error
	}{
		{KindUnverified, []error{}},
		{KindNotFound, []error{}},
		{KindUsage, []error{}},
		{KindDenied, []error{ErrNeedsDigest}},
		{KindUnverified, []error{stream.ErrMismatch, layer.ErrFormat, estargz.ErrFormat, estargz.ErrDisagree, estargz.ErrUnverified, record.ErrFormat, record.ErrTooLarge, oci.ErrManifest, stream.ErrTooLarge}},
		{KindCorrupt, []error{}},
		{KindNoSpace, []error{syscall.ENOSPC, syscall.EDQUOT}},
		{KindBusy, []error{}},
		{KindUnauthorized, []error{registry.ErrUnauthorized}},
		{KindNotFound, []error{registry.ErrNotFound, ocidir.ErrNotFound, ocidir.ErrNotLayout, oci.ErrPlatform, records.ErrNone, estargz.ErrNoTOC}},
		{KindUsage, []error{repo.ErrTarget, convert.ErrOptions, ErrForm, ErrReuse, oci.ErrReference, oci.ErrDigest, oci.ErrPlatformName}},
		{KindInterrupted, []error{context.Canceled}},
		{KindUnreachable, []error{registry.ErrUnreachable, registry.ErrProtocol, registry.ErrBlocked, context.DeadlineExceeded}},
		{KindOther, []error{convert.ErrUnsupported, estargz.ErrUnsupported, ErrLayout}},
	} {
		for _, sentinel := range append(k.sentinels, nativeErrors(k.kind)...) {
			if errors.Is(err, sentinel) {
				return k.kind
			}
		}
	}
	return KindOther
}
