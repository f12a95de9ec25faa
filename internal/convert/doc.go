// Package convert makes images whose layers can be read in parts, and copies
// images: from any repository to any other, see package repo.
//
// # Order
//
// A conversion has four steps, and a target that is whole after each of them:
//
//  1. Plan. The source's root is resolved once; from then on everything is asked
//     for by digest, so that a tag that moves changes nothing. Manifests are
//     chosen by platform. Where files are to come first, the names of all layers
//     are read to find the one layer whose copy of a file a container sees.
//  2. Layers, several at once, each read and written as a stream. What is read is
//     verified against the blob's digest and the diffID.
//  3. Configurations, manifests and indexes, from the inside out.
//  4. The tag, and for archives the file.
//
// # Memory of conversions
//
// The result of a layer's conversion depends on its digest and the options alone.
// [Memory] keeps it, so that the next image with that layer needs not convert it
// again where the target has the result, or can mount it.
//
// # What stays
//
// Documents are edited, not written anew: fields that this program does not know
// stay as they are. What is not an image (attestations, artifacts) is copied with
// its referrers; the annotation that ties an attestation to its image follows the
// image. Referrers of an image that was converted speak of other bytes and are
// left behind; the result names them.
package convert
