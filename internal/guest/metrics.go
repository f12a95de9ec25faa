package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"google.golang.org/grpc/codes"
)

// stats counts what the service does. A nil *stats counts nothing.
type stats struct{ set *metrics.Set }

func newStats(s *service, conns *connections) *stats {
	set := metrics.NewSet()
	set.NewGauge("dray_requests_in_flight", func() float64 { active, _ := s.state(); return float64(active) })
	set.NewGauge("dray_pulls_in_flight", func() float64 { return float64(s.pulls.count()) })
	set.NewGauge("dray_connections", func() float64 { return float64(conns.count()) })
	if fetched := s.options.FetchedBytes; fetched != nil {
		// A gauge to the library, which has no counter that asks; the name says what it is.
		set.NewGauge("dray_fetched_bytes_total", func() float64 { return float64(fetched()) })
	}
	return &stats{set}
}

// pulled records one answered request.
func (s *stats) pulled(code codes.Code, elapsed time.Duration) {
	if s == nil {
		return
	}
	label := fmt.Sprintf("{code=%q}", code)
	s.set.GetOrCreateCounter("dray_requests_total" + label).Inc()
	s.set.GetOrCreateFloatCounter("dray_request_seconds_total" + label).Add(elapsed.Seconds())
}

// serveMetrics serves /metrics, in Prometheus' text format, and /healthz, which
// is 200 until the service stops.
func (s *service) serveMetrics(ctx context.Context) (stop func(), err error) {
	l, err := listenMetrics(ctx, s.options.Metrics, s.options.Log)
	if err != nil {
		return nil, fmt.Errorf("serve metrics on %q: %w", s.options.Metrics, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		s.stats.set.WritePrometheus(w)
		metrics.WriteProcessMetrics(w)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, serving := s.state(); !serving {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	const slow = 5 * time.Second
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: slow,
		ReadTimeout:       slow,
		WriteTimeout:      slow,
		IdleTimeout:       slow,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(s.options.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l.Listener) }()
	s.options.Log.LogAttrs(ctx, slog.LevelInfo, "serving metrics", slog.String("address", l.name))
	return func() {
		err := errors.Join(l.Close(), server.Close())
		if serveErr := <-done; !errors.Is(serveErr, http.ErrServerClosed) && !errors.Is(serveErr, net.ErrClosed) {
			err = errors.Join(err, serveErr)
		}
		if err != nil && !errors.Is(err, net.ErrClosed) {
			s.options.Log.LogAttrs(context.WithoutCancel(ctx), slog.LevelWarn, "metrics server ended badly", slog.Any("error", err))
		}
	}, nil
}

// listenMetrics opens a unix socket or a loopback address; the figures say what
// a guest runs, which is nobody else's business.
func listenMetrics(ctx context.Context, address string, log *slog.Logger) (*listener, error) {
	if strings.HasPrefix(address, "unix://") || strings.HasPrefix(address, "/") {
		return listenUnix(ctx, address, log)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("want unix:///PATH, /PATH or a loopback HOST:PORT: %w", err)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("host %q is not a loopback address", host)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("%s is not a loopback address", l.Addr()), l.Close())
	}
	return newListener(l, l.Addr().String(), log), nil
}
