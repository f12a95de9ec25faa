//go:build linux

package bench_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"dray/internal/bench"
	"dray/internal/testkit"
)

// plugin is a small snapshotter of its own process: containerd.services.snapshots.v1,
// with a directory for each snapshot that begins as a copy of its parent's.
type plugin struct {
	store string

	mu        sync.Mutex // guards the fields below
	count     int
	snapshots map[string]*snapshot // by key or name
}

type snapshot struct {
	parent string
	kind   uint64 // 1 view, 2 active, 3 committed
	dir    string
}

// servePlugin serves the plugin as gRPC wants it: HTTP/2, a message in a frame, and how
// it went in the trailer.
func servePlugin(socket, store string) error {
	l, err := net.Listen("unix", socket) //nolint:noctx // a test's server
	if err != nil {
		return err
	}
	p := &plugin{store: store, snapshots: map[string]*snapshot{}}
	server := http.Server{Handler: p, Protocols: &http.Protocols{}, ReadHeaderTimeout: time.Minute}
	server.Protocols.SetUnencryptedHTTP2(true)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return server.Serve(l)
}

// frameBytes is the head of a message in gRPC: not compressed, and its size.
const frameBytes = 5

// ServeHTTP implements http.Handler.
func (p *plugin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, err := io.ReadAll(r.Body)
	var reply []byte
	if err == nil && len(request) >= frameBytes {
		reply, err = p.call(path.Base(r.URL.Path), fields(request[frameBytes:]))
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	if err == nil {
		_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(reply))), reply...))
	}
	w.Header().Set("Grpc-Status", strconv.Itoa(int(status.Code(err))))
	if err != nil {
		w.Header().Set("Grpc-Message", err.Error())
	}
}

// fields returns the byte fields of a message, the last of each number.
func fields(raw []byte) map[protowire.Number]string {
	found := map[protowire.Number]string{}
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return found
		}
		raw = raw[n:]
		if kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(raw)
			found[number] = string(v)
		}
		raw = raw[max(0, protowire.ConsumeFieldValue(number, kind, raw)):]
	}
	return found
}

// message writes byte fields of ascending numbers; "" is left out.
func message(values ...string) (raw []byte) {
	for i, v := range values {
		if v != "" {
			raw = protowire.AppendString(protowire.AppendTag(raw, protowire.Number(i+1), protowire.BytesType), v)
		}
	}
	return raw
}

func (p *plugin) call(method string, f map[protowire.Number]string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := f[2]
	s := p.snapshots[key]
	switch method {
	case "Prepare", "View":
		return p.prepare(method, key, f[3])
	case "List":
		return message(), nil // one answer with nothing in it
	case "Cleanup":
		return nil, nil
	case "Update":
		key = fields([]byte(f[2]))[1]
		s = p.snapshots[key]
	case "Commit":
		key = f[3]
		s = p.snapshots[key]
	}
	if s == nil {
		return nil, status.Errorf(codes.NotFound, "no snapshot %s", key)
	}
	switch method {
	case "Commit":
		delete(p.snapshots, key)
		s.kind = 3
		p.snapshots[f[2]] = s
		return nil, nil
	case "Mounts":
		return s.mounts(), nil
	case "Remove":
		delete(p.snapshots, key)
		return nil, os.RemoveAll(s.dir)
	case "Usage":
		return nil, nil
	default: // Stat, Update
		info := protowire.AppendVarint(protowire.AppendTag(message(key, s.parent), 3, protowire.VarintType), s.kind)
		return message(string(info)), nil
	}
}

func (p *plugin) prepare(method, key, parent string) ([]byte, error) {
	if p.snapshots[key] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "snapshot %s", key)
	}
	p.count++
	s := &snapshot{parent: parent, kind: map[string]uint64{"View": 1, "Prepare": 2}[method], dir: filepath.Join(p.store, strconv.Itoa(p.count))}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if parent != "" {
		if out, err := exec.Command("cp", "-a", p.snapshots[parent].dir+"/.", s.dir).CombinedOutput(); err != nil { //nolint:noctx // short
			return nil, fmt.Errorf("%w: %s", err, out)
		}
	}
	p.snapshots[key] = s
	return s.mounts(), nil
}

func (s *snapshot) mounts() []byte {
	mount := message("bind", s.dir, "", map[bool]string{true: "rw", false: "ro"}[s.kind == 2])
	mount = protowire.AppendString(protowire.AppendTag(mount, 4, protowire.BytesType), "rbind")
	return message(string(mount))
}

// A snapshotter's plugin is a part of the server: it begins empty with each run, what it
// stores is counted, and nothing of it is left.
func TestSnapshotterPlugin(t *testing.T) {
	testkit.Need(t, testkit.Root(), testkit.Tool("containerd"))
	c := corpus(t)
	report := measure(t, bench.Options{
		Corpus: c, Rivals: []*bench.Rival{rival(t, "plugin@containerd=containerd:theirs proxy="+self(t)+" plugin {socket} {store}"), rival(t, "containerd")},
		Modes: []string{bench.Individual}, Repetitions: 2,
	})
	storage := map[string]int64{}
	for _, r := range report.Runs {
		if r.Error != "" || r.Cleanup != "" || r.MountSeconds == 0 || r.FirstByteSeconds == 0 {
			t.Errorf("%s: %q, %q, %+v", r.Rival, r.Error, r.Cleanup, r)
		}
		storage[r.Rival] = r.Storage.Blocks
	}
	// a copy of the lowest layer, of both, and of both to be written to, where overlayfs has each layer once
	layer := c.Image("generated").Layers[0].UncompressedBytes
	if more := storage["plugin"] - storage["containerd"]; more < 3*layer-1<<20 || more > 4*layer {
		t.Errorf("stored %d bytes more than overlayfs, of layers of %d", more, layer)
	}
	if v := report.Rivals[0].Version; !strings.Contains(v, filepath.Base(self(t))) {
		t.Errorf("version %q", v)
	}
}

// containerd asks the snapshotter where it was told to; a plugin that does not start is said.
func TestSnapshotterPluginsThatFail(t *testing.T) {
	testkit.Need(t, testkit.Root(), testkit.Tool("containerd"))
	report := measure(t, bench.Options{Rivals: []*bench.Rival{
		rival(t, "absent@containerd=containerd:theirs proxy=/nowhere/theirs.sock"),
		rival(t, "ends@containerd=containerd:theirs proxy=/bin/ls {socket}"),
	}, Modes: []string{bench.Individual}})
	want := map[string]string{"absent": "/nowhere/theirs.sock", "ends": "ended before it was ready"}
	for _, r := range report.Runs {
		if !strings.Contains(r.Error, want[r.Rival]) {
			t.Errorf("%s: got %q", r.Rival, r.Error)
		}
	}
	if v := report.Rivals[0].Version; !strings.Contains(v, "are not counted") {
		t.Errorf("version %q", v)
	}
}
