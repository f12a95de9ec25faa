package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"dray/internal/stream"
)

// span reads [offset, end) of a blob over one connection at a time, mending
// what it can. Its first error is final.
type span struct {
	blob        *blob
	offset, end int64
	exact       bool // asks for exactly its bytes, and fails with ErrNoRanges where ranges are not served
	probe       bool // exact until that would fail: then the span goes on to the blob's end

	connect func() error      // opens body at offset; set by blob.span, with its context
	mend    func(error) error // waits, or changes the source, after a failure

	source   int           // index into blob.sources
	body     io.ReadCloser // nil when not connected
	left     int64         // bytes that body still owes
	whole    bool          // body tells its own end, so that a clean end means that there is no more
	failures int           // since progress
	progress int64         // offset at which failures were last counted anew
	fault    error         // what ended body, not mended yet: the bytes before it go out first
	err      error
}

func (b *blob) span(ctx context.Context, offset, end int64) *span {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &span{blob: b, offset: offset, end: end, source: b.first, progress: offset}
	s.mend = func(err error) error { return s.recover(ctx, err) }
	s.connect = func() error {
		for {
			err := s.request(ctx)
			if err == nil {
				return nil
			}
			if err := s.recover(ctx, err); err != nil {
				return err
			}
		}
	}
	return s
}

// Read implements [io.Reader].
func (s *span) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, s.err
	}
	for s.err == nil && s.offset < s.end {
		if s.body == nil {
			s.err = s.wrap(s.reconnect())
			continue
		}
		n, err := s.body.Read(p[:min(int64(len(p)), s.left)])
		s.offset += int64(n)
		s.left -= int64(n)
		if s.left == 0 || err != nil {
			s.disconnect()
		}
		if s.left > 0 && err != nil {
			s.fault = s.broken(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	if s.err == nil {
		s.err = io.EOF
	}
	return 0, s.err
}

// reconnect mends the fault, if there is one, and connects.
func (s *span) reconnect() error {
	if s.fault != nil {
		err := s.mend(s.fault)
		s.fault = nil
		if err != nil {
			return err
		}
	}
	return s.connect()
}

func (s *span) wrap(err error) error {
	if err == nil || errors.Is(err, ErrNoRanges) {
		return err
	}
	return fmt.Errorf("read blob %s of %s at %d: %w", s.blob.digest, s.blob.repository.name, s.offset, err)
}

// Close implements [io.Closer].
func (s *span) Close() error {
	s.disconnect()
	if s.err == nil {
		s.err = io.ErrClosedPipe
	}
	return nil
}

func (s *span) disconnect() {
	if s.body != nil {
		_ = s.body.Close() // read only
		s.body = nil
	}
}

// recover decides what to do about err: wait and try again, go on with the next
// source (both nil), or give up.
func (s *span) recover(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, ErrNoRanges) {
		return err
	}
	current := s.blob.sources[s.source]
	if s.offset-s.progress >= minProgressBytes {
		s.progress, s.failures = s.offset, 0
	}
	if s.failures < current.retries() && temporary(err, current.reached()) {
		s.failures++
		return current.pause(ctx, s.failures-1, err)
	}
	err = tried(err, s.failures+1)
	if s.source+1 == len(s.blob.sources) {
		return err
	}
	next := s.blob.sources[s.source+1]
	if next.foreign != nil && current.foreign == nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrUnauthorized) {
		return err // the registry has it: its fault is the one to tell
	}
	current.giveUp(ctx, err)
	s.source++
	s.failures, s.progress = 0, s.offset
	s.blob.mu.Lock()
	defer s.blob.mu.Unlock()
	s.blob.first = max(s.blob.first, s.source)
	return nil
}

// broken describes a body that ended before its time.
func (s *span) broken(err error) error {
	call := s.blob.sources[s.source].call
	e := &Error{Method: call.method, URL: bare(call.url), Err: err, kind: ErrUnreachable}
	if errors.Is(err, io.EOF) {
		e.Err = io.ErrUnexpectedEOF
		if s.whole {
			e.kind, e.Err = nil, s.mismatch(s.offset)
		}
	}
	return e
}

// mismatch says that the blob has another size than its descriptor says.
func (s *span) mismatch(sizeBytes int64) error {
	return &stream.MismatchError{What: "blob", Want: s.blob.digest, WantSize: s.blob.size, GotSize: sizeBytes}
}

