//go:build linux

package bench_test

import (
	"errors"
	"io"
	"net"
	"testing"
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

// serve answers each byte that comes with size bytes.
func serve(t *testing.T, n bench.Network, size int) string {
	t.Helper()
	plain, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	l, _ := bench.Shape(plain, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				for one := make([]byte, 1); ; {
					if _, err := c.Read(one); err != nil {
						return
					}
					if _, err := c.Write(make([]byte, size)); err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

// ask returns how long answers take, the first one apart.
func ask(t *testing.T, address string, size, times int) (first, rest time.Duration) {
	t.Helper()
	c, err := net.Dial("tcp", address) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for i := range times {
		begin := time.Now()
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, c, int64(size)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = time.Since(begin)
		} else {
			rest += time.Since(begin)
		}
	}
	return first, rest
}

// within tries three times, as other work on the machine can only delay.
func within(t *testing.T, want time.Duration, measured func() time.Duration) {
	t.Helper()
	var got time.Duration
	for range 3 {
		got = measured()
		if got > want*95/100 && got < want*105/100 {
			return
		}
	}
	t.Errorf("took %s, want %s", got, want)
}

func TestShapingMeetsTheRate(t *testing.T) {
	const size = 5_000_000
	n := bench.Network{BitsPerSecond: 100e6}
	address := serve(t, n, size)
	within(t, 400*time.Millisecond, func() time.Duration {
		first, _ := ask(t, address, size, 1)
		return first
	})
}

func TestShapingMeetsThePerConnectionRate(t *testing.T) {
	const size = 1_000_000
	address := serve(t, bench.Network{BitsPerSecond: 1e9, Connection: 20e6}, size)
	within(t, 400*time.Millisecond, func() time.Duration {
		first, _ := ask(t, address, size, 1)
		return first
	})
}

func TestShapingMeetsTheLatency(t *testing.T) {
	address := serve(t, bench.Network{BitsPerSecond: 1e9, Latency: 50 * time.Millisecond}, 1)
	within(t, 100*time.Millisecond, func() time.Duration { // the handshake's and the answer's
		first, _ := ask(t, address, 1, 1)
		return first
	})
	within(t, 200*time.Millisecond, func() time.Duration {
		_, rest := ask(t, address, 1, 5)
		return rest
	})
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
