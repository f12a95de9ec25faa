package pull

import (
	"io"
	"strconv"
	"sync"
	"time"

	"dray/internal/progress"
)

// State is how far a layer has come.
type State = progress.State

// Event is one step of a pull; those of one pull are delivered one at a time.
type Event = progress.Event

// States of a layer, in order.
const (
	Waiting  = progress.Waiting
	Fetching = progress.Fetching
	Done     = progress.Done
	Present  = progress.Present
	Failed   = progress.Failed
)

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
