package inflate

// The tables of the fast loop. Both are indexed by the next bits of the input;
// codes longer than the index lead to a second table right behind the first.
//
// An entry of the litlen table decodes one literal, two literals, a match
// length, or a literal and a match length at once:
//
//	bits  0-7   input bits to drop, extra bits of a length included (at most 20)
//	bits  8-15  the first literal, if there is one
//	bits 16-23  the second literal, or the match length without extra bits, less 3
//	bits 24-27  of a length: where its extra bits start, counted from the first bit dropped
//	bit  28     literals only
//	bit  29     neither literal nor length: see below
//	bits 30-31  number of literals
//
// With bit 29 set there is no literal, and bit 22 tells a second table (bits 8-21
// its place, bits 24-27 the bits of its index), bit 23 the end of the block, and
// neither that there is no such code.
//
// An entry of the distance table:
//
//	bits  0-7   input bits to drop, extra bits included (at most 28)
//	bits  8-13  where the extra bits start
//	bits 16-30  the distance without extra bits
//	bit  31     not a distance: bit 14 tells a second table (bits 16-30 its place,
//	            bits 8-13 the bits of its index) from no code at all
const (
	litTableBits = 12
	litTableSize = 1<<litTableBits + 2*maxLitSyms // a second table of 2^k entries holds more than k codes, and k is at most 3

	distTableBits = 9
	distTableSize = 1<<distTableBits + 64*(maxDistSyms/7+1) // likewise, and k is at most 6

	entryDrop    = 0xff
	entryLit1    = 8
	entryLit2    = 16
	entryLength  = 16
	entryExtra   = 24
	entryLitOnly = 1 << 28
	entryOther   = 1 << 29
	entryCount   = 30

	entryPlace    = 8
	entryPlaces   = 1<<14 - 1
	entrySubtable = entryOther | 1<<22
	entryEnd      = entryOther | 1<<23
	entryInvalid  = entryOther

	distExtra    = 8
	distBase     = 16
	distOther    = 1 << 31
	distSubtable = distOther | 1<<14
	distInvalid  = distOther
)

// Lengths and distances, RFC 1951 section 3.2.5: what each symbol stands for
// without its extra bits (lengths less 3), and how many of those it has.
const (
	lengthBase  = "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x0c\x0e\x10\x14\x18\x1c\x20\x28\x30\x38\x40\x50\x60\x70\x80\xa0\xc0\xe0\xff"
	lengthExtra = "\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01\x01\x02\x02\x02\x02\x03\x03\x03\x03\x04\x04\x04\x04\x05\x05\x05\x05\x00"

	minMatch    = 3
	maxMatch    = 258
	windowBytes = 32 << 10
)

// distanceOf returns the distance of a symbol below 30 without its extra bits,
// and their number.
func distanceOf(sym uint32) (base uint32, extra uint) {
	if sym < 4 {
		return sym + 1, 0
	}
	extra = uint(sym)/2 - 1
	return (2+sym&1)<<extra + 1, extra
}

type (
	litTable  [litTableSize]uint32
	distTable [distTableSize]uint32
)

// litEntry returns the entry of a litlen symbol whose code ends n bits into
// what the entry drops.
func litEntry(sym uint16, n uint) uint32 {
	switch {
	case sym < endOfBlock:
		return entryLitOnly | 1<<entryCount | uint32(sym)<<entryLit1 | uint32(n)
	case sym == endOfBlock:
		return entryEnd | uint32(n)
	}
	i := int(sym) - endOfBlock - 1
	if i >= len(lengthBase) {
		return entryInvalid
	}
	return uint32(lengthBase[i])<<entryLength | uint32(n)<<entryExtra | (uint32(n) + uint32(lengthExtra[i]))
}

func distEntry(sym uint16, n uint) uint32 {
	if sym >= 30 {
		return distInvalid
	}
	base, extra := distanceOf(uint32(sym))
	return base<<distBase | uint32(n)<<distExtra | uint32(n+extra)
}

// build fills the table for the code h with an index of tableBits bits.
//
// It grows the table from the shortest code on: to go from n-1 to n bits of
// index is to append a copy, into which the codes of n bits are written, then
// the pairs of a literal and a second symbol that are n bits together.
func (t *litTable) build(h *huffman, tableBits uint) {
	if !h.complete() {
		for i := range t[:1<<tableBits] {
			t[i] = entryInvalid
		}
		if h.used == 0 {
			return
		}
	}
	var codes [maxLitSyms]uint32    // the code of each of h.syms, bit-reversed
	var span [maxCodeBits + 1]spans // the symbols of each length
	next, code := 0, uint32(0)
	for n := h.min; n <= tableBits; n++ {
		if n > h.min {
			copy(t[1<<(n-1):1<<n], t[:1<<(n-1)])
		}
		s := &span[n]
		s.start, s.lits, s.end = next, next, next+int(h.count[n])
		for ; next < s.end; next++ {
			sym := h.syms[next]
			if sym < endOfBlock {
				s.lits++
			}
			codes[next] = code
			t[code&(1<<litTableBits-1)] = litEntry(sym, n)
			code = nextCode(code, n)
		}
		for n1 := h.min; n1+h.min <= n; n1++ {
			t.pairs(h, &codes, span[n1], span[n-n1], n1, n)
		}
	}
	if h.max > tableBits {
		t.buildSecond(&secondTables{h: h, next: next, code: code, tableBits: tableBits, free: 1 << tableBits})
	}
}

