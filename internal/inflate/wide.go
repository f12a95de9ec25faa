package inflate

import "encoding/binary"

// In speculation, output is decoded whose window is not known yet. It consists
// of 16-bit elements: a byte, or unresolved plus the place in the window of the
// byte that it is a copy of.
const unresolved = 256

// wideGo decodes symbols as long as there is slack on both sides, of which
// there must be enough for one round. It is the reference for the assembly.
func (d *decoder) wideGo(out []uint16, pos int) (int, fastResult) {
	in, inPos := d.src.buf, d.src.pos
	b, n := d.bits, d.nbits
	result := fastSlack
	for inPos+inSlack <= len(in) && pos+outSlack <= len(out) {
		b |= binary.LittleEndian.Uint64(in[inPos:]) << (n & 63)
		inPos += int(63-n) >> 3
		n |= 56
		e := d.litTable[b&(1<<litTableBits-1)]
		if e&entrySubtable == entrySubtable {
			b >>= litTableBits
			n -= litTableBits
			e = d.litTable[e>>entryPlace&entryPlaces+uint32(b)&(1<<(e>>entryExtra&15)-1)]
		}
		out[pos], out[pos+1] = uint16(e>>entryLit1&0xff), uint16(e>>entryLit2&0xff)
		extra := b & (1<<(e&63) - 1) >> (e >> entryExtra & 15)
		b >>= e & 63
		n -= uint(e & entryDrop)
		if e&entryOther != 0 {
			result = fastInvalid
			if e&entryEnd == entryEnd {
				result = fastEnd
			}
			break
		}
		pos += int(e >> entryCount)
		if e&entryLitOnly != 0 {
			continue
		}
		length := minMatch + int(e>>entryLength&0xff) + int(extra)

		b |= binary.LittleEndian.Uint64(in[inPos:]) << (n & 63)
		inPos += int(63-n) >> 3
		n |= 56
		e = d.distTable[b&(1<<distTableBits-1)]
		if e&distSubtable == distSubtable {
			b >>= distTableBits
			n -= distTableBits
			e = d.distTable[e>>distBase&0x7fff+uint32(b)&(1<<(e>>distExtra&15)-1)]
		}
		if e&distOther != 0 {
			result = fastInvalid
			break
		}
		distance := int(e>>distBase) + int(b&(1<<(e&63)-1)>>(e>>distExtra&63))
		b >>= e & 63
		n -= uint(e & entryDrop)
		if distance > pos {
			result = fastInvalid
			break
		}
		from, to := out[pos-distance:pos], out[pos:pos+length]
		for len(to) > 0 {
			copied := copy(to, from)
			to = to[copied:]
		}
		pos += length
	}
	d.src.pos = inPos
	d.bits, d.nbits = b, n
	d.giveBack()
	return pos, result
}
