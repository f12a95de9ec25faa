package layer

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// blockBytes is the unit of a tar.
const blockBytes = 512

// block is a header (POSIX.1-2024, pax, "ustar Interchange Format").
type block [blockBytes]byte

func (b *block) name() []byte     { return b[0:100] }
func (b *block) mode() []byte     { return b[100:108] }
func (b *block) uid() []byte      { return b[108:116] }
func (b *block) gid() []byte      { return b[116:124] }
func (b *block) size() []byte     { return b[124:136] }
func (b *block) mtime() []byte    { return b[136:148] }
func (b *block) checksum() []byte { return b[148:156] }
func (b *block) typeflag() byte   { return b[156] }
func (b *block) linkname() []byte { return b[157:257] }
func (b *block) magic() []byte    { return b[257:265] } // with the version
func (b *block) major() []byte    { return b[329:337] }
func (b *block) minor() []byte    { return b[337:345] }

// GNU's old headers.
func (b *block) gnuATime() []byte    { return b[345:357] }
func (b *block) gnuCTime() []byte    { return b[357:369] }
func (b *block) gnuSparse() []byte   { return b[386:482] }
func (b *block) gnuExtended() bool   { return b[482] != 0 }
func (b *block) gnuRealSize() []byte { return b[483:495] }

// format tells whose fields lie behind the ones that all share.
type format uint8

const (
	formatV7 format = iota
	formatUSTAR
	formatSTAR
	formatGNU
)

func (b *block) format() format {
	switch {
	case string(b[257:263]) == "ustar\x00" && string(b[508:512]) == "tar\x00":
		return formatSTAR
	case string(b[257:263]) == "ustar\x00":
		return formatUSTAR
	case string(b.magic()) == "ustar  \x00":
		return formatGNU
	}
	return formatV7
}

func (b *block) isZero() bool {
	return *b == block{}
}

// checksumOK accepts sums of unsigned bytes and, as old tars wrote them, of
// signed ones.
func (b *block) checksumOK() bool {
	want, ok := parseOctal(b.checksum())
	if !ok {
		return false
	}
	unsigned, negative := b.sum()
	return want == unsigned || want == unsigned-256*negative
}

// sum returns the sum of the bytes, the checksum's own taken as blanks, and how
// many are negative when signed. It adds 16-bit lanes, eight bytes at a time;
// no lane can overflow within a block.
func (b *block) sum() (unsigned, negative int64) {
	const (
		lanes    = 0x00ff00ff00ff00ff
		highBits = 0x8080808080808080
	)
	var sums uint64
	for i := 0; i < blockBytes; i += 8 {
		w := binary.LittleEndian.Uint64(b[i : i+8])
		sums += w&lanes + w>>8&lanes
		negative += int64(bits.OnesCount64(w & highBits))
	}
	// The lanes' sum can exceed 16 bits, so they are added one by one.
	for s := sums; s != 0; s >>= 16 {
		unsigned += int64(s & 0xffff)
	}
	for _, c := range b.checksum() {
		unsigned += ' ' - int64(c)
		negative -= int64(c >> 7)
	}
	return unsigned, negative
}

// prefix returns what the name is to be put behind, or nothing.
func (b *block) prefix(f format) []byte {
	switch f {
	case formatUSTAR:
		return cString(b[345:500])
	case formatSTAR:
		return cString(b[345:476])
	case formatGNU:
		// Go's tar writer before 1.8 put a prefix into headers that it marked as
		// GNU's, where times are. Layers from then still exist.
		_, aok := parseNumber(b.gnuATime())
		_, cok := parseNumber(b.gnuCTime())
		prefix := cString(b[345:500])
		if (aok || b.gnuATime()[0] == 0) && (cok || b.gnuCTime()[0] == 0) || !isASCII(prefix) {
			return nil
		}
		return prefix
	case formatV7:
	}
	return nil
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// cString returns b up to its first NUL.
func cString(b []byte) []byte {
	if before, _, ok := bytes.Cut(b, []byte{0}); ok {
		return before
	}
	return b
}

// parseNumber reads octal digits or, with the first bit set, a base-256 number
// in two's complement. An empty field is 0.
func parseNumber(b []byte) (int64, bool) {
	if b[0]&0x80 == 0 {
		return parseOctal(b)
	}
	// The first bit is the marker, the second the sign.
	fill := byte(0)
	if b[0]&0x40 != 0 {
		fill = 0xff
	}
	var v uint64
	for i, c := range b {
		c ^= fill
		if i == 0 {
			c &= 0x7f
		}
		if v>>55 != 0 { // the next byte would reach the sign
			return 0, false
		}
		v = v<<8 | uint64(c)
	}
	if fill != 0 {
		return ^int64(v), true
	}
	return int64(v), true
}

// parseOctal reads octal digits between blanks and NULs.
func parseOctal(b []byte) (int64, bool) {
	for len(b) > 0 && (b[0] == ' ' || b[0] == 0) {
		b = b[1:]
	}
	var v int64
	for i, c := range b {
		if c < '0' || c > '7' {
			// A NUL ends the number. Blanks may end it too, if nothing else follows.
			return v, c == 0 && i > 0 || len(bytes.Trim(b[i:], " \x00")) == 0
		}
		v = v<<3 | int64(c-'0') // at most 12 digits
	}
	return v, true
}
