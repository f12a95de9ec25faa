package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dray/internal/oci"
	"dray/internal/stream"
	"dray/internal/testkit"
)

const patience = 5 * time.Minute // for what must happen, on a machine as slow as it may be

// programs are what the tests of the service need: dray-guest and the clients of
// both predecessors.
type programs struct{ guest, contrast, hub string }

func build(t *testing.T) programs {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir,
		"./cmd/dray-guest", "./internal/guest/internal/wiretest/contrast", "./internal/guest/internal/wiretest/hub")
	cmd.Dir, cmd.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return programs{filepath.Join(dir, "dray-guest"), filepath.Join(dir, "contrast"), filepath.Join(dir, "hub")}
}

// server is a running service.
type server struct {
	cmd    *exec.Cmd
	dir    string // bundles, sockets and the store are here
	stderr *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// serveWith starts a service that listens on DIR/socket, unless args say otherwise,
// and waits for it.
func serveWith(t *testing.T, dir, program string, args ...string) *server {
	t.Helper()
	s := &server{dir: dir, stderr: &lockedBuffer{}}
	s.cmd = exec.CommandContext(t.Context(), program, args...)
	s.cmd.Env = append(os.Environ(), "DRAY_STOREPATH="+s.path("store"))
	s.cmd.Stderr = s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // in case the test failed before it stopped it
		_ = s.cmd.Wait()
		unmountBelow(dir)
	})
	eventually(t, "the service listens: "+s.stderr.String(), func() bool {
		var dialer net.Dialer
		conn, err := dialer.DialContext(t.Context(), "unix", s.path("socket"))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return s
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// stop asks the service to end, which it must do in order.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Fatalf("the service ended with %v: %s", err, s.stderr)
	}
}

func (s *server) bundle(t *testing.T, name string) string {
	t.Helper()
	if err := os.MkdirAll(s.path(name), 0o700); err != nil {
		t.Fatal(err)
	}
	return s.path(name)
}

// ask runs a client and returns what it prints.
func ask(t *testing.T, client, socket, image, bundle string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), client, socket, image, bundle).Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!asExit(err, &exit) || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// imagesFor serves two images.
func imagesFor(t *testing.T, faults ...testkit.Fault) (*testkit.Server, testkit.Built) {
	t.Helper()
	dir := t.TempDir()
	built := images()["small"](t).Write(testkit.LayoutAt(t, filepath.Join(dir, "small")), "v1")
	images()["other"](t).Write(testkit.LayoutAt(t, filepath.Join(dir, "other")), "v1")
	images()["big"](t).Write(testkit.LayoutAt(t, filepath.Join(dir, "big")), "v1")
	return testkit.Registry(t, dir, faults...), built
}

// Both predecessors' clients get what they asked for from both programs, over
// sockets of their own, and asking again changes nothing.
func TestServeBothClients(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	have := build(t)
	registry, built := imagesFor(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dray := filepath.Join(t.TempDir(), "dray") // the test binary is the program under that name
	if err := os.Symlink(self, dray); err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{"dray": dray, "dray-guest": have.guest} { //nolint:paralleltest // mounts
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := serveWith(t, dir, program, "serve", "--listen", "unix://"+filepath.Join(dir, "socket"), "--listen", filepath.Join(dir, "second"))
			first, second := s.bundle(t, "b1"), s.bundle(t, "b2")
			for range 2 {
				if got := ask(t, have.hub, s.path("socket"), registry.Ref("small:v1"), first); got != string(built.Manifest.Digest) {
					t.Errorf("the Hub's client has %q, want %q", got, built.Manifest.Digest)
				}
				if got := ask(t, have.contrast, s.path("second"), registry.Ref("small:v1"), second); got != "73" { // a field with the digest, unknown to it
					t.Errorf("imagepuller's client has %q", got)
				}
			}
			if got := mountsBelow(dir); len(got) != 2 {
				t.Errorf("mounted: %v, want two", got)
			}
			wantHostname(t, first, "small\n")
			ask(t, have.hub, s.path("socket"), registry.Ref("other:v1"), first)
			wantHostname(t, first, "other\n")
			wantConfig(t, first, false)
			ask(t, have.hub, s.path("socket"), registry.Ref("big:v1"), first)
			wantConfig(t, first, true)
			ask(t, have.hub, s.path("socket"), registry.Ref("other:v1"), first)
			wantConfig(t, first, false)
			if info, err := os.Stat(s.path("socket")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("socket: %v, %v", info, err)
			}
			s.stop(t)
			for _, socket := range []string{"socket", "second"} {
				if _, err := os.Lstat(s.path(socket)); !os.IsNotExist(err) {
					t.Errorf("%s is left: %v", socket, err)
				}
			}
			wantHostname(t, second, "small\n") // mounts outlive the service
		})
	}
}

