package inflate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// ErrCheckpoint means that bytes are not an encoded [Checkpoint].
var ErrCheckpoint = errors.New("decode checkpoint: invalid encoding")

// checkpointVersion is the first byte of an encoded [Checkpoint].
const checkpointVersion = 1

// Checkpoint is a place between two blocks of a stream from which a reader can
// start. A reader that starts there still verifies the whole member, as the
// checkpoint carries the checksum of what is in front of it.
type Checkpoint struct {
	// InputOffset is the number of bytes of the source in front of the
	// checkpoint: the reader that starts from it is given a source that starts
	// there.
	InputOffset int64

	// OutputOffset is the number of bytes of output in front of it.
	OutputOffset int64

	format  format
	bits    uint8 // bits of the byte in front that come behind, and their number
	nbits   uint8
	sum     uint32
	size    int64 // of the member, in front
	members int64 // in front, without that one
	window  []byte
}

// Checkpoints makes r record a checkpoint at the first block that starts every
// bytes of output or more after the last one. It is called before the first
// Read, and is undone by Reset. An error of record is final for r.
//
// A checkpoint holds a copy of the window, which is the memory of record. A
// stream that is one huge block has none.
func (r *Reader) Checkpoints(every int64, record func(*Checkpoint) error) {
	r.every, r.record = every, record
	r.nextCheckpoint = r.out + every
}

// NewReaderAt returns a reader that goes on from the checkpoint, of which src
// starts at InputOffset. The offsets that it reports count from the start of
// the stream. It verifies the member's trailer like any other reader.
func NewReaderAt(src io.Reader, c *Checkpoint) *Reader {
	return &Reader{
		src: src, format: c.format, resume: c,
		inMember: true, members: int(c.members), sum: c.sum, size: c.size, out: c.OutputOffset,
	}
}

// restore prepares the memory of r to go on from the checkpoint.
func (r *Reader) restore(c *Checkpoint) {
	r.st.src.base = c.InputOffset
	r.st.bits, r.st.nbits = uint64(c.bits), uint(c.nbits)
	r.window = copy(r.st.history[windowBytes-len(c.window):windowBytes], c.window)
}

// atBlock reports whether a checkpoint is due where a block starts.
func (r *Reader) atBlock(out *output) bool {
	return r.out+int64(out.pos-r.runStart) >= r.nextCheckpoint
}

// takeCheckpoint records where r is, at the start of a block.
func (r *Reader) takeCheckpoint(out *output) error {
	c := &Checkpoint{
		InputOffset: r.st.src.offset(), OutputOffset: r.out,
		format: r.format, bits: uint8(r.st.bits), nbits: uint8(r.st.nbits),
		sum: r.sum, size: r.size, members: int64(r.members),
		window: make([]byte, r.window),
	}
	out.tail(c.window)
	r.nextCheckpoint = r.out + r.every
	if err := r.record(c); err != nil {
		return fmt.Errorf("record checkpoint: %w", err)
	}
	return nil
}

// tail copies the end of the output to w, which must not be longer than what is
// at hand of it.
func (o *output) tail(w []byte) {
	n := min(len(w), o.pos-o.low)
	copy(w[len(w)-n:], o.buf[o.pos-n:o.pos])
	copy(w[:len(w)-n], o.ext[len(o.ext)-(len(w)-n):])
}

// AppendBinary appends the checkpoint's encoding to b. It implements
// encoding.BinaryAppender, and never fails.
func (c *Checkpoint) AppendBinary(b []byte) ([]byte, error) {
	start := len(b)
	b = append(b, checkpointVersion, byte(c.format), c.nbits, c.bits)
	for _, v := range []int64{c.InputOffset, c.OutputOffset, c.size, c.members, int64(c.sum), int64(len(c.window))} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	var packed bytes.Buffer
	// The stateless compressor needs no memory to speak of, and a window is
	// hardly more than it looks at.
	if err := flate.StatelessDeflate(&packed, c.window, true, nil); err != nil {
		return nil, fmt.Errorf("encode checkpoint: %w", err)
	}
	b = append(b, packed.Bytes()...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:])), nil
}

// UnmarshalBinary sets c to the checkpoint that b encodes, and nothing else. It
// implements encoding.BinaryUnmarshaler.
func (c *Checkpoint) UnmarshalBinary(b []byte) error {
	const fixed = 4
	if len(b) < fixed+crc32.Size || b[0] != checkpointVersion || b[1] > byte(formatRaw) || b[2] >= 8 || b[3]>>b[2] != 0 {
		return ErrCheckpoint
	}
	body := b[:len(b)-crc32.Size]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(b[len(body):]) {
		return ErrCheckpoint
	}
	*c = Checkpoint{format: format(b[1]), nbits: b[2], bits: b[3]}
	var sum, size int64
	rest := body[fixed:]
	for _, v := range []*int64{&c.InputOffset, &c.OutputOffset, &c.size, &c.members, &sum, &size} {
		u, n := binary.Uvarint(rest)
		if n <= 0 || int64(u) < 0 {
			return ErrCheckpoint
		}
		*v, rest = int64(u), rest[n:]
	}
	if sum > 1<<32-1 || size > windowBytes || size > c.size {
		return ErrCheckpoint
	}
	c.sum = uint32(sum)
	c.window = make([]byte, size)
	r := NewRawReader(bytes.NewReader(rest))
	defer func() { _ = r.Close() }()
	if _, err := io.ReadFull(r, c.window); err != nil {
		return ErrCheckpoint
	}
	var more [1]byte
	if _, err := io.ReadFull(r, more[:]); err != io.EOF || r.InputOffset() != int64(len(rest)) {
		return ErrCheckpoint
	}
	return nil
}
