package inflate

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"time"
	"unsafe"
)

const (
	// specsPerHelper is how many stretches a helper needs: one that it decodes,
	// and one whose output is being read.
	specsPerHelper = 2

	// HelperBytes is the memory of a [Parallel] for each of its helpers, besides
	// [StateBytes]: the stretches, their input, and that of what lies between.
	HelperBytes = fixedBytes + specsPerHelper*roomBytes + 2*specsPerHelper*segmentBytes

	// LargeHelperBytes is that of one with [ParallelOptions.Large].
	LargeHelperBytes = fixedBytes + specsPerHelper*largeRoomBytes + 2*specsPerHelper*largeSegmentBytes

	// fixedBytes of it do not depend on how large stretches are.
	fixedBytes = specsPerHelper*(int(unsafe.Sizeof(speculation{}))+2*windowBytes) + 2*specsPerHelper*tailBytes + int(unsafe.Sizeof(resolver{}))

	segmentBytes, tailBytes, roomBytes = 128 << 10, 64 << 10, 1280 << 10 // see sizes
	largeSegmentBytes, largeRoomBytes  = 512 << 10, 4 << 20

	// MaxHelpers is how many are of use: output is resolved and summed by the
	// caller, which can do it for about as many.
	MaxHelpers = 7

	// warmUpBytes of input are decoded before helpers are asked for, and
	// pauseBytes before they are again, once they were of no use.
	warmUpBytes = 1 << 20
	pauseBytes  = 16 << 20

	// maxMisses is how many stretches in a row may be of no use.
	maxMisses = 6
)

// sizes are those of the parts into which a [Parallel] divides its input: the larger,
// the less of each is spent on finding its start, and in front of where the window is
// known.
type sizes struct {
	segment int // input between the starts of two stretches that are decoded apart: a few blocks
	tail    int // how far behind its end a stretch may look, for the block in which it ends
	room    int // output of a stretch, twice what is decoded without a window; it ends early where there is no more
}

// sizesOf returns those of large stretches, or of the usual ones.
func sizesOf(large bool) sizes {
	if large {
		return sizes{segment: largeSegmentBytes, tail: tailBytes, room: largeRoomBytes}
	}
	return sizes{segment: segmentBytes, tail: tailBytes, room: roomBytes}
}

// Cores lends cores, and the memory that goes with them, to whoever decodes one
// stream on several. Its methods are called by the goroutine that reads.
type Cores interface {
	// Take takes a core if there is one that nobody needs.
	Take() bool

	// Wanted reports whether a core that was taken is needed elsewhere.
	Wanted() bool

	// Give gives one back that was taken.
	Give()
}

// ParallelOptions are how a [Parallel] works.
type ParallelOptions struct {
	// Helpers is the largest number of goroutines that decode besides the
	// caller's, at most [MaxHelpers]; 0 stands for GOMAXPROCS less 1.
	Helpers int

	// Cores is asked for each helper, and for as long as it is; nil: they are
	// there.
	Cores Cores

	// Large makes stretches four times as large, which is up to a tenth faster, in
	// [LargeHelperBytes] a helper.
	Large bool
}

// ParallelStats tells what became of the stretches that a [Parallel] has handed
// out.
type ParallelStats struct {
	Helpers   int   // most at a time
	Refused   bool  // Cores had none, or wanted one back
	Stretches int64 // handed out
	Used      int64 // of which the output was
	Bytes     int64 // of output, in those
}

// String says on how many cores, and why not on more.
func (s ParallelStats) String() string {
	switch {
	case s.Stretches > 0:
		return fmt.Sprintf("on %d cores: %d bytes of output from %d of %d stretches decoded apart", s.Helpers+1, s.Bytes, s.Used, s.Stretches)
	case s.Helpers > 0:
		return "on one core: it was not what everything waited for"
	case s.Refused:
		return "on one core: no other was idle"
	default:
		return "on one core: small"
	}
}

