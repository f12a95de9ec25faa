package registry

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// guarded asks for tokens that realm gives out, and knows those in valid.
type guarded struct {
	realm string // address of the token service; "" is the server's own /token
	mu    sync.Mutex
	valid map[string]bool
	asked []string // token requests: METHOD query-or-form authorization
	serve func(w http.ResponseWriter, r *http.Request, n int)
}

func (g *guarded) hook(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" {
		_ = r.ParseForm()
		g.mu.Lock()
		g.asked = append(g.asked, strings.TrimSpace(r.Method+" "+r.Form.Encode()+" "+r.Header.Get("Authorization")))
		n := len(g.asked)
		g.mu.Unlock()
		g.serve(w, r, n)
		return true
	}
	g.mu.Lock()
	valid := g.valid[r.Header.Get("Authorization")]
	g.mu.Unlock()
	if valid {
		return false
	}
	realm := g.realm
	if realm == "" {
		realm = "http://" + r.Host + "/token"
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="registry, of \"tests\"",scope="repository:team/app:pull"`)
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	return true
}

func (g *guarded) grant(token string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.valid == nil {
		g.valid = map[string]bool{}
	}
	g.valid["Bearer "+token] = true
}

func (g *guarded) requests() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.asked...)
}

const wantedQuery = "scope=repository%3Ateam%2Fapp%3Apull&service=registry%2C+of+%22tests%22"

func resolve(t *testing.T, r *Repository) error {
	t.Helper()
	_, _, err := r.Resolve(t.Context(), "v1", "")
	return err
}

func TestTokens(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		credentials *Credentials
		want        string
		answer      string
	}{
		{"anonymous", nil, "GET " + wantedQuery, `{"token":"good"}`},
		{"access_token", nil, "GET " + wantedQuery, `{"access_token":"good","expires_in":300}`},
		{
			"password",
			&Credentials{Username: "ann", Password: "pässword"},
			"GET account=ann&client_id=dray&" + wantedQuery + " Basic " + base64.StdEncoding.EncodeToString([]byte("ann:pässword")),
			`{"token":"good"}`,
		},
		{
			"identity token",
			&Credentials{Username: "ann", IdentityToken: "refresh"},
			"POST client_id=dray&grant_type=refresh_token&refresh_token=refresh&" + wantedQuery,
			`{"access_token":"good"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = io.WriteString(w, tt.answer) }}
			g.grant("good")
			f := newFake(t, g.hook)
			f.manifests["v1"] = []byte("{}")
			r := open(t, newClient(t, Options{Hosts: []Host{{Match: f.host(), Access: Access{Credentials: tt.credentials}}}}), f.URL)
			for range 3 {
				if err := resolve(t, r); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff([]string{tt.want}, g.requests()); diff != "" {
				t.Errorf("token requests (-want +got):\n%s", diff)
			}
			if got := len(f.seen()); got != 5 {
				t.Errorf("got %d requests, want 5: one challenge, one for a token, three manifests", got)
			}
		})
	}
}

func TestRegistryTokenIsSentAsItIs(t *testing.T) {
	t.Parallel()
	g := &guarded{serve: func(http.ResponseWriter, *http.Request, int) { t.Error("token service was asked") }}
	g.grant("own")
	f := newFake(t, g.hook)
	f.manifests["v1"] = []byte("{}")
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Access: Access{Credentials: &Credentials{RegistryToken: "own"}}}}})
	if err := resolve(t, open(t, c, f.URL)); err != nil {
		t.Fatal(err)
	}
}

