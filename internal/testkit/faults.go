package testkit

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"
)

// on makes a Fault of a function that answers instead of, or around, next. part is
// what "METHOD /path" must contain: "/blobs/", "GET /v2/app/manifests/".
func on(part string, answer func(s *Server, w http.ResponseWriter, r *http.Request, next http.Handler)) Fault {
	return Fault{match: part, wrap: func(s *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(s, w, r, next) })
	}}
}

// Status answers with an error; headers are pairs.
//
//	testkit.Status("/blobs/", 429, "Retry-After", "1").Times(2)
func Status(part string, status int, headers ...string) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":"UNKNOWN","message":"testkit answers %d"}]}`, status)
	})
}

// Stall sends the first sizeBytes of the body and then nothing, without an end.
func Stall(part string, sizeBytes int64) Fault {
	return body(part, func(s *Server, r *http.Request) filter {
		left := sizeBytes
		return func(w io.Writer, p []byte) error {
			if int64(len(p)) <= left {
				left -= int64(len(p))
				_, err := w.Write(p)
				return err
			}
			_, _ = w.Write(p[:left])
			flush(w)
			select {
			case <-r.Context().Done():
			case <-s.closing:
			}
			panic(http.ErrAbortHandler)
		}
	})
}

// Hang does not answer at all.
func Hang(part string) Fault {
	return on(part, func(s *Server, _ http.ResponseWriter, r *http.Request, _ http.Handler) {
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
		panic(http.ErrAbortHandler)
	})
}

// Cut sends the first sizeBytes of the body and drops the connection.
func Cut(part string, sizeBytes int64) Fault {
	return body(part, func(*Server, *http.Request) filter {
		left := sizeBytes
		return func(w io.Writer, p []byte) error {
			n := min(int64(len(p)), left)
			left -= n
			if _, err := w.Write(p[:n]); err != nil {
				return err
			}
			if n < int64(len(p)) {
				flush(w)
				panic(http.ErrAbortHandler)
			}
			return nil
		}
	})
}

// Slow sends the body in pieces of pieceBytes, one each interval.
func Slow(part string, pieceBytes int, interval time.Duration) Fault {
	return SlowUntil(nil, part, pieceBytes, interval)
}

// SlowUntil is [Slow] until enough is closed, and then sends the rest.
func SlowUntil(enough <-chan struct{}, part string, pieceBytes int, interval time.Duration) Fault {
	return body(part, func(s *Server, r *http.Request) filter {
		return func(w io.Writer, p []byte) error {
			for len(p) > 0 {
				n := min(len(p), pieceBytes)
				if _, err := w.Write(p[:n]); err != nil {
					return err
				}
				p = p[n:]
				flush(w)
				timer := time.NewTimer(interval)
				select {
				case <-timer.C:
				case <-enough:
				case <-r.Context().Done():
				case <-s.closing:
				}
				timer.Stop()
			}
			return nil
		}
	})
}

// Flip changes one bit of the body, at offset or in its last byte.
func Flip(part string, offset int64) Fault {
	return body(part, func(*Server, *http.Request) filter {
		at := offset
		return func(w io.Writer, p []byte) error {
			if 0 <= at && at < int64(len(p)) {
				p = bytes.Clone(p)
				p[at] ^= 1
			}
			at -= int64(len(p))
			_, err := w.Write(p)
			return err
		}
	})
}

// filter passes a piece of a body on, changed.
type filter func(w io.Writer, p []byte) error

// body makes a Fault that sees the body on its way. Errors pass unchanged.
func body(part string, begin func(*Server, *http.Request) filter) Fault {
	return on(part, func(s *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&filtered{ResponseWriter: w, pass: begin(s, r)}, r)
	})
}

type filtered struct {
	http.ResponseWriter
	status int
	pass   filter
}

func (f *filtered) WriteHeader(status int) {
	f.status = status
	f.ResponseWriter.WriteHeader(status)
}

func (f *filtered) Write(p []byte) (int, error) {
	if f.status >= http.StatusMultipleChoices {
		return f.ResponseWriter.Write(p)
	}
	return len(p), f.pass(f.ResponseWriter, p)
}

// Unwrap is for [http.ResponseController].
func (f *filtered) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// flush sends what was written; what cannot be flushed is on its way already.
func flush(w io.Writer) {
	if rw, ok := w.(http.ResponseWriter); ok {
		_ = http.NewResponseController(rw).Flush()
	}
}

