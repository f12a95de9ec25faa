package estargz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// ErrFormat reports a blob, a TOC or a footer that is not what it must be.
var ErrFormat = errors.New("malformed seekable layer")

// ErrNoTOC reports a blob without a footer that dray knows: an ordinary layer.
var ErrNoTOC = errors.New("not a seekable layer")

// Format says how a blob tells where its TOC is.
type Format uint8

// The formats.
const (
	// EStargz is gzip, with the TOC as the last entry of the tar.
	EStargz Format = iota
	// EStargzExternal is gzip, with the TOC in a blob of its own.
	EStargzExternal
	// LegacyStargz is the predecessor of eStargz: its TOC has no digests of chunks,
	// and there are no landmarks.
	LegacyStargz
	// ZstdChunked is zstd with the TOC and the tar-split in skippable frames, as
	// containers/storage has it.
	ZstdChunked
	// ZstdChunkedContainerd is zstd with the TOC in a skippable frame, as
	// containerd's library has it.
	ZstdChunkedContainerd
)

// String returns the name of the format.
func (f Format) String() string {
	switch f {
	case EStargz:
		return "estargz"
	case EStargzExternal:
		return "estargz with external TOC"
	case LegacyStargz:
		return "stargz"
	case ZstdChunked:
		return "zstd:chunked"
	case ZstdChunkedContainerd:
		return "zstd:chunked of containerd"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// zstd tells which of the two compressions the format has.
func (f Format) zstd() bool { return f == ZstdChunked || f == ZstdChunkedContainerd }

// inTar tells whether the TOC is the last entry of the tar.
func (f Format) inTar() bool { return f == EStargz || f == LegacyStargz }

// Sizes of footers in bytes.
const (
	eStargzFooterBytes  = 51
	legacyFooterBytes   = 47
	externalFooterBytes = 46
	podmanFooterBytes   = 64
	oldZstdFooterBytes  = 40

	skippableBytes = 8 // the header of a skippable frame: magic and size

	// MaxFooterBytes is how much of a blob's end [ParseFooter] looks at.
	MaxFooterBytes = skippableBytes + podmanFooterBytes
)

const (
	podmanMagic     = "GNUlInUx"
	containerdMagic = "GnUlInUx"
	externalMagic   = "STARGZEXTERNALTOC"
	stargzMagic     = "STARGZ"
	tocType         = 1 // the only one that is defined

	skippableMagic = 0x184d2a50 // RFC 8878, section 3.1.2
)

// Span is a part of a blob that holds compressed bytes.
type Span struct {
	Offset  int64 // in the blob
	Size    int64 // compressed, in bytes
	RawSize int64 // uncompressed, in bytes; 0 if nobody said
}

// Footer says where things are.
type Footer struct {
	Format      Format
	TOC         Span // Size 0 if it is outside
	TarSplit    Span // of [ZstdChunked] only; Size 0 if there is none
	PayloadSize int64
}

// ParseFooter reads the footer from the last bytes of a blob of size bytes, of
// which tail has at least [MaxFooterBytes] or all. Errors wrap [ErrNoTOC], or
// [ErrFormat] for a footer that lies.
func ParseFooter(tail []byte, size int64) (Footer, error) {
	f, err := parseFooter(tail, size)
	if err != nil {
		return Footer{}, err
	}
	for _, s := range []Span{f.TOC, f.TarSplit} {
		if s.Offset < 0 || s.Size < 0 || s.RawSize < 0 || s.Offset > size || s.Size > size-s.Offset {
			return Footer{}, malformed("footer points to %d bytes at %d of a blob of %d", s.Size, s.Offset, size)
		}
	}
	if f.PayloadSize < 0 {
		return Footer{}, malformed("footer leaves no room for a tar")
	}
	return f, nil
}

func parseFooter(tail []byte, size int64) (Footer, error) {
	if end, ok := last(tail, podmanFooterBytes); ok && string(end[56:]) == podmanMagic {
		if !framed(tail, podmanFooterBytes) {
			return Footer{}, malformed("footer is not in a skippable frame")
		}
		f := Footer{Format: ZstdChunked, TOC: spanAt(end), TarSplit: spanAt(end[32:])}
		f.PayloadSize = f.TOC.Offset - skippableBytes
		return f, checkType(end)
	}
	if end, ok := last(tail, oldZstdFooterBytes); ok && string(end[32:]) == containerdMagic {
		if !framed(tail, oldZstdFooterBytes) {
			return Footer{}, malformed("footer is not in a skippable frame")
		}
		f := Footer{Format: ZstdChunkedContainerd, TOC: spanAt(end)}
		f.PayloadSize = f.TOC.Offset - skippableBytes
		return f, checkType(end)
	}
	if end, ok := last(tail, eStargzFooterBytes); ok && bytes.Equal(end[:16], gzipFooterHead(26, 22)) &&
		string(end[32:38]) == stargzMagic && bytes.Equal(end[38:], gzipFooterTail()) {
		return gzipFooterAt(EStargz, end[16:32], size-eStargzFooterBytes)
	}
	if end, ok := last(tail, externalFooterBytes); ok && bytes.Equal(end[:16], gzipFooterHead(21, 17)) &&
		string(end[16:33]) == externalMagic && bytes.Equal(end[33:], gzipFooterTail()) {
		return Footer{Format: EStargzExternal, PayloadSize: size - externalFooterBytes}, nil
	}
	// Its writer went through a deflate encoder, so the end may differ; the head decides.
	if end, ok := last(tail, legacyFooterBytes); ok && bytes.Equal(end[:4], gzipFooterHead(22, 0)[:4]) &&
		bytes.Equal(end[10:12], []byte{22, 0}) && string(end[28:34]) == stargzMagic {
		return gzipFooterAt(LegacyStargz, end[12:28], size-legacyFooterBytes)
	}
	return Footer{}, fmt.Errorf("read footer: %w", ErrNoTOC)
}

// malformed returns an error that wraps [ErrFormat].
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrFormat)
}