// request opens body at offset.
func (s *span) request(ctx context.Context) error {
	src := s.blob.sources[s.source]
	k := src.call
	k.want = []int{http.StatusOK}
	ranged := s.exact || s.offset > 0 && !src.health.noRanges.Load()
	if ranged {
		k.want = []int{http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
		k.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", s.offset, s.end-1)}}
	}
	resp, err := src.fetch(ctx, k)
	if err != nil {
		if ranged && refusesRanges(err) {
			return s.withoutRanges(ctx, err)
		}
		return err
	}
	fail := func(kind, err error) error {
		_ = resp.Body.Close() // not what was asked for
		return &Error{Method: k.method, URL: bare(k.url), Err: err, kind: kind}
	}
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		_, _, total, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err == nil && total >= 0 && total != s.blob.size {
			return fail(nil, s.mismatch(total))
		}
		return s.withoutRanges(ctx, fail(ErrProtocol, errors.New("range refused that the blob has")))
	case resp.StatusCode == http.StatusPartialContent:
		length, err := s.checkRange(resp)
		if errors.Is(err, stream.ErrMismatch) {
			return fail(nil, err)
		}
		if err != nil {
			return s.withoutRanges(ctx, fail(ErrProtocol, err))
		}
		s.body, s.left, s.whole = resp.Body, length, false
		return nil
	case resp.ContentLength >= 0 && resp.ContentLength != s.blob.size:
		return fail(nil, s.mismatch(resp.ContentLength))
	case s.exact && !s.probe:
		return s.withoutRanges(ctx, fail(ErrProtocol, errAllOfIt))
	case ranged: // and may as well be taken
		src.distrust(ctx, errAllOfIt)
		s.widen()
	}
	s.whole = slices.Contains(resp.TransferEncoding, "chunked")
	if _, err := io.CopyN(io.Discard, resp.Body, s.offset); err != nil {
		if errors.Is(err, io.EOF) { // which would be taken for the blob's end
			err = io.ErrUnexpectedEOF
		}
		return fail(ErrUnreachable, fmt.Errorf("skip to offset %d: %w", s.offset, err))
	}
	s.body, s.left = resp.Body, s.end-s.offset
	return nil
}

// withoutRanges notes that the source cannot be trusted with ranges and goes on
// without, which a span that must be exact cannot.
func (s *span) withoutRanges(ctx context.Context, why error) error {
	s.blob.sources[s.source].distrust(ctx, why)
	s.widen()
	if s.exact {
		return ErrNoRanges
	}
	return s.request(ctx)
}

// widen makes a probe that found no ranges a plain reader of all that follows.
func (s *span) widen() {
	if s.probe {
		s.exact, s.probe, s.end = false, false, s.blob.size
	}
}

// checkRange returns how many bytes of the span a partial response has.
func (s *span) checkRange(resp *http.Response) (int64, error) {
	header := resp.Header.Get("Content-Range")
	first, last, total, err := parseContentRange(header)
	switch {
	case err != nil:
		return 0, err
	case total >= 0 && total != s.blob.size:
		return 0, s.mismatch(total)
	case first != s.offset || last >= s.end || s.exact && last != s.end-1,
		resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return 0, fmt.Errorf("asked for bytes %d-%d, got %q with %d bytes", s.offset, s.end-1, printable(header), resp.ContentLength)
	}
	return last - first + 1, nil
}

// parseContentRange reads "bytes FIRST-LAST/TOTAL", where TOTAL may be *, which
// is returned as -1, and "bytes */TOTAL", for which first and last are -1.
func parseContentRange(header string) (first, last, total int64, err error) {
	bad := fmt.Errorf("content range %q is not of bytes", printable(header))
	unit, rest, _ := strings.Cut(strings.TrimSpace(header), " ")
	span, size, ok := strings.Cut(strings.TrimSpace(rest), "/")
	if !strings.EqualFold(unit, "bytes") || !ok {
		return 0, 0, 0, bad
	}
	number := func(s string) int64 {
		n, parseErr := strconv.ParseUint(s, 10, 63)
		if parseErr != nil {
			err = bad
		}
		return int64(n)
	}
	first, last, total = -1, -1, -1
	if size != "*" {
		total = number(size)
	}
	if span != "*" {
		a, b, _ := strings.Cut(span, "-")
		first, last = number(a), number(b)
	}
	if err != nil || span == "*" && size == "*" || first > last || total >= 0 && last >= total {
		return 0, 0, 0, bad
	}
	return first, last, total, nil
}

// refusesRanges tells whether err is how servers without ranges may answer a
// request for one.
func refusesRanges(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && !e.elsewhere && (e.Status == http.StatusBadRequest || e.Status == http.StatusNotImplemented)
}
