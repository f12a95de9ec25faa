package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dray/internal/guest/api"
	"dray/internal/oci"
)

// Names of the service on the wire.
const (
	serviceName = "api.ImagePullService"
	methodName  = "PullImage"
)

// Limits and defaults of [Serve].
const (
	// DefaultSocket is where imagepuller listens and the kata agent calls.
	DefaultSocket = "/run/guest-services/imagepull.socket"
	// DefaultGrace is the time that running pulls have to end at shutdown.
	DefaultGrace = 20 * time.Second

	maxCalls = 1024             // requests at once, over all connections
	hardStop = 15 * time.Second // for pulls to end once they are cancelled
)

var (
	errStopping = errors.New("the service is stopping")
	errPanic    = errors.New("internal error")
)

// Reply is what a pull has made.
type Reply struct {
	ManifestDigest oci.Digest // of the platform's manifest
	ConfigDigest   oci.Digest
}

// Images is what the service asks of the engine.
type Images interface {
	// PullInto makes BUNDLE/rootfs of the image. It is idempotent and safe for
	// concurrent use, though never called twice at once for one bundle. ctx
	// ends when every caller has gone or the service stops; PullInto then
	// returns soon, with nothing left half done.
	PullInto(ctx context.Context, imageURL, bundlePath string) (Reply, error)
}

// ReplyMode says what a successful reply carries in manifest_digest.
type ReplyMode uint8

// Modes of a reply.
const (
	ReplyManifest ReplyMode = iota // the platform manifest's digest, as the Hub since its version 0.17
	ReplyConfig                    // the image config's digest, as the Hub before
	ReplyEmpty                     // nothing, as imagepuller
)

// ParseReplyMode reads "manifest", "config" or "empty".
func ParseReplyMode(s string) (ReplyMode, error) {
	switch s {
	case "manifest":
		return ReplyManifest, nil
	case "config":
		return ReplyConfig, nil
	case "empty":
		return ReplyEmpty, nil
	}
	return 0, fmt.Errorf("parse reply mode %q: want manifest, config or empty", s)
}

// Options of [Serve]. The zero value serves on [DefaultSocket], or on the
// sockets of systemd when it passes some.
type Options struct {
	// Listen has the addresses to serve: unix:///PATH, /PATH, fd:// for all
	// sockets that systemd passes, fd://NAME for those of one name.
	Listen []string
	// ReplyWith chooses what the reply carries.
	ReplyWith ReplyMode
	// RequireDigest refuses references without a digest.
	RequireDigest bool
	// AllowLocal takes references to files of the guest, local:// and
	// oci-archive:, too. Callers could learn of files by them.
	AllowLocal bool
	// BundleRoot is a directory that all bundles must be below; "" allows any.
	BundleRoot string
	// Grace is how long running pulls may go on after the end of the context;
	// 0 means [DefaultGrace], a negative value none.
	Grace time.Duration
	// Code maps an error of [Images] to a code; nil means Internal for all.
	Code func(error) codes.Code
	// Metrics is where to serve /metrics and /healthz: unix:///PATH, /PATH or a
	// loopback HOST:PORT; "" is nowhere.
	Metrics string
	// FetchedBytes adds the engine's count of bytes from the network to the
	// metrics, unless nil. It must be safe for concurrent use.
	FetchedBytes func() uint64
	// Log receives one record per request; nil discards.
	Log *slog.Logger
	// Ready is called once, when all sockets listen, unless nil.
	Ready func()
}

// service answers the requests of all connections.
type service struct {
	options Options
	pulls   *flights
	stats   *stats // nil without metrics

	mu       sync.Mutex // guards the fields below
	active   int
	stopping bool
	calls    sync.WaitGroup // Add only with mu held and not stopping
}

// Serve listens, serves and, when ctx ends, stops: it accepts nothing more, lets
// running pulls end for [Options].Grace, cancels those that have not, and
// returns. The error is nil after such an orderly stop, even if pulls had to be
// cancelled.
func Serve(ctx context.Context, images Images, o Options) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	s := &service{options: o, pulls: newFlights(images, o.Log)}
	conns := &connections{log: o.Log, open: map[*conn]struct{}{}}
	listeners, err := listenAll(ctx, o.Listen, o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(listeners)) }()
	if o.Metrics != "" {
		s.stats = newStats(s, conns)
		stopMetrics, err := s.serveMetrics(ctx)
		if err != nil {
			return err
		}
		defer stopMetrics()
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return fmt.Errorf("make ttrpc server: %w", err)
	}
	server.Register(serviceName, map[string]ttrpc.Method{methodName: s.pullImage})

	// Requests outlive ctx by the time of grace.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error, len(listeners))
	var accepting sync.WaitGroup
	for _, l := range listeners {
		l.conns = conns
		accepting.Go(func() { ended <- server.Serve(base, l) })
		o.Log.LogAttrs(ctx, slog.LevelInfo, "listening", slog.String("address", l.name))
	}
	s.notify(ctx, daemon.SdNotifyReady)
	if o.Ready != nil {
		o.Ready()
	}
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-ended:
		failed = fmt.Errorf("accept connections: %w", failed)
	}
	s.notify(base, daemon.SdNotifyStopping)
	err = errors.Join(failed, closeAll(listeners), s.stop(base, conns, cancel))
	accepting.Wait()
	return err
}

