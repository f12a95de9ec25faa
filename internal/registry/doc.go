// Package registry speaks the OCI distribution protocol to registries, mirrors
// and the token services behind them: references in, verified manifests and
// unverified blob bytes out, and the same in the other direction.
//
// Words: an origin is the registry that a reference names; a mirror stands in
// for it; both are endpoints. A challenge is what a 401 asks for, a grant what
// answered it.
//
// Verified here: a manifest against the digest it was asked for. Not verified
// here: blobs, whose reader is wrapped in a [stream.Verifier] by who reads it,
// since only the end of the stream decides. Everything that a server says about
// sizes, ranges and digests is checked against what the descriptor promised.
//
// What goes wrong in between is mended inside: requests are repeated with
// exponential back-off and full jitter, a broken body resumes at its byte, an
// endpoint that fails is replaced by the next one. Waits end when their context
// does. Credentials are looked up when a challenge asks for them and again when
// one was refused; they go to no other host than their own and the token service
// that it names, and never into logs or errors, which show no query strings.
//
// Connections speak HTTP/1.1. Each blob then has the kernel's flow control to
// itself: a layer that waits for its consumer holds no memory of ours and no
// window that its neighbours need, which HTTP/2's shared connection would. One
// stream is faster, too (BenchmarkBlob), and several ranges are several
// connections in fact.
//
// A [Client] and its repositories are safe for concurrent use; a blob's reader
// belongs to one goroutine.
package registry
