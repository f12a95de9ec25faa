// Package progress holds what displays are told of pulls, conversions and copies.
// It is apart from the engine so that displays build where the engine does not.
package progress

import "dray/internal/oci"

// State is how far a layer has come.
type State string

// States of a layer, in order. A layer ends as Done or Failed.
const (
	Waiting  State = "waiting"  // for a free place, or for another process
	Fetching State = "fetching" // and unpacking: it is one pass
	Done     State = "done"
	Present  State = "present" // it was in the store
	Failed   State = "failed"
)

// Event is one step of a pull, for progress displays. Events of one pull are
// delivered one at a time.
type Event struct {
	Image        string     `json:"image"`
	Layer        int        `json:"layer"`  // position from the bottom, from 0
	Layers       int        `json:"layers"` // how many there are
	DiffID       oci.DiffID `json:"diff_id"`
	Digest       oci.Digest `json:"digest"`
	State        State      `json:"state"`
	FetchedBytes int64      `json:"fetched_bytes"`
	TotalBytes   int64      `json:"total_bytes"` // compressed
}