// A token that has run out by its own account is renewed before it is refused.
func TestTokenIsRenewedWhenItExpires(t *testing.T) {
	t.Parallel()
	g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, n int) {
		_, _ = fmt.Fprintf(w, `{"token":"t%d","expires_in":600}`, n)
	}}
	g.grant("t1")
	g.grant("t2")
	f := newFake(t, g.hook)
	f.manifests["v1"] = []byte("{}")
	c := newClient(t, Options{})
	var passed atomic.Int64
	c.now = func() time.Time { return time.Unix(1e9+passed.Load(), 0) }
	r := open(t, c, f.URL)
	for _, seconds := range []int64{0, 500, 570, 600} {
		passed.Store(seconds)
		if err := resolve(t, r); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(g.requests()); got != 2 {
		t.Errorf("got %d tokens, want 2", got)
	}
	if got := len(f.seen()); got != 1+4+2 {
		t.Errorf("got %d requests, want one challenge, four manifests and two tokens", got)
	}
}

// A token that the registry no longer takes is renewed, once.
func TestTokenIsRenewedWhenItIsRefused(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, n int) { _, _ = fmt.Fprintf(w, `{"token":"t%d"}`, n) }}
		g.grant("t1")
		var refuse atomic.Bool
		f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if refuse.Load() && r.Header.Get("Authorization") == "Bearer t1" {
				w.WriteHeader(status)
				return true
			}
			return g.hook(w, r)
		})
		f.manifests["v1"] = []byte("{}")
		r := open(t, newClient(t, Options{}), f.URL)
		if err := resolve(t, r); err != nil {
			t.Fatal(err)
		}
		refuse.Store(true)
		g.grant("t2")
		if err := resolve(t, r); err != nil {
			t.Fatalf("after status %d: %v", status, err)
		}
		if got := len(g.requests()); got != 2 {
			t.Errorf("got %d tokens, want 2", got)
		}
	}
}

// Tokens that are never accepted are not asked for without end.
func TestChallengesWithoutEnd(t *testing.T) {
	t.Parallel()
	g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, n int) { _, _ = fmt.Fprintf(w, `{"token":"t%d"}`, n) }}
	f := newFake(t, g.hook)
	err := resolve(t, open(t, newClient(t, Options{}), f.URL))
	e := details(t, err, ErrUnauthorized)
	if e.Status != http.StatusUnauthorized || e.Code != "UNAUTHORIZED" || e.Message != "authentication required" {
		t.Errorf("got %+v", e)
	}
	if got := len(f.seen()); got != 3 {
		t.Errorf("got %d requests, want 3", got)
	}
}

func TestTokenServiceFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		serve func(w http.ResponseWriter)
		want  error
	}{
		{"refuses", func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) }, ErrUnauthorized},
		{"denies", func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }, ErrDenied},
		{"broken", func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, ErrUnreachable},
		{"no JSON", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") }, ErrProtocol},
		{"no token", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "{}") }, ErrProtocol},
		{"token with a line end", func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"token":"a\r\nX-Evil: 1"}`) }, ErrProtocol},
		{"endless", func(w http.ResponseWriter) {
			for range maxTokenBytes/1024 + 1 {
				_, _ = io.WriteString(w, strings.Repeat(" ", 1024))
			}
		}, ErrUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, _ int) { tt.serve(w) }}
			f := newFake(t, g.hook)
			c := newClient(t, Options{Hosts: []Host{{Match: ".", Access: Access{Credentials: &Credentials{Username: "ann", Password: "geheim"}}}}})
			err := resolve(t, open(t, c, f.URL))
			wantError(t, err, tt.want)
			for _, secret := range []string{"geheim", "scope="} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("error shows %q: %v", secret, err)
				}
			}
		})
	}
}

func TestTokenServiceWithoutTLSIsRefused(t *testing.T) {
	t.Parallel()
	plain := newFake(t, func(http.ResponseWriter, *http.Request) bool {
		t.Error("credentials were sent without TLS")
		return true
	})
	for _, realm := range []string{plain.URL + "/token", "ftp://x/", "", "https://user:pw@127.0.0.1/token"} {
		g := &guarded{realm: realm}
		f := newTLSFake(t, g.hook)
		if realm == "" {
			f.hook = func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("WWW-Authenticate", `Bearer service="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
		}
		c := newClient(t, Options{InsecureSkipVerify: true, Hosts: []Host{{Match: ".", Access: Access{Credentials: &Credentials{Username: "ann", Password: "pw"}}}}})
		wantError(t, resolve(t, open(t, c, f.URL)), ErrProtocol)
	}
}

