// Package stream holds what layers flow through: a [Verifier] that lets bytes
// pass only if they end as their digest and size promise, an [Ahead] that runs
// one stage of a pipeline in its own goroutine over a fixed ring of buffers, and
// a [Budget] that bounds what all of them hold together.
//
// Bytes move in one of two forms. As an [io.Reader] they are copied into the
// caller's buffer. As [Blocks] they are lent: the slice that Next returns is the
// stage's own buffer, valid until the next call, so that hashing, parsing and
// writing look at the same memory.
//
// A reader's first error is final: every later call returns it again.
package stream
