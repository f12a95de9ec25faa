package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"dray/internal/oci"
)

// Client keeps what requests to registries share: connections, grants, and what
// was learned about hosts.
type Client struct {
	options Options
	now     func() time.Time
	dial    func(ctx context.Context, network, address string) (net.Conn, error) // nil: the network
	pays    func(leadBytes int64, waited, elapsed time.Duration) bool            // whether to split, by what limited a blob's lead

	mu          sync.Mutex                 // guards the fields below; held for no I/O but reading certificates
	connections map[string]*http.Transport // by TLS settings
	healths     map[string]*health
	authorizers map[string]*authorizer
	closed      bool

	stats struct{ requests, bytes, sent, retries, fallbacks atomic.Int64 }
}

// health is what is known of one host.
type health struct {
	reached  atomic.Bool  // has answered
	noRanges atomic.Bool  // does not serve ranges, or lies about them
	downTill atomic.Int64 // Unix nanoseconds until which a mirror is passed over
}

// Bounds on what is remembered, so that a long-lived client does not grow. What
// is forgotten is learned again.
const (
	maxHealths     = 1024
	maxAuthorizers = 1024
	mirrorPenalty  = 30 * time.Second
)

// Stats counts what a client has done.
type Stats struct {
	Requests      int64 // sent, repetitions and token requests included
	BytesReceived int64 // of bodies
	BytesSent     int64 // of bodies
	Retries       int64
	Fallbacks     int64 // to another endpoint, or from ranges to a plain request
}

// NewClient checks o and returns a client. It does no I/O: credentials and
// certificates are read when they are needed.
func NewClient(o Options) (*Client, error) {
	if err := o.setDefaults(); err != nil {
		return nil, fmt.Errorf("set up registry client: %w", err)
	}
	return &Client{
		options:     o,
		now:         time.Now,
		pays:        networkBound,
		connections: map[string]*http.Transport{},
		healths:     map[string]*health{},
		authorizers: map[string]*authorizer{},
	}, nil
}

// Close drops idle connections. Readers that are still open stay usable;
// requests after Close fail. It is idempotent and returns nil.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.connections {
		conn.CloseIdleConnections()
	}
	clear(c.connections)
	clear(c.authorizers)
	return nil
}

// Stats returns the counts so far.
func (c *Client) Stats() Stats {
	return Stats{
		Requests:      c.stats.requests.Load(),
		BytesReceived: c.stats.bytes.Load(),
		BytesSent:     c.stats.sent.Load(),
		Retries:       c.stats.retries.Load(),
		Fallbacks:     c.stats.fallbacks.Load(),
	}
}

// Repository returns the repository that ref names; its tag and digest are not
// used. The error is one of settings: nothing is asked yet.
func (c *Client) Repository(ref oci.Reference) (*Repository, error) {
	if ref.Transport != oci.Registry || ref.Host == "" || ref.Repository == "" {
		return nil, fmt.Errorf("open repository %q: not a name in a registry: %w", ref.String(), oci.ErrReference)
	}
	endpoints, err := c.endpoints(ref)
	if err != nil {
		return nil, err
	}
	return &Repository{client: c, name: ref.Name(), endpoints: endpoints}, nil
}

// Repository reads and writes one repository.
type Repository struct {
	client    *Client
	name      string
	endpoints []*endpoint // mirrors in order, then the origin
}

// Name returns host/repository as the reference had it.
func (r *Repository) Name() string { return r.name }

func (r *Repository) origin() *endpoint { return r.endpoints[len(r.endpoints)-1] }

func (c *Client) healthOf(key string) *health {
	c.mu.Lock()
	defer c.mu.Unlock()
	return remembered(c.healths, key, maxHealths, func() *health { return &health{} })
}

// remembered returns m[key], made on first use. A full map is emptied.
func remembered[V any](m map[string]V, key string, limit int, create func() V) V {
	if v, ok := m[key]; ok {
		return v
	}
	if len(m) >= limit {
		clear(m)
	}
	v := create()
	m[key] = v
	return v
}

var errClosed = errors.New("registry client is closed")
