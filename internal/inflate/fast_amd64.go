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
	length, distance int
}

// fastLoop is fastGo in assembly. It needs BMI2 and SSSE3, and slack for a
// first round.
//
//go:noescape
func fastLoop(s *fastState) fastResult

// fast decodes symbols as long as there is slack on both sides.
func (d *decoder) fast(out *output) fastResult {
	if !cpu.X86.HasBMI2 || !cpu.X86.HasSSSE3 {
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
	}
	result := fastLoop(&s)
	if result == fastMatch {
		d.matchLen, d.matchDist = s.length, s.distance
	}
	d.src.pos, out.pos = s.inPos, s.pos
	d.bits, d.nbits = s.bits, uint(s.n)
	d.giveBack()
	return result
}

// wideLoop is fastLoop for an output of 16-bit elements.
//
//go:noescape
func wideLoop(s *fastState) fastResult

// wide is fast for an output of 16-bit elements. Matches never reach before it.
func (d *decoder) wide(out []uint16, pos int) (int, fastResult) {
	if !cpu.X86.HasBMI2 || !cpu.X86.HasSSSE3 {
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
	}
	result := wideLoop(&s)
	d.src.pos = s.inPos
	d.bits, d.nbits = s.bits, uint(s.n)
	d.giveBack()
	return s.pos / 2, result
}
