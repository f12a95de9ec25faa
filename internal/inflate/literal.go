package inflate

// Codes of the literal mode. Bytes that a compressor finds little in have codes
// of about 8 bits, no two of which fit into an index of litTableBits. Literals
// whose codes are shorter do, and are better left to the litlen table.
const (
	literalMinBits = 7
	literalMidBits = literalMinBits + 1
	literalMaxBits = literalMinBits + 2
)

const (
	// literalEscape is the symbol of what the mode does not decode.
	literalEscape = 1 << 15

	// literalCost is about how many literals it takes to gain what entering and
	// leaving the mode costs, so it does not pay where escapes are more frequent.
	literalCost  = 12
	literalLimit = 1 << maxCodeBits / literalCost

	// literalCredit is how many escapes a block may have before its literals pay for
	// them: as many as cost little next to building the tables.
	literalCredit = 32 * literalCost
)

// literals is the literal mode of the assembly, in which it decodes nothing but
// literals with codes of literalMinBits to literalMaxBits, and escapes from it for
// anything else.
//
// Look-ups in the litlen table depend on each other, as an entry tells where the
// next one is. In a canonical code, read as a number with its first bit highest,
// longer codes are larger. So two comparisons tell the length, and the look-ups of
// the symbols wait for nothing but them.
type literals struct {
	on       bool
	credit   int    // in literals: see literalCredit; the mode ends below 0
	count    uint64 // literals that the mode has decoded, of all blocks
	mid, max uint64 // the first codes of literalMidBits and of literalMaxBits, followed by zeros
	syms     [1 << literalMaxBits]uint16
}

// init prepares the mode for a block, and turns it on if it pays for the code h.
func (l *literals) init(h *huffman) {
	l.on = false
	if h.max < literalMaxBits { // max is no number then
		return
	}
	escapes := 1 << maxCodeBits // of all strings of maxCodeBits, those that start with an escape
	for n := literalMinBits; n <= literalMaxBits; n++ {
		escapes -= int(h.count[n]) << (maxCodeBits - n)
	}
	if escapes > literalLimit {
		return
	}
	next, at := 0, 0 // the next symbol, and the first literalMaxBits of its code
	for n := h.min; n < literalMinBits; n++ {
		next += int(h.count[n])
		at += int(h.count[n]) << (literalMaxBits - n)
	}
	for i := range at {
		l.syms[i] = literalEscape
	}
	for n := uint(literalMinBits); n <= literalMaxBits; n++ {
		switch n {
		case literalMidBits:
			l.mid = uint64(at) << (64 - literalMaxBits)
		case literalMaxBits:
			l.max = uint64(at) << (64 - literalMaxBits)
		}
		for _, sym := range h.syms[next : next+int(h.count[n])] {
			if sym >= endOfBlock {
				sym = literalEscape
				escapes += 1 << (maxCodeBits - n)
			}
			for range 1 << (literalMaxBits - n) {
				l.syms[at] = sym
				at++
			}
		}
		next += int(h.count[n])
	}
	for i := at; i < len(l.syms); i++ {
		l.syms[i] = literalEscape
	}
	l.on, l.credit = escapes <= literalLimit, literalCredit
}
