// Package oci is dray's vocabulary: digests, descriptors, manifests, platforms
// and references, as the OCI image and distribution specifications and Docker's
// image manifest v2 schema 2 define them. It does no I/O.
//
// Three digests mean three things and are three types: a [Digest] names bytes
// as they are stored or sent, a [DiffID] names the uncompressed tar of a layer,
// a [ChainID] names a stack of layers. A value of one never stands for another.
//
// Decoding is strict: a digest that is malformed, a negative size or a document
// that is a manifest and an index at once is an error here, so that no caller
// has to look again.
package oci
