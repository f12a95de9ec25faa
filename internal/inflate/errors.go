package inflate

import (
	"errors"
	"fmt"
)

var (
	// ErrHeader means that the input is not gzip where a gzip header must be.
	ErrHeader = errors.New("read gzip header: invalid header")

	// ErrTrailing means that at least one member was read and verified, and
	// that what follows it is not another one. It wraps [ErrHeader], which
	// compress/gzip returns for it; a caller that accepts padding tests it
	// first.
	ErrTrailing = fmt.Errorf("%w: trailing garbage after the last member", ErrHeader)

	// ErrChecksum means that a member's output does not have the CRC-32 or the
	// size that its trailer states.
	ErrChecksum = errors.New("verify gzip member: invalid checksum or size")

	// ErrClosed means that the reader was used after Close.
	ErrClosed = errors.New("read inflated stream: reader is closed")
)

// CorruptError reports input that is not valid DEFLATE.
type CorruptError struct {
	// Offset is the number of input bytes consumed when the error was found,
	// counted from where the reader started. The fault lies before it.
	Offset int64
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("inflate stream: corrupt input before offset %d", e.Offset)
}
