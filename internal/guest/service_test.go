package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dray/internal/guest"
	"dray/internal/guest/api"
	"dray/internal/oci"
)

const patience = 5 * time.Minute // for what must happen, on a machine as slow as it may be

var (
	manifestDigest = oci.DigestBytes([]byte("manifest"))
	configDigest   = oci.DigestBytes([]byte("config"))
	someReply      = guest.Reply{ManifestDigest: manifestDigest, ConfigDigest: configDigest}
	errNotThere    = errors.New("no such image")
)

// imagesFunc is an engine made to order.
type imagesFunc func(ctx context.Context, image, bundle string) (guest.Reply, error)

func (f imagesFunc) PullInto(ctx context.Context, image, bundle string) (guest.Reply, error) {
	return f(ctx, image, bundle)
}

// gate is an engine whose pulls wait to be let through, each reported as it
// begins.
type gate struct {
	begun chan call
	mu    sync.Mutex
	now   map[string]bool // bundles with a pull
	twice bool
}

type call struct {
	image, bundle string
	ctx           context.Context
	end           chan<- error
}

func newGate() *gate { return &gate{begun: make(chan call), now: map[string]bool{}} }

func (g *gate) PullInto(ctx context.Context, image, bundle string) (guest.Reply, error) {
	g.mu.Lock()
	g.twice = g.twice || g.now[bundle]
	g.now[bundle] = true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.now[bundle] = false
	}()
	end := make(chan error, 1)
	select {
	case g.begun <- call{image, bundle, ctx, end}:
	case <-ctx.Done():
		return guest.Reply{}, fmt.Errorf("pull: %w", context.Cause(ctx))
	}
	select {
	case err := <-end:
		return guest.Reply{ManifestDigest: oci.DigestBytes([]byte(image))}, err
	case <-ctx.Done():
		return guest.Reply{}, fmt.Errorf("pull: %w", context.Cause(ctx))
	}
}

