// Package multibuf hashes several streams at once on one core (multi-buffer hashing).
//
// Each step of SHA-256 waits for the one before it, so that one stream keeps the
// processor's unit half idle; with two streams in turn the second one costs a third of
// the first. A pull has at least two, the blob and its tar, and more when layers
// come in parallel.
//
// The streams of [Lanes] meet there. Who has a new block hashes the oldest of its own along
// with one of whoever has the most waiting, and lets blocks wait while there is nobody, as
// long as it has room. Nobody stops for a partner, and no goroutine is started. Where the
// processor cannot do it, and for other hashes, each stream is hashed by itself.
package multibuf