func last(b []byte, n int) ([]byte, bool) {
	if len(b) < n {
		return nil, false
	}
	return b[len(b)-n:], true
}

// framed tells whether the last n bytes are the content of a skippable frame.
func framed(tail []byte, n int) bool {
	frame, ok := last(tail, n+skippableBytes)
	return ok && binary.LittleEndian.Uint32(frame) == skippableMagic && binary.LittleEndian.Uint32(frame[4:]) == uint32(n)
}

// spanAt reads three numbers. Those beyond an int64 become negative and are refused.
func spanAt(b []byte) Span {
	number := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[8*i:])) }
	return Span{Offset: number(0), Size: number(1), RawSize: number(2)}
}

func checkType(footer []byte) error {
	if t := binary.LittleEndian.Uint64(footer[24:]); t != tocType {
		return malformed("TOC has the unknown type %d", t)
	}
	return nil
}

func gzipFooterAt(f Format, hexOffset []byte, end int64) (Footer, error) {
	offset, err := strconv.ParseInt(string(hexOffset), 16, 64)
	if err != nil || offset < 0 || offset > end {
		return Footer{}, malformed("footer says that the TOC is at %q", hexOffset)
	}
	return Footer{Format: f, TOC: Span{Offset: offset, Size: end - offset}, PayloadSize: offset}, nil
}

// gzipFooterHead returns the start of an empty gzip member with an extra field of
// xlen bytes, of which the one subfield has size bytes (RFC 1952, section 2.3.1).
func gzipFooterHead(xlen, size byte) []byte {
	return []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, xlen, 0, 'S', 'G', size, 0}
}

// gzipFooterTail returns the end of it: an empty stored block, sum and size.
func gzipFooterTail() []byte {
	return []byte{1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
}

// appendEStargzFooter appends the footer of a blob whose TOC is at offset.
func appendEStargzFooter(b []byte, offset int64) []byte {
	b = append(b, gzipFooterHead(26, 22)...)
	b = fmt.Appendf(b, "%016x%s", offset, stargzMagic)
	return append(b, gzipFooterTail()...)
}

// appendLegacyFooter appends the footer of a [LegacyStargz] blob whose TOC is at
// offset. Its extra field has no subfields, which RFC 1952 wants and no reader
// minds.
func appendLegacyFooter(b []byte, offset int64) []byte {
	b = append(b, gzipFooterHead(22, 0)[:12]...)
	b = fmt.Appendf(b, "%016x%s", offset, stargzMagic)
	return append(b, gzipFooterTail()...)
}

// appendExternalFooter appends the footer of a blob whose TOC is elsewhere.
func appendExternalFooter(b []byte) []byte {
	b = append(b, gzipFooterHead(21, 17)...)
	b = append(b, externalMagic...)
	return append(b, gzipFooterTail()...)
}

// appendZstdFooter appends the frame with the footer of f's flavour.
func appendZstdFooter(b []byte, f Footer) []byte {
	size, magic := oldZstdFooterBytes, containerdMagic
	if f.Format == ZstdChunked {
		size, magic = podmanFooterBytes, podmanMagic
	}
	b = appendSkippable(b, size)
	for _, n := range []int64{f.TOC.Offset, f.TOC.Size, f.TOC.RawSize, tocType} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	if f.Format == ZstdChunked {
		for _, n := range []int64{f.TarSplit.Offset, f.TarSplit.Size, f.TarSplit.RawSize} {
			b = binary.LittleEndian.AppendUint64(b, uint64(n))
		}
	}
	return append(b, magic...)
}

// appendSkippable appends the header of a skippable frame of size bytes.
func appendSkippable(b []byte, size int) []byte {
	b = binary.LittleEndian.AppendUint32(b, skippableMagic)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}
