package inflate

import (
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"time"
)

const (
	// DefaultParallelBytes is the memory of a [Parallel] unless it is told.
	DefaultParallelBytes = 64 << 20

	// roundMinBytes is the least input of which a part is worth handing out.
	roundMinBytes = 1 << 20

	// roundRatio is how much larger output may be than input, in a round.
	roundRatio = 6

	// roundBehindBytes is how much of a round's input lies behind the last
	// stretch, for the block in which it ends.
	roundBehindBytes = 128 << 10

	// leadStart is, and leadMin and leadMax bound, how much more of the input the serial decoder
	// gets than each speculation, and leadBusy is a lead that only cores which
	// are busy with other things explain.
	leadStart, leadMin, leadMax, leadBusy = 1.5, 1.0, 4.0, 3.0

	// pauseRounds is for how many rounds' worth of input nothing is handed out
	// after that was of no use.
	pauseRounds = 8
)

// ParallelOptions are how a [Parallel] works.
type ParallelOptions struct {
	// Workers is the number of goroutines that decode at a time, the caller's
	// included; 0 stands for GOMAXPROCS, and 1 turns speculation off.
	Workers int

	// MemoryBytes bounds the buffers; 0 stands for [DefaultParallelBytes]. It
	// is what makes rounds large: below 1 MiB for each worker there are none.
	MemoryBytes int
}

// Parallel inflates one gzip stream on several cores, in rounds. In each one,
// the caller's goroutine decodes the first part of the input as usual, while
// others search for a block in a later part each, and decode from there with
// the window left open. Where the serial decoder then comes to that block, it
// takes their output, resolves what came from the window, and goes on behind
// it. Output, verdict and checksums are those of [Reader]: speculation that does
// not meet the serial decoder at a block is dropped.
//
// No goroutine outlives the call of Read or WriteTo. A Parallel belongs to one
// goroutine at a time.
type Parallel struct {
	r       *Reader
	src     io.Reader
	in      []byte // room for a round's input
	room    []byte // room for a round's output
	pending []byte // output that was not read yet
	specs   []*speculation
	res     *resolver

	base     int64 // offset of the buffer in the input
	target   int   // the bit at which the serial decoder stops
	lead     float64
	ratio    float64 // output per input of the last round
	roundOut int64   // output in front of the round
	pause    int64   // input offset up to which there is no round
}

var (
	_ io.ReadCloser = (*Parallel)(nil)
	_ io.WriterTo   = (*Parallel)(nil)

	// errTarget ends a run of the serial decoder.
	errTarget = errors.New("inflate stream: target reached")
)

// NewParallel returns a reader of the gzip stream src. It does no I/O. Of src,
// it may take bytes past the stream.
func NewParallel(src io.Reader, opts ParallelOptions) *Parallel {
	workers := opts.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	memory := opts.MemoryBytes
	if memory <= 0 {
		memory = DefaultParallelBytes
	}
	src = struct{ io.Reader }{src} // a bufio.Reader is read like any other
	p := &Parallel{r: NewReader(src), src: src, lead: leadStart, ratio: 3}
	// For each byte of input: itself, its output, and that again in 3 bytes in
	// each of the stretches.
	spec := workers - 1
	perRound := 1 + roundRatio + 3*roundRatio*spec/workers
	inBytes := (memory - spec*(1<<18) - 1<<18) / (perRound + 1)
	if spec == 0 || inBytes < workers*roundMinBytes/2 {
		return p
	}
	p.in = make([]byte, inBytes)
	p.room = make([]byte, roundRatio*inBytes)
	p.res = new(resolver)
	for range spec {
		p.specs = append(p.specs, newSpeculation(roundRatio*inBytes/workers))
	}
	return p
}

// Read implements [io.Reader].
func (p *Parallel) Read(b []byte) (int, error) {
	if len(p.pending) == 0 && p.due() {
		p.round()
	}
	if len(p.pending) > 0 {
		n := copy(b, p.pending)
		p.pending = p.pending[n:]
		return n, nil
	}
	return p.r.Read(b)
}

// WriteTo implements [io.WriterTo]. It saves the copy that Read makes.
func (p *Parallel) WriteTo(w io.Writer) (int64, error) {
	var written int64
	var own []byte
	for {
		if len(p.pending) == 0 && p.due() {
			p.round()
		}
		out := p.pending
		p.pending = nil
		var err error
		if len(out) == 0 {
			if own == nil {
				own = make([]byte, 2*DirectBytes)
			}
			var n int
			n, err = p.r.Read(own)
			out = own[:n]
		}
		n, writeErr := w.Write(out)
		written += int64(n)
		switch {
		case writeErr != nil:
			return written, writeErr
		case errors.Is(err, io.EOF):
			return written, nil
		case err != nil:
			return written, err
		}
	}
}

// Close gives the memory back. It does not close the source.
func (p *Parallel) Close() error {
	p.in, p.room, p.pending, p.specs, p.res = nil, nil, nil, nil, nil
	return p.r.Close()
}

// due reports whether the next output is to come from a round: behind a whole
// window, with nothing left to read of what was decoded before.
func (p *Parallel) due() bool {
	r := p.r
	return p.in != nil && r.err == nil && r.st != nil && r.inMember && r.start == r.end &&
		r.window == windowBytes && r.st.src.offset() >= p.pause
}

