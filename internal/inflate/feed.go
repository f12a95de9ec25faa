package inflate

import (
	"errors"
	"io"
)

// errDrained means that a feed which reads no further has given out all it has.
var errDrained = errors.New("inflate stream: feed drained")

// feed holds a stretch of the input in segments, of which each goes on with the
// first bytes of the next one, so that whoever decodes a segment has the rest of
// its last block on hand.
type feed struct {
	src         io.Reader
	segmentSize int // input from the start of one segment to that of the next
	tailSize    int // how much of the next one a segment has

	start  int64    // offset of the first segment in the input
	segs   [][]byte // consecutive; all but the last at the end of the input are full
	free   [][]byte // buffers of segments that were left behind
	err    error    // of src, behind the last segment
	closed bool     // src is not read any more

	leaving func(end int64) // called before the segment that ends at the offset is left behind
}

// segment returns the one that starts at the offset, nil if the input ends in
// front of it. The caller must not be behind it.
func (f *feed) segment(offset int64) []byte {
	i := int((offset - f.start) / int64(f.segmentSize))
	for len(f.segs) <= i {
		if !f.load() {
			return nil
		}
	}
	return f.segs[i]
}

// load reads another segment. It returns false if there is none.
func (f *feed) load() bool {
	var head []byte
	if n := len(f.segs); n > 0 {
		last := f.segs[n-1]
		head = last[min(len(last), f.segmentSize):]
		if len(head) == 0 {
			return false
		}
	}
	var buf []byte
	if n := len(f.free); n > 0 {
		buf, f.free = f.free[n-1], f.free[:n-1]
	} else {
		buf = make([]byte, f.segmentSize+f.tailSize)
	}
	n := copy(buf[:cap(buf)], head)
	buf = buf[:cap(buf)]
	for empty := 0; n < len(buf) && f.err == nil; {
		var m int
		m, f.err = f.src.Read(buf[n:])
		n += m
		if empty++; m > 0 {
			empty = 0
		} else if empty == maxEmptyReads && f.err == nil {
			f.err = io.ErrNoProgress
		}
	}
	if n == 0 {
		f.free = append(f.free, buf)
		return false
	}
	f.segs = append(f.segs, buf[:n])
	return true
}

// at returns the bytes on hand from the offset on, at least one, and leaves
// behind the segments in front of it.
func (f *feed) at(offset int64) ([]byte, error) {
	for offset >= f.start+int64(f.segmentSize) || len(f.segs) == 0 {
		if len(f.segs) < 2 && (f.closed || !f.load()) {
			break
		}
		if len(f.segs) > 1 {
			f.start += int64(f.segmentSize)
			f.leaving(f.start)
			f.free = append(f.free, f.segs[0])
			f.segs = append(f.segs[:0], f.segs[1:]...)
		}
	}
	if len(f.segs) > 0 {
		if rest := f.segs[0][min(int64(len(f.segs[0])), offset-f.start):]; len(rest) > 0 {
			return rest, nil
		}
	}
	if f.closed && f.err == nil {
		return nil, errDrained
	}
	return nil, f.err
}

// peek returns the next n bytes from the offset on, or as many as there are. It
// reads the source for them even if the feed is closed.
func (f *feed) peek(offset int64, n int) []byte {
	b, _ := f.at(offset)
	if len(b) < n && f.load() {
		b, _ = f.at(offset)
	}
	return b[:min(len(b), n)]
}
