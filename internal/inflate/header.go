package inflate

import "encoding/binary"

// The order in which a dynamic block gives the lengths of the code that its
// code lengths are written in, RFC 1951 section 3.2.7.
const lensOrder = "\x10\x11\x12\x00\x08\x07\x09\x06\x0a\x05\x0b\x04\x0c\x03\x0d\x02\x0e\x01\x0f"

const (
	lensCodeBits = 7 // longest code of the code length alphabet
	lensCodeSyms = 19
	maxDynLit    = 286
	maxDynDist   = 30
)

// fixedCodes sets the codes of a block with fixed ones, RFC 1951 section 3.2.6.
func (d *decoder) fixedCodes() {
	if d.fixed {
		return
	}
	lens := d.lens[:]
	for i := range maxLitSyms {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	for i := range maxDistSyms {
		lens[maxLitSyms+i] = 5
	}
	_ = d.setCodes(lens[:maxLitSyms], lens[maxLitSyms:]) // complete by definition
	d.fixed = true
}

// setCodes builds the tables. It returns false if a code is invalid.
func (d *decoder) setCodes(lit, dist []uint8) bool {
	d.fixed = false
	if !d.lit.init(lit) || !d.dist.init(dist) {
		return false
	}
	// As each block ends with that symbol, compress/flate wants as many bits as
	// its code has before it decodes any other.
	d.lit.floor = max(d.lit.min, uint(lit[endOfBlock]))
	d.litTable.build(&d.lit, litTableBits)
	d.distTable.build(&d.dist)
	if hasLoops() {
		d.literals.init(&d.lit)
	}
	return true
}

// dynamicCodes reads the codes of a block that brings its own.
func (d *decoder) dynamicCodes() error {
	v, err := d.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, nlens := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > maxDynLit || ndist > maxDynDist {
		return d.corrupt()
	}
	var lens [lensCodeSyms]uint8
	for i := range nlens {
		n, err := d.take(3)
		if err != nil {
			return err
		}
		lens[lensOrder[i]] = uint8(n)
	}
	// The litlen code's place serves the code length code until it is read.
	d.fixed = false
	if !d.lit.init(lens[:]) {
		return d.corrupt()
	}
	if err := d.codeLengths(d.lens[:nlit+ndist]); err != nil {
		return err
	}
	if !d.setCodes(d.lens[:nlit], d.lens[nlit:nlit+ndist]) {
		return d.corrupt()
	}
	return nil
}

// codeLengths reads the code lengths of a dynamic block, of which there are
// len(lens), in the code d.lit.
func (d *decoder) codeLengths(lens []uint8) error {
	table := d.lensTable()
	space := 0 // taken by the codes so far, in units of the longest possible
	for i := 0; i < len(lens); {
		if d.nbits < lensCodeBits+7 {
			d.gather()
		}
		e := table[d.bits&(1<<lensCodeBits-1)]
		n := uint(e & 7)
		if n == 0 || n > d.nbits {
			// Too few bits on hand, or no such code: find out which.
			sym, err := d.symbol(&d.lit)
			if err != nil {
				return err
			}
			e = uint8(sym) << 3
		} else {
			d.drop(n)
		}
		sym := e >> 3
		if sym < 16 {
			lens[i] = sym
			i++
			if d.hasty && sym != 0 && i <= endOfBlock {
				if space += 1 << (maxCodeBits - sym); space > 1<<maxCodeBits {
					return d.corrupt()
				}
			}
			continue
		}
		count, value, err := d.repetition(sym, lens, i)
		if err != nil {
			return err
		}
		for range count {
			lens[i] = value
			i++
		}
	}
	d.giveBack()
	return nil
}

// repetition reads what follows the symbol sym, which stands for more than one
// length from lens[i] on: how many, and which.
func (d *decoder) repetition(sym uint8, lens []uint8, i int) (count int, value uint8, err error) {
	count, extra := 3, uint(2)
	switch sym {
	case 16:
		if i == 0 {
			return 0, 0, d.corrupt()
		}
		value = lens[i-1]
	case 17:
		extra = 3
	default:
		count, extra = 11, 7
	}
	more, err := d.take(extra)
	if err != nil {
		return 0, 0, err
	}
	count += int(more)
	if count > len(lens)-i {
		return 0, 0, d.corrupt()
	}
	return count, value, nil
}

// lensTable returns the table of the code length code: for the next bits of
// the input the symbol, times 8, plus the length of its code, or 0 for none.
func (d *decoder) lensTable() (t [1 << lensCodeBits]uint8) {
	next, code := 0, uint32(0)
	for n := d.lit.min; n <= d.lit.max && d.lit.used > 0; n++ {
		for range d.lit.count[n] {
			e := uint8(d.lit.syms[next])<<3 | uint8(n)
			for i := code; i < uint32(len(t)); i += 1 << n {
				t[i] = e
			}
			next++
			code = nextCode(code, n)
		}
	}
	return t
}

// gather fills the bit buffer with the bytes on hand, up to 56 bits at least if
// there are enough.
func (d *decoder) gather() {
	if rest := d.src.buf[d.src.pos:]; len(rest) >= 8 {
		d.bits |= binary.LittleEndian.Uint64(rest) << d.nbits
		d.src.pos += int(63-d.nbits) >> 3
		d.nbits |= 56
		d.bits &= 1<<d.nbits - 1
		return
	}
	for d.nbits <= 48 && d.src.pos < len(d.src.buf) {
		d.bits |= uint64(d.src.buf[d.src.pos]) << d.nbits
		d.src.pos++
		d.nbits += 8
	}
}

// giveBack returns the whole bytes of the bit buffer to the source, of whose
// bytes on hand they must be.
func (d *decoder) giveBack() {
	n := d.nbits / 8
	d.src.pos -= int(n)
	d.nbits -= 8 * n
	d.bits &= 1<<d.nbits - 1
}
