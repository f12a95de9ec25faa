package inflate

import "encoding/binary"

const (
	// headerBits is how much input findBlock looks at from a block's start on:
	// 17 bits, then 19 lengths of 3 bits, read in words of 8 bytes.
	headerBytes = (17+3*lensCodeSyms)/8 + 1 + 8

	// dynamicNotLast are the first three bits of the blocks that it finds.
	dynamicNotLast = 2 << 1
)

// findBlock returns the first bit in [bit, end) at which a dynamic block that is
// not the last one may start, or -1. It looks no further than at the code length
// code, and is right about one time in a few hundred.
func findBlock(in []byte, bit, end int) int {
	end = min(end, 8*(len(in)-headerBytes))
	for ; bit < end; bit++ {
		v := binary.LittleEndian.Uint64(in[bit>>3:]) >> (bit & 7)
		if v&7 != dynamicNotLast || v>>3&31 > maxDynLit-257 || v>>8&31 > maxDynDist-1 {
			continue
		}
		first := bit + 17
		lens := binary.LittleEndian.Uint64(in[first>>3:]) >> (first & 7)
		lens &= 1<<(3*(v>>13&15+4)) - 1
		space := 0
		for ; lens != 0; lens >>= 3 {
			space += 1 << lensCodeBits >> (lens & 7) &^ (1 << lensCodeBits)
		}
		if space == 1<<lensCodeBits {
			return bit
		}
	}
	return -1
}
