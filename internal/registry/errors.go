package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode"

	"dray/internal/stream"
)

// States that a caller handles. [*Error] has the details.
var (
	ErrNotFound     = errors.New("not found in the registry")             // 404: no such repository, manifest or blob
	ErrUnauthorized = errors.New("not authorized")                        // 401: no credentials, or wrong ones
	ErrDenied       = fmt.Errorf("access denied: %w", ErrUnauthorized)    // 403: known, but may not
	ErrUnreachable  = errors.New("registry unreachable")                  // name, connection, TLS, time-outs, 429 and 5xx after retries
	ErrProtocol     = errors.New("registry breaks the protocol")          // lies about ranges, redirects for ever, answers nonsense
	ErrBlocked      = errors.New("registry is blocked by its settings")   // Host.Blocked
	ErrNoRanges     = fmt.Errorf("no ranges are served: %w", ErrProtocol) // where exactly one was needed
	errAllOfIt      = errors.New("range request answered with all of it")
	errStalled      = errors.New("no progress within the time-out") // cause of a cancelled request
)

// Error is a request that failed.
type Error struct {
	Method  string
	URL     string // without user and query
	Status  int    // 0 when there was no response
	Code    string // the registry's own, as in "MANIFEST_UNKNOWN"; may be empty
	Message string // the registry's own, clipped; may be empty
	Err     error  // why there was no usable response; nil when Status says it
	Hint    string // what to try; may be empty

	kind       error // one of the sentinels, or nil
	retryAfter time.Duration
	challenges []challenge // of a 401
	elsewhere  bool        // refused by a host that the endpoint redirected to
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Method + " " + e.URL + ": ")
	switch {
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	case http.StatusText(e.Status) != "":
		fmt.Fprintf(&b, "%d %s", e.Status, http.StatusText(e.Status))
	default:
		fmt.Fprintf(&b, "status %d", e.Status)
	}
	for _, s := range []string{e.Code, e.Message} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap makes errors.Is find the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.kind, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// bare returns u as errors and logs may show it.
func bare(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return shown.String()
}

// protocolError is an answer that cannot be true.
func protocolError(req *http.Request, format string, args ...any) *Error {
	return &Error{Method: req.Method, URL: bare(req.URL), Err: fmt.Errorf(format, args...), kind: ErrProtocol}
}

// statusError reads what the registry says about a response that is not what
// was asked for. The caller closes the body.
func statusError(req *http.Request, resp *http.Response, now time.Time) *Error {
	e := &Error{Method: req.Method, URL: bare(req.URL), Status: resp.StatusCode}
	e.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), now)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		e.kind = ErrNotFound
	case resp.StatusCode == http.StatusUnauthorized:
		e.kind = ErrUnauthorized
	case resp.StatusCode == http.StatusForbidden:
		e.kind = ErrDenied
	case temporaryStatus(resp.StatusCode) || resp.StatusCode >= 500:
		e.kind = ErrUnreachable
	case resp.StatusCode < 400:
		e.kind = ErrProtocol
	}
	raw, _ := stream.ReadAll(resp.Body, maxErrorBodyBytes) // what there is of it
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &body) == nil && len(body.Errors) > 0 {
		e.Code, e.Message = printable(body.Errors[0].Code), printable(body.Errors[0].Message)
	} else if strings.Contains(string(raw), "HTTP request to an HTTPS server") {
		e.Hint = "the server speaks https: drop http:// and --plain-http"
	}
	return e
}

// printable clips a server's words and keeps them on one line.
func printable(s string) string {
	const longest = 200
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return strings.TrimSpace(s)
}

// transportError is a request without a response.
func transportError(req *http.Request, err error) *Error {
	if ours, ok := errors.AsType[*url.Error](err); ok {
		err = ours.Err // its text has the query
	}
	if errors.Is(err, io.EOF) { // which a reader of the blob would take for its end
		err = fmt.Errorf("connection closed without an answer: %w", io.ErrUnexpectedEOF)
	}
	e := &Error{Method: req.Method, URL: bare(req.URL), Err: err, kind: ErrUnreachable}
	host := req.URL.Host
	switch {
	case errors.Is(err, http.ErrSchemeMismatch) || isRecordHeader(err):
		e.Hint = fmt.Sprintf("the server does not speak https: if it may be trusted without, use --plain-http or http://%s/…", host)
	case isA[x509.HostnameError](err):
		e.Hint = "use the name that is in the certificate, or --insecure-skip-verify if the network may be trusted"
	case isA[x509.UnknownAuthorityError](err):
		e.Hint = fmt.Sprintf("put the authority's certificate into DIR/%s/ca.crt and use --cert-dir DIR", host)
	case isA[x509.CertificateInvalidError](err):
		e.Hint = "check the certificate's dates and this machine's clock"
	case strings.Contains(err.Error(), "malformed HTTP response \"\\x15\\x03"):
		e.Hint = "the server speaks https: drop http:// and --plain-http"
	case notFoundName(err):
		e.Hint = "check the host's name"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "nothing listens there: check host and port"
	}
	return e
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isRecordHeader(err error) bool { return isA[tls.RecordHeaderError](err) }

// isAlert recognizes a TLS handshake that one side refused.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "remote error" || op.Op == "local error")
}

func notFoundName(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

// temporaryStatus tells whether the same request may succeed later.
func temporaryStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// temporary tells whether a request that failed with err is worth repeating.
// reached says that the host has answered this client before: then even a
// refused connection or an unknown name is a fault that may pass.
func temporary(err error, reached bool) bool {
	if errors.Is(err, errStalled) {
		return true
	}
	if isA[*sourceError](err) || errors.Is(err, ErrProtocol) || errors.Is(err, stream.ErrMismatch) || errors.Is(err, stream.ErrTooLarge) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		return false
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return true // a body that broke off
	}
	switch {
	case e.elsewhere:
		return true
	case e.Status != 0:
		return temporaryStatus(e.Status)
	case e.kind != ErrUnreachable: //nolint:errorlint // identity of our own sentinel
		return false
	case isA[*tls.CertificateVerificationError](err), isRecordHeader(err), errors.Is(err, http.ErrSchemeMismatch):
		return false
	case notFoundName(err), errors.Is(err, syscall.ECONNREFUSED), isAlert(err):
		return reached
	}
	return true
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}
