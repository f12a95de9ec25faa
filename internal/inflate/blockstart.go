package inflate

import (
	"encoding/binary"
	"math/bits"
)

const (
	// headerBytes is how much input findBlock looks at from a block's start on:
	// 17 bits, then 19 lengths of 3 bits, read in words of 8 bytes.
	headerBytes = (17+3*lensCodeSyms)/8 + 1 + 8

	// searchBits is how many bits of a word are tested at once: those that
	// have the 13 bits in the word of which the first test is made.
	searchBits = 48

	// pairSpace is how much of the code length code two lengths take, in units
	// of its longest codes: the index has 3 bits for each.
	pairSpace = "\x00\x40\x20\x10\x08\x04\x02\x01\x40\x80\x60\x50\x48\x44\x42\x41\x20\x60\x40\x30\x28\x24\x22\x21\x10\x50\x30\x20\x18\x14\x12\x11\x08\x48\x28\x18\x10\x0c\x0a\x09\x04\x44\x24\x14\x0c\x08\x06\x05\x02\x42\x22\x12\x0a\x06\x04\x03\x01\x41\x21\x11\x09\x05\x03\x02"
)

// findBlock returns the first bit in [bit, end) at which a dynamic block that is
// not the last one may start, or -1. It looks no further than at the code length
// code, and is right about one time in a few hundred.
func findBlock(in []byte, bit, end int) int {
	end = min(end, 8*(len(in)-headerBytes-searchBits/8))
	for bit < end {
		w := binary.LittleEndian.Uint64(in[bit>>3:])
		// Not the last (0), dynamic (0 1, the low bit first), and at most 286
		// and 30 symbols: of five bits each, the high four not all set.
		maybe := ^w & ^(w >> 1) & (w >> 2) &^ (w >> 4 & (w >> 5) & (w >> 6) & (w >> 7)) &^ (w >> 9 & (w >> 10) & (w >> 11) & (w >> 12))
		maybe &= (1<<searchBits - 1) << (bit & 7) & (1<<searchBits - 1)
		base := bit &^ 7
		for ; maybe != 0; maybe &= maybe - 1 {
			at := base + bits.TrailingZeros64(maybe)
			if at >= end {
				return -1
			}
			if completeLens(in, at) {
				return at
			}
		}
		bit = base + searchBits
	}
	return -1
}

// completeLens reports whether the code length code of the dynamic block at the
// bit is complete.
func completeLens(in []byte, bit int) bool {
	count := binary.LittleEndian.Uint64(in[bit>>3:]) >> (bit & 7) >> 13 & 15
	first := bit + 17
	lens := binary.LittleEndian.Uint64(in[first>>3:]) >> (first & 7)
	lens &= 1<<(3*(count+4)) - 1
	space := 0
	for ; lens != 0; lens >>= 6 {
		space += int(pairSpace[lens&63])
	}
	return space == 1<<lensCodeBits
}