// Parallel inflates one gzip stream on several cores. While the caller's
// goroutine decodes as usual, helpers search for a block in the input further on,
// and decode from there with the window left open. Where the serial decoder then
// comes to that block, it takes their output, resolves what came from the window,
// and goes on behind it. Output, verdict and checksums are those of [Reader]: what
// does not meet the serial decoder at a block is dropped.
//
// It is [Reader] while there is nothing to be gained: in front of a stream, where
// no blocks are found, where the source or whoever reads is slower than one core,
// and when Cores has none.
//
// Close ends its goroutines and waits for them. A Parallel belongs to one goroutine
// at a time.
type Parallel struct {
	r     *Reader
	src   *bufio.Reader
	cores Cores
	most  int // helpers
	sizes sizes

	helpers int // cores taken
	feed    *feed
	idle    []*speculation
	out     []*speculation // handed out, in the order of the input
	current *speculation   // whose output is being read
	res     *resolver
	running sync.WaitGroup
	target  int64 // bit of the input where the serial decoder is to stop

	next   int64         // where the next stretch to be handed out starts
	inRow  int           // stretches handed out that follow each other
	lead   int           // how far behind its start a helper begins with a segment
	misses int           // stretches in a row that were of no use
	resume int64         // input offset from which on helpers are asked for
	pace   pace          // who waits for whom
	stats  ParallelStats // so far

	patient bool // tests: helpers are always busy, and always waited for
}

var (
	_ io.ReadCloser = (*Parallel)(nil)

	// errTarget ends a run of the serial decoder.
	errTarget = errors.New("inflate stream: target reached")
)

// NewParallel returns a reader of the gzip stream src. It does no I/O. Of src,
// it may take bytes past the stream: see Behind.
func NewParallel(src io.Reader, opts ParallelOptions) *Parallel {
	most := opts.Helpers
	if most <= 0 {
		most = runtime.GOMAXPROCS(0) - 1
	}
	in, ok := src.(*bufio.Reader)
	if !ok {
		in = bufio.NewReaderSize(src, inputBytes)
	}
	return &Parallel{
		r: NewReader(in), src: in, cores: opts.Cores, most: min(most, MaxHelpers), resume: warmUpBytes, sizes: sizesOf(opts.Large),
	}
}

// Stats returns what helpers have done so far.
func (p *Parallel) Stats() ParallelStats { return p.stats }

// InputOffset is as [Reader.InputOffset].
func (p *Parallel) InputOffset() int64 { return p.r.InputOffset() }

// Behind returns what follows the last member, after [ErrTrailing]. It is used
// before Close.
func (p *Parallel) Behind() io.Reader {
	return &behind{s: &p.r.st.src}
}

type behind struct{ s *source }

// Read implements [io.Reader].
func (b *behind) Read(p []byte) (int, error) {
	if b.s.pos == len(b.s.buf) {
		if err := b.s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.s.buf[b.s.pos:])
	b.s.pos += n
	return n, nil
}

