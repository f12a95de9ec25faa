package estargz

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"dray/internal/inflate"
	"dray/internal/stream"
)

// ErrUnverified reports a chunk of which the TOC has no digest.
var ErrUnverified = errors.New("chunk without a digest")

// maxIdleDecoders is how many decoders a Reader keeps between reads.
const maxIdleDecoders = 4

// chunkDecoder decodes one chunk after another.
type chunkDecoder struct {
	in   *bufio.Reader
	gzip *inflate.Reader
	zstd *zstd.Decoder
}

// decoder returns an idle decoder, or a new one.
func (r *Reader) decoder() (*chunkDecoder, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.decoders); n > 0 {
		d := r.decoders[n-1]
		r.decoders = r.decoders[:n-1]
		return d, nil
	}
	d := &chunkDecoder{in: bufio.NewReaderSize(nil, readBufBytes)}
	var err error
	if r.footer.Format.zstd() {
		d.zstd, err = newZstd(nil)
	} else {
		d.gzip = inflate.NewReader(d.in)
	}
	return d, err
}

// release gives a decoder back.
func (r *Reader) release(d *chunkDecoder) {
	d.in.Reset(nil)
	r.mu.Lock()
	keep := len(r.decoders) < maxIdleDecoders
	if keep {
		r.decoders = append(r.decoders, d)
	}
	r.mu.Unlock()
	if !keep {
		d.close()
	}
}

func (d *chunkDecoder) close() {
	if d.zstd != nil {
		d.zstd.Close()
		return
	}
	_ = d.gzip.Close() // it has nothing to say
}

// Close gives the decoders' memory back; the source stays open. No other method
// may be running. It is idempotent and returns nil.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.decoders {
		d.close()
	}
	r.decoders = nil
	return nil
}

// open starts decoding at the chunk's member.
func (d *chunkDecoder) open(src io.Reader) (io.Reader, error) {
	d.in.Reset(src)
	if d.zstd != nil {
		return d.zstd, d.zstd.Reset(d.in)
	}
	d.gzip.Reset(d.in)
	return d.gzip, nil
}

// ReadChunk reads a chunk into p, which has its size, and verifies it. On error p
// holds nothing that may be used. Errors: [stream.ErrMismatch], [ErrUnverified],
// [ErrFormat], those of the source.
func (r *Reader) ReadChunk(c Chunk, p []byte) error {
	if int64(len(p)) != c.Size {
		panic("estargz: internal error: buffer is not of the chunk's size")
	}
	if c.Digest == "" {
		return fmt.Errorf("read chunk at %d: %w", c.Offset, ErrUnverified)
	}
	if err := r.fill(c, p); err != nil {
		return err
	}
	if got := digestOf(sumOf(p)); got != c.Digest {
		return &stream.MismatchError{What: "chunk", Want: c.Digest, Got: got, WantSize: c.Size, GotSize: c.Size}
	}
	return nil
}

// fill fills p with a chunk that has not been verified.
func (r *Reader) fill(c Chunk, p []byte) error {
	if c.Zeros {
		clear(p)
		return nil
	}
	return r.decode(c, p)
}

// decode fills p with what is at the chunk's place.
func (r *Reader) decode(c Chunk, p []byte) error {
	d, err := r.decoder()
	if err != nil {
		return err
	}
	defer r.release(d)
	src := &errorReader{r: io.NewSectionReader(r.src, c.Offset, c.EndOffset-c.Offset)}
	text, err := d.open(src)
	if err == nil {
		_, err = io.CopyN(io.Discard, text, c.InnerOffset)
	}
	if err == nil {
		_, err = io.ReadFull(text, p)
	}
	switch {
	case src.err != nil && err != nil:
		return fmt.Errorf("read chunk at %d: %w", c.Offset, src.err)
	case err != nil:
		return fmt.Errorf("read chunk at %d: %w: %w", c.Offset, ErrFormat, noEOF(err))
	}
	return nil
}

// errorReader remembers an error of the source.
type errorReader struct {
	r   io.Reader
	err error
}

func (e *errorReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

// ReadFileAt reads a file from off on, like [io.ReaderAt]. Every chunk it touches
// is read and verified as a whole.
func (r *Reader) ReadFileAt(e Entry, p []byte, off int64) (int, error) {
	e = r.Resolve(e)
	if off < 0 {
		return 0, fmt.Errorf("read %q: negative offset", clip(e.Name))
	}
	n := 0
	var buf []byte
	for i := r.chunkAt(e, off); i < e.ChunkCount && n < len(p); i++ {
		c := r.chunk(e, i)
		from := off + int64(n) - c.FileOffset
		if from == 0 && c.Size <= int64(len(p)-n) {
			if err := r.ReadChunk(c, p[n:][:c.Size]); err != nil {
				return n, err
			}
			n += int(c.Size)
			continue
		}
		if c.Size > r.limits.MaxChunkBytes {
			return n, malformed("%q has a chunk of %d bytes", clip(e.Name), c.Size)
		}
		if int64(cap(buf)) < c.Size {
			buf = make([]byte, c.Size)
		}
		if err := r.ReadChunk(c, buf[:c.Size]); err != nil {
			return n, err
		}
		n += copy(p[n:], buf[from:c.Size])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// chunkAt returns the chunk that holds the byte at off of a file.
func (r *Reader) chunkAt(e Entry, off int64) int {
	if off >= e.Size {
		return e.ChunkCount
	}
	n := &r.table.nodes[e.node]
	rows := r.table.chunks[n.first:][:n.count]
	low, high := 0, len(rows)
	for high-low > 1 {
		if mid := (low + high) / 2; rows[mid].fileOffset <= off {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}
