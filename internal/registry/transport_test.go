package registry

import (
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
)

func TestProxy(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	f.manifests["v1"] = []byte("{}")
	target, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	proxied := 0
	proxy := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		proxied++
		if r.Host != "registry.test" || r.Header.Get("Proxy-Authorization") == "" {
			t.Errorf("got request for %s with %q", r.Host, r.Header)
		}
		forward.ServeHTTP(w, r)
		return true
	})
	address, err := url.Parse("http://ann:geheim@" + proxy.host())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, Options{Proxy: func(*http.Request) (*url.URL, error) { return address, nil }})
	if err := resolve(t, open(t, c, "http://registry.test")); err != nil {
		t.Fatal(err)
	}
	if proxied != 1 {
		t.Errorf("proxy got %d requests, want 1", proxied)
	}
	proxy.Close()
	c = newClient(t, Options{Proxy: func(*http.Request) (*url.URL, error) { return address, nil }})
	if err := resolve(t, open(t, c, "http://registry.test")); !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), "geheim") {
		t.Errorf("got error %v", err)
	}
	bad := newClient(t, Options{Proxy: func(*http.Request) (*url.URL, error) { return nil, errors.New(`invalid proxy address "ann:geheim@"`) }})
	if err := resolve(t, open(t, bad, "http://registry.test")); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("got error %v", err)
	}
}

// Connections are used again: after a manifest, a challenge, a redirect and a
// blob there is still one to each host.
func TestConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	cdn := newFake(t, nil)
	d, content := cdn.add(300_000)
	connections := map[string]bool{}
	origin := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		connections[r.RemoteAddr] = true
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(strings.Repeat("no ", 1000)))
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	origin.manifests["v1"] = []byte("{}")
	c := newClient(t, Options{Hosts: []Host{{Match: ".", Access: Access{Credentials: &Credentials{Username: "ann", Password: "pw"}}}}})
	r := open(t, c, origin.URL)
	for range 3 {
		if err := resolve(t, r); err != nil {
			t.Fatal(err)
		}
		wantBlob(t, r, d, 0, content)
	}
	if len(connections) != 1 {
		t.Errorf("got %d connections, want 1", len(connections))
	}
}
