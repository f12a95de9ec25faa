package registry

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"dray/internal/stream"
)

// Lifetime of tokens (distribution, "Token Authentication Specification").
const (
	defaultTokenLife = 60 * time.Second // when the service names none
	maxTokenLife     = 24 * time.Hour
	clientID         = "dray"
)

// token asks the token service that c names for scope.
func (e *endpoint) token(ctx context.Context, c challenge, scope string, credentials Credentials) (grant, error) {
	base := e.url("", nil)
	realm, err := base.Parse(c.params["realm"])
	at := &http.Request{Method: http.MethodGet, URL: base}
	switch {
	case c.params["realm"] == "" || err != nil || realm.Host == "" || realm.Scheme != "http" && realm.Scheme != "https":
		return grant{}, protocolError(at, "challenge names no token service")
	case realm.User != nil:
		return grant{}, protocolError(at, "challenge names a token service with credentials")
	case realm.Scheme == "http" && e.scheme == "https":
		return grant{}, protocolError(at, "challenge names a token service without https: %s", bare(realm))
	}
	service := &endpoint{
		client: e.client, scheme: realm.Scheme, host: realm.Host, access: e.accessTo(realm.Host), mirror: e.mirror,
		health: e.client.healthOf(realm.Scheme + "://" + realm.Host),
	}
	k := tokenCall(realm, c, scopes(c, scope), credentials)
	authorization := ""
	if credentials.IdentityToken == "" && credentials.Username != "" {
		authorization = basic(credentials)
	}
	var g grant
	err = service.repeat(ctx, service.retries(), func() error {
		var err error
		g, err = service.askToken(ctx, k, authorization)
		return err
	})
	g.challenge = c
	return g, err
}

// tokenCall returns the request for a token: the refresh grant with an identity
// token, else a GET, which every service knows.
func tokenCall(realm *url.URL, c challenge, scopes []string, credentials Credentials) call {
	query := url.Values{}
	if service := c.params["service"]; service != "" {
		query.Set("service", service)
	}
	if credentials.IdentityToken != "" {
		query.Set("grant_type", "refresh_token")
		query.Set("refresh_token", credentials.IdentityToken)
		query.Set("client_id", clientID)
		query.Set("scope", strings.Join(scopes, " "))
		form := query.Encode()
		return call{
			method: http.MethodPost, url: realm, want: []int{http.StatusOK}, secret: true,
			header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
			body:   func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil },
			size:   int64(len(form)),
		}
	}
	if credentials.Username != "" {
		query.Set("account", credentials.Username)
		query.Set("client_id", clientID)
	}
	for _, s := range scopes {
		query.Add("scope", s)
	}
	target := *realm
	own := target.Query()
	maps.Copy(own, query)
	target.RawQuery = own.Encode()
	return call{method: http.MethodGet, url: &target, want: []int{http.StatusOK}}
}

// scopes returns what to ask for: what the challenge says, which may name the
// repository as a mirror knows it, and for more than reading also what the
// request needs, since registries name the least.
func scopes(c challenge, wanted string) []string {
	all := strings.Fields(c.params["scope"])
	reads := strings.HasSuffix(wanted, ":pull") && !strings.Contains(wanted, " ")
	if len(all) > 0 && reads {
		return all
	}
	for s := range strings.FieldsSeq(wanted) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

func (e *endpoint) askToken(ctx context.Context, k call, authorization string) (grant, error) {
	resp, err := e.follow(ctx, k, authorization)
	if err != nil {
		return grant{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	at := &http.Request{Method: k.method, URL: k.url}
	raw, err := stream.ReadAll(resp.Body, maxTokenBytes)
	if err != nil {
		return grant{}, &Error{Method: k.method, URL: bare(k.url), Err: err, kind: ErrUnreachable}
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if json.Unmarshal(raw, &answer) != nil {
		return grant{}, protocolError(at, "token service's answer is not JSON")
	}
	token := answer.Token
	if token == "" {
		token = answer.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return grant{}, protocolError(at, "token service's answer has no token")
	}
	life := min(time.Duration(max(answer.ExpiresIn, 0))*time.Second, maxTokenLife)
	if life <= 0 {
		life = defaultTokenLife
	}
	// Renewed a little early: it must still hold when the request arrives.
	return grant{header: "Bearer " + token, expires: e.client.now().Add(life * 9 / 10)}, nil
}
