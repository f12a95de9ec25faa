package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"dray/internal/stream"
)

// Defaults of [Options].
const (
	DefaultManifestBytes         = 4 << 20
	DefaultDialTimeout           = 10 * time.Second
	DefaultMirrorTimeout         = 3 * time.Second
	DefaultTLSTimeout            = 10 * time.Second
	DefaultHeaderTimeout         = 30 * time.Second
	DefaultProgressTimeout       = 30 * time.Second
	DefaultHelperTimeout         = 30 * time.Second
	DefaultRetryCount            = 6
	DefaultRetryBase             = 250 * time.Millisecond
	DefaultRetryMax              = 15 * time.Second
	DefaultRetryAfterMax         = time.Minute
	DefaultRangeStreams          = 4
	DefaultRangePartBytes        = 1 << 20
	DefaultRangeMinBytes         = 32 << 20
	DefaultUserAgent             = "dray"
	minRangePartBytes            = 64 << 10
	maxRangeStreams              = 16
	maxResponseHeaderBytes       = 64 << 10
	maxRedirects                 = 10
	maxRedirectBytes             = 4 << 10
	maxErrorBodyBytes            = 64 << 10
	maxTokenBytes                = 1 << 20
	maxCredentialBytes           = 4 << 20
	maxHelperBytes               = 1 << 20
	maxCertificateBytes          = 4 << 20
	maxListCount                 = 1 << 20
	maxListPages                 = 1 << 14
	minProgressBytes       int64 = 64 << 10 // what must have come for failures to be counted anew
)

// Options configure a [Client]. The zero value is a client that finds
// credentials and certificates where docker and containers' tools keep them.
type Options struct {
	// AuthFiles are credential files in docker's or containers' form, the first
	// with credentials for a repository wins. nil: $REGISTRY_AUTH_FILE,
	// $XDG_RUNTIME_DIR/containers/auth.json, $XDG_CONFIG_HOME/containers/auth.json,
	// $DOCKER_CONFIG/config.json, the latter two below the home directory when
	// unset. A file that is named here must exist. Empty but not nil: none.
	AuthFiles []string
	// CertDirs are directories in docker's certs.d form: HOST[:PORT]/*.crt are
	// authorities beside the system's, *.cert with *.key client certificates.
	// nil: containers' and docker's directories.
	CertDirs []string
	// CAs are authorities, PEM, beside the system's, for every host.
	CAs []byte
	// Hosts are settings for some registries or repositories; of those that
	// match, only the most specific holds.
	Hosts []Host
	// PlainHTTP speaks http to every origin, InsecureSkipVerify accepts every
	// certificate.
	PlainHTTP, InsecureSkipVerify bool
	// Proxy chooses a proxy; nil is [http.ProxyFromEnvironment].
	Proxy func(*http.Request) (*url.URL, error)

	Ranges   Ranges
	Timeouts Timeouts
	Retry    Retry
	// ManifestBytes limits manifests, tag lists and lists of referrers; 0 is
	// [DefaultManifestBytes].
	ManifestBytes int64
	// Budget is asked for the memory of parallel ranges; what it does not have,
	// they do without. nil: no limit but [Ranges].
	Budget    *stream.Budget
	Log       *slog.Logger // nil discards
	UserAgent string       // "" is [DefaultUserAgent]
}

// Ranges says how a large blob is fetched over several connections at once. Each
// blob holds at most (Streams+1) × PartBytes of memory.
type Ranges struct {
	Streams   int   // connections per blob; 0 is [DefaultRangeStreams], 1 never splits
	PartBytes int   // of one request; 0 is [DefaultRangePartBytes]
	MinBytes  int64 // smaller blobs are not split; 0 is [DefaultRangeMinBytes]
}

// Timeouts bound waits, not transfers: there is no limit on a whole request. A
// zero field is its default.
type Timeouts struct {
	Dial       time.Duration // to an origin's or token service's address
	MirrorDial time.Duration // to a mirror's
	TLS        time.Duration
	Header     time.Duration // from the request to the response's header
	Progress   time.Duration // without a byte while a body is read or sent
	Helper     time.Duration // for one run of a credential helper
}

// Retry says how often a request that failed for a passing reason is repeated. A
// zero field is its default.
type Retry struct {
	Count    int           // repetitions without progress; negative: none
	Base     time.Duration // longest first wait; doubles each time
	Max      time.Duration // longest wait
	AfterMax time.Duration // longest wait that a server's Retry-After may ask for
}

// Access is how one endpoint is spoken to.
type Access struct {
	Credentials        *Credentials // nil: the credential files are asked
	CAs                []byte       // PEM, beside the system's
	OnlyCAs            bool         // CAs instead of the system's
	InsecureSkipVerify bool
	PlainHTTP          bool
}

