package layer

import (
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	zstdMagic         = 0xfd2fb528 // RFC 8878, section 3.1.1
	zstdSkippable     = 0x184d2a50 // section 3.1.2: the low four bits are free
	zstdSkippableMask = 0xfffffff0
	zstdLeastWindow   = 1 << 10
)

func isZstd(magic uint32) bool {
	return magic == zstdMagic || magic&zstdSkippableMask == zstdSkippable
}

// zstdReader reads all frames of a Zstandard stream, in the caller's goroutine.
// Decoders are not pooled: one would keep the largest window that it ever saw.
type zstdReader struct {
	z         *zstd.Decoder
	maxWindow int64
}

func newZstd(src io.Reader, maxWindow int64) (*zstdReader, error) {
	z, err := zstd.NewReader(src,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(max(maxWindow, zstdLeastWindow))),
	)
	if err != nil {
		return nil, err
	}
	return &zstdReader{z: z, maxWindow: maxWindow}, nil
}

// Read implements [io.Reader].
func (r *zstdReader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = &LimitError{What: "zstd window bytes", Limit: r.maxWindow, Got: r.maxWindow + 1}
	}
	return n, err
}

// Close implements [io.Closer].
func (r *zstdReader) Close() error {
	r.z.Close()
	return nil
}
