package guest_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dray/internal/guest"
	"dray/internal/guest/api"
)

// A pull that runs when the service is told to stop is finished and answered,
// also when it is the first of its connection, or comes after a request that was
// refused: the ttrpc server's own Shutdown cuts such connections.
func TestShutdownWaits(t *testing.T) {
	t.Parallel()
	for _, before := range []string{"first call", "after an unknown method", "after a call"} {
		t.Run(before, func(t *testing.T) {
			t.Parallel()
			g := newGate()
			s := serve(t, g, guest.Options{Grace: time.Minute, Metrics: "127.0.0.1:0"})
			client, other := dial(t, s.socket), dial(t, s.socket)
			switch before {
			case "after an unknown method":
				_ = client.Call(t.Context(), "api.ImagePullService", "None", &api.ImagePullRequest{}, &api.ImagePullResponse{})
			case "after a call":
				_, _ = pull(client, "", "")
			}
			reply := pullLater(client, "a", t.TempDir())
			c := g.next(t)
			s.stop()
			eventually(t, "the health answer changes", func() bool {
				code, _ := ask(t, metricsAddress(t, s), "/healthz")
				return code == http.StatusServiceUnavailable
			})
			absent(t, s.socket)
			if _, err := pull(client, "b", t.TempDir()); status.Code(err) != codes.Unavailable {
				t.Errorf("new request: got %v, want Unavailable", err)
			}
			eventually(t, "the idle client is disconnected", func() bool {
				_, err := pull(other, "b", t.TempDir())
				return err != nil
			})
			if c.ctx.Err() != nil {
				t.Error("the pull was cancelled within the time of grace")
			}
			c.end <- nil
			if got := receive(t, reply, "a reply comes"); got.err != nil {
				t.Errorf("running request: %v", got.err)
			}
			if err := s.wait(t); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
}

func TestShutdownCancelsAfterGrace(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{Grace: 10 * time.Millisecond, Metrics: "127.0.0.1:0"})
	bundle := t.TempDir()
	running := pullLater(dial(t, s.socket), "a", bundle)
	c := g.next(t)
	queued := pullLater(dial(t, s.socket), "b", bundle)
	eventually(t, "one waits", func() bool { return metric(t, s, "dray_pulls_in_flight") == 2 })
	s.stop()
	receive(t, c.ctx.Done(), "the pull is cancelled")
	for _, reply := range []<-chan result{running, queued} {
		if got := receive(t, reply, "a reply comes"); status.Code(got.err) != codes.Unavailable {
			t.Errorf("got %v, want Unavailable", got.err)
		}
	}
	if err := s.wait(t); err != nil {
		t.Errorf("serve: %v", err)
	}
}

func rawDial(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func frame(stream uint32, kind byte, size int, body []byte) []byte {
	header := make([]byte, 10, 10+len(body))
	binary.BigEndian.PutUint32(header, uint32(size))
	binary.BigEndian.PutUint32(header[4:], stream)
	header[8] = kind
	return append(header, body...)
}

func requestFrame(t *testing.T, image, bundle string) []byte {
	t.Helper()
	payload, err := proto.Marshal(&api.ImagePullRequest{ImageUrl: image, BundlePath: bundle})
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(&ttrpc.Request{Service: "api.ImagePullService", Method: "PullImage", Payload: payload})
	if err != nil {
		t.Fatal(err)
	}
	return frame(1, 1, len(body), body)
}

// The ttrpc server follows a nil pointer for data on a unary call's stream.
func TestDataFrameEndsOnlyItsConnection(t *testing.T) {
	t.Parallel()
	g := newGate()
	s := serve(t, g, guest.Options{})
	conn := rawDial(t, s.socket)
	if _, err := conn.Write(requestFrame(t, "a", t.TempDir())); err != nil {
		t.Fatal(err)
	}
	c := g.next(t)
	if _, err := conn.Write(frame(1, 3, 4, []byte("data"))); err != nil {
		t.Fatal(err)
	}
	receive(t, c.ctx.Done(), "the pull is cancelled")
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes from a connection that should be closed", n)
	}
	later := pullLater(dial(t, s.socket), "b", t.TempDir())
	g.next(t).end <- nil
	if got := receive(t, later, "a reply comes"); got.err != nil {
		t.Error(got.err)
	}
}

func TestHostileFrames(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		bytes []byte
		want  codes.Code // OK: the connection just ends
	}{
		{"too large", frame(1, 1, 4<<20+1, make([]byte, 4<<20+1)), codes.ResourceExhausted},
		{"not a request", frame(1, 1, 3, []byte{0xff, 0xff, 0xff}), codes.InvalidArgument},
		{"even stream", frame(2, 1, 0, nil), codes.InvalidArgument},
		{"empty", frame(1, 1, 0, nil), codes.Unimplemented},
		{"a response", frame(1, 2, 0, nil), codes.OK},
		{"http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), codes.OK},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, imagesFunc(succeed), guest.Options{})
			conn := rawDial(t, s.socket)
			go func() { _, _ = conn.Write(test.bytes) }()
			header := make([]byte, 10)
			n, err := conn.Read(header)
			if test.want == codes.OK {
				if err == nil {
					t.Errorf("got %d bytes, want the end", n)
				}
			} else {
				body := make([]byte, 4096)
				m, _ := conn.Read(body)
				var response ttrpc.Response
				if err := proto.Unmarshal(body[:m], &response); err != nil || codes.Code(response.GetStatus().GetCode()) != test.want {
					t.Errorf("got %v, %v, want %s", &response, err, test.want)
				}
			}
			if _, err := pull(dial(t, s.socket), "a", t.TempDir()); err != nil {
				t.Errorf("the next client: %v", err)
			}
		})
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(succeed), guest.Options{Metrics: "127.0.0.1:0"})
	bundle := t.TempDir()
	var clients []*ttrpc.Client
	for range 256 {
		clients = append(clients, dial(t, s.socket))
	}
	eventually(t, "all are connected", func() bool { return metric(t, s, "dray_connections") == 256 })
	if _, err := pull(dial(t, s.socket), "a", bundle); err == nil {
		t.Error("one too many was served")
	}
	if _, err := pull(clients[200], "a", bundle); err != nil {
		t.Errorf("one of the others: %v", err)
	}
	_ = clients[0].Close()
	eventually(t, "there is a place", func() bool {
		_, err := pull(dial(t, s.socket), "a", bundle)
		return err == nil
	})
}

// A context that has ended before Serve starts serves nobody and leaves nothing.
func TestStoppedBeforeStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	socket := shortDir(t) + "/s"
	_ = guest.Serve(ctx, imagesFunc(succeed), guest.Options{Listen: []string{socket}})
	absent(t, socket)
}
