//go:build linux

package bench_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dray/internal/bench"
)

func TestParseNetwork(t *testing.T) {
	t.Parallel()
	n, err := bench.ParseNetwork("100mbit/20ms/5ms/10mbit")
	want := bench.Network{Name: "100mbit/20ms/5ms/10mbit", BitsPerSecond: 1e8, Connection: 1e7, Latency: 20 * time.Millisecond, Jitter: 5 * time.Millisecond}
	if err != nil || n != want {
		t.Errorf("got %+v, %v", n, err)
	}
	for _, bad := range []string{"fast", "100", "0mbit", "-1mbit", "1mbit/x", "1mbit/-1ms", "1mbit/1ms/1ms/1mbit/1"} {
		if _, err := bench.ParseNetwork(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// pipes is a listener in memory, whose clock can be a test's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

// Accept implements net.Listener.
func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p pipes) Close() error {
	close(p.closed)
	return nil
}

// Addr implements net.Listener.
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

// exchange asks over a network, a byte each time, and returns how long each of the
// answers of size bytes takes. In the middle of each the client looks away for stall.
func exchange(t *testing.T, n bench.Network, size, times int, stall time.Duration) (took []time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := pipes{make(chan net.Conn), make(chan struct{})}
		l, sent := bench.Shape(p, n)
		var server sync.WaitGroup
		server.Go(func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			for one := make([]byte, 1); err == nil; {
				if _, err = c.Read(one); err == nil {
					_, err = c.Write(make([]byte, size))
				}
			}
			_ = c.Close()
		})
		c, theirs := net.Pipe()
		p.conns <- theirs
		for range times {
			begin := time.Now()
			if _, err := c.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, c, int64(size/2)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(stall)
			if _, err := io.CopyN(io.Discard, c, int64(size-size/2)); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(begin))
		}
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		server.Wait()
		if want := int64(size * times); sent.Load() != want {
			t.Errorf("counted %d bytes, sent %d", sent.Load(), want)
		}
	})
	return took
}

// nearly tells whether a time is as wanted, but for the burst that a pause gives.
func nearly(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-10*time.Millisecond || got > want+10*time.Millisecond {
		t.Errorf("%s took %s, want %s", what, got, want)
	}
}

func TestShapingMeetsTheRate(t *testing.T) {
	t.Parallel()
	n := bench.Network{BitsPerSecond: 100e6}
	nearly(t, "an answer", exchange(t, n, 5_000_000, 1, 0)[0], 400*time.Millisecond)
	// what a sender could not send for a while is made up for
	nearly(t, "an answer to a client that pauses", exchange(t, n, 5_000_000, 1, 120*time.Millisecond)[0], 400*time.Millisecond)
}

func TestShapingMeetsThePerConnectionRate(t *testing.T) {
	t.Parallel()
	nearly(t, "an answer", exchange(t, bench.Network{BitsPerSecond: 1e9, Connection: 20e6}, 1_000_000, 1, 0)[0], 400*time.Millisecond)
}

func TestShapingMeetsTheLatency(t *testing.T) {
	t.Parallel()
	took := exchange(t, bench.Network{BitsPerSecond: 1e9, Latency: 50 * time.Millisecond}, 1, 5, 0)
	nearly(t, "the handshake and an answer", took[0], 100*time.Millisecond)
	for _, answer := range took[1:] {
		nearly(t, "an answer", answer, 50*time.Millisecond)
	}
}

// What was written before a connection is closed arrives, as it does without shaping.
func TestShapedAnswerOutlivesClose(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	l, _ := bench.Shape(plain, bench.Network{BitsPerSecond: 1e9, Latency: 30 * time.Millisecond})
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte("last words"))
			err = errors.Join(err, c.Close())
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String()) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got := make([]byte, 10)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "last words" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := errors.Join(<-done, l.Close()); err != nil {
		t.Error(err)
	}
}
