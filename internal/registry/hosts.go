package registry

import (
	"fmt"
	"net/url"
	"strings"

	"dray/internal/oci"
)

// Docker Hub's names: what references say, where its registry answers, and
// under which key docker keeps its credentials.
const (
	hubHost       = oci.DefaultHost
	hubRegistry   = "registry-1.docker.io"
	hubServerName = "https://index.docker.io/v1/"
)

// canonicalHost gives Docker Hub's several names its one.
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	if host == "index.docker.io" || host == hubRegistry {
		return hubHost
	}
	return host
}

// specificity ranks a match: by kind first, then by length.
type specificity struct{ kind, length int }

func (s specificity) less(t specificity) bool {
	return s.kind < t.kind || s.kind == t.kind && s.length < t.length
}

// match tells how specifically pattern names repository on host, and which part
// of host/repository it names; ok is false when it does not.
func match(pattern, host, repository string) (s specificity, named string, ok bool) {
	const (
		kindAny = iota
		kindDomain
		kindExact
		kindHost
		kindRepository
	)
	host = canonicalHost(host)
	name := strings.TrimSuffix(withoutPort(host), ".")
	if pattern == "*" {
		pattern = "."
	}
	pattern = strings.TrimPrefix(pattern, "*")
	patternHost, patternPath, hasPath := strings.Cut(pattern, "/")
	domain := canonicalHost(strings.TrimSuffix(patternHost, "."))
	switch {
	case hasPath:
		full, want := host+"/"+repository, canonicalHost(patternHost)+"/"+strings.TrimSuffix(patternPath, "/")
		if strings.HasPrefix(patternHost, ".") {
			if !strings.HasSuffix(host, domain) {
				return s, "", false
			}
			want = host + "/" + strings.TrimSuffix(patternPath, "/")
		}
		return specificity{kindRepository, len(want)}, want, full == want || strings.HasPrefix(full, want+"/")
	case pattern == ".":
		return specificity{kindAny, 0}, host, true
	case strings.HasPrefix(pattern, "."):
		return specificity{kindDomain, len(domain)}, host, strings.HasSuffix(name, domain)
	case strings.HasSuffix(pattern, "."):
		return specificity{kindExact, len(domain)}, host, name == domain
	}
	return specificity{kindHost, len(domain)}, host, canonicalHost(patternHost) == host
}

// hostFor returns the most specific settings for a repository, and the part of
// its name that they name; nil when there are none.
func (o *Options) hostFor(host, repository string) (*Host, string) {
	var best *Host
	var bestRank specificity
	var bestNamed string
	for i := range o.Hosts {
		rank, named, ok := match(o.Hosts[i].Match, host, repository)
		if ok && (best == nil || bestRank.less(rank)) {
			best, bestRank, bestNamed = &o.Hosts[i], rank, named
		}
	}
	return best, bestNamed
}

// withoutPort returns the host of host:port; an IPv6 address keeps its brackets.
func withoutPort(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		return host[:i]
	}
	return host
}

// endpoint is one place that serves a repository.
type endpoint struct {
	client     *Client
	scheme     string
	host       string // host[:port] that is connected to
	prefix     string // path before /v2/, without a slash at its end
	repository string // as this endpoint names it
	namespace  string // value of ?ns=; "" at an origin
	keyHost    string // under which credentials are kept
	access     Access
	mirror     bool
	digestOnly bool
	foreign    *url.URL // a layer's own URL; everything but scheme, host and access is unused
	health     *health
	grants     *authorizer
}

func (e *endpoint) reached() bool { return e.health.reached.Load() }

// url returns the address of path below the repository.
func (e *endpoint) url(path string, query url.Values) *url.URL {
	u := &url.URL{Scheme: e.scheme, Host: e.host, Path: e.prefix + "/v2/" + e.repository + "/" + path}
	if e.namespace != "" {
		if query == nil {
			query = url.Values{}
		}
		query.Set("ns", e.namespace)
	}
	u.RawQuery = query.Encode()
	return u
}

// endpoints returns the mirrors of ref in order, then its origin.
func (c *Client) endpoints(ref oci.Reference) ([]*endpoint, error) {
	host := Host{}
	named := canonicalHost(ref.Host)
	if found, part := c.options.hostFor(ref.Host, ref.Repository); found != nil {
		host, named = *found, part
	}
	if host.Blocked {
		return nil, fmt.Errorf("open repository %s: %w", ref.Name(), ErrBlocked)
	}
	var all []*endpoint
	for _, m := range host.Mirrors {
		e := &endpoint{access: m.Access, mirror: true, digestOnly: m.DigestOnly}
		if m.Location != "" {
			e.relocate(ref, named, m.Location)
		} else {
			u, err := url.Parse(m.URL)
			if err != nil {
				return nil, fmt.Errorf("open repository %s: mirror: %w", ref.Name(), err)
			}
			e.scheme, e.host, e.prefix = u.Scheme, u.Host, strings.TrimSuffix(u.Path, "/")
			e.prefix = strings.TrimSuffix(e.prefix, "/v2")
			e.repository, e.namespace = ref.Repository, canonicalHost(ref.Host)
			e.access.PlainHTTP = u.Scheme == "http"
		}
		all = append(all, c.finish(e))
	}
	origin := &endpoint{access: host.Access}
	origin.access.PlainHTTP = host.PlainHTTP || c.options.PlainHTTP || ref.PlainHTTP
	location := host.Location
	if location == "" {
		location = named
	}
	origin.relocate(ref, named, location)
	all = append(all, c.finish(origin))
	for _, e := range all {
		if e.repository == "" {
			return nil, fmt.Errorf("open repository %s: settings move it to %s, where it has no name", ref.Name(), e.host)
		}
	}
	return all, nil
}

// relocate sets host and repository to those of ref with named replaced by
// location.
func (e *endpoint) relocate(ref oci.Reference, named, location string) {
	name := strings.TrimSuffix(location, "/") + strings.TrimPrefix(canonicalHost(ref.Host)+"/"+ref.Repository, named)
	e.host, e.repository, _ = strings.Cut(name, "/")
}

// finish fills in what follows from the rest.
func (c *Client) finish(e *endpoint) *endpoint {
	e.client = c
	e.keyHost = canonicalHost(e.host)
	if e.keyHost == hubHost {
		e.host = hubRegistry
	}
	e.scheme = "https"
	if e.access.PlainHTTP {
		e.scheme = "http"
	}
	e.access.InsecureSkipVerify = e.access.InsecureSkipVerify || c.options.InsecureSkipVerify
	e.health = c.healthOf(e.scheme + "://" + e.host)
	e.grants = c.authorizerOf(e)
	return e
}