// Read implements [io.Reader]. It may return less than there is room for.
func (p *Parallel) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	p.pace.enter()
	defer p.pace.leave()
	for {
		if p.current != nil {
			if n := p.take(b); n > 0 {
				return n, nil
			}
			continue // an empty stretch
		}
		p.plan()
		n, err := p.r.Read(b)
		if p.r.start == p.r.end {
			switch {
			case errors.Is(p.r.err, errTarget):
				p.r.err, err = nil, nil
				p.arrive()
			case p.r.err != nil:
				p.stop()
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Close gives the memory back. It does not close the source.
func (p *Parallel) Close() error {
	p.stop()
	p.feed, p.current = nil, nil
	return p.r.Close()
}

// plan hands out stretches, if that is of use.
func (p *Parallel) plan() {
	r := p.r
	if r.st == nil || r.err != nil || r.start != r.end || p.most < 1 {
		return
	}
	if r.st.src.feed == nil {
		p.feed = nil
	}
	offset := r.st.src.offset()
	switch {
	case p.helpers == 0:
		if offset < p.resume || !r.inMember || r.st.src.feed != nil || !p.begin(offset) {
			return
		}
	case p.misses >= maxMisses:
		p.stop()
		p.resume = offset + pauseBytes
		return
	case p.cores != nil && p.cores.Wanted():
		p.stats.Refused = true
		p.stop()
		p.resume = offset + segmentBytes
		return
	}
	p.hire()
	s := &r.st.src
	s.seek(offset)
	_, _ = s.feed.at(offset) // leaves segments behind before others are read
	if p.pace.wantsHelp() || p.patient {
		p.handOut(offset)
	}
	p.aim()
}

// begin makes what the first helper needs.
func (p *Parallel) begin(offset int64) bool {
	if p.cores != nil && !p.cores.Take() {
		p.stats.Refused = true
		p.resume = offset + segmentBytes
		return false
	}
	s := &p.r.st.src
	s.release()
	p.helpers, p.misses, p.lead = 1, 0, 0
	p.feed = &feed{
		src: &pacedSource{r: p.src, pace: &p.pace}, segmentSize: p.sizes.segment, tailSize: p.sizes.tail,
		start: s.base, leaving: p.leaving,
	}
	p.feed.load()
	p.next, p.inRow = s.base+int64(p.sizes.segment), 0
	s.feed = p.feed
	p.res = new(resolver)
	p.pace.reset()
	p.employ()
	return true
}

// hire takes more cores if there are any.
func (p *Parallel) hire() {
	for p.helpers < p.most && (p.cores == nil || p.cores.Take()) {
		p.helpers++
		p.employ()
	}
}

// employ makes what a helper needs.
func (p *Parallel) employ() {
	p.stats.Helpers = max(p.stats.Helpers, p.helpers)
	for range specsPerHelper {
		p.idle = append(p.idle, newSpeculation(p.sizes.room))
	}
}

// stop ends all helpers and gives cores and memory back, but for the input that is
// on hand.
func (p *Parallel) stop() {
	for _, s := range p.out {
		s.revoke()
	}
	p.running.Wait()
	if p.feed != nil {
		p.feed.closed = true
		p.feed.free = nil
	}
	p.idle, p.out, p.res = nil, nil, nil
	for ; p.helpers > 0; p.helpers-- {
		if p.cores != nil {
			p.cores.Give()
		}
	}
	p.aim()
}

// handOut gives helpers the stretches behind the segment in which the serial
// decoder is. In a row there are as many as helpers, then one for the serial decoder.
func (p *Parallel) handOut(offset int64) {
	size := int64(p.sizes.segment)
	own := p.feed.start + (offset-p.feed.start)/size*size
	if p.next <= own {
		p.next, p.inRow = own+size, 0
	}
	for len(p.out) < p.helpers*specsPerHelper {
		s := p.unemployed()
		if s == nil {
			return
		}
		if p.inRow == p.helpers {
			p.next, p.inRow = p.next+size, 0
		}
		in := p.feed.segment(p.next)
		if len(in) < p.sizes.segment {
			return
		}
		s.prepare(in, p.next, p.lead, p.sizes.segment)
		p.out = append(p.out, s)
		p.stats.Stretches++
		p.next += size
		p.inRow++
		p.running.Go(s.run)
	}
}

// unemployed returns a speculation that nobody uses, nil if there is none.
func (p *Parallel) unemployed() *speculation {
	for i, s := range p.idle {
		if s.free() {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return s
		}
	}
	return nil
}

// aim makes the serial decoder stop where the next stretch may start.
func (p *Parallel) aim() {
	r := p.r
	if len(p.out) == 0 {
		if r.st != nil {
			r.st.atBlock, r.boundary = nil, nil
		}
		return
	}
	p.target = p.out[0].target
	r.st.atBlock = func(*output) bool { return r.st.absoluteBit() >= p.target }
	r.boundary = func(*output) error { return errTarget }
}

// absoluteBit returns the place of the next bit in the input.
func (d *decoder) absoluteBit() int64 { return 8*d.src.offset() - int64(d.nbits) }

// leaving drops what was handed out of segments in front of end, because the
// serial decoder has gone past them within one block.
func (p *Parallel) leaving(end int64) {
	for len(p.out) > 0 && p.out[0].offset < end {
		p.out[0].revoke()
		p.drop()
	}
}

// drop puts the next stretch that was handed out back.
func (p *Parallel) drop() {
	p.idle = append(p.idle, p.out[0])
	p.out = p.out[1:]
	p.misses++
}

// arrive looks what there is for the block at which the serial decoder has
// stopped.
func (p *Parallel) arrive() {
	if len(p.out) == 0 {
		return
	}
	s := p.out[0]
	if !p.patient && s.state.CompareAndSwap(specWaiting, specRevoked) { // its helper has not even begun
		p.drop()
		return
	}
	select {
	case <-s.done:
		p.lead = max(0, p.lead-p.sizes.segment/64)
	default:
		began := time.Now()
		<-s.done
		p.pace.helperLate(time.Since(began))
		p.lead = min(p.sizes.segment/2, p.lead+p.sizes.segment/32)
	}
	at := p.r.st.absoluteBit()
	switch start := 8*s.offset + int64(s.start); {
	case s.start < 0 || start < at || p.r.window != windowBytes:
		p.drop()
	case start > at:
		s.target = start
	default:
		p.accept(s)
	}
}

// accept makes the output of s, whose start is where the serial decoder is, the next
// to be read, and moves that to its end.
func (p *Parallel) accept(s *speculation) {
	r := p.r
	p.out = p.out[1:]
	p.current = s
	p.misses = 0
	p.stats.Used++
	p.stats.Bytes += int64(s.size())

	window := (*[windowBytes]byte)(r.st.history[r.end-windowBytes : r.end])
	p.res.set(window)
	var end [windowBytes]byte
	n := copy(end[windowBytes-min(windowBytes, len(s.plain)):], s.plain[max(0, len(s.plain)-windowBytes):])
	rest := end[:windowBytes-n]
	m := min(len(rest), len(s.wide))
	p.res.resolve(rest[len(rest)-m:], s.wide[len(s.wide)-m:])
	copy(rest[:len(rest)-m], window[m+n:])
	copy(r.st.history[:windowBytes], end[:])
	r.start, r.end = windowBytes, windowBytes

	bit := 8*s.offset + int64(s.end)
	r.st.src.seek(bit / 8)
	r.st.begin()
	if bit%8 != 0 {
		_, _ = r.st.take(uint(bit % 8)) // cannot fail: s has had that byte
	}
}

// take moves output of the current stretch to b.
func (p *Parallel) take(b []byte) int {
	r, s := p.r, p.current
	n := 0
	for n < len(b) && len(s.wide) > 0 {
		part := s.wide[:min(len(s.wide), len(b)-n, chunkBytes)]
		s.wide = s.wide[len(part):]
		to := b[n : n+len(part)]
		p.res.resolve(to, part)
		r.sum = crc32.Update(r.sum, crc32.IEEETable, to)
		n += len(part)
	}
	if len(s.wide) == 0 {
		if !s.joined {
			r.sum = combineCRC(r.sum, s.sumPlain, len(s.plain))
			s.joined = true
		}
		m := copy(b[n:], s.plain)
		s.plain = s.plain[m:]
		n += m
	}
	r.size += int64(n)
	r.out += int64(n)
	if s.size() == 0 {
		p.current = nil
		p.idle = append(p.idle, s)
	}
	return n
}