// stop ends the service: first in peace, then by force.
func (s *service) stop(ctx context.Context, conns *connections, cancel context.CancelFunc) error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	conns.stop()
	idle := make(chan struct{})
	go func() {
		s.calls.Wait()
		conns.all.Wait()
		s.pulls.running.Wait()
		close(idle)
	}()
	if within(idle, s.options.Grace) {
		return nil
	}
	s.options.Log.LogAttrs(ctx, slog.LevelWarn, "cancelling pulls that did not end in time", slog.Duration("grace", s.options.Grace))
	s.pulls.cancel(errStopping)
	if within(idle, hardStop) {
		return nil
	}
	cancel()
	conns.closeAll()
	if within(idle, time.Second) {
		return nil
	}
	return fmt.Errorf("stop service: pulls still run %s after they were cancelled", hardStop)
}

// within waits for done, at most for limit.
func within(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func (s *service) notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.options.Log.LogAttrs(ctx, slog.LevelWarn, "service manager not notified", slog.String("state", state), slog.Any("error", err))
	}
}

// begin admits a request; end must follow if it returns nil.
func (s *service) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return errStopping
	case s.active >= maxCalls:
		return &requestError{codes.ResourceExhausted, fmt.Sprintf("more than %d requests at once", maxCalls)}
	}
	s.active++
	s.calls.Add(1)
	return nil
}

func (s *service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.calls.Done()
}

// state returns how many requests are being answered, and whether the service
// still takes more.
func (s *service) state() (active int, serving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active, !s.stopping
}

// pullImage is the method PullImage as ttrpc calls it, on a goroutine per
// request. ctx ends with the connection and at the request's time limit.
func (s *service) pullImage(ctx context.Context, unmarshal func(any) error) (any, error) {
	started := time.Now()
	if err := s.begin(); err != nil {
		refused := s.refuse(err)
		s.stats.pulled(status.Code(refused), 0)
		return nil, refused
	}
	defer s.end()
	request := &api.ImagePullRequest{}
	reply, joined, err := s.answer(ctx, unmarshal, request)
	elapsed := time.Since(started)
	attrs := []slog.Attr{
		slog.String("image", oneLine(request.GetImageUrl())),
		slog.String("bundle", oneLine(request.GetBundlePath())),
		slog.Bool("joined", joined),
		slog.Duration("elapsed", elapsed),
	}
	if err != nil {
		refused := s.refuse(err)
		code := status.Code(refused)
		s.stats.pulled(code, elapsed)
		level := slog.LevelError
		if _, gone := errors.AsType[*goneError](err); gone {
			level = slog.LevelWarn // not ours to fix
		}
		attrs = append(attrs, slog.String("code", code.String()), slog.String("error", oneLine(err.Error())))
		s.options.Log.LogAttrs(ctx, level, "pull refused or failed", attrs...)
		return nil, refused
	}
	s.stats.pulled(codes.OK, elapsed)
	attrs = append(attrs, slog.String("manifest_digest", reply.ManifestDigest.String()))
	s.options.Log.LogAttrs(ctx, slog.LevelInfo, "image pulled", attrs...)
	return s.message(reply), nil
}

// answer checks and runs one request. A panic of ours becomes an error: one bad
// request must not take the guest's other containers with it.
func (s *service) answer(ctx context.Context, unmarshal func(any) error, request *api.ImagePullRequest) (reply Reply, joined bool, err error) {
	defer catch(ctx, s.options.Log, &err)
	if err := unmarshal(request); err != nil {
		return Reply{}, false, &requestError{codes.InvalidArgument, "request is not an ImagePullRequest"}
	}
	bundle, err := s.options.check(request)
	if err != nil {
		return Reply{}, false, err
	}
	return s.pulls.pull(ctx, request.GetImageUrl(), bundle)
}

// catch turns a panic into an error and its stack into a log record. It only
// works as the deferred function itself.
func catch(ctx context.Context, logger *slog.Logger, err *error) {
	cause := recover()
	if cause == nil {
		return
	}
	logger.LogAttrs(ctx, slog.LevelError, "panic in a request", slog.Any("panic", cause), slog.String("stack", string(debug.Stack())))
	*err = fmt.Errorf("%w: %s", errPanic, oneLine(fmt.Sprint(cause)))
}

func (s *service) message(r Reply) *api.ImagePullResponse {
	switch s.options.ReplyWith {
	case ReplyConfig:
		return &api.ImagePullResponse{ManifestDigest: r.ConfigDigest.String()}
	case ReplyEmpty:
		return &api.ImagePullResponse{}
	default:
		return &api.ImagePullResponse{ManifestDigest: r.ManifestDigest.String()}
	}
}

// refuse returns err as the status that goes over the wire. All codes are
// decided here.
func (s *service) refuse(err error) error {
	code := codes.Internal
	if request, ok := errors.AsType[*requestError](err); ok {
		code = request.code
	} else if _, ok := errors.AsType[*goneError](err); ok {
		code = codes.Canceled
		if errors.Is(err, context.DeadlineExceeded) {
			code = codes.DeadlineExceeded
		}
	} else if errors.Is(err, errStopping) {
		code = codes.Unavailable
	} else if !errors.Is(err, errPanic) && s.options.Code != nil {
		code = s.options.Code(err)
	}
	if code == codes.OK {
		code = codes.Internal
	}
	return status.Error(code, oneLine(err.Error()))
}
