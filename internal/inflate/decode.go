package inflate

import (
	"errors"
	"io"
)

// stage is what the next input bits are.
type stage uint8

const (
	stageBlock  stage = iota // a block header
	stageStored              // bytes of a stored block
	stageCodes               // symbols of a compressed block
	stageMatch               // symbols of it, after the rest of a match
	stageDone                // none: the stream has ended
)

// errFlush ends a run after an empty stored block: the writer flushed, and
// waits for its output to be seen.
var errFlush = errors.New("inflate stream: flushed")

// errBoundary ends a run where atBlock wanted it.
var errBoundary = errors.New("inflate stream: block boundary")

// decoder decodes one DEFLATE stream after the other.
type decoder struct {
	src   source
	bits  uint64 // input bits, the next one lowest; zero above nbits
	nbits uint

	stage      stage
	final      bool // the block is the stream's last
	fixed      bool // the tables hold the fixed codes
	storedLeft int  // stageStored: bytes to come
	matchLen   int  // stageMatch: bytes to come
	matchDist  int

	lit, dist huffman
	litTable  litTable
	distTable distTable
	literals  literals
	lazy      bool                            // a run that has output does not read the source again
	atBlock   func(*output) bool              // asked at each block but a stream's end whether run is to end there; may be nil
	hasty     bool                            // most headers are not: give up as soon as one cannot be
	asked     bool                            // it was, for this block
	lens      [maxLitSyms + maxDistSyms]uint8 // code lengths of the block's header
}

// output is the uncompressed side of a run: buf is filled from pos on, and
// what was decoded before lies in buf[low:pos], and before that in ext.
type output struct {
	buf []byte
	pos int
	low int
	ext []byte // only where low is 0
}

// begin prepares for a new stream from the same source.
func (d *decoder) begin() {
	d.bits, d.nbits = 0, 0
	d.stage, d.final, d.asked = stageBlock, false, false
}

// run decodes until out is full, and returns nil; or until the stream ends
// ([io.EOF]), is flushed (errFlush), comes to a block that atBlock wanted
// (errBoundary) or fails. With edge unset, out counts as
// full as soon as the fast loop has no more slack in it. There must be room in
// out. Once it is full, run still finds out whether the stream has ended.
func (d *decoder) run(out *output, edge bool) error {
	start, limit := out.pos, len(out.buf)
	if !edge {
		limit -= outSlack
	}
	for {
		if out.pos > start {
			ended := d.stage == stageDone || d.stage == stageBlock && d.final
			if !ended && (out.pos >= limit || d.lazy && d.src.pos == len(d.src.buf)) {
				return nil
			}
		}
		if d.stage == stageBlock && !d.final && d.atBlock != nil && !d.asked {
			d.asked = true
			if d.atBlock(out) {
				return errBoundary
			}
		}
		var err error
		switch d.stage {
		case stageBlock:
			err = d.blockHeader()
		case stageStored:
			err = d.stored(out)
		case stageCodes:
			err = d.codes(out)
		case stageMatch:
			err = d.match(out)
		case stageDone:
			err = io.EOF
		}
		if err != nil {
			return err
		}
	}
}

// corrupt returns the error for invalid input.
func (d *decoder) corrupt() error {
	return &CorruptError{Offset: d.src.offset()}
}

// need makes at least n bits available, n being at most 32, and takes no byte
// more than that.
func (d *decoder) need(n uint) error {
	for d.nbits < n {
		b, err := d.src.readByte()
		if err != nil {
			return noEOF(err)
		}
		d.bits |= uint64(b) << d.nbits
		d.nbits += 8
	}
	return nil
}

// drop consumes n bits.
func (d *decoder) drop(n uint) {
	d.bits >>= n
	d.nbits -= n
}

// take consumes n bits, at most 16, and returns them.
func (d *decoder) take(n uint) (uint, error) {
	if err := d.need(n); err != nil {
		return 0, err
	}
	v := uint(d.bits & (1<<n - 1))
	d.drop(n)
	return v, nil
}

// symbol decodes one symbol of h bit by bit.
func (d *decoder) symbol(h *huffman) (uint16, error) {
	if err := d.need(h.floor); err != nil {
		return 0, err
	}
	var code, first, index uint
	for n := uint(1); n <= h.max; n++ {
		if err := d.need(n); err != nil {
			return 0, err
		}
		code = code<<1 | uint(d.bits>>(n-1))&1
		first <<= 1
		count := uint(h.count[n])
		if code < first+count {
			d.drop(n)
			return h.syms[index+code-first], nil
		}
		first += count
		index += count
	}
	return 0, d.corrupt()
}

