package inflate

import (
	"errors"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// chunkBytes is how much is decoded between two updates of the checksum,
	// so that it finds the output in the cache.
	chunkBytes = 64 << 10

	// DirectBytes is the smallest buffer for which Read decodes into it
	// rather than into the reader's own.
	DirectBytes = 64 << 10

	// StateBytes is the memory of a reader that has been read and not closed,
	// without the source's own.
	StateBytes = int(unsafe.Sizeof(state{}))
)

// format is what wraps the DEFLATE stream.
type format uint8

const (
	formatGzip format = iota
	formatRaw
)

// state is the part of a reader that is pooled.
type state struct {
	decoder
	input [inputBytes]byte
	// history starts with the window, its end at windowBytes, and goes on with
	// output that was not read yet: the room for small reads.
	history [windowBytes + chunkBytes + outSlack]byte
}

// Reader inflates a gzip or DEFLATE stream. The first error is final.
//
// A Read of fewer than [DirectBytes] returns what can be had without reading
// the source again; a larger one fills the buffer unless the stream ends, or
// the compressor flushed. Either way the content of the whole buffer past the
// bytes read is undefined.
type Reader struct {
	st     *state
	src    io.Reader
	format format
	err    error

	inMember bool   // the header was read, the trailer was not
	members  int    // trailers read
	verified int64  // input offset behind the last trailer
	trailing bool   // what follows it is no member
	flushed  bool   // the last decode ended at a flush
	sum      uint32 // CRC-32 of the member's output
	size     int64  // size of it
	out      int64  // output decoded, of all members

	resume         *Checkpoint // where to start; nil for the beginning
	every          int64       // output between two checkpoints
	record         func(*Checkpoint) error
	boundary       func(*output) error // called where atBlock ended a run
	nextCheckpoint int64               // output offset from which on one is due
	runStart       int                 // position in the output where the decoder was started

	sink output // where the decoder is, while it runs

	window     int // bytes of the member in the window, in front of start
	start, end int // output in history that was not read yet
}

// NewReader returns a reader of the gzip stream src, one or more members up to
// the end of src. It does no I/O. Of a [bufio.Reader], it takes no byte past
// the stream, and none of what [ErrTrailing] tells of. Close gives its memory back.
func NewReader(src io.Reader) *Reader {
	r := &Reader{format: formatGzip}
	r.Reset(src)
	return r
}

// NewRawReader returns a reader of the raw DEFLATE stream that src begins with,
// which ends with its last block, whatever follows. Otherwise it is as
// [NewReader].
func NewRawReader(src io.Reader) *Reader {
	r := &Reader{format: formatRaw}
	r.Reset(src)
	return r
}

// Reset makes r what it was when new, but reading from src. It keeps the
// memory that r has.
func (r *Reader) Reset(src io.Reader) {
	*r = Reader{st: r.st, src: src, format: r.format}
	if r.st != nil {
		r.st.src.reset(src)
	}
}

// Close gives the memory of r back. It does not close the source. After it, r
// can only be Reset.
func (r *Reader) Close() error {
	if r.st != nil {
		states.put(r.st)
	}
	*r = Reader{format: r.format, err: ErrClosed}
	return nil
}

// InputOffset returns the number of bytes of the source consumed so far:
// after [io.EOF], the size of the stream, and after [ErrTrailing], the size of
// its members.
func (r *Reader) InputOffset() int64 {
	switch {
	case r.trailing:
		return r.verified
	case r.st == nil:
		return 0
	}
	return r.st.src.offset()
}

