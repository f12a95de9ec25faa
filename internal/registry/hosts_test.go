package registry

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
)

func TestHostFor(t *testing.T) {
	t.Parallel()
	all := []string{
		".", ".com", ".example.com", ".some.example.com", "ghcr.io.", "ghcr.io", "ghcr.io/team", "ghcr.io/team/app",
		"exact.example.com.", "localhost:5000", "127.0.0.1.", "[::1]:5000", "index.docker.io.", "*.wild.org", "*.wild.net/team",
	}
	var o Options
	for _, m := range all {
		o.Hosts = append(o.Hosts, Host{Match: m})
	}
	for _, tt := range []struct{ host, repository, want string }{
		{"unknown", "a", "."},
		{"example.org", "a", "."},
		{"example.com", "a", ".com"},
		{"some.example.com", "a", ".example.com"},
		{"a.other.example.com", "a", ".example.com"},
		{"notexample.com", "a", ".com"},
		{"exact.example.com", "a", "exact.example.com."},
		{"not.exact.example.com", "a", ".example.com"},
		{"x.some.example.com", "a", ".some.example.com"},
		{"some.example.com:8443", "a", ".example.com"},
		{"ghcr.io", "other", "ghcr.io"},
		{"GHCR.io", "other", "ghcr.io"},
		{"ghcr.io:444", "other", "ghcr.io."},
		{"ghcr.io.", "other", "ghcr.io."},
		{"ghcr.io", "team", "ghcr.io/team"},
		{"ghcr.io", "team/other", "ghcr.io/team"},
		{"ghcr.io", "team/app", "ghcr.io/team/app"},
		{"ghcr.io", "team/app/sub", "ghcr.io/team/app"},
		{"ghcr.io", "teams", "ghcr.io"},
		{"foo.io", "ghcr.io/team", "."},
		{"localhost:5000", "a", "localhost:5000"},
		{"localhost:5001", "a", "."},
		{"localhost", "a", "."},
		{"127.0.0.1:5000", "a", "127.0.0.1."},
		{"[::1]:5000", "a", "[::1]:5000"},
		{"docker.io", "library/nginx", "index.docker.io."},
		{"a.wild.org", "x", "*.wild.org"},
		{"wild.org", "x", "."},
		{"a.wild.net", "team/x", "*.wild.net/team"},
		{"a.wild.net", "teams", "."},
	} {
		got, _ := o.hostFor(tt.host, tt.repository)
		if got == nil || got.Match != tt.want {
			t.Errorf("%s/%s: got %+v, want %q", tt.host, tt.repository, got, tt.want)
		}
	}
	if got, _ := (&Options{}).hostFor("x", "y"); got != nil {
		t.Errorf("got %+v without settings", got)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		options Options
		ref     string
		want    []string
	}{
		{"Docker Hub", Options{}, "nginx", []string{"https://registry-1.docker.io/v2/library/nginx/x"}},
		{"host", Options{}, "ghcr.io/a/b", []string{"https://ghcr.io/v2/a/b/x"}},
		{"loopback is not plain by itself", Options{}, "127.0.0.1:5000/a", []string{"https://127.0.0.1:5000/v2/a/x"}},
		{"plain by reference", Options{}, "http://127.0.0.1:5000/a", []string{"http://127.0.0.1:5000/v2/a/x"}},
		{"plain by option", Options{PlainHTTP: true}, "ghcr.io/a", []string{"http://ghcr.io/v2/a/x"}},
		{"plain by host", Options{Hosts: []Host{{Match: "ghcr.io", Access: Access{PlainHTTP: true}}}}, "ghcr.io/a", []string{"http://ghcr.io/v2/a/x"}},
		{
			"mirrors",
			Options{Hosts: []Host{{Match: "docker.io.", Mirrors: []Mirror{{URL: "http://m.io:81/hub/"}, {URL: "https://n.io/v2"}, {Location: "o.io/cache"}}}}},
			"nginx",
			[]string{
				"http://m.io:81/hub/v2/library/nginx/x?ns=docker.io", "https://n.io/v2/library/nginx/x?ns=docker.io",
				"https://o.io/v2/cache/library/nginx/x", "https://registry-1.docker.io/v2/library/nginx/x",
			},
		},
		{"location of a host", Options{Hosts: []Host{{Match: "a.io", Location: "b.io:444"}}}, "a.io/x/y", []string{"https://b.io:444/v2/x/y/x"}},
		{"location of a repository", Options{Hosts: []Host{{Match: "a.io/team", Location: "b.io/moved/here"}}}, "a.io/team/y", []string{"https://b.io/v2/moved/here/y/x"}},
		{"location on Docker Hub", Options{Hosts: []Host{{Match: "a.io", Location: "docker.io/team"}}}, "a.io/y", []string{"https://registry-1.docker.io/v2/team/y/x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ref, err := oci.ParseReference(tt.ref)
			if err != nil {
				t.Fatal(err)
			}
			r, err := newClient(t, tt.options).Repository(ref)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range r.endpoints {
				got = append(got, e.url("x", nil).String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestBlocked(t *testing.T) {
	t.Parallel()
	c := newClient(t, Options{Hosts: []Host{{Match: "bad.io/team", Blocked: true}}})
	_, err := c.Repository(oci.Reference{Host: "bad.io", Repository: "team/app"})
	if !errors.Is(err, ErrBlocked) {
		t.Errorf("got error %v, want %v", err, ErrBlocked)
	}
	if _, err := c.Repository(oci.Reference{Host: "bad.io", Repository: "teams"}); err != nil {
		t.Error(err)
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		o    Options
	}{
		{"empty match", Options{Hosts: []Host{{}}}},
		{"URL as match", Options{Hosts: []Host{{Match: "https://ghcr.io"}}}},
		{"mirror without address", Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{}}}}}},
		{"mirror with two", Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: "https://a", Location: "b"}}}}}},
		{"mirror with credentials", Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: "https://u:p@a"}}}}}},
		{"mirror of a file", Options{Hosts: []Host{{Match: ".", Mirrors: []Mirror{{URL: "file:///x"}}}}}},
		{"location with scheme", Options{Hosts: []Host{{Match: ".", Location: "https://a"}}}},
		{"many streams", Options{Ranges: Ranges{Streams: 1000}}},
		{"tiny parts", Options{Ranges: Ranges{PartBytes: 1}}},
		{"tiny blobs", Options{Ranges: Ranges{MinBytes: 1}}},
		{"user agent", Options{UserAgent: "a\r\nb"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := NewClient(tt.o); err == nil {
				t.Error("got no error")
			}
		})
	}
	nameless := newClient(t, Options{Hosts: []Host{{Match: "a.io/team", Location: "b.io"}}})
	if _, err := nameless.Repository(oci.Reference{Host: "a.io", Repository: "team"}); err == nil {
		t.Error("got no error for a location that leaves no name")
	}
	if _, err := newClient(t, Options{}).Repository(oci.Reference{Transport: oci.LayoutDir, Path: "/x"}); !errors.Is(err, oci.ErrReference) {
		t.Errorf("got error %v, want %v", err, oci.ErrReference)
	}
}