// A registry that names another's token service, service and scope is not given
// what was granted for the other.
func TestGrantsAreNotShared(t *testing.T) {
	t.Parallel()
	g := &guarded{serve: func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"token":"secret"}`)
	}}
	g.grant("secret")
	honest := newFake(t, g.hook)
	honest.manifests["v1"] = []byte("{}")
	thief := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other registry's token was sent")
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+honest.URL+`/token",service="registry, of \"tests\"",scope="repository:team/app:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	c := newClient(t, Options{Hosts: []Host{{Match: honest.host(), Access: Access{Credentials: &Credentials{Username: "ann", Password: "pw"}}}}})
	if err := resolve(t, open(t, c, honest.URL)); err != nil {
		t.Fatal(err)
	}
	wantError(t, resolve(t, open(t, c, thief.URL)), ErrUnauthorized)
}

func TestOneTokenForManyRequests(t *testing.T) {
	t.Parallel()
	g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = io.WriteString(w, `{"token":"good"}`) }}
	g.grant("good")
	f := newFake(t, g.hook)
	f.manifests["v1"] = []byte("{}")
	r := open(t, newClient(t, Options{}), f.URL)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, _, err := r.Resolve(t.Context(), "v1", ""); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := len(g.requests()); got != 1 {
		t.Errorf("got %d token requests, want 1", got)
	}
}

