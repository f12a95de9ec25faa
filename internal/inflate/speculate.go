package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"time"
)

// speculation decodes a stretch of a stream from the first block found in it,
// without what is in front of it.
type speculation struct {
	d     decoder
	in    []byte // the input, of which only [from, to) is searched for a start
	from  int
	to    int      // it ends at the first block that starts here or behind
	wide  []uint16 // room for output with an unknown window, behind one of its places
	plain []byte   // room for output behind that, behind its window

	start, end    int           // bits of in: the first block, and the first one not decoded; start is -1 if there is none
	nWide, nPlain int           // output between them
	sumPlain      uint32        // CRC-32 of the plain output
	took          time.Duration // of run
	plainPos      int           // where plain output ends, while it decodes
}

// newSpeculation returns one with room for the given output of each kind.
func newSpeculation(outBytes int) *speculation {
	s := &speculation{
		wide:  make([]uint16, windowBytes+outBytes+outSlack),
		plain: make([]byte, windowBytes+outBytes+outSlack),
	}
	for i := range windowBytes {
		s.wide[i] = uint16(unresolved + i)
	}
	s.d.atBlock = s.atBlock
	return s
}

// run finds a start and decodes. It needs nothing from outside but in.
func (s *speculation) run() {
	began := time.Now()
	defer func() { s.took = time.Since(began) }()
	s.start, s.nWide, s.nPlain, s.sumPlain = -1, 0, 0, 0
	for bit := findBlock(s.in, 8*s.from, 8*s.to); bit >= 0; bit = findBlock(s.in, bit+1, 8*s.to) {
		s.d.startAt(s.in, bit)
		s.decode()
		if s.end > bit {
			s.start = bit
			return
		}
	}
}

// startAt makes a block that starts at the bit of in the next to be decoded.
func (d *decoder) startAt(in []byte, bit int) {
	d.src = source{buf: in, err: io.EOF}
	d.goTo(bit)
}

// goTo makes a block that starts at the bit of the input on hand the next one.
func (d *decoder) goTo(bit int) {
	d.begin()
	d.src.pos = bit / 8
	_, _ = d.take(uint(bit % 8)) // cannot fail: the bit is on hand
}

// bit returns the place of the next bit in the input on hand.
func (d *decoder) bit() int {
	return 8*d.src.pos - int(d.nbits)
}

// decode decodes from the start on. What fails, fails after the last block that
// it counted.
func (s *speculation) decode() {
	pos := windowBytes
	for {
		s.end, s.nWide = s.d.bit(), pos-windowBytes
		if s.end >= 8*s.to {
			return
		}
		if s.nWide >= windowBytes && resolved(s.wide[pos-windowBytes:pos]) {
			s.decodePlain(pos)
			return
		}
		var ok bool
		if pos, ok = s.wideBlock(pos); !ok {
			return
		}
	}
}

// wideBlock decodes a block, unless it is the last or there is no room for it.
func (s *speculation) wideBlock(pos int) (int, bool) {
	if err := s.d.blockHeader(); err != nil && !errors.Is(err, errFlush) || s.d.final {
		return pos, false
	}
	switch s.d.stage {
	case stageStored:
		size := s.d.storedLeft
		rest := s.d.src.buf[s.d.src.pos:]
		if size > len(rest) || size > len(s.wide)-pos {
			return pos, false
		}
		for i, b := range rest[:size] {
			s.wide[pos+i] = uint16(b)
		}
		s.d.src.pos += size
		s.d.stage = stageBlock
		return pos + size, true
	case stageCodes:
		if len(s.d.src.buf)-s.d.src.pos < inSlack || len(s.wide)-pos < outSlack {
			return pos, false
		}
		pos, result := s.d.wide(s.wide, pos)
		s.d.stage = stageBlock
		return pos, result == fastEnd
	default:
		return pos, true
	}
}

// decodePlain goes on from pos of wide as usual, now that the window is known.
func (s *speculation) decodePlain(pos int) {
	for i, v := range s.wide[pos-windowBytes : pos] {
		s.plain[i] = byte(v)
	}
	out := output{buf: s.plain, pos: windowBytes}
	s.plainPos = windowBytes
	for {
		// However it ends: what counts is the last block that atBlock saw.
		if err := s.d.run(&out, false); !errors.Is(err, errFlush) {
			break
		}
	}
	s.nPlain = s.plainPos - windowBytes
	s.sumPlain = crc32.ChecksumIEEE(s.plain[windowBytes:s.plainPos])
}

// atBlock remembers the block that starts, and ends the run behind the stretch.
func (s *speculation) atBlock(out *output) bool {
	s.end, s.plainPos = s.d.bit(), out.pos
	return s.end >= 8*s.to
}

// resolved reports whether there are but bytes in v.
func resolved(v []uint16) bool {
	for _, e := range v {
		if e >= unresolved {
			return false
		}
	}
	return true
}

// resolver maps an element of speculative output to its byte.
//
// It is larger than the elements need, so that no index has to be checked.
type resolver [1 << 16]byte

// set makes it map into the window.
func (r *resolver) set(window *[windowBytes]byte) {
	for i := range unresolved {
		r[i] = byte(i)
	}
	copy(r[unresolved:], window[:])
}

// resolve writes the bytes of v to b, which is as long.
func (r *resolver) resolve(b []byte, v []uint16) {
	for len(v) >= 8 && len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, uint64(r[v[0]])|uint64(r[v[1]])<<8|uint64(r[v[2]])<<16|uint64(r[v[3]])<<24|
			uint64(r[v[4]])<<32|uint64(r[v[5]])<<40|uint64(r[v[6]])<<48|uint64(r[v[7]])<<56)
		v, b = v[8:], b[8:]
	}
	for i, e := range v {
		b[i] = r[e]
	}
}
