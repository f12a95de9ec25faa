package pull

import (
	"io"
	"strconv"
	"sync"
	"time"

	"dray/internal/oci"
)

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

// reporter serialises the events of one pull.
type reporter struct {
	mu     sync.Mutex // held while deliver runs, so that events come in order
	output func(Event)
}

func (r *reporter) deliver(e Event) {
	if r == nil || r.output == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.output(e)
}

// reportEvery bounds how often one layer reports bytes.
const reportEvery = 100 * time.Millisecond

// meter counts what passes and tells its flight at a bounded rate.
type meter struct {
	src    io.Reader
	flight *flight
	last   time.Time
}

// Read implements [io.Reader].
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.src.Read(p)
	m.flight.fetched.Add(int64(n))
	if now := time.Now(); err != nil || now.Sub(m.last) >= reportEvery {
		m.last = now
		m.flight.report()
	}
	return n, err
}

func formatMillis(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', -1, 64)
}