// Host is the settings of the registries or repositories that Match names:
//
//   - "." and "*" every host
//   - ".example.com" and "*.example.com" all hosts below that domain
//   - "ghcr.io." the host of that name, on any port
//   - "ghcr.io", "localhost:5000" host and port as they stand in the reference
//   - "ghcr.io/team" the repository of that name and those below it
//
// Each line is more specific than those above it; within one line the longest is.
type Host struct {
	Match string
	Access
	Blocked bool
	// Location, host[:port][/path], stands for the part of the name that Match
	// names, or for the host; "" changes nothing.
	Location string
	Mirrors  []Mirror // tried in order before the origin, for reading only
}

// Mirror is an endpoint that is asked before the origin. Exactly one of URL and
// Location is set.
type Mirror struct {
	// URL, scheme://host[:port][/path], goes before /v2/; the repository's name
	// stays and ?ns= tells the origin's host.
	URL string
	// Location, host[:port][/path], replaces part of the name as [Host]'s does.
	Location string
	Access
	DigestOnly bool // not asked for tags
}

// Credentials open an endpoint. An empty value is anonymous.
type Credentials struct {
	Username, Password string
	IdentityToken      string // for the token service's refresh grant
	RegistryToken      string // sent as it is
}

func (c Credentials) empty() bool { return c == Credentials{} }

// String keeps secrets out of logs.
func (c Credentials) String() string { return "[credentials]" }

// GoString keeps secrets out of logs.
func (c Credentials) GoString() string { return "[credentials]" }

func (o *Options) setDefaults() error {
	defaultTo(&o.ManifestBytes, DefaultManifestBytes)
	defaultTo(&o.Timeouts.Dial, DefaultDialTimeout)
	defaultTo(&o.Timeouts.MirrorDial, DefaultMirrorTimeout)
	defaultTo(&o.Timeouts.TLS, DefaultTLSTimeout)
	defaultTo(&o.Timeouts.Header, DefaultHeaderTimeout)
	defaultTo(&o.Timeouts.Progress, DefaultProgressTimeout)
	defaultTo(&o.Timeouts.Helper, DefaultHelperTimeout)
	defaultTo(&o.Retry.Count, DefaultRetryCount)
	defaultTo(&o.Retry.Base, DefaultRetryBase)
	defaultTo(&o.Retry.Max, DefaultRetryMax)
	defaultTo(&o.Retry.AfterMax, DefaultRetryAfterMax)
	defaultTo(&o.Ranges.Streams, DefaultRangeStreams)
	defaultTo(&o.Ranges.PartBytes, DefaultRangePartBytes)
	defaultTo(&o.Ranges.MinBytes, DefaultRangeMinBytes)
	defaultTo(&o.UserAgent, DefaultUserAgent)
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.ManifestBytes < 0:
		return fmt.Errorf("manifest limit is %d bytes", o.ManifestBytes)
	case o.Ranges.Streams < 0 || o.Ranges.Streams > maxRangeStreams:
		return fmt.Errorf("range streams is %d, want 1 to %d", o.Ranges.Streams, maxRangeStreams)
	case o.Ranges.PartBytes < minRangePartBytes || o.Ranges.MinBytes < minRangePartBytes:
		return fmt.Errorf("range part is %d bytes for blobs of %d, want at least %d", o.Ranges.PartBytes, o.Ranges.MinBytes, minRangePartBytes)
	case strings.ContainsAny(o.UserAgent, "\r\n"):
		return errors.New("user agent has more than one line")
	}
	for _, host := range o.Hosts {
		if err := host.check(); err != nil {
			return fmt.Errorf("host %q: %w", host.Match, err)
		}
	}
	return nil
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (h *Host) check() error {
	if h.Match == "" || strings.ContainsAny(h.Match, " \t\r\n?#@") || strings.Contains(h.Match, "://") {
		return errors.New("match is not a host, a domain or a repository")
	}
	if h.Location != "" {
		if err := checkLocation(h.Location); err != nil {
			return err
		}
	}
	for _, m := range h.Mirrors {
		if (m.URL == "") == (m.Location == "") {
			return errors.New("mirror needs a URL or a location, and not both")
		}
		if m.Location != "" {
			if err := checkLocation(m.Location); err != nil {
				return err
			}
			continue
		}
		u, err := url.Parse(m.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return errors.New("mirror's URL is not http[s]://host[:port][/path]")
		}
	}
	return nil
}

func checkLocation(location string) error {
	u, err := url.Parse("https://" + location)
	if err != nil || strings.Contains(location, "://") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("location %q is not host[:port][/path]", location)
	}
	return nil
}
