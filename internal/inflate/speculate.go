package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync/atomic"
	"unsafe"
)

// What a speculation is doing. It is claimed by whoever is the first to change it
// from waiting.
const (
	specWaiting int32 = iota
	specRunning
	specRevoked
)

// speculation decodes a stretch of a stream from the first block found in it,
// without what is in front of it.
type speculation struct {
	d      decoder
	finder finder
	room   []uint16 // the elements that stand for the window, then room for output
	offset int64    // of in, in the input
	in     []byte   // the input, of which only [from, to) is searched for a start
	from   int
	to     int   // it ends at the first block that starts here or behind
	target int64 // bit of the input at which the serial decoder is to look whether it is done

	state   atomic.Int32
	stopped atomic.Bool   // what it finds is not wanted any more
	done    chan struct{} // closed when the run has ended

	start, end int      // bits of in: the first block, and the first one not decoded; start is -1 if there is none
	wide       []uint16 // output with an unknown window
	plain      []byte   // output behind that
	sumPlain   uint32   // CRC-32 of it
	joined     bool     // which the member's has taken in
	plainPos   int      // where plain output ends, while it decodes
}

// newSpeculation returns one with room for the given bytes of output, and for
// half of it as long as the window is unknown.
func newSpeculation(roomBytes int) *speculation {
	s := &speculation{room: make([]uint16, windowBytes+roomBytes/2)}
	for i := range windowBytes {
		s.room[i] = uint16(unresolved + i)
	}
	s.d.atBlock = s.atBlock
	s.finder.init()
	s.d.hasty = true
	return s
}

// prepare makes it one of the input in, which has the offset.
func (s *speculation) prepare(in []byte, offset int64, from, to int) {
	s.in, s.offset, s.from, s.to = in, offset, from, to
	s.target = 8 * (offset + int64(from))
	s.start, s.wide, s.plain, s.sumPlain, s.joined = -1, nil, nil, 0, false
	s.state.Store(specWaiting)
	s.stopped.Store(false)
	s.done = make(chan struct{})
}

// run finds a start and decodes.
func (s *speculation) run() {
	defer close(s.done)
	if !s.state.CompareAndSwap(specWaiting, specRunning) {
		return
	}
	for bit := s.finder.find(s.in, 8*s.from, 8*s.to); bit >= 0 && !s.stopped.Load(); bit = s.finder.find(s.in, bit+1, 8*s.to) {
		s.d.startAt(s.in, bit)
		s.decode()
		if s.end > bit {
			s.start = bit
			return
		}
	}
}

// revoke makes sure that it does not run, or not much longer.
func (s *speculation) revoke() {
	s.stopped.Store(true)
	if !s.state.CompareAndSwap(specWaiting, specRevoked) {
		<-s.done
	}
}

// free reports whether nothing runs any more.
func (s *speculation) free() bool {
	if s.done == nil {
		return true
	}
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// size returns how much output there is.
func (s *speculation) size() int { return len(s.wide) + len(s.plain) }

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
	clean := pos // there is nothing unresolved from here to pos, as far as was looked
	for {
		s.end, s.wide = s.d.bit(), s.room[windowBytes:pos]
		if s.end >= 8*s.to || s.stopped.Load() {
			return
		}
		if clean = resolvedFrom(s.room, clean, pos); pos-clean >= windowBytes {
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
		if size > len(rest) || size > len(s.room)-pos {
			return pos, false
		}
		for i, b := range rest[:size] {
			s.room[pos+i] = uint16(b)
		}
		s.d.src.pos += size
		s.d.stage = stageBlock
		return pos + size, true
	case stageCodes:
		if len(s.d.src.buf)-s.d.src.pos < inSlack || len(s.room)-pos < outSlack {
			return pos, false
		}
		pos, result := s.d.wide(s.room, pos)
		s.d.stage = stageBlock
		return pos, result == fastEnd
	default:
		return pos, true
	}
}

// decodePlain goes on behind pos of the room as usual, now that the window is
// known: as bytes, with a window of bytes in front.
func (s *speculation) decodePlain(pos int) {
	room := asBytes(s.room[pos:])
	if len(room) < windowBytes+chunkBytes {
		return
	}
	for i, v := range s.room[pos-windowBytes : pos] {
		room[i] = byte(v)
	}
	out := output{buf: room, pos: windowBytes}
	s.plainPos = windowBytes
	for {
		// However it ends: what counts is the last block that atBlock saw.
		if err := s.d.run(&out, false); !errors.Is(err, errFlush) {
			break
		}
	}
	s.plain = room[windowBytes:s.plainPos]
	s.sumPlain = crc32.ChecksumIEEE(s.plain)
}

// atBlock remembers the block that starts, and ends the run behind the stretch.
func (s *speculation) atBlock(out *output) bool {
	s.end, s.plainPos = s.d.bit(), out.pos
	return s.end >= 8*s.to || s.stopped.Load()
}

// asBytes returns the memory of v.
func asBytes(v []uint16) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 2*len(v)) //nolint:gosec // exactly that memory
}

// resolvedFrom returns the first place of v[from:to] behind which there are but
// bytes, up to to.
func resolvedFrom(v []uint16, from, to int) int {
	for i := to; i > from; i-- {
		if v[i-1] >= unresolved {
			return i
		}
	}
	return from
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