// wantConfig: an image without a command has none.
func wantConfig(t *testing.T, bundle string, want bool) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(bundle, "config.json")); (err == nil) != want {
		t.Errorf("config.json: %v, want it: %t", err, want)
	}
}

func wantHostname(t *testing.T, bundle, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(bundle, "rootfs", "etc", "hostname"))
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q (%v), want %q", bundle, got, err, want)
	}
}

// Whoever has a configuration of a predecessor can use it as it is.
func TestServePredecessors(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	have := build(t)
	registry, built := imagesFor(t)
	pinned := strings.TrimSuffix(registry.Ref("small:v1"), ":v1") + "@" + string(built.Manifest.Digest)
	t.Run("imagepuller", func(t *testing.T) { //nolint:paralleltest // mounts
		dir := t.TempDir()
		config := write(t, dir, "imagepuller.toml", "[registries.\".\"]\ninsecure-skip-verify = true\n[extra-env]\nNO_PROXY = \"127.0.0.1\"\n")
		s := serveWith(t, dir, have.guest, "serve", "--config", config, "--listen", filepath.Join(dir, "socket"), "--no-config-json", "--reply", "empty")
		b := s.bundle(t, "b")
		if got := ask(t, have.contrast, s.path("socket"), registry.Ref("small:v1"), b); !strings.Contains(got, "takes digests only") {
			t.Errorf("a tag: %q", got)
		}
		if got := ask(t, have.contrast, s.path("socket"), pinned, b); got != "0" {
			t.Errorf("a digest: %q", got)
		}
		if _, err := os.Lstat(filepath.Join(b, "config.json")); !os.IsNotExist(err) {
			t.Errorf("config.json: %v", err)
		}
		s.stop(t)
	})
	t.Run("the Hub", func(t *testing.T) { //nolint:paralleltest // mounts
		dir := t.TempDir()
		config := write(t, dir, "cdh.toml", fmt.Sprintf("socket = %q\n[kbc]\nname = \"offline_fs_kbc\"\n[image]\nwork_dir = %q\nmax_concurrent_layer_downloads_per_image = 2\n",
			"unix://"+filepath.Join(dir, "socket"), filepath.Join(dir, "work")))
		s := serveWith(t, dir, have.guest, "serve", "--config", config, "--reply", "config")
		b := s.bundle(t, "b")
		if got := ask(t, have.hub, s.path("socket"), registry.Ref("small:v1"), b); got != string(built.Config.Digest) {
			t.Errorf("got %q, want the config's digest", got)
		}
		s.stop(t)
		if got := strings.Count(s.stderr.String(), "kbc does not concern images"); got != 1 {
			t.Errorf("said %d times what is ignored: %s", got, s.stderr)
		}
		if _, err := os.Stat(s.path("store")); err != nil { // DRAY_STOREPATH is ours and wins
			t.Error(err)
		}
	})
	t.Run("a policy is refused by name", func(t *testing.T) { //nolint:paralleltest // mounts
		config := write(t, t.TempDir(), "cdh.toml", "[image]\nimage_security_policy_uri = \"kbs:///x\"\n")
		out, err := exec.CommandContext(t.Context(), have.guest, "serve", "--config", config).CombinedOutput()
		if exit := (*exec.ExitError)(nil); !asExit(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "image_security_policy_uri") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Bad requests are refused with a code and a reason, and leave nothing.
func TestServeRefuses(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	have := build(t)
	registry, _ := imagesFor(t)
	local := filepath.Join(t.TempDir(), "local")
	images()["small"](t).Write(testkit.LayoutAt(t, local), "v1")
	dir := t.TempDir()
	s := serveWith(t, dir, have.guest, "serve", "--listen", filepath.Join(dir, "socket"), "--require-digest")
	good := s.bundle(t, "b")
	if err := os.Symlink(good, s.path("link")); err != nil {
		t.Fatal(err)
	}
	digest := "@" + string(oci.DigestBytes(nil))
	for name, c := range map[string]struct{ image, bundle, want string }{
		"tag":              {registry.Ref("small:v1"), good, "InvalidArgument: .*digests only"},
		"not a reference":  {"BAD//:", good, "InvalidArgument: image_url"},
		"no such image":    {registry.Ref("small") + digest, good, "NotFound: "},
		"no registry":      {"http://127.0.0.1:1/x" + digest, good, "Unavailable: .*connection refused"},
		"relative bundle":  {registry.Ref("small") + digest, "b", "InvalidArgument: .*not absolute"},
		"missing bundle":   {registry.Ref("small") + digest, s.path("nowhere"), "NotFound: .*does not exist"},
		"bundle is a link": {registry.Ref("small") + digest, s.path("link"), "InvalidArgument: .*symbolic link"},
		"climbing bundle":  {registry.Ref("small") + digest, s.path("b") + "/../b", "InvalidArgument: "},
		"local files":      {"local://" + local + ":v1" + digest, good, "PermissionDenied: .*--allow-local"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ask(t, have.hub, s.path("socket"), c.image, c.bundle)
			code, reason, _ := strings.Cut(c.want, ": ")
			if !strings.HasPrefix(got, code+": ") || !strings.Contains(got, strings.TrimPrefix(reason, ".*")) {
				t.Errorf("got %q, want %s", got, c.want)
			}
		})
	}
	s.wantNothing(t)
	s.stop(t)
	s = serveWith(t, dir, have.guest, "serve", "--listen", filepath.Join(dir, "socket"), "--allow-local")
	if got := ask(t, have.hub, s.path("socket"), "local://"+local+":v1", good); !strings.HasPrefix(got, "sha256:") {
		t.Errorf("--allow-local: %q", got)
	}
	s.stop(t)
}

// wantNothing looks for what a failed request must not leave.
func (s *server) wantNothing(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is left", func() bool {
		staged, _ := filepath.Glob(s.path("store/staging/*"))
		mounts, _ := filepath.Glob(s.path("store/mounts/*"))
		return len(staged)+len(mounts)+len(mountsBelow(s.dir)) == 0
	})
}

