package inflate

import (
	"encoding/binary"
	"unsafe"
)

const (
	// inSlack is how much input must be on hand to start a round of the fast
	// loop: two loads of 8 bytes, of which the first consumes at most 7.
	inSlack = 16

	// outSlack is how much room it needs: up to three entries of two literals
	// and one with a match, copied in steps of up to 32 bytes.
	outSlack = 3*2 + 2 + maxMatch + 2*32
)

// fastResult is why the fast loop ended.
type fastResult int

const (
	fastSlack   fastResult = iota // too little input or room for another round
	fastEnd                       // end of the block
	fastMatch                     // matchLen and matchDist reach before the buffer
	fastInvalid                   // the input is invalid
)

// fastGo decodes symbols as long as there is slack on both sides, of which
// there must be enough for one round. It is the reference for the assembly.
//
// Every round reads at most inSlack bytes of the input, and writes at most
// outSlack of the output, before it looks again whether there is slack.
//
//nolint:gocognit // one loop whose state must stay in registers
func (d *decoder) fastGo(out *output) fastResult {
	in := unsafe.Pointer(unsafe.SliceData(d.src.buf)) //nolint:gosec // every round checks that there is slack
	inPos, inLimit := d.src.pos, len(d.src.buf)-inSlack
	buf := unsafe.Pointer(unsafe.SliceData(out.buf)) //nolint:gosec // likewise
	pos, limit, low := out.pos, len(out.buf)-outSlack, out.low
	lit, dist := &d.litTable, &d.distTable
	b, n := d.bits, d.nbits
	result := fastSlack

	for inPos <= inLimit && pos <= limit {
		b |= load64(in, inPos) << (n & 63)
		inPos += int(63-n) >> 3
		n |= 56
		e := lit[b&(1<<litTableBits-1)]
		if e&entryLitOnly != 0 {
			store16(buf, pos, uint16(e>>entryLit1))
			pos += int(e >> entryCount)
			b >>= e & 63
			n -= uint(e & entryDrop)
			e = lit[b&(1<<litTableBits-1)]
			if e&entryLitOnly != 0 {
				store16(buf, pos, uint16(e>>entryLit1))
				pos += int(e >> entryCount)
				b >>= e & 63
				n -= uint(e & entryDrop)
				e = lit[b&(1<<litTableBits-1)]
				if e&entryLitOnly != 0 {
					store16(buf, pos, uint16(e>>entryLit1))
					pos += int(e >> entryCount)
					b >>= e & 63
					n -= uint(e & entryDrop)
					continue
				}
			}
		}
		// At least 32 bits are left.
		if e&entryOther != 0 {
			if e&entrySubtable == entrySubtable {
				b >>= litTableBits
				n -= litTableBits
				e = lit[e>>entryPlace&entryPlaces+uint32(b)&(1<<(e>>entryExtra&15)-1)]
				if e&entryLitOnly != 0 {
					store16(buf, pos, uint16(e>>entryLit1))
					pos++
					b >>= e & 63
					n -= uint(e & entryDrop)
					continue
				}
			}
			if e&entryOther != 0 {
				result = fastInvalid
				if e&entryEnd == entryEnd {
					b >>= e & 63
					n -= uint(e & entryDrop)
					result = fastEnd
				}
				break
			}
		}
		store16(buf, pos, uint16(e>>entryLit1))
		pos += int(e >> entryCount)
		length := minMatch + int(e>>entryLength&0xff) + int(b&(1<<(e&63)-1)>>(e>>entryExtra&15))
		b >>= e & 63
		n -= uint(e & entryDrop)

		b |= load64(in, inPos) << (n & 63)
		inPos += int(63-n) >> 3
		n |= 56
		e = dist[b&(1<<distTableBits-1)]
		if int32(e) < 0 {
			if e&distSubtable != distSubtable {
				result = fastInvalid
				break
			}
			b >>= distTableBits
			n -= distTableBits
			e = dist[e>>distBase&0x7fff+uint32(b)&(1<<(e>>distExtra&15)-1)]
			if int32(e) < 0 {
				result = fastInvalid
				break
			}
		}
		distance := int(e>>distBase) + int(b&(1<<(e&63)-1)>>(e>>distExtra&63))
		b >>= e & 63
		n -= uint(e & entryDrop)
		if distance > pos-low {
			d.matchLen, d.matchDist = length, distance
			result = fastMatch
			break
		}
		copyMatch(unsafe.Add(buf, pos), distance, length)
		pos += length
	}

	d.src.pos, out.pos = inPos, pos
	d.bits, d.nbits = b, n
	d.giveBack()
	return result
}

// copyMatch copies length bytes from distance bytes before dst to dst, and may
// write up to 31 bytes more. It reads no byte past what it may write.
func copyMatch(dst unsafe.Pointer, distance, length int) {
	end := unsafe.Add(dst, length)
	src := unsafe.Add(dst, -distance)
	if distance >= 16 {
		for {
			v0, v1 := load64(src, 0), load64(src, 8)
			store64(dst, 0, v0)
			store64(dst, 8, v1)
			dst, src = unsafe.Add(dst, 16), unsafe.Add(src, 16)
			if uintptr(dst) >= uintptr(end) {
				return
			}
		}
	}
	if distance >= 8 {
		for {
			store64(dst, 0, load64(src, 0))
			dst, src = unsafe.Add(dst, 8), unsafe.Add(src, 8)
			if uintptr(dst) >= uintptr(end) {
				return
			}
		}
	}
	// Repeat the pattern through a word, and step by whole patterns.
	const steps = "\x00\x08\x08\x06\x08\x05\x06\x07"
	v := load64(src, 0) & (1<<(8*uint(distance)) - 1)
	for filled := distance; filled < 8; filled *= 2 {
		v |= v << (8 * uint(filled))
	}
	step := int(steps[distance&7])
	for {
		store64(dst, 0, v)
		dst = unsafe.Add(dst, step)
		if uintptr(dst) >= uintptr(end) {
			return
		}
	}
}

// load64 returns the 8 bytes at p+off, the first one lowest.
func load64(p unsafe.Pointer, off int) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(p, off))[:])
}

// store64 is the opposite of load64.
func store64(p unsafe.Pointer, off int, v uint64) {
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(p, off))[:], v)
}

// store16 stores v in 2 bytes at p+off, the low one first.
func store16(p unsafe.Pointer, off int, v uint16) {
	binary.LittleEndian.PutUint16((*[2]byte)(unsafe.Add(p, off))[:], v)
}
