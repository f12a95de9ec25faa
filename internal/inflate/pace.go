package inflate

import (
	"io"
	"time"
)

// pace measures whether decoding is what everybody waits for, and whether there are
// cores for more of it.
type pace struct {
	since time.Time     // start of what is measured
	left  time.Time     // when the caller was given output
	away  time.Duration // spent by the caller with it, and waiting for the source
	late  time.Duration // spent waiting for helpers
	idle  bool          // what wantsHelp said last, turned round
}

const (
	// paceWindow is for how long is measured at least.
	paceWindow = time.Millisecond

	// awayShare is the part of the time, one in so many, that may be spent outside
	// before decoding is no longer what everybody waits for, and lateShare the one
	// that may be spent waiting for helpers before cores count as busy with other
	// things.
	awayShare, lateShare = 8, 3
)

func (p *pace) reset() { *p = pace{since: time.Now()} }

// enter is called when the caller asks for output.
func (p *pace) enter() {
	if !p.left.IsZero() {
		p.away += time.Since(p.left)
	}
}

// leave is called when it gets some.
func (p *pace) leave() { p.left = time.Now() }

// helperLate is called after a wait for a helper.
func (p *pace) helperLate(d time.Duration) { p.late += d }

// wantsHelp reports whether decoding is what everybody waits for and helpers help, and
// starts measuring anew.
func (p *pace) wantsHelp() bool {
	total := time.Since(p.since)
	if total < paceWindow {
		return !p.idle
	}
	*p = pace{since: time.Now(), left: p.left, idle: p.away > total/awayShare || p.late > total/lateShare}
	return !p.idle
}

// pacedSource counts the time that is spent waiting for a source.
type pacedSource struct {
	r    io.Reader
	pace *pace
}

// Read implements [io.Reader].
func (s *pacedSource) Read(p []byte) (int, error) {
	began := time.Now()
	n, err := s.r.Read(p)
	s.pace.away += time.Since(began)
	return n, err
}
