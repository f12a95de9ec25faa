package inflate

import (
	"encoding/binary"
	"math/bits"
)

const (
	// headerBytes is how much input a finder looks at from a block's start on:
	// 17 bits, then 19 lengths of 3 bits, read in words of 8 bytes.
	headerBytes = (17+3*lensCodeSyms)/8 + 1 + 8

	// searchBits is how many bits of a word are tested at once: those that
	// have the 13 bits in the word of which the first test is made.
	searchBits = 48

	// A finder looks at so many lengths of the code length code at once.
	groupLens = 4
	groupBits = 3 * groupLens
)

// finder finds blocks. For each group of lengths of the code length code it knows
// how much of the code they take, in units of its longest codes.
type finder [1 << groupBits]uint16

func (f *finder) init() {
	for group := range f {
		space := uint16(0)
		for rest := group; rest != 0; rest >>= 3 {
			if n := rest & 7; n != 0 {
				space += 1 << (lensCodeBits - n)
			}
		}
		f[group] = space
	}
}

// find returns the first bit in [bit, end) at which a dynamic block that is
// not the last one may start, or -1. It looks no further than at the code length
// code, and is right about one time in a few hundred.
func (f *finder) find(in []byte, bit, end int) int {
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
			if f.complete(in, at) {
				if at >= end {
					return -1
				}
				return at
			}
		}
		bit = base + searchBits
	}
	return -1
}

// complete reports whether the code length code of the dynamic block at the
// bit is complete.
func (f *finder) complete(in []byte, bit int) bool {
	count := binary.LittleEndian.Uint64(in[bit>>3:]) >> (bit & 7) >> 13 & 15
	first := bit + 17
	lens := binary.LittleEndian.Uint64(in[first>>3:]) >> (first & 7)
	lens &= 1<<(3*(count+4)&63) - 1
	const mask = 1<<groupBits - 1
	return f[lens&mask]+f[lens>>groupBits&mask]+f[lens>>(2*groupBits)&mask]+f[lens>>(3*groupBits)&mask]+f[lens>>(4*groupBits)&mask] == 1<<lensCodeBits
}