// blockHeader reads the header of a block, and its codes if it has any.
func (d *decoder) blockHeader() error {
	if d.final {
		d.stage = stageDone
		return nil
	}
	v, err := d.take(3)
	if err != nil {
		return err
	}
	d.asked = false
	d.final = v&1 != 0
	switch v >> 1 {
	case 0:
		return d.storedHeader()
	case 1:
		d.fixedCodes()
	case 2:
		if err := d.dynamicCodes(); err != nil {
			return err
		}
	default:
		return d.corrupt()
	}
	d.stage = stageCodes
	return nil
}

// storedHeader reads the length of a stored block.
func (d *decoder) storedHeader() error {
	d.drop(d.nbits % 8)
	size, err := d.take(16)
	if err != nil {
		return err
	}
	inverted, err := d.take(16)
	if err != nil {
		return err
	}
	if size != inverted^0xffff {
		return d.corrupt()
	}
	d.storedLeft = int(size)
	d.stage = stageStored
	if size == 0 {
		d.stage = stageBlock
		if !d.final {
			return errFlush
		}
	}
	return nil
}

// stored copies from a stored block. The bit buffer is empty.
func (d *decoder) stored(out *output) error {
	for d.storedLeft > 0 && out.pos < len(out.buf) {
		if d.src.pos == len(d.src.buf) {
			if err := d.src.fill(); err != nil {
				return noEOF(err)
			}
		}
		n := min(d.storedLeft, len(d.src.buf)-d.src.pos)
		n = copy(out.buf[out.pos:], d.src.buf[d.src.pos:d.src.pos+n])
		d.src.pos += n
		out.pos += n
		d.storedLeft -= n
	}
	if d.storedLeft == 0 {
		d.stage = stageBlock
	}
	return nil
}

// codes decodes symbols as long as there is slack, and then one more.
func (d *decoder) codes(out *output) error {
	rest := len(d.src.buf) - d.src.pos
	if rest >= inSlack && len(out.buf)-out.pos >= outSlack {
		switch d.fast(out) {
		case fastSlack:
		case fastEnd:
			d.stage = stageBlock
			return nil
		case fastMatch:
			d.stage = stageMatch
			return nil
		case fastInvalid:
			return d.corrupt()
		}
		return nil
	}
	if rest >= edgeSlack {
		if done, err := d.edge(out); done || err != nil {
			return err
		}
	}
	sym, err := d.symbol(&d.lit)
	switch {
	case err != nil:
		return err
	case sym < endOfBlock:
		out.buf[out.pos] = byte(sym)
		out.pos++
	case sym == endOfBlock:
		d.stage = stageBlock
	default:
		return d.lengthAndDistance(uint32(sym) - endOfBlock - 1)
	}
	return nil
}

// lengthAndDistance reads what follows the length symbol i.
func (d *decoder) lengthAndDistance(i uint32) error {
	if int(i) >= len(lengthBase) {
		return d.corrupt()
	}
	extra, err := d.take(uint(lengthExtra[i]))
	if err != nil {
		return err
	}
	d.matchLen = minMatch + int(lengthBase[i]) + int(extra)
	sym, err := d.symbol(&d.dist)
	if err != nil {
		return err
	}
	if sym >= 30 {
		return d.corrupt()
	}
	base, extraBits := distanceOf(uint32(sym))
	if extra, err = d.take(extraBits); err != nil {
		return err
	}
	d.matchDist = int(base) + int(extra)
	d.stage = stageMatch
	return nil
}

// match copies what is left of a match, as far as out has room.
func (d *decoder) match(out *output) error {
	repeated := -1 // where in buf the bytes start that the match repeats
	for d.matchLen > 0 && out.pos < len(out.buf) {
		have := out.pos - out.low
		var from []byte
		switch {
		case d.matchDist <= have:
			if repeated < 0 {
				repeated = out.pos - d.matchDist
			}
			from = out.buf[repeated:out.pos] // of which there are whole repetitions
		case d.matchDist <= have+len(out.ext):
			from = out.ext[len(out.ext)-(d.matchDist-have):]
		default:
			return d.corrupt()
		}
		n := copy(out.buf[out.pos:], from[:min(len(from), d.matchLen)])
		out.pos += n
		d.matchLen -= n
	}
	if d.matchLen == 0 {
		d.stage = stageCodes
	}
	return nil
}
