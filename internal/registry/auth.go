package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// authorizer keeps the grants for one repository at one endpoint. They are not
// shared any wider: a host that names another's token service in its challenge
// must not be given what was granted for the other.
type authorizer struct {
	turn chan struct{} // capacity 1; held while a grant is asked for, so that one caller asks

	mu     sync.Mutex // guards grants
	grants map[string]grant
}

// grant is the value of an Authorization header.
type grant struct {
	header    string
	expires   time.Time // zero: never
	challenge challenge // what it answered
	note      string    // why it was made without credentials; "" with them
}

func (c *Client) authorizerOf(e *endpoint) *authorizer {
	key := fmt.Sprintf("%s://%s%s/%s", e.scheme, e.host, e.prefix, e.repository)
	if e.access.Credentials != nil {
		key = fmt.Sprintf("%s %p", key, e.access.Credentials) // by identity: settings do not change
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return remembered(c.authorizers, key, maxAuthorizers, func() *authorizer {
		return &authorizer{turn: make(chan struct{}, 1), grants: map[string]grant{}}
	})
}

// current returns the grant for scope, without a header when nobody has asked
// for one yet. One that has expired is renewed first: that saves the refusal.
func (a *authorizer) current(ctx context.Context, e *endpoint, scope string) (grant, error) {
	g, ok := a.grant(scope)
	if !ok || !g.expired(e.client.now()) {
		return g, nil
	}
	return a.renew(ctx, e, scope, g.header, &Error{challenges: []challenge{g.challenge}, kind: ErrUnauthorized, Err: errors.New("grant has expired")})
}

func (a *authorizer) grant(scope string) (grant, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g, ok := a.grants[scope]
	return g, ok
}

func (g grant) expired(now time.Time) bool { return !g.expires.IsZero() && now.After(g.expires) }

// renew returns a grant with a header other than rejected, which the endpoint
// refused with the challenges in refused.
func (a *authorizer) renew(ctx context.Context, e *endpoint, scope, rejected string, refused *Error) (grant, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return grant{}, context.Cause(ctx)
	}
	old, ok := a.grant(scope)
	if ok && old.header != rejected && !old.expired(e.client.now()) {
		return old, nil // somebody else was faster
	}
	a.forget(scope)
	challenges := refused.challenges
	if len(challenges) == 0 && ok {
		challenges = []challenge{old.challenge} // a 403 need not say what it wants
	}
	g, err := e.answer(ctx, challenges, scope, refused)
	if err != nil {
		return grant{}, err
	}
	if g.header == rejected {
		return grant{}, refused
	}
	a.store(scope, g)
	return g, nil
}

func (a *authorizer) forget(scope string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.grants, scope)
}

func (a *authorizer) store(scope string, g grant) {
	const maxGrants = 64 // scopes of one repository: pull, push, mounts from others
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.grants) >= maxGrants {
		clear(a.grants)
	}
	a.grants[scope] = g
}

// answer makes a grant for the best of the challenges. Without credentials it
// tries without: what is public may be had all the same.
func (e *endpoint) answer(ctx context.Context, challenges []challenge, scope string, refused *Error) (grant, error) {
	if len(challenges) == 0 {
		return grant{}, refused
	}
	credentials, err := e.credentials(ctx)
	if ctx.Err() != nil {
		return grant{}, context.Cause(ctx)
	}
	note := ""
	if err != nil {
		note = err.Error()
	} else if credentials.empty() {
		note = "no credentials for " + e.keyHost + " were found"
	}
	final := *refused
	final.Hint = note
	var others []string
	for _, c := range challenges {
		switch c.scheme {
		case "bearer":
			g, err := e.bearer(ctx, c, scope, credentials)
			g.note = note
			if refused, ok := errors.AsType[*Error](err); ok && errors.Is(err, ErrUnauthorized) {
				refused.Hint = note
			}
			return g, err
		case "basic":
			// Credentials in the clear only where there is no better way.
		default:
			others = append(others, c.scheme)
		}
	}
	if len(others) == len(challenges) {
		final.Hint = "the registry asks for " + printable(strings.Join(others, ", ")) + ", which is not supported"
		return grant{}, &final
	}
	if credentials.Username == "" && credentials.Password == "" {
		return grant{}, &final
	}
	return grant{header: basic(credentials), challenge: challenge{scheme: "basic"}}, nil
}

func (e *endpoint) bearer(ctx context.Context, c challenge, scope string, credentials Credentials) (grant, error) {
	if credentials.RegistryToken != "" {
		return grant{header: "Bearer " + credentials.RegistryToken, challenge: c}, nil
	}
	return e.token(ctx, c, scope, credentials)
}

func basic(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}
