// Package pull is the engine: it brings an image from a [Source] into the store,
// verified to the last byte, in one pass from socket to disk.
//
// The chain of one layer is in layer.go, one line per stage. What is shared
// between pulls is in flight.go: each layer is fetched once, however many pulls
// and processes want it. Nothing is visible before both of its digests matched;
// layers that are complete stay when a pull fails, so that the next attempt
// begins where this one ended.
//
// An [Engine] is safe for concurrent use. How its memory is bounded is in
// docs/design.md, "Memory".
package pull