// pairs writes the entries of pairs of n bits: a literal of s1, of n1 bits, and
// a symbol of s2.
func (t *litTable) pairs(h *huffman, codes *[maxLitSyms]uint32, s1, s2 spans, n1, n uint) {
	lits, litCodes := h.syms[s1.start:s1.lits], codes[s1.start:s1.lits]
	if len(lits) == 0 {
		return
	}
	for i := s2.start; i < s2.end; i++ {
		e, ok := pairEntry(h.syms[i], n)
		if !ok {
			continue
		}
		second := codes[i] << n1
		for j, first := range litCodes[:len(lits)] {
			t[(first|second)&(1<<litTableBits-1)] = e | uint32(lits[j])<<entryLit1
		}
	}
}

// buildSecond fills the tables of the codes that are longer than the index.
func (t *litTable) buildSecond(second *secondTables) {
	for second.more() {
		prefix, start, size := second.open()
		t[prefix] = entrySubtable | uint32(start)<<entryPlace | uint32(size)<<entryExtra | uint32(second.tableBits)
		for second.inside(prefix) {
			sym, n, at, step := second.take()
			e := litEntry(sym, n)
			for ; at < 1<<size; at += step {
				t[start+at] = e
			}
		}
	}
}

// spans are the symbols of one length within huffman.syms: literals from start
// to lits, others from there to end.
type spans struct{ start, lits, end int }

// pairEntry returns the entry for sym as the second of a pair of n bits whose
// first is a literal, to be filled in; false if sym cannot be second.
func pairEntry(sym uint16, n uint) (uint32, bool) {
	if sym < endOfBlock {
		return entryLitOnly | 2<<entryCount | uint32(sym)<<entryLit2 | uint32(n), true
	}
	e := litEntry(sym, n)
	return e | 1<<entryCount, e&entryOther == 0
}

// build fills the table for the code h.
func (t *distTable) build(h *huffman) {
	if !h.complete() {
		for i := range t[:1<<distTableBits] {
			t[i] = distInvalid
		}
		if h.used == 0 {
			return
		}
	}
	next, code := 0, uint32(0)
	for n := h.min; n <= distTableBits; n++ {
		if n > h.min {
			copy(t[1<<(n-1):1<<n], t[:1<<(n-1)])
		}
		for end := next + int(h.count[n]); next < end; next++ {
			t[code&(1<<distTableBits-1)] = distEntry(h.syms[next], n)
			code = nextCode(code, n)
		}
	}
	if h.max > distTableBits {
		second := secondTables{h: h, next: next, code: code, tableBits: distTableBits, free: 1 << distTableBits}
		for second.more() {
			prefix, start, size := second.open()
			t[prefix] = distSubtable | uint32(start)<<distBase | uint32(size)<<distExtra | distTableBits
			for second.inside(prefix) {
				sym, n, at, step := second.take()
				e := distEntry(sym, n)
				for ; at < 1<<size; at += step {
					t[start+at] = e
				}
			}
		}
	}
}

// secondTables walks the codes that are longer than a table's index, and lays
// out the second tables that hold them.
type secondTables struct {
	h         *huffman
	next      int    // index in h.syms
	code      uint32 // its code, bit-reversed
	tableBits uint
	free      int  // where the next second table starts
	bits      uint // length of the next code
	left      int  // codes of that length still to come
}

// more reports whether there are codes left.
func (s *secondTables) more() bool {
	return s.next < s.h.used
}

// advance makes bits and left those of the next code.
func (s *secondTables) advance() {
	if s.bits == 0 {
		s.bits = s.tableBits
	}
	for s.left == 0 {
		s.bits++
		s.left = int(s.h.count[s.bits])
	}
}

// open starts the second table that the next code belongs to: the index that
// leads to it, where it starts, and the bits of its own index.
func (s *secondTables) open() (prefix uint32, start int, size uint) {
	s.advance()
	size = s.bits - s.tableBits
	for room := 1<<size - s.left; room > 0 && s.tableBits+size < s.h.max; {
		size++
		room = room*2 - int(s.h.count[s.tableBits+size])
	}
	start = s.free
	s.free += 1 << size
	return s.code & (1<<s.tableBits - 1), start, size
}

// inside reports whether the next code belongs to the second table that prefix
// leads to.
func (s *secondTables) inside(prefix uint32) bool {
	return s.more() && s.code&(1<<s.tableBits-1) == prefix
}

// take returns the next code's symbol, its bits beyond the first table's index,
// and the first entry and the distance between entries that it fills.
func (s *secondTables) take() (sym uint16, n uint, at, step int) {
	s.advance()
	sym, n = s.h.syms[s.next], s.bits-s.tableBits
	at, step = int(s.code>>s.tableBits), 1<<n
	s.code = nextCode(s.code, s.bits)
	s.next++
	s.left--
	return sym, n, at, step
}