func (g *gate) next(t *testing.T) call {
	t.Helper()
	return receive(t, g.begun, "a pull begins")
}

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain until %s", what)
		panic("unreachable")
	}
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(2*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// server is a running Serve.
type server struct {
	socket string
	log    *lockedBuffer
	stop   context.CancelFunc
	ended  chan error
}

type lockedBuffer struct {
	mu sync.Mutex
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

func serve(t *testing.T, images guest.Images, o guest.Options) *server {
	t.Helper()
	s := &server{log: &lockedBuffer{}, ended: make(chan error, 1)}
	if o.Listen == nil {
		s.socket = filepath.Join(shortDir(t), "s")
		o.Listen = []string{"unix://" + s.socket}
	}
	o.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if o.Grace == 0 {
		o.Grace = -1
	}
	ready := make(chan struct{})
	o.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(t.Context())
	s.stop = cancel
	go func() { s.ended <- guest.Serve(ctx, images, o) }()
	select {
	case <-ready:
	case err := <-s.ended:
		cancel()
		t.Fatalf("serve: %v", err)
	case <-time.After(patience):
		t.Fatal("the service is not ready")
	}
	t.Cleanup(func() {
		cancel()
		if err := s.wait(t); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// wait returns what Serve returned, for every caller.
func (s *server) wait(t *testing.T) error {
	t.Helper()
	err := receive(t, s.ended, "Serve returns")
	s.ended <- err
	return err
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest") //nolint:usetesting // t.TempDir has the test's name, too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func dial(t *testing.T, socket string, opts ...ttrpc.ClientOpts) *ttrpc.Client {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn, opts...)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func pull(client *ttrpc.Client, image, bundle string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := api.NewImagePullServiceClient(client).PullImage(ctx, &api.ImagePullRequest{ImageUrl: image, BundlePath: bundle})
	return reply.GetManifestDigest(), err
}

type result struct {
	digest string
	err    error
}

func pullLater(client *ttrpc.Client, image, bundle string) <-chan result {
	done := make(chan result, 1)
	go func() {
		digest, err := pull(client, image, bundle)
		done <- result{digest, err}
	}()
	return done
}

func succeed(_ context.Context, _, _ string) (guest.Reply, error) { return someReply, nil }

// Both predecessors' clients, generated from their definitions, understand every
// form of reply.
func TestWireDefinitions(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./internal/wiretest/contrast", "./internal/wiretest/hub")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tests := []struct {
		name          string
		reply         guest.ReplyMode
		image         string
		contrast, hub string
	}{
		{"manifest", guest.ReplyManifest, "example.com/a:1", "73", manifestDigest.String()},
		{"config", guest.ReplyConfig, "example.com/a:1", "73", configDigest.String()},
		{"empty", guest.ReplyEmpty, "example.com/a:1", "0", ""},
		{"refusal", guest.ReplyManifest, "example.com/none", "NotFound: no such image", "NotFound: no such image"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, imagesFunc(func(_ context.Context, image, _ string) (guest.Reply, error) {
				if strings.HasSuffix(image, "/none") {
					return guest.Reply{}, errNotThere
				}
				return someReply, nil
			}), guest.Options{ReplyWith: test.reply, Code: func(error) codes.Code { return codes.NotFound }})
			for program, want := range map[string]string{"contrast": test.contrast, "hub": test.hub} {
				out, err := exec.CommandContext(t.Context(), filepath.Join(bin, program), s.socket, test.image, t.TempDir()).Output()
				if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
					t.Fatalf("%s: %v", program, err)
				}
				if diff := cmp.Diff(strings.TrimSpace(string(out)), want); diff != "" {
					t.Errorf("%s (-got +want):\n%s", program, diff)
				}
			}
		})
	}
}

func TestParseReplyMode(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]guest.ReplyMode{"manifest": guest.ReplyManifest, "config": guest.ReplyConfig, "empty": guest.ReplyEmpty} {
		if got, err := guest.ParseReplyMode(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	if _, err := guest.ParseReplyMode("digest"); err == nil {
		t.Error("an unknown mode was taken")
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	bundle := filepath.Join(root, "bundle")
	for _, dir := range []string{bundle, filepath.Join(root, "inner", "deep")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file, link, outside := filepath.Join(root, "file"), filepath.Join(root, "link"), filepath.Join(root, "inner", "up")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(bundle, link), os.Symlink(root, outside)); err != nil {
		t.Fatal(err)
	}
	digest := "example.com/a@" + manifestDigest.String()
	strict := guest.Options{RequireDigest: true, BundleRoot: filepath.Join(root, "inner")}
	tests := []struct {
		name          string
		options       guest.Options
		image, bundle string
		want          codes.Code
		message       string
	}{
		{"good", guest.Options{}, "example.com/a", bundle, codes.OK, ""},
		{"slashes are cleaned", guest.Options{}, "example.com/a", bundle + "//./", codes.OK, ""},
		{"no image", guest.Options{}, "", bundle, codes.InvalidArgument, "image_url is empty"},
		{"long image", guest.Options{}, strings.Repeat("a", 4097), bundle, codes.InvalidArgument, "image_url has 4097 bytes, more than 4096"},
		{"newline in image", guest.Options{}, "a\nb", bundle, codes.InvalidArgument, `image_url "a\nb" contains a control character`},
		{"malformed image", guest.Options{}, "ftp://x/y", bundle, codes.InvalidArgument, "image_url: parse reference"},
		{"no bundle", guest.Options{}, "a", "", codes.InvalidArgument, "bundle_path is empty"},
		{"long bundle", guest.Options{}, "a", "/" + strings.Repeat("a", 4095), codes.InvalidArgument, "bundle_path has 4096 bytes"},
		{"NUL in bundle", guest.Options{}, "a", bundle + "\x00", codes.InvalidArgument, "control character"},
		{"relative bundle", guest.Options{}, "a", "bundle", codes.InvalidArgument, `bundle_path "bundle" is not absolute`},
		{"dots in bundle", guest.Options{}, "a", bundle + "/../bundle", codes.InvalidArgument, `contains ".."`},
		{"root as bundle", guest.Options{}, "a", "//", codes.InvalidArgument, "is the root directory"},
		{"missing bundle", guest.Options{}, "a", bundle + "/none", codes.NotFound, "does not exist"},
		{"bundle below a file", guest.Options{}, "a", file + "/x", codes.InvalidArgument, "not a directory"},
		{"file as bundle", guest.Options{}, "a", file, codes.InvalidArgument, "is not a directory"},
		{"link as bundle", guest.Options{}, "a", link, codes.InvalidArgument, "is a symbolic link"},
		{"link with a slash", guest.Options{}, "a", link + "/", codes.InvalidArgument, "is a symbolic link"},
		{"digest", strict, digest, filepath.Join(root, "inner/deep"), codes.OK, ""},
		{"tag where a digest is required", strict, "example.com/a:1", filepath.Join(root, "inner/deep"), codes.InvalidArgument, "takes digests only"},
		{"outside of the bundle root", strict, digest, bundle, codes.InvalidArgument, "is not below"},
		{"the bundle root itself", strict, digest, filepath.Join(root, "inner"), codes.InvalidArgument, "is not below"},
		{"out of the bundle root by a link", strict, digest, outside + "/bundle", codes.InvalidArgument, "escapes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, imagesFunc(succeed), test.options)
			_, err := pull(dial(t, s.socket), test.image, test.bundle)
			got := status.Convert(err)
			if got.Code() != test.want || !strings.Contains(got.Message(), test.message) {
				t.Errorf("got %s %q, want %s with %q", got.Code(), got.Message(), test.want, test.message)
			}
		})
	}
}

func TestMalformedPayload(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(succeed), guest.Options{})
	client := dial(t, s.socket, ttrpc.WithUnaryClientInterceptor(
		func(ctx context.Context, q *ttrpc.Request, r *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
			q.Payload = []byte("\x0a\x02\xff\xfe") // image_url is not UTF-8
			return next(ctx, q, r)
		}))
	if _, err := pull(client, "a", t.TempDir()); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	code := func(err error) codes.Code {
		if errors.Is(err, errNotThere) {
			return codes.NotFound
		}
		return codes.OK // which no error may become
	}
	tests := []struct {
		name    string
		err     error
		code    func(error) codes.Code
		want    codes.Code
		message string
	}{
		{"mapped", fmt.Errorf("pull x: %w", errNotThere), code, codes.NotFound, "pull x: no such image"},
		{"not mapped", errors.New("x"), code, codes.Internal, "x"},
		{"no map", errNotThere, nil, codes.Internal, "no such image"},
		{"a status of its own", status.Error(codes.Aborted, "y"), code, codes.Internal, "rpc error: code = Aborted desc = y"},
		{"joined", errors.Join(errors.New("a"), errors.New("b")), code, codes.Internal, "a b"},
		{"password", errors.New(`Get "https://me:secret@example.com/v2/": refused`), code, codes.Internal, `Get "https://…@example.com/v2/": refused`},
		{"query", errors.New(`Get "https://cdn.example/b?X-Signature=secret": refused`), code, codes.Internal, `Get "https://cdn.example/b?…": refused`},
		{"long", errors.New(strings.Repeat("é", 2000)), code, codes.Internal, strings.Repeat("é", 1024) + "…"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, imagesFunc(func(context.Context, string, string) (guest.Reply, error) { return guest.Reply{}, test.err }),
				guest.Options{Code: test.code})
			_, err := pull(dial(t, s.socket), "example.com/a", t.TempDir())
			got := status.Convert(err)
			if got.Code() != test.want || got.Message() != test.message {
				t.Errorf("got %s %q, want %s %q", got.Code(), got.Message(), test.want, test.message)
			}
			if strings.Contains(s.log.String(), "secret") {
				t.Errorf("the log has a secret:\n%s", s.log)
			}
		})
	}
}

