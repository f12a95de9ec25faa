package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// call is one request to an endpoint.
type call struct {
	method string
	url    *url.URL
	header http.Header
	body   func() (io.ReadCloser, error) // opened once per attempt; nil: none
	size   int64                         // of the body
	secret bool                          // the body is for the endpoint's own host only
	scope  string                        // what a token must allow
	slow   time.Duration                 // that the server may take for the answer beyond the time-out
	want   []int                         // statuses that are success
}

// send makes one attempt at k: it answers challenges and follows redirects, but
// repeats nothing. The caller closes the response's body. Errors are [*Error],
// those of the auth files, or of the context.
func (e *endpoint) send(ctx context.Context, k call) (*http.Response, error) {
	if e.foreign != nil {
		return e.follow(ctx, k, "")
	}
	granted, err := e.grants.current(ctx, e, k.scope)
	if err != nil {
		return nil, err
	}
	known := granted.header != ""
	for {
		resp, err := e.follow(ctx, k, granted.header)
		if err == nil {
			return resp, nil
		}
		refused, ok := errors.AsType[*Error](err)
		if !ok || refused.elsewhere || refused.Status != http.StatusUnauthorized && refused.Status != http.StatusForbidden {
			return nil, err
		}
		// 401 asks for a grant, or for a newer one; 403 may mean that the one we
		// remembered is too old. One that was made for this request is final.
		fresh := granted.header != "" && !known
		if fresh || refused.Status == http.StatusForbidden && !known {
			refused.Hint = granted.note
			return nil, err
		}
		if granted, err = e.grants.renew(ctx, e, k.scope, granted.header, refused); err != nil {
			return nil, err
		}
		known = false
	}
}

// follow sends k and goes where it is sent, up to maxRedirects times. The
// authorization goes to the endpoint's own scheme and host only.
func (e *endpoint) follow(ctx context.Context, k call, authorization string) (*http.Response, error) {
	target := k.url
	for range maxRedirects {
		own := target.Scheme == e.scheme && target.Host == e.host
		if k.secret && !own {
			return nil, &Error{Method: k.method, URL: bare(k.url), kind: ErrProtocol, Err: errors.New("redirected to another host with credentials")}
		}
		req, err := k.request(ctx, target)
		if err != nil {
			return nil, err
		}
		if own && authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		conn, err := e.connection(target.Host)
		if err != nil {
			return nil, err
		}
		resp, err := e.client.roundTrip(ctx, conn, req, e.client.options.Timeouts.Header+k.slow)
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, err
		}
		if own {
			e.health.reached.Store(true)
		}
		if slices.Contains(k.want, resp.StatusCode) {
			return resp, nil
		}
		next, err := e.judge(req, resp, own)
		_ = resp.Body.Close() // nothing more is wanted of it
		if err != nil {
			return nil, err
		}
		target = next
	}
	return nil, &Error{Method: k.method, URL: bare(k.url), kind: ErrProtocol, Err: errors.New("redirected too often")}
}

func (k *call) request(ctx context.Context, target *url.URL) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, k.method, target.String(), http.NoBody)
	if err != nil {
		return nil, &Error{Method: k.method, URL: bare(target), Err: errors.New("make request: bad address"), kind: ErrProtocol}
	}
	if k.header != nil {
		req.Header = k.header.Clone()
	}
	req.Header.Set("Accept-Encoding", "identity") // digests are of the bytes as they are stored
	if k.body != nil {
		if req.Body, err = k.body(); err != nil {
			return nil, err
		}
		req.ContentLength = k.size
		if k.size == 0 {
			_ = req.Body.Close() // an unread body of length 0 would be sent chunked
			req.Body = http.NoBody
		}
	}
	return req, nil
}

// judge returns where resp redirects to, or why it is an error.
func (e *endpoint) judge(req *http.Request, resp *http.Response, own bool) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		_, _ = io.CopyN(io.Discard, resp.Body, maxRedirectBytes) // lets the connection be used again
		return redirect(req, resp)
	}
	err := statusError(req, resp, e.client.now())
	err.challenges = parseChallenges(resp.Header.Values("WWW-Authenticate"))
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusGone:
		if !own { // an expired signature, as a rule: the endpoint gives a new one
			err.elsewhere, err.kind = true, ErrUnreachable
			err.Hint = "the registry redirected there"
		}
	}
	return nil, err
}

// redirect returns where resp, a redirect, leads.
func redirect(req *http.Request, resp *http.Response) (*url.URL, error) {
	if resp.StatusCode < http.StatusTemporaryRedirect && req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil, protocolError(req, "redirected with status %d, which would change the method", resp.StatusCode)
	}
	return location(req, resp)
}

// location reads the header of that name. It never leads from https to http; a
// registry behind a proxy that does not know its own scheme is put right.
func location(req *http.Request, resp *http.Response) (*url.URL, error) {
	header := resp.Header.Get("Location")
	next, err := req.URL.Parse(header)
	switch {
	case header == "" || err != nil || next.Host == "" || next.Scheme != "http" && next.Scheme != "https":
		return nil, protocolError(req, "sent to an address that is none") // which may hold secrets
	case next.User != nil:
		return nil, protocolError(req, "sent to an address with credentials")
	case next.Scheme == "http" && req.URL.Scheme == "https":
		if next.Host != req.URL.Host {
			return nil, protocolError(req, "sent from https to http")
		}
		next.Scheme = "https"
	}
	return next, nil
}

// connection returns the pool for host.
func (e *endpoint) connection(host string) (*http.Transport, error) {
	return e.client.connectionTo(strings.ToLower(host), e.accessTo(host), e.mirror)
}

// accessTo returns how host is spoken to: as the endpoint for its own and for
// hosts without settings, else by their settings.
func (e *endpoint) accessTo(host string) Access {
	if host == e.host {
		return e.access
	}
	other, _ := e.client.options.hostFor(host, "")
	if other == nil {
		return e.access
	}
	access := other.Access
	access.InsecureSkipVerify = access.InsecureSkipVerify || e.client.options.InsecureSkipVerify
	return access
}

// each tries the repository's endpoints in order until one succeeds. Any error of
// a mirror moves on; the origin's is final.
func (r *Repository) each(ctx context.Context, byDigest bool, try func(*endpoint) error) error {
	for _, e := range r.endpoints {
		if !e.mirror {
			return try(e)
		}
		if e.digestOnly && !byDigest || e.down() {
			continue
		}
		err := try(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.giveUp(ctx, err)
	}
	panic("registry: internal error: repository without an origin")
}

// retries returns how often a request is repeated: a mirror's is not, there are
// others.
func (e *endpoint) retries() int {
	if e.mirror {
		return 0
	}
	return e.client.options.Retry.Count
}

// down tells whether the mirror failed a moment ago.
func (e *endpoint) down() bool { return e.client.now().UnixNano() < e.health.downTill.Load() }

// giveUp says that another endpoint is used because of err.
func (e *endpoint) giveUp(ctx context.Context, err error) {
	if errors.Is(err, ErrUnreachable) || errors.Is(err, errStalled) {
		e.health.downTill.Store(e.client.now().Add(mirrorPenalty).UnixNano())
	}
	e.client.stats.fallbacks.Add(1)
	e.client.options.Log.LogAttrs(ctx, slog.LevelWarn, "endpoint failed, trying the next",
		slog.String("host", e.host), slog.String("reason", err.Error()))
}
