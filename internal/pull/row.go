package pull

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"dray/internal/layer"
	"dray/internal/oci"
)

const (
	// requestsAhead is how many ranges are asked for before their turn: their first
	// bytes wait in the kernel meanwhile.
	requestsAhead = 4

	// gapBytes of the blob that have to be fetched are asked for before it is known
	// what follows, so that the network does not wait for the disk.
	gapBytes = 1 << 20

	// patience is the part of what was expected to be spared, one in so many, that may
	// have been other files, beyond what was right. Then the rest is fetched.
	patience = 2
)

// row is the tar of a [partial] layer: what is fetched and what is copied, in turn. What
// comes next is planned ahead, while what came before is read: a file is hashed before
// it takes the place of its part.
type row struct {
	ctx      context.Context //nolint:containedctx // of the layer, as a reader's has to be
	partial  *partial
	segments chan *segment // closed by plan
	reused   Reused        // set by plan
	failed   error         // likewise, before it closes segments

	reader  io.Reader // of current
	current *segment
	err     error
}

// segment is a range of the blob, or a part that a file takes the place of.
type segment struct {
	offset, size int64
	part         *placed // nil for a range
	from         candidate

	ready chan struct{} // closed by who opens the range, after the fields below are set
	body  io.ReadCloser
	err   error
}

func newRow(ctx context.Context, p *partial) *row {
	r := &row{ctx: ctx, partial: p, segments: make(chan *segment, requestsAhead)}
	go r.plan() // Close waits for it
	return r
}

// plan goes through the parts, and decides for each whether it is fetched.
func (r *row) plan() {
	defer close(r.segments)
	buf := make([]byte, plainBlockBytes)
	at, wrong, allowed := int64(0), int64(0), r.partial.known.sparedBytes/patience
	for i := range r.partial.parts {
		one := &r.partial.parts[i]
		if one.Offset-at >= gapBytes {
			if !r.fetch(at, one.Offset) {
				return
			}
			at = one.Offset
		}
		from, found, err := one.confirm(r.ctx, buf)
		if err != nil {
			r.failed = err
			return
		}
		if !found {
			if wrong += one.Stored(); wrong > r.reused.StoredBytes+allowed && !r.partial.engine.options.Reuse.always {
				break
			}
			continue
		}
		if !r.fetch(at, one.Offset) || !r.send(&segment{offset: one.Offset, size: one.Stored(), part: one, from: from}) {
			return
		}
		at = one.EndOffset
		r.reused.Files++
		r.reused.SizeBytes += one.Size
		r.reused.StoredBytes += one.Stored()
	}
	r.fetch(at, r.partial.footer.TarEnd(r.partial.flight.blob.Size))
}

// confirm returns the candidate that is the file, which it reads. An error is the end
// of ctx.
func (one *placed) confirm(ctx context.Context, buf []byte) (from candidate, found bool, err error) {
	for _, c := range one.candidates {
		same, err := c.is(ctx, one.Digest, buf)
		if same || err != nil {
			return c, same, err
		}
	}
	return from, false, nil
}

// is tells whether the candidate's content has the digest. What cannot be read has
// another; an error is the end of ctx.
func (c candidate) is(ctx context.Context, want oci.Digest, buf []byte) (bool, error) {
	file, err := c.files.Open(c.at, c.at.Size)
	if err != nil {
		return false, nil
	}
	defer func() { _ = file.Close() }()
	sum := sha256.New()
	if err := hashAll(ctx, sum, file, buf); err != nil {
		return false, context.Cause(ctx)
	}
	return oci.DigestOf(oci.SHA256, sum) == want, nil
}

func hashAll(ctx context.Context, sum hash.Hash, src io.Reader, buf []byte) error {
	for ctx.Err() == nil {
		n, err := src.Read(buf)
		_, _ = sum.Write(buf[:n]) // hashes never fail
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// fetch asks for a range, which may be empty, and puts it into the row. It returns
// false at the end of the context.
func (r *row) fetch(from, to int64) bool {
	if from == to {
		return true
	}
	one := &segment{offset: from, size: to - from, ready: make(chan struct{})}
	go func() { // whoever takes it out of the row waits for it
		defer close(one.ready)
		one.body, one.err = r.partial.open(r.ctx, one.offset, one.size)
	}()
	if r.send(one) {
		return true
	}
	one.close()
	return false
}

func (r *row) send(one *segment) bool {
	select {
	case r.segments <- one:
		return true
	case <-r.ctx.Done():
		r.failed = context.Cause(r.ctx)
		return false
	}
}

// close ends a segment. A range that is not there yet is waited for.
func (s *segment) close() {
	if s.ready != nil {
		<-s.ready
	}
	if s.body != nil {
		_ = s.body.Close() // read only
	}
}

// Read implements [io.Reader]. Its errors are [errParts].
func (r *row) Read(b []byte) (int, error) {
	for r.err == nil {
		if r.current == nil {
			r.err = r.advance()
			continue
		}
		n, err := r.reader.Read(b)
		if errors.Is(err, io.EOF) {
			r.current.close()
			r.current, err = nil, nil
		}
		r.err = marks(err)
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// advance goes on to the next segment.
func (r *row) advance() error {
	one, ok := <-r.segments
	if !ok {
		if r.failed != nil {
			return r.failed
		}
		return io.EOF
	}
	r.current = one
	if one.part != nil {
		var err error
		one.body, err = one.from.files.Open(one.from.at, one.part.Size)
		r.reader = one.body
		r.partial.flight.fetched.Add(one.size) // it counts as progress
		return marks(err)
	}
	<-one.ready // ends with the context
	if one.err != nil {
		return one.err
	}
	p, body := r.partial, &meter{src: one.body, flight: r.partial.flight}
	var err error
	if p.plain == nil {
		p.plain, err = layer.Decompress(body, p.decompress)
	} else {
		err = p.plain.Continue(body)
	}
	r.reader = p.plain
	return marks(err)
}

// Close waits for what was asked for, and gives it up. The context has ended.
func (r *row) Close() error {
	if r.current != nil {
		r.current.close()
		r.current = nil
	}
	for one := range r.segments {
		one.close()
	}
	return nil
}

// marks makes an error of reading parts of a layer an [errParts].
func marks(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", errParts, err)
	}
	return err
}

// metered counts what a body has had.
type metered struct {
	io.ReadCloser
	count *atomic.Int64
}

// Read implements [io.Reader].
func (m *metered) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.count.Add(int64(n))
	return n, err
}