func TestPanicIsOneRequestsProblem(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(func(_ context.Context, image, _ string) (guest.Reply, error) {
		if image == "bad" {
			panic("engine\nbroke")
		}
		return someReply, nil
	}), guest.Options{Code: func(error) codes.Code { return codes.NotFound }})
	client := dial(t, s.socket)
	bundle := t.TempDir()
	_, err := pull(client, "bad", bundle)
	if got := status.Convert(err); got.Code() != codes.Internal || got.Message() != "internal error: engine broke" {
		t.Errorf("got %v", err)
	}
	if log := s.log.String(); !strings.Contains(log, "panic in a request") || !strings.Contains(log, "service_test.go") {
		t.Errorf("no stack in the log:\n%s", log)
	}
	if _, err := pull(client, "good", bundle); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestUnknownNames(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(succeed), guest.Options{})
	client := dial(t, s.socket)
	for _, name := range [][2]string{{"api.ImagePullService", "Push"}, {"api.Other", "PullImage"}} {
		err := client.Call(t.Context(), name[0], name[1], &api.ImagePullRequest{}, &api.ImagePullResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%v: got %v, want Unimplemented", name, err)
		}
	}
}

// TestNothingLeaks runs many clients that end in every way, then stops the
// service under load.
func TestNothingLeaks(t *testing.T) { //nolint:paralleltest // counts the process's goroutines
	before := runtime.NumGoroutine()
	s := serve(t, imagesFunc(func(ctx context.Context, image, _ string) (guest.Reply, error) {
		if strings.HasSuffix(image, "stuck") {
			<-ctx.Done()
			return guest.Reply{}, ctx.Err()
		}
		return someReply, nil
	}), guest.Options{Grace: 50 * time.Millisecond})
	bundles := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	var clients sync.WaitGroup
	for i := range 60 {
		clients.Go(func() {
			client := dial(t, s.socket)
			defer func() { _ = client.Close() }()
			bundle := bundles[i%len(bundles)]
			switch i % 4 {
			case 0: // leaves while it waits
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
				defer cancel()
				_, _ = api.NewImagePullServiceClient(client).PullImage(ctx, &api.ImagePullRequest{ImageUrl: "stuck", BundlePath: bundle})
			case 1:
				if _, err := pull(client, "fine", t.TempDir()); err != nil {
					t.Errorf("pull: %v", err)
				}
			case 2:
				_ = client.Call(t.Context(), "api.ImagePullService", "None", &api.ImagePullRequest{}, &api.ImagePullResponse{})
			}
		})
	}
	clients.Wait()
	for i := range 20 { // the load
		client := dial(t, s.socket)
		clients.Go(func() { _, _ = pull(client, "stuck", bundles[i%len(bundles)]) })
	}
	eventually(t, "the load is there", func() bool { return runtime.NumGoroutine() > before+60 })
	s.stop()
	if err := s.wait(t); err != nil {
		t.Errorf("serve: %v", err)
	}
	clients.Wait()
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
