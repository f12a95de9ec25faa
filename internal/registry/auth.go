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

// current returns the header to send for scope, "" when nobody has asked for one
// yet. A grant that has expired is renewed first: that saves the refusal.
func (a *authorizer) current(ctx context.Context, e *endpoint, scope string) (string, error) {
	g, ok := a.grant(scope)
	if !ok || !g.expired(e.client.now()) {
		return g.header, nil
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

// renew returns a header other than rejected, which the endpoint refused with
// the challenges in refused.
func (a *authorizer) renew(ctx context.Context, e *endpoint, scope, rejected string, refused *Error) (string, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	old, ok := a.grant(scope)
	if ok && old.header != rejected && !old.expired(e.client.now()) {
		return old.header, nil // somebody else was faster
	}
	a.store(scope, nil)
	challenges := refused.challenges
	if len(challenges) == 0 && ok {
		challenges = []challenge{old.challenge} // a 403 need not say what it wants
	}
	g, err := e.answer(ctx, challenges, scope, refused)
	if err != nil {
		return "", err
	}
	if g.header == rejected {
		return "", refused
	}
	a.store(scope, &g)
	return g.header, nil
}

func (a *authorizer) store(scope string, g *grant) {
	const maxGrants = 64 // scopes of one repository: pull, push, mounts from others
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.grants) >= maxGrants {
		clear(a.grants)
	}
	if g == nil {
		delete(a.grants, scope)
	} else {
		a.grants[scope] = *g
	}
}

// answer makes a grant for the best of the challenges.
func (e *endpoint) answer(ctx context.Context, challenges []challenge, scope string, refused *Error) (grant, error) {
	credentials, lookupErr := e.credentials(ctx)
	if ctx.Err() != nil {
		return grant{}, context.Cause(ctx)
	}
	refuse := func(why string) error {
		err := *refused
		err.Hint = why
		if lookupErr != nil {
			err.Hint += ": " + lookupErr.Error()
		}
		return &err
	}
	if lookupErr != nil && credentials == nil {
		credentials = &Credentials{} // public content may be had without
	}
	for _, c := range challenges {
		if c.scheme != "bearer" {
			continue
		}
		if credentials.RegistryToken != "" {
			return grant{header: "Bearer " + credentials.RegistryToken, challenge: c}, nil
		}
		g, err := e.token(ctx, c, scope, *credentials)
		if err != nil && errors.Is(err, ErrUnauthorized) && lookupErr != nil {
			return grant{}, errors.Join(err, lookupErr)
		}
		return g, err
	}
	for _, c := range challenges {
		if c.scheme != "basic" {
			continue
		}
		if credentials.Username == "" && credentials.Password == "" {
			return grant{}, refuse("no credentials for " + e.keyHost + " were found")
		}
		return grant{header: basic(*credentials), challenge: c}, nil
	}
	if len(challenges) == 0 {
		return grant{}, refused
	}
	return grant{}, refuse("the registry asks for " + printable(strings.Join(schemes(challenges), ", ")) + ", which is not supported")
}

func basic(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

func schemes(challenges []challenge) []string {
	var names []string
	for _, c := range challenges {
		names = append(names, c.scheme)
	}
	return names
}
