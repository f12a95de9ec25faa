package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"

	"dray"
	"dray/internal/guest/api"
)

// service is the guest's pull service in a process of its own.
type service struct {
	cmd      *exec.Cmd
	client   *ttrpc.Client
	messages chan string // what it said that was no event; closed when it has ended
	events   func(dray.Event)
}

// startTimeout bounds how long the service may take to listen.
const startTimeout = 10 * time.Second

// startService starts this program as the service and connects to it.
func startService(ctx context.Context, store, socket string, events func(dray.Event)) (*service, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start service: %w", err)
	}
	// the service outlives a ctx that ends, to be stopped in order
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, "serve", //nolint:gosec // this program itself
		"--storepath", store, "--listen", socket, "--progress", "json", "--rootless", "never", "--config", "/dev/null")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	output, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start service: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start service: %w", err)
	}
	s := &service{cmd: cmd, messages: make(chan string, 1), events: events}
	go s.listen(output) // ends with the service's output, and stop waits for that
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for wait := time.NewTicker(2 * time.Millisecond); ; {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err == nil {
			wait.Stop()
			s.client = ttrpc.NewClient(conn)
			return s, nil
		}
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, errors.Join(fmt.Errorf("start service: %w", err), s.stop())
		}
	}
}

// listen passes events on and keeps the rest for stop.
func (s *service) listen(output io.Reader) {
	var said strings.Builder
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		var e dray.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.State != "" {
			s.events(e)
		} else {
			said.WriteString(lines.Text() + "\n")
		}
	}
	s.messages <- said.String()
	close(s.messages)
}

// pull asks for one image and returns the manifest's digest.
func (s *service) pull(ctx context.Context, image, bundle string) (string, error) {
	reply, err := api.NewImagePullServiceClient(s.client).PullImage(ctx, &api.ImagePullRequest{ImageUrl: image, BundlePath: bundle})
	if err != nil {
		return "", fmt.Errorf("ask the service for %s: %w", image, err)
	}
	return reply.GetManifestDigest(), nil
}

// peakBytes returns the most memory that the service held so far.
func (s *service) peakBytes() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64) // 0 is "unknown"
			return kib << 10
		}
	}
	return 0
}

// stop ends the service and reports what it complained of.
func (s *service) stop() error {
	var err error
	if s.client != nil {
		err = s.client.Close()
	}
	err = errors.Join(err, s.cmd.Process.Signal(syscall.SIGTERM))
	said := <-s.messages
	if waitErr := s.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("service: %w: %s", waitErr, strings.TrimSpace(said)))
	}
	return err
}
