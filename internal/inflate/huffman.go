package inflate

import (
	"encoding/binary"
	"math/bits"
)

const (
	maxCodeBits = 15  // longest code of litlen and distance alphabets
	maxLitSyms  = 288 // the fixed code's; dynamic ones have at most 286
	maxDistSyms = 32  // likewise; dynamic ones have at most 30
	endOfBlock  = 256
)

// huffman is a canonical code in the form that the careful code walks, and
// that the fast tables are built from.
type huffman struct {
	count [maxCodeBits + 1]uint16 // codes of each length; count[0] is unused
	syms  [maxLitSyms]uint16      // symbols by code length, then by value
	used  int                     // number of symbols that have a code
	min   uint                    // shortest code; 0 if no symbol has one
	max   uint                    // longest code; 0 if no symbol has one
	floor uint                    // bits that must be there before a symbol is decoded
}

// init takes the code length of each symbol, 0 for none. It returns false for
// a code that compress/flate refuses: over-subscribed, or incomplete, except
// that no code at all and a single code of one bit are let through.
func (h *huffman) init(lens []uint8) bool {
	h.count = [maxCodeBits + 1]uint16{}
	for i := 0; i < len(lens); i++ {
		if n := lens[i]; n != 0 {
			h.count[n&maxCodeBits]++
		} else {
			i += zeros(lens[i+1:])
		}
	}
	var next [maxCodeBits + 2]uint16 // where the symbols of a length start
	space := 0                       // codes used, in units of the longest possible
	h.min, h.max = 0, 0
	for n := uint(1); n <= maxCodeBits; n++ {
		c := h.count[n]
		next[n+1] = next[n] + c
		space += int(c) << (maxCodeBits - n)
		if c != 0 {
			h.max = n
			if h.min == 0 {
				h.min = n
			}
		}
	}
	h.floor = h.min
	h.used = int(next[maxCodeBits+1])
	single := h.used == 1 && h.max == 1
	if h.used != 0 && space != 1<<maxCodeBits && !single {
		return false
	}
	for sym := 0; sym < len(lens); sym++ {
		if n := lens[sym]; n != 0 {
			h.syms[next[n&maxCodeBits]] = uint16(sym)
			next[n&maxCodeBits]++
		} else {
			sym += zeros(lens[sym+1:])
		}
	}
	return true
}

// zeros returns with how many zeros lens starts, in words of 8: those of symbols
// that do not occur come in runs.
func zeros(lens []uint8) int {
	n := 0
	for len(lens) >= n+8 && binary.LittleEndian.Uint64(lens[n:]) == 0 {
		n += 8
	}
	return n
}

// complete reports whether every bit string starts with a code.
func (h *huffman) complete() bool {
	return h.used > 1
}

// nextCode returns the code that follows c among the codes of n bits, both
// bit-reversed, as they appear in the bit buffer. After the last code of n
// bits it returns 0.
func nextCode(c uint32, n uint) uint32 {
	zeros := ^c & (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	top := uint32(1) << (bits.Len32(zeros) - 1)
	return c&(top-1) | top
}
