package testkit

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Auth is how a registry wants to know its clients.
type Auth struct {
	User, Password string // "" lets everybody have a token
	IdentityToken  string // taken in place of a password, by OAuth2
	TokenUses      int    // requests that a token is good for; 0 for ever
	Lifetime       int    // expires_in of tokens in seconds; 0 leaves it out
}

// token is one that was given out.
type token struct {
	scope string
	uses  int
}

// Basic asks for user name and password.
func Basic(user, password string) Fault {
	return on("", func(_ *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="testkit"`)
			unauthorized(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Bearer asks for a token for the repository and action of the request, and gives
// tokens out at /token, by GET and by POST.
func Bearer(a Auth) Fault {
	return on("", func(s *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			s.serveToken(w, r, a)
			return
		}
		scope := scopeOf(r)
		value, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !s.spend(value, scope, a.TokenUses) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="testkit",scope="%s"`, s.URL, scope))
			unauthorized(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func unauthorized(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`))
}

// scopeOf returns what a token must allow for r; "" for /v2/ itself.
func scopeOf(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if name, _, ok := strings.Cut(path, kind); ok {
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				return "repository:" + name + ":pull"
			}
			return "repository:" + name + ":pull,push"
		}
	}
	return ""
}

// spend tells whether a token allows scope, and takes one of its uses.
func (s *Server) spend(value, scope string, uses int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[value]
	if t == nil || !strings.Contains(t.scope, strings.TrimSuffix(scope, ",push")) || uses > 0 && t.uses >= uses {
		return false
	}
	if strings.HasSuffix(scope, ",push") && !strings.Contains(t.scope, scope) {
		return false
	}
	t.uses++
	return true
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, a Auth) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Form.Get("service") != "testkit" || !a.admits(r) {
		unauthorized(w)
		return
	}
	t := &token{scope: strings.Join(r.Form["scope"], " ")}
	value := rand.Text()
	s.mu.Lock()
	s.tokens[value] = t
	s.mu.Unlock()
	answer := map[string]any{"token": value}
	if r.Method == http.MethodPost {
		answer = map[string]any{"access_token": value}
	}
	if a.Lifetime != 0 {
		answer["expires_in"] = a.Lifetime
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// admits tells whether the client may have a token.
func (a Auth) admits(r *http.Request) bool {
	if r.Method == http.MethodPost {
		switch r.PostForm.Get("grant_type") {
		case "refresh_token":
			return a.IdentityToken != "" && r.PostForm.Get("refresh_token") == a.IdentityToken
		case "password":
			return a.User != "" && r.PostForm.Get("username") == a.User && r.PostForm.Get("password") == a.Password
		}
		return false
	}
	user, password, given := r.BasicAuth()
	if !given {
		return a.User == "" && a.IdentityToken == ""
	}
	return a.User != "" && user == a.User && password == a.Password
}

// Redirect sends clients for matching GETs to another host, with a signed URL that
// is good for uses requests, or for ever for 0; then that host answers 403, as
// object storage does. Whether credentials came along is in [Server.Requests].
func Redirect(part string, uses int) Fault {
	return on(part, func(s *Server, w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		signature := rand.Text()
		s.mu.Lock()
		s.signed[signature] = uses
		s.mu.Unlock()
		to := url.URL{Scheme: "http", Host: s.StorageHost, Path: r.URL.Path, RawQuery: "X-Amz-Signature=" + signature}
		http.Redirect(w, r, to.String(), http.StatusTemporaryRedirect)
	})
}

// RedirectLoop redirects for ever.
func RedirectLoop(part string) Fault {
	return on(part, func(_ *Server, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, r.URL.Path+"?"+rand.Text(), http.StatusFound)
	})
}

// serveStorage is the host of [Redirect].
func (s *Server) serveStorage(w http.ResponseWriter, r *http.Request) {
	counted := &counter{ResponseWriter: w}
	defer s.record(r, counted, true)
	if !s.sign(r.URL.Query().Get("X-Amz-Signature")) || r.Header.Get("Authorization") != "" {
		counted.Header().Set("Content-Type", "application/xml")
		counted.WriteHeader(http.StatusForbidden)
		_, _ = counted.Write([]byte(`<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>`))
		return
	}
	s.chain(r.Method+" "+r.URL.Path, true).ServeHTTP(counted, r)
}

// sign takes one use of a signature.
func (s *Server) sign(signature string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	uses, known := s.signed[signature]
	switch {
	case !known:
		return false
	case uses == 1:
		delete(s.signed, signature)
	case uses > 1:
		s.signed[signature] = uses - 1
	}
	return true
}