// A client that goes away takes its pull along; the service goes on, and SIGTERM
// ends a pull that takes longer than the grace.
func TestServeClientGoes(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	have := build(t)
	registry, _ := imagesFor(t, testkit.Slow("/blobs/", 4<<10, 20*time.Millisecond))
	dir := t.TempDir()
	s := serveWith(t, dir, have.guest, "serve", "--listen", filepath.Join(dir, "socket"), "--linger", "0s", "--grace", "50ms")
	begin := func() *exec.Cmd {
		client := exec.CommandContext(t.Context(), have.hub, s.path("socket"), registry.Ref("big:v1"), s.bundle(t, "b"))
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a layer is staged", func() bool {
			staged, _ := filepath.Glob(s.path("store/staging/*"))
			return len(staged) > 0
		})
		return client
	}
	client := begin()
	_ = client.Process.Kill()
	_ = client.Wait() // it was killed
	s.wantNothing(t)
	client = begin()
	s.stop(t)
	_ = client.Wait() // it was refused
	s.wantNothing(t)
}

// The service takes its sockets from systemd, tells it when it is ready, and has
// metrics where it is asked for them.
func TestServeUnderSystemd(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Tool("systemd-socket-activate"))
	have := build(t)
	registry, built := imagesFor(t)
	dir := t.TempDir()
	notify, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "unixgram", filepath.Join(dir, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notify.Close() }()
	// systemd-socket-activate starts the program at the first connection
	s := serveWith(t, dir, "systemd-socket-activate", "-l", filepath.Join(dir, "socket"),
		"-E", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "-E", "DRAY_STOREPATH="+filepath.Join(dir, "store"), "--",
		have.guest, "serve", "--metrics", "unix://"+filepath.Join(dir, "metrics"))
	if got := ask(t, have.hub, s.path("socket"), registry.Ref("small:v1"), s.bundle(t, "b")); got != string(built.Manifest.Digest) {
		t.Errorf("got %q: %s", got, s.stderr)
	}
	wantMessage(t, notify, "READY=1")
	if got := get(t, s.path("metrics"), "/metrics"); !strings.Contains(got, `dray_requests_total{code="OK"} 1`) {
		t.Errorf("metrics: %s", got)
	}
	if got := get(t, s.path("metrics"), "/healthz"); got != "ok\n" {
		t.Errorf("health: %q", got)
	}
	s.stop(t)
	wantMessage(t, notify, "STOPPING=1")
	if _, err := os.Lstat(s.path("socket")); err != nil {
		t.Errorf("systemd's socket is systemd's to remove: %v", err)
	}
}

func wantMessage(t *testing.T, from net.PacketConn, want string) {
	t.Helper()
	message := make([]byte, 256)
	_ = from.SetReadDeadline(time.Now().Add(patience)) // never fails
	n, _, err := from.ReadFrom(message)
	if err != nil || strings.TrimSpace(string(message[:n])) != want {
		t.Errorf("notified %q (%v), want %q", message[:n], err, want)
	}
}

// get asks a server on a unix socket.
func get(t *testing.T, socket, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://service"+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := stream.ReadAll(response.Body, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
