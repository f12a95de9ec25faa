package guest_test

import (
	"bufio"
	"context"
	"io"
	"iter"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dray/internal/guest"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func lines(s string) iter.Seq[string] { return strings.Lines(s) }

// metricsAddress finds in the log where the metrics are.
func metricsAddress(t *testing.T, s *server) string {
	t.Helper()
	for line := range lines(s.log.String()) {
		if _, address, ok := strings.Cut(strings.TrimSpace(line), `msg="serving metrics" address=`); ok {
			return address
		}
	}
	t.Fatalf("no address of the metrics in the log:\n%s", s.log)
	return ""
}

// ask returns status and body of one of the metrics server's pages.
func ask(t *testing.T, address, page string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			if path, ok := strings.CutPrefix(address, "unix://"); ok {
				return dialer.DialContext(ctx, "unix", path)
			}
			return dialer.DialContext(ctx, "tcp", address)
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest"+page, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var body strings.Builder
	if _, err := io.Copy(&body, response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body.String()
}

func metric(t *testing.T, s *server, name string) float64 {
	t.Helper()
	_, body := ask(t, metricsAddress(t, s), "/metrics")
	for scanner := bufio.NewScanner(strings.NewReader(body)); scanner.Scan(); {
		if text, ok := strings.CutPrefix(scanner.Text(), name+" "); ok {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no metric %s in:\n%s", name, body)
	return 0
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"localhost:0", "unix://" + filepath.Join(shortDir(t), "m")} {
		t.Run(address[:4], func(t *testing.T) {
			t.Parallel()
			s := serve(t, imagesFunc(succeed), guest.Options{Metrics: address, FetchedBytes: func() uint64 { return 42 }})
			client := dial(t, s.socket)
			for _, image := range []string{"a", "b", "ftp://x"} {
				_, _ = pull(client, image, t.TempDir())
			}
			for name, want := range map[string]float64{
				`dray_requests_total{code="OK"}`:              2,
				`dray_requests_total{code="InvalidArgument"}`: 1,
				"dray_requests_in_flight":                     0,
				"dray_connections":                            1,
				"dray_fetched_bytes_total":                    42,
			} {
				if got := metric(t, s, name); got != want {
					t.Errorf("%s is %v, want %v", name, got, want)
				}
			}
			if metric(t, s, "process_resident_memory_bytes") == 0 {
				t.Error("no resident memory")
			}
			if code, body := ask(t, metricsAddress(t, s), "/healthz"); code != http.StatusOK || body != "ok\n" {
				t.Errorf("healthz: %d %q", code, body)
			}
		})
	}
}

func TestMetricsStayInTheGuest(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:80", "example.com:80", "1", "relative/path"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(shortDir(t), "s")
			err := guest.Serve(t.Context(), imagesFunc(succeed), guest.Options{Listen: []string{socket}, Metrics: address})
			if err == nil || !contains(err.Error(), "loopback") {
				t.Errorf("got %v, want an error about loopback", err)
			}
			absent(t, socket)
		})
	}
}