func TestBasic(t *testing.T) {
	t.Parallel()
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		user, password, ok := r.BasicAuth()
		if ok && user == "ann" && password == "new" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="team"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	f.manifests["v1"] = []byte("{}")
	file := filepath.Join(t.TempDir(), "auth.json")
	write := func(password string) {
		auth := base64.StdEncoding.EncodeToString([]byte("ann:" + password))
		if err := os.WriteFile(file, []byte(`{"auths":{"`+f.host()+`":{"auth":"`+auth+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old")
	r := open(t, newClient(t, Options{AuthFiles: []string{file}}), f.URL)
	wantError(t, resolve(t, r), ErrUnauthorized)
	write("new") // the file is read again
	if err := resolve(t, r); err != nil {
		t.Fatal(err)
	}
	none := open(t, newClient(t, Options{}), f.URL)
	if e := details(t, resolve(t, none), ErrUnauthorized); !strings.Contains(e.Hint, "no credentials for "+f.host()) {
		t.Errorf("got hint %q", e.Hint)
	}
	missing := open(t, newClient(t, Options{AuthFiles: []string{file + ".not"}}), f.URL)
	if e := details(t, resolve(t, missing), ErrUnauthorized); !strings.Contains(e.Hint, "no such file") {
		t.Errorf("got hint %q, want it to name the file", e.Hint)
	}
}

func TestUnknownChallenge(t *testing.T) {
	t.Parallel()
	f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if e := details(t, resolve(t, open(t, newClient(t, Options{}), f.URL)), ErrUnauthorized); !strings.Contains(e.Hint, "negotiate") {
		t.Errorf("got hint %q", e.Hint)
	}
}

func TestScopes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, challenge, wanted string
		want                    []string
	}{
		{"none in the challenge", "", "repository:a:pull", []string{"repository:a:pull"}},
		{"a mirror's own name", "repository:proxy/a:pull", "repository:a:pull", []string{"repository:proxy/a:pull"}},
		{"less than is needed", "repository:a:pull", "repository:a:pull,push", []string{"repository:a:pull", "repository:a:pull,push"}},
		{"mount", "repository:a:pull,push", "repository:a:pull,push repository:b:pull", []string{"repository:a:pull,push", "repository:b:pull"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := scopes(challenge{params: map[string]string{"scope": tt.challenge}}, tt.wanted)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseChallenges(t *testing.T) {
	t.Parallel()
	type params = map[string]string
	for _, tt := range []struct {
		name string
		in   []string
		want []challenge
	}{
		{"none", nil, nil},
		{"basic", []string{`Basic realm="a b"`}, []challenge{{"basic", params{"realm": "a b"}}}},
		{"bearer", []string{`Bearer realm="https://x/t",service="s",scope="repository:a/b:pull,push"`}, []challenge{{"bearer", params{"realm": "https://x/t", "service": "s", "scope": "repository:a/b:pull,push"}}}},
		{"two in one header", []string{`Basic realm="a", Bearer realm="b" , service=c`}, []challenge{{"basic", params{"realm": "a"}}, {"bearer", params{"realm": "b", "service": "c"}}}},
		{"two headers", []string{`Negotiate`, `BEARER Realm="b"`}, []challenge{{"negotiate", params{}}, {"bearer", params{"realm": "b"}}}},
		{"escapes", []string{`Bearer realm="a\"b\\c"`}, []challenge{{"bearer", params{"realm": `a"b\c`}}}},
		{"without quotes", []string{`Bearer realm=https://x/t,service=s`}, []challenge{{"bearer", params{"realm": "https://x/t", "service": "s"}}}},
		{"twice the same", []string{`Bearer realm="a",realm="b"`}, []challenge{{"bearer", params{"realm": "a"}}}},
		{"no end of a string", []string{`Bearer realm="a`}, []challenge{{"bearer", params{}}}},
		{"parameter alone", []string{`realm="a"`}, nil},
		{"nonsense", []string{`""=, ,, =`}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, parseChallenges(tt.in), cmp.AllowUnexported(challenge{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{`Basic realm="a"`, `Bearer realm="https://x/t",service="s",scope="a b"`, `a b=c,d="e\"", F`, `"`, `=,=`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s, s}) {
			if c.scheme == "" || c.params == nil || c.scheme != strings.ToLower(c.scheme) {
				t.Errorf("parse %q: got %q", s, c)
			}
		}
	})
}

func TestErrorsShowNoSecrets(t *testing.T) {
	t.Parallel()
	u, err := url.Parse("https://user:password@host/v2/x?token=secret#frag")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := bare(u), "https://host/v2/x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	c := Credentials{Username: "ann", Password: "geheim"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, c); strings.Contains(got, "geheim") {
			t.Errorf("%s shows %s", format, got)
		}
		if got := fmt.Sprintf(format, Access{Credentials: &c}); strings.Contains(got, "geheim") {
			t.Errorf("%s shows %s", format, got)
		}
	}
}

// A private image asked for without credentials says so, even when the token
// service has given out a token that is of no use.
func TestAnonymousTokenIsExplained(t *testing.T) {
	t.Parallel()
	g := &guarded{serve: func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = io.WriteString(w, `{"token":"useless"}`) }}
	f := newFake(t, g.hook)
	e := details(t, resolve(t, open(t, newClient(t, Options{}), f.URL)), ErrUnauthorized)
	if want := "no credentials for " + f.host() + " were found"; e.Hint != want {
		t.Errorf("got hint %q, want %q", e.Hint, want)
	}
}

// An identity token goes to the token service that was named, and nowhere else.
func TestIdentityTokenIsNotRedirected(t *testing.T) {
	t.Parallel()
	thief := newFake(t, func(http.ResponseWriter, *http.Request) bool {
		t.Error("token service's redirect was followed")
		return true
	})
	g := &guarded{serve: func(w http.ResponseWriter, r *http.Request, _ int) {
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
	}}
	f := newFake(t, g.hook)
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Access: Access{Credentials: &Credentials{IdentityToken: "refresh"}}}}})
	wantError(t, resolve(t, open(t, c, f.URL)), ErrProtocol)
}