// round decodes some input on all cores. Its output, if any, is pending after.
func (p *Parallel) round() {
	n, more := p.load()
	if n < roundMinBytes {
		p.pause = p.base + int64(n)
		return
	}
	p.plan(n, more)
	p.roundOut = p.r.out
	var running sync.WaitGroup
	done := make([]chan struct{}, len(p.specs))
	for i, s := range p.specs {
		done[i] = make(chan struct{})
		running.Go(func() {
			defer close(done[i])
			s.run()
		})
	}
	h, r := &p.r.st.history, p.r
	out := output{buf: p.room, ext: h[r.end-r.window : r.end]}
	r.st.lazy = false
	r.st.atBlock = func(*output) bool { return r.st.src.base != p.base || r.st.bit() >= p.target }
	r.boundary = func(*output) error { return errTarget }

	began := time.Now()
	var first time.Duration // to the first stretch
	used := 0
	for i, s := range p.specs {
		reached := p.serial(&out, 8*s.from)
		if i == 0 {
			first = time.Since(began)
		}
		<-done[i]
		if reached && s.start >= 0 {
			reached = p.serial(&out, s.start)
			if reached && r.st.bit() == s.start && p.accept(&out, s) {
				used++
			}
		}
		if !reached {
			break
		}
	}
	running.Wait()
	r.st.atBlock, r.boundary = nil, nil
	r.keepWindow(out.buf[:out.pos])
	p.pending = out.buf[:out.pos]
	p.learn(n, used, first)
}

// load reads a round's input behind what is on hand of it. It returns its size,
// and whether there may be more.
func (p *Parallel) load() (n int, more bool) {
	s := &p.r.st.src
	n = copy(p.in, s.buf[s.pos:])
	s.base += int64(s.pos)
	for empty := 0; n < len(p.in) && s.err == nil; {
		var m int
		m, s.err = p.src.Read(p.in[n:])
		n += m
		if empty++; m > 0 {
			empty = 0
		} else if empty == maxEmptyReads && s.err == nil {
			s.err = io.ErrNoProgress
		}
	}
	s.buf, s.pos = p.in[:n], 0
	p.base = s.base
	return n, s.err == nil
}

// plan divides n bytes of input.
func (p *Parallel) plan(n int, more bool) {
	if more {
		n -= roundBehindBytes
	}
	n = min(n, int(float64(len(p.room))*0.9/p.ratio))
	size := int(float64(n) / (p.lead + float64(len(p.specs))))
	for i, s := range p.specs {
		s.in = p.r.st.src.buf
		s.to = n - (len(p.specs)-1-i)*size
		s.from = s.to - size
	}
}

// learn sets how the next round is planned, and whether there is one soon.
func (p *Parallel) learn(n, used int, first time.Duration) {
	if consumed := p.r.st.src.offset() - p.base; consumed > 0 {
		p.ratio = max(1, float64(p.r.out-p.roundOut)/float64(consumed))
	}
	var slowest time.Duration
	for _, s := range p.specs {
		slowest = max(slowest, s.took)
	}
	from, size := p.specs[0].from, p.specs[0].to-p.specs[0].from
	lead := float64(slowest) / float64(max(first, 1)) * float64(from) / float64(size)
	p.lead = min(leadMax, max(leadMin, (p.lead+lead)/2))
	if used == 0 || p.lead > leadBusy {
		p.pause = p.base + int64(pauseRounds*n)
		p.lead = leadStart
	}
}

// serial decodes to the first block that starts at the bit of in or behind. It
// returns false if it did not get there: the stream or the room has ended, or an
// error is set.
func (p *Parallel) serial(out *output, bit int) bool {
	p.target = bit
	p.r.st.asked = false // there was another target when it was
	for {
		err := p.r.decode(out, false)
		if err != nil {
			if errors.Is(err, errTarget) {
				return p.r.st.src.base == p.base
			}
			p.r.err = err
			return false
		}
		if out.pos >= len(out.buf)-outSlack {
			return false
		}
	}
}

// accept appends the output of s, whose start is where the serial decoder is,
// and moves that to its end. It returns false if it cannot.
func (p *Parallel) accept(out *output, s *speculation) bool {
	r := p.r
	size := s.nWide + s.nPlain
	if r.window != windowBytes || size > len(out.buf)-outSlack-out.pos {
		return false
	}
	var window [windowBytes]byte
	out.tail(window[:])
	p.res.set(&window)
	wide := s.wide[windowBytes : windowBytes+s.nWide]
	to := out.buf[out.pos : out.pos+size]

	sums := make([]uint32, len(p.specs)+1)
	piece := len(wide)/len(sums) + 1
	var running sync.WaitGroup
	for i := range sums {
		part := wide[min(len(wide), i*piece):min(len(wide), (i+1)*piece)]
		b := to[min(len(wide), i*piece):][:len(part)]
		work := func() {
			p.res.resolve(b, part)
			sums[i] = crc32.ChecksumIEEE(b)
		}
		if i < len(sums)-1 {
			running.Go(work)
		} else {
			work()
		}
	}
	copy(to[s.nWide:], s.plain[windowBytes:windowBytes+s.nPlain])
	running.Wait()
	for i, sum := range sums {
		r.sum = combineCRC(r.sum, sum, min(len(wide), (i+1)*piece)-min(len(wide), i*piece))
	}
	r.sum = combineCRC(r.sum, s.sumPlain, s.nPlain)
	r.size += int64(size)
	r.out += int64(size)
	out.pos += size
	r.st.goTo(s.end)
	return true
}
