//go:build linux

package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Network is how the registry can be reached. The zero value is loopback as it is.
type Network struct {
	Name          string        `json:"name"`            // as it was given
	BitsPerSecond float64       `json:"bits_per_second"` // of all connections together; 0 is unlimited
	Connection    float64       `json:"connection_bits_per_second,omitempty"`
	Latency       time.Duration `json:"latency_ns"` // round trip
	Jitter        time.Duration `json:"jitter_ns"`  // added, up to
}

// ParseNetwork reads BANDWIDTH[/LATENCY[/JITTER[/PER-CONNECTION]]], such as
// 100mbit/20ms, or "loopback".
func ParseNetwork(s string) (Network, error) {
	n := Network{Name: s}
	if s == "loopback" || s == "" {
		n.Name = "loopback"
		return n, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) > 4 {
		return n, fmt.Errorf("network %q: want BANDWIDTH[/LATENCY[/JITTER[/PER-CONNECTION]]]", s)
	}
	var err error
	if n.BitsPerSecond, err = parseBits(parts[0]); err != nil {
		return n, fmt.Errorf("network %q: %w", s, err)
	}
	for i, into := range []*time.Duration{&n.Latency, &n.Jitter} {
		if len(parts) > i+1 {
			if *into, err = time.ParseDuration(parts[i+1]); err != nil || *into < 0 {
				return n, fmt.Errorf("network %q: %q is no duration", s, parts[i+1])
			}
		}
	}
	if len(parts) == 4 {
		if n.Connection, err = parseBits(parts[3]); err != nil {
			return n, fmt.Errorf("network %q: %w", s, err)
		}
	}
	return n, nil
}

func parseBits(s string) (float64, error) {
	for suffix, factor := range map[string]float64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			v, err := strconv.ParseFloat(number, 64)
			if err != nil || v <= 0 {
				break
			}
			return v * factor, nil
		}
	}
	return 0, fmt.Errorf("%q is no bandwidth: want a number with kbit, mbit or gbit", s)
}

// bucket lets bytes pass at a rate, measured against the clock, so that a late
// timer is made up for.
type bucket struct {
	bytesPerSecond float64 // 0: unlimited

	mu   sync.Mutex // guards next
	next time.Time  // when what passed so far is through
}

// A bucket that lags behind the clock catches up: by burst after a pause, by late
// when the sender had no pause but its timer was late.
const (
	burst = 5 * time.Millisecond
	late  = 50 * time.Millisecond
	pause = 2 * time.Millisecond
)

// reserve returns when n more bytes will be through. lag is how much of the past
// may be made up for.
func (b *bucket) reserve(n int, lag time.Duration) time.Time {
	now := time.Now()
	if b.bytesPerSecond == 0 {
		return now
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if earliest := now.Add(-lag); b.next.Before(earliest) {
		b.next = earliest
	}
	b.next = b.next.Add(time.Duration(float64(n) / b.bytesPerSecond * float64(time.Second)))
	return b.next
}

// counters count what a registry has sent.
type counters struct {
	bytes    atomic.Int64 // written to sockets, headers included
	requests atomic.Int64
}

// shapedListener gives its connections the network's properties.
type shapedListener struct {
	net.Listener
	network Network
	link    bucket
	count   *counters
}

func newShapedListener(l net.Listener, n Network, count *counters) *shapedListener {
	return &shapedListener{Listener: l, network: n, link: bucket{bytesPerSecond: n.BitsPerSecond / 8}, count: count}
}

// Accept implements net.Listener.
func (l *shapedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	counted := &countedConn{Conn: c, count: l.count}
	if l.network.BitsPerSecond == 0 && l.network.Latency == 0 {
		return counted, nil
	}
	return newShapedConn(counted, l), nil
}

// countedConn counts what is sent, and lets the kernel send files.
type countedConn struct {
	net.Conn
	count *counters
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.count.bytes.Add(int64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (c *countedConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.Conn, r)
	c.count.bytes.Add(n)
	return n, err
}

// shapedConn delays what is sent: by the link's and its own bandwidth, then by the
// latency. All of the round trip is put on the way back, and one more before the
// first request: the handshake.
type shapedConn struct {
	net.Conn
	listener *shapedListener
	own      bucket
	first    sync.Once
	ctx      context.Context //nolint:containedctx // the connection's life
	cancel   context.CancelFunc
	queue    chan packet   // what is on its way
	closing  chan struct{} // closed by Close: what is on its way is the last
	close    sync.Once
	done     sync.WaitGroup
	failed   atomic.Pointer[error]
	wrote    time.Time // when the last Write returned
}

type packet struct {
	bytes []byte
	due   time.Time
}

const (
	packetBytes = 16 << 10
	queueCount  = 64 // packets on their way beyond what bandwidth and latency hold, as in socket buffers
)

func newShapedConn(c net.Conn, l *shapedListener) *shapedConn {
	held := l.network.BitsPerSecond / 8 * (l.network.Latency + l.network.Jitter).Seconds() / packetBytes
	s := &shapedConn{
		Conn: c, listener: l, own: bucket{bytesPerSecond: l.network.Connection / 8},
		queue: make(chan packet, queueCount+int(held)), closing: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.done.Go(s.deliver)
	return s
}

// Read implements net.Conn. The first one waits for the handshake.
func (s *shapedConn) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.first.Do(func() { _ = waitUntil(s.ctx, time.Now().Add(s.listener.network.Latency)) })
	return n, err
}

// Write implements net.Conn.
func (s *shapedConn) Write(p []byte) (written int, err error) {
	lag := burst
	if time.Since(s.wrote) < pause {
		lag = late
	}
	defer func() { s.wrote = time.Now() }()
	for len(p) > 0 {
		if failed := s.failed.Load(); failed != nil {
			return written, *failed
		}
		n := min(len(p), packetBytes)
		due := s.listener.link.reserve(n, lag)
		if own := s.own.reserve(n, lag); own.After(due) {
			due = own
		}
		lag = late
		if err := waitUntil(s.ctx, due); err != nil {
			return written, net.ErrClosed
		}
		delay := s.listener.network.Latency
		if j := s.listener.network.Jitter; j > 0 {
			delay += rand.N(j) //nolint:gosec // a delay
		}
		select {
		case s.queue <- packet{append([]byte(nil), p[:n]...), time.Now().Add(delay)}:
		case <-s.closing:
			return written, net.ErrClosed
		case <-s.ctx.Done():
			return written, net.ErrClosed
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// deliver sends packets when they are due, in order, until the last one.
func (s *shapedConn) deliver() {
	for {
		var p packet
		select {
		case p = <-s.queue:
		default:
			select {
			case p = <-s.queue:
			case <-s.closing:
				if len(s.queue) == 0 {
					return
				}
				continue
			case <-s.ctx.Done():
				return
			}
		}
		if waitUntil(s.ctx, p.due) != nil {
			return
		}
		if _, err := s.Conn.Write(p.bytes); err != nil {
			s.failed.Store(&err)
			s.cancel()
			return
		}
	}
}

// Close implements net.Conn. What is on its way is delivered first, however slowly
// the client takes it; a client that is gone ends that.
func (s *shapedConn) Close() error {
	s.close.Do(func() { close(s.closing) })
	s.done.Wait()
	s.cancel()
	return s.Conn.Close()
}

// waitUntil waits for a moment, or for ctx.
func waitUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