// Resize answers with a body that is sizeBytes longer or, below zero, shorter than
// it should be; its headers agree with it, as if the registry had stored it so.
func Resize(part string, sizeBytes int) Fault {
	return Replace(part, func(old []byte) []byte {
		if sizeBytes < 0 {
			return old[:max(0, len(old)+sizeBytes)]
		}
		return append(old, bytes.Repeat([]byte("+"), sizeBytes)...)
	})
}

// Replace changes the whole body, and its length with it. It holds the body in
// memory: for small ones.
//
//	testkit.Replace("/manifests/", func([]byte) []byte { return []byte("<html>") })
func Replace(part string, change func([]byte) []byte) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		maps.Copy(w.Header(), recorder.Header())
		raw := recorder.Body.Bytes()
		if recorder.Code < http.StatusMultipleChoices {
			raw = change(raw)
		}
		if r.Method != http.MethodHead {
			w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
		}
		w.WriteHeader(recorder.Code)
		_, _ = w.Write(raw)
	})
}

// Garbage answers with bytes that are nothing, as many as there should be.
func Garbage(part string) Fault {
	return body(part, func(*Server, *http.Request) filter {
		return func(w io.Writer, p []byte) error {
			_, err := w.Write(bytes.Repeat([]byte{0xa5}, len(p)))
			return err
		}
	})
}

// NoRanges answers requests for a range with the whole, and never speaks of ranges.
func NoRanges(part string) Fault {
	return headers(part, func(r *http.Request) { r.Header.Del("Range") }, func(h http.Header) { h.Del("Accept-Ranges") })
}

// NoMultiRanges refuses requests for several ranges with 400.
func NoMultiRanges(part string) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.Header.Get("Range"), ",") {
			http.Error(w, "only one range", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ContentRange lies about the range in a 206; "" leaves the header out.
//
//	testkit.ContentRange("/blobs/", "bytes 0-9/10")
func ContentRange(part, value string) Fault {
	return headers(part, nil, func(h http.Header) {
		if h.Get("Content-Range") == "" {
			return
		}
		h.Set("Content-Range", value)
		if value == "" {
			h.Del("Content-Range")
		}
	})
}

// ShiftRange sends bytes from shift further on than the range asked for, and says
// that they are those that were asked for.
func ShiftRange(part string, shift int64) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		var from, to int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n != 2 {
			next.ServeHTTP(w, r)
			return
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from+shift, to+shift))
		next.ServeHTTP(&edited{ResponseWriter: w, edit: func(h http.Header) {
			_, total, _ := strings.Cut(h.Get("Content-Range"), "/")
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", from, to, total))
		}}, r)
	})
}

// ContentType answers with another media type; "" leaves the header out.
func ContentType(part, mediaType string) Fault {
	return headers(part, nil, func(h http.Header) {
		if h["Content-Type"] = nil; mediaType != "" {
			h.Set("Content-Type", mediaType)
		}
	})
}

// ContentDigest answers with another Docker-Content-Digest; "" leaves it out.
func ContentDigest(part, digest string) Fault {
	return headers(part, nil, func(h http.Header) {
		if h.Set("Docker-Content-Digest", digest); digest == "" {
			h.Del("Docker-Content-Digest")
		}
	})
}

// HugeHeaders answers with sizeBytes of headers more.
func HugeHeaders(part string, sizeBytes int) Fault {
	return headers(part, nil, func(h http.Header) { h.Set("X-Huge", strings.Repeat("x", sizeBytes)) })
}

// NoLength answers without a Content-Length, in chunks.
func NoLength(part string) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		edit := &edited{ResponseWriter: w, edit: func(h http.Header) { h.Del("Content-Length") }}
		next.ServeHTTP(&filtered{ResponseWriter: edit, pass: func(w io.Writer, p []byte) error {
			_, err := w.Write(p)
			flush(w) // before the server knows that this is all
			return err
		}}, r)
	})
}

// headers makes a Fault that edits the request and the answer's headers.
func headers(part string, request func(*http.Request), answer func(http.Header)) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if request != nil {
			request(r)
		}
		next.ServeHTTP(&edited{ResponseWriter: w, edit: answer}, r)
	})
}

type edited struct {
	http.ResponseWriter
	edit func(http.Header)
	done bool
}

func (e *edited) WriteHeader(status int) {
	if !e.done && status < http.StatusMultipleChoices {
		e.edit(e.Header())
	}
	e.done = true
	e.ResponseWriter.WriteHeader(status)
}

func (e *edited) Write(p []byte) (int, error) {
	if !e.done {
		e.WriteHeader(http.StatusOK)
	}
	return e.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (e *edited) Unwrap() http.ResponseWriter { return e.ResponseWriter }
