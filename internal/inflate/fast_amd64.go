//go:build !noasm

package inflate

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

//go:generate sh -c "go run ./gen > fast_amd64.s"

// fastState is what the assembly reads and leaves behind. Offsets count from
// in and out; the limits are the last ones at which a round may start.
type fastState struct {
	in, out          unsafe.Pointer
	inPos, inLimit   int
	pos, limit       int
	low              int
	bits, n          uint64
	lit              *litTable
	dist             *distTable
	literals         *literals
	length, distance int
}

// hasSlack reports whether a round may start.
func (s *fastState) hasSlack() bool { return s.inPos <= s.inLimit && s.pos <= s.limit }

// fastLoop is fastGo in assembly. It needs what hasLoops asks for, and slack for
// a first round.
//
//go:noescape
func fastLoop(s *fastState) fastResult

// literalLoop is fastLoop with the literal mode, which must be on. It also ends, with
// fastSlack, when the mode does not pay.
//
//go:noescape
func literalLoop(s *fastState) fastResult

// wideLoop and wideLiteralLoop are those for an output of 16-bit elements.
//
//go:noescape
func wideLoop(s *fastState) fastResult

//go:noescape
func wideLiteralLoop(s *fastState) fastResult

// hasLoops reports whether this processor can run the assembly.
func hasLoops() bool { return cpu.X86.HasBMI2 && cpu.X86.HasSSSE3 }

// fast decodes symbols as long as there is slack on both sides.
func (d *decoder) fast(out *output) fastResult {
	if !hasLoops() {
		return d.fastGo(out)
	}
	s := fastState{
		in:      unsafe.Pointer(unsafe.SliceData(d.src.buf)), //nolint:gosec // the loop stays within the limits
		out:     unsafe.Pointer(unsafe.SliceData(out.buf)),   //nolint:gosec // likewise
		inPos:   d.src.pos,
		inLimit: len(d.src.buf) - inSlack,
		pos:     out.pos,
		limit:   len(out.buf) - outSlack,
		low:     out.low,
		bits:    d.bits,
		n:       uint64(d.nbits),
		lit:     &d.litTable,
		dist:    &d.distTable,

		literals: &d.literals,
	}
	result := fastSlack
	if d.literals.on {
		result = literalLoop(&s)
		d.literals.on = d.literals.credit >= 0
	}
	if !d.literals.on && result == fastSlack && s.hasSlack() {
		result = fastLoop(&s)
	}
	if result == fastMatch {
		d.matchLen, d.matchDist = s.length, s.distance
	}
	d.src.pos, out.pos = s.inPos, s.pos
	d.bits, d.nbits = s.bits, uint(s.n)
	d.giveBack()
	return result
}

// wide is fast for an output of 16-bit elements. Matches never reach before it.
func (d *decoder) wide(out []uint16, pos int) (int, fastResult) {
	if !hasLoops() {
		return d.wideGo(out, pos)
	}
	s := fastState{
		in:      unsafe.Pointer(unsafe.SliceData(d.src.buf)), //nolint:gosec // the loop stays within the limits
		out:     unsafe.Pointer(unsafe.SliceData(out)),       //nolint:gosec // likewise
		inPos:   d.src.pos,
		inLimit: len(d.src.buf) - inSlack,
		pos:     2 * pos,
		limit:   2 * (len(out) - outSlack),
		bits:    d.bits,
		n:       uint64(d.nbits),
		lit:     &d.litTable,
		dist:    &d.distTable,

		literals: &d.literals,
	}
	result := fastSlack
	if d.literals.on {
		result = wideLiteralLoop(&s)
		d.literals.on = d.literals.credit >= 0
	}
	if !d.literals.on && result == fastSlack && s.hasSlack() {
		result = wideLoop(&s)
	}
	d.src.pos = s.inPos
	d.bits, d.nbits = s.bits, uint(s.n)
	d.giveBack()
	return s.pos / 2, result
}
