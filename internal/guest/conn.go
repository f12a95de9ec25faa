package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	maxConns     = 256
	replyTimeout = 10 * time.Second // for a client to take a reply from its socket
)

// connections counts those who are connected, and ends them at shutdown.
type connections struct {
	log *slog.Logger
	all sync.WaitGroup // one for each open connection; Add only with mu held and not stopping

	mu       sync.Mutex // guards the fields below; taken before conn.mu
	open     map[*conn]struct{}
	stopping bool
}

// add returns c as ttrpc gets it, or an error when there is no place for it.
func (s *connections) add(c net.Conn) (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return nil, errStopping
	case len(s.open) >= maxConns:
		return nil, fmt.Errorf("%d clients are connected already", maxConns)
	}
	s.all.Add(1)
	added := &conn{Conn: c, group: s, requests: frames{kind: kindRequest}, replies: frames{kind: kindResponse}}
	s.open[added] = struct{}{}
	return added, nil
}

// stop closes every connection as soon as it has no request without a reply.
func (s *connections) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for c := range s.open {
		c.stop()
	}
}

func (s *connections) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Conn.Close()
	}
}

func (s *connections) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// conn is a client's connection, guarded against three traits of ttrpc's server
// that a long-lived guest cannot have.
//
//   - A data frame on the stream of a unary call makes the server follow a nil
//     pointer, which ends the process. Such frames end the connection here.
//   - The server takes a connection for idle while its first call runs, and after
//     a request that it refused, so that its Shutdown would cut calls off. Here
//     requests and replies are counted as they pass, and the connection is closed
//     at shutdown when they are even.
//   - After a read error other than the end of the stream, the server keeps the
//     connection's calls running. Here every error is the end of the stream.
type conn struct {
	net.Conn
	group    *connections
	requests frames // owned by the reader
	replies  frames // owned by the writer
	once     sync.Once

	mu       sync.Mutex // guards the fields below
	pending  int        // requests without a reply
	stopping bool
}

// Read hands on what the client sends, up to the first frame that is not a
// request. Its only error is [io.EOF].
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	begun, _, ok := c.requests.add(p[:n])
	if !ok {
		c.group.log.LogAttrs(context.Background(), slog.LevelWarn, "client sent a frame that is not a request; closing its connection")
		return 0, io.EOF
	}
	if begun > 0 {
		c.count(begun)
	}
	if err != nil {
		return n, io.EOF
	}
	return n, nil
}

// Write sends a part of a reply. It never fails: a client that does not take its
// reply is disconnected, which Read then tells the server.
func (c *conn) Write(p []byte) (int, error) {
	err := c.SetWriteDeadline(time.Now().Add(replyTimeout))
	if err == nil {
		_, err = c.Conn.Write(p)
	}
	if err != nil {
		c.group.log.LogAttrs(context.Background(), slog.LevelDebug, "reply not sent", slog.Any("error", err))
		_ = c.Conn.Close()
		return len(p), nil
	}
	if _, ended, _ := c.replies.add(p); ended > 0 {
		c.count(-ended)
	}
	return len(p), nil
}

// count changes the number of requests without a reply by n.
func (c *conn) count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending += n
	if c.stopping && c.pending == 0 {
		_ = c.Conn.Close()
	}
}

func (c *conn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	if c.pending == 0 {
		_ = c.Conn.Close()
	}
}

// Close is called by the server when it has done with the connection.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.group.mu.Lock()
		defer c.group.mu.Unlock()
		delete(c.group.open, c)
		c.group.all.Done()
	})
	return err
}

// Layout of a ttrpc frame: length of the body (4 bytes), stream (4), kind (1),
// flags (1), body (https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md).
const (
	headerBytes  = 10
	kindRequest  = 1
	kindResponse = 2
)

// frames follows the frames in one direction of a connection.
type frames struct {
	kind   byte // the only one allowed
	header [headerBytes]byte
	have   int    // bytes of header
	body   uint32 // bytes that follow it
}

// add takes the next bytes of the stream and returns how many frames have begun
// and ended in them; ok is false from the first frame of another kind.
func (f *frames) add(p []byte) (begun, ended int, ok bool) {
	for len(p) > 0 {
		if f.have < headerBytes {
			n := copy(f.header[f.have:], p)
			f.have += n
			p = p[n:]
			if f.have < headerBytes {
				break
			}
			if f.header[8] != f.kind {
				f.have--
				return begun, ended, false
			}
			begun++
			f.body = binary.BigEndian.Uint32(f.header[:4])
		}
		n := min(uint64(len(p)), uint64(f.body))
		p = p[n:]
		f.body -= uint32(n)
		if f.body == 0 {
			f.have = 0
			ended++
		}
	}
	return begun, ended, true
}