// OutputOffset returns the number of bytes read from r.
func (r *Reader) OutputOffset() int64 {
	return r.out - int64(r.end-r.start)
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.start == r.end && r.err != nil {
		return 0, r.err
	}
	r.acquire()
	n := r.drain(p)
	switch {
	case r.err != nil:
	case len(p)-n >= DirectBytes:
		var direct int
		direct, r.err = r.decodeDirect(p[n:])
		n += direct
	default:
		for n == 0 && r.err == nil {
			r.err = r.decodeHistory()
			n = r.drain(p)
		}
	}
	r.st.src.release()
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// acquire takes the memory of r from the pool.
func (r *Reader) acquire() {
	if r.st == nil {
		r.st = states.get()
		r.st.src.reset(r.src)
	}
	if r.start != 0 {
		return
	}
	r.start, r.end = windowBytes, windowBytes
	r.st.begin()
	r.st.atBlock = nil
	if r.record != nil {
		r.st.atBlock, r.boundary = r.atBlock, r.takeCheckpoint
	}
	if r.resume != nil {
		r.restore(r.resume)
	}
}

// drain moves output that was not read yet to p.
func (r *Reader) drain(p []byte) int {
	n := copy(p, r.st.history[r.start:r.end])
	r.start += n
	return n
}

// decodeHistory decodes behind the output in history, all of which was read,
// without reading the source again once there is some.
func (r *Reader) decodeHistory() error {
	h := r.st.history[:]
	if len(h)-r.end < chunkBytes/2 {
		copy(h[windowBytes-r.window:windowBytes], h[r.end-r.window:r.end])
		r.start, r.end = windowBytes, windowBytes
	}
	r.sink = output{buf: h, pos: r.end, low: r.end - r.window}
	r.st.lazy = true
	err := r.decode(&r.sink, false)
	r.end = r.sink.pos
	r.sink = output{}
	return err
}

// decodeDirect decodes into p, and keeps its end as the window.
func (r *Reader) decodeDirect(p []byte) (int, error) {
	h, end := r.st.history[:], r.end
	r.sink = output{buf: p, ext: h[end-r.window : end]}
	out := &r.sink
	r.st.lazy = false
	var err error
	for err == nil && out.pos < len(p) {
		before := out.pos
		out.buf = p
		edge := len(p)-out.pos <= chunkBytes+outSlack
		if !edge {
			out.buf = p[:out.pos+chunkBytes+outSlack]
		}
		err = r.decode(out, edge)
		if r.flushed && out.pos > before {
			break
		}
	}
	n := out.pos
	r.sink = output{}
	if r.inMember && (err == nil || err == errTarget) { //nolint:errorlint // our own, never wrapped
		r.keepWindow(p[:n])
	}
	return n, err
}

// keepWindow moves the window in history on to the end of b, which was decoded
// behind what is in there.
func (r *Reader) keepWindow(b []byte) {
	h := r.st.history[:]
	fresh := min(r.window, len(b))
	copy(h[windowBytes-r.window:], h[r.end-(r.window-fresh):r.end])
	copy(h[windowBytes-fresh:windowBytes], b[len(b)-fresh:])
	r.start, r.end = windowBytes, windowBytes
}

// decode decodes members into out until it is full, or the source would have
// to be read, or the compressor flushed, and accounts for the output.
func (r *Reader) decode(out *output, edge bool) error {
	r.flushed = false
	for {
		if !r.inMember {
			if err := r.beginMember(); err != nil {
				return err
			}
			out.low, out.ext = out.pos, nil
		}
		before := out.pos
		r.runStart = before
		err := r.st.run(out, edge)
		r.account(out.buf[before:out.pos])
		switch {
		case errors.Is(err, io.EOF):
			if err := r.endMember(); err != nil {
				return err
			}
			if out.pos > before {
				return nil
			}
		case errors.Is(err, errFlush):
			r.flushed = true
			if out.pos > before {
				return nil
			}
		case errors.Is(err, errBoundary):
			if err := r.boundary(out); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// account adds b, which was decoded, to the checksum and the sizes.
func (r *Reader) account(b []byte) {
	if r.format == formatGzip {
		r.sum = crc32.Update(r.sum, crc32.IEEETable, b)
	}
	r.size += int64(len(b))
	r.out += int64(len(b))
	r.window = min(r.window+len(b), windowBytes)
}

// beginMember reads a member's header. It returns [io.EOF] if there is none.
func (r *Reader) beginMember() error {
	if r.format == formatRaw {
		if r.members > 0 {
			return io.EOF
		}
	} else {
		var err error
		if r.members > 0 {
			err = r.st.src.checkMagic()
		}
		if err == nil {
			err = r.st.src.header()
		}
		switch {
		case r.members == 0:
			err = noEOF(err)
		case errors.Is(err, errMagic):
			r.trailing = true
			err = ErrTrailing
		}
		if err != nil {
			return err
		}
	}
	r.st.begin()
	r.inMember, r.sum, r.size, r.window = true, 0, 0, 0
	return nil
}

// endMember reads and verifies a member's trailer.
func (r *Reader) endMember() error {
	if r.format == formatGzip {
		if err := r.st.src.trailer(r.sum, uint32(r.size)); err != nil {
			return err
		}
	}
	r.inMember = false
	r.members++
	r.verified = r.st.src.offset()
	return nil
}

// statePool is a pool that knows how many states are out.
type statePool struct {
	free sync.Pool
	out  atomic.Int64
}

var states statePool //nolint:gochecknoglobals // a pool is shared by its nature

func (p *statePool) get() *state {
	p.out.Add(1)
	st, ok := p.free.Get().(*state)
	if !ok {
		st = new(state)
		st.src.own = &st.input
	}
	return st
}

func (p *statePool) put(st *state) {
	st.src.reset(nil)
	st.atBlock = nil
	p.free.Put(st)
	p.out.Add(-1)
}
