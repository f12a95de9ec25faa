package stream

import (
	"cmp"
	"errors"
	"fmt"
	"hash"
	"io"

	"dray/internal/oci"
)

// AnySize stands for a size that nobody promised.
const AnySize = -1

// ErrMismatch reports content that is not what its digest and size promise.
// [*MismatchError] has the details.
var ErrMismatch = errors.New("content does not match its digest")

// MismatchError tells what was promised and what came.
type MismatchError struct {
	What      string // "blob", "layer", "config": what the digest names
	Want, Got oci.Digest
	WantSize  int64 // bytes, or [AnySize]
	GotSize   int64 // bytes; when greater than WantSize, reading stopped there and Got is empty
}

// Error implements error.
func (e *MismatchError) Error() string {
	if e.WantSize != AnySize && e.GotSize != e.WantSize {
		if e.GotSize > e.WantSize {
			return fmt.Sprintf("verify %s %s: more than %d bytes", e.What, e.Want, e.WantSize)
		}
		return fmt.Sprintf("verify %s %s: %d bytes instead of %d", e.What, e.Want, e.GotSize, e.WantSize)
	}
	return fmt.Sprintf("verify %s %s: content has digest %s", e.What, e.Want, e.Got)
}

// Is makes every mismatch match [ErrMismatch].
func (e *MismatchError) Is(target error) bool { return target == ErrMismatch }

// Verifier passes a stream on and ends it with io.EOF only if all of it, to the
// last byte, has the promised digest and size. Until then nothing that was read
// may be made visible. It is an [io.Reader] over an io.Reader or [Blocks] over
// Blocks, whichever it was made of.
type Verifier struct {
	src    io.Reader
	blocks Blocks
	want   oci.Digest
	size   int64
	what   string
	hash   hash.Hash
	count  int64
	err    error
}

// NewVerifier returns a Verifier over src. size is in bytes, or [AnySize]; what
// names the content in errors. A source that goes on after size bytes is stopped
// there.
func NewVerifier(src io.Reader, what string, want oci.Digest, size int64) *Verifier {
	return &Verifier{src: src, want: want, size: size, what: what, hash: want.Hash()}
}

// NewBlockVerifier is [NewVerifier] for blocks: only [Verifier.Next] may be used.
func NewBlockVerifier(src Blocks, what string, want oci.Digest, size int64) *Verifier {
	return &Verifier{blocks: src, want: want, size: size, what: what, hash: want.Hash()}
}

// Count returns how many bytes have passed.
func (v *Verifier) Count() int64 { return v.count }

// Read implements [io.Reader].
func (v *Verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.src.Read(p)
	v.take(p[:n], err)
	return n, v.err
}

// Next implements [Blocks].
func (v *Verifier) Next() ([]byte, error) {
	if v.err != nil {
		return nil, v.err
	}
	block, err := v.blocks.Next()
	v.take(block, err)
	if len(block) > 0 && (v.err == nil || errors.Is(v.err, io.EOF)) {
		return block, nil
	}
	return nil, v.err
}

// take hashes p and turns the end of the source into the verdict.
func (v *Verifier) take(p []byte, err error) {
	if v.admit(len(p)) {
		_, _ = v.hash.Write(p) // hash.Hash never fails
		v.end(err)
	}
}

// admit counts bytes, and tells whether they are no more than was promised.
func (v *Verifier) admit(n int) bool {
	v.count += int64(n)
	if v.size != AnySize && v.count > v.size {
		v.err = &MismatchError{What: v.what, Want: v.want, WantSize: v.size, GotSize: v.count}
	}
	return v.err == nil
}

// end turns the end of the source, when all was hashed, into the verdict.
func (v *Verifier) end(err error) {
	if v.err != nil || !errors.Is(err, io.EOF) {
		v.err = cmp.Or(v.err, err)
		return
	}
	got := oci.DigestOf(v.want.Algorithm(), v.hash)
	if got != v.want || v.size != AnySize && v.count != v.size {
		v.err = &MismatchError{What: v.what, Want: v.want, Got: got, WantSize: v.size, GotSize: v.count}
		return
	}
	v.err = io.EOF
}
