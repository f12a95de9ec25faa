package registry

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"dray/internal/stream"
)

// Idle connections keep buffers and, in the kernel, sockets: few, not for long.
const (
	idlePerHost = 16
	idleTotal   = 24
	idleTimeout = 15 * time.Second
)

// connectionTo returns the pool for host with the settings of access. Hosts
// without a certificate directory share the pool of their settings, so that the
// number of pools does not depend on where redirects lead.
func (c *Client) connectionTo(host string, access Access, mirror bool) (*http.Transport, error) {
	dirs, err := c.certDirs(host)
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%q %x %t %t %t", dirs, sha256.Sum256(access.CAs), access.OnlyCAs, access.InsecureSkipVerify, mirror)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if conn, ok := c.connections[key]; ok {
		return conn, nil
	}
	conf, err := c.tlsConfig(dirs, access)
	if err != nil {
		return nil, err
	}
	conn := c.newTransport(conf, mirror)
	c.connections[key] = conn
	return conn, nil
}

func (c *Client) newTransport(conf *tls.Config, mirror bool) *http.Transport {
	dialer := &net.Dialer{Timeout: c.options.Timeouts.Dial, KeepAlive: 30 * time.Second}
	if mirror {
		dialer.Timeout = min(dialer.Timeout, c.options.Timeouts.MirrorDial)
	}
	dial := dialer.DialContext
	if c.dial != nil {
		dial = c.dial
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // see the package comment
	return &http.Transport{
		Proxy:                  c.proxy,
		DialContext:            dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    c.options.Timeouts.TLS,
		Protocols:              &protocols,
		DisableCompression:     true, // a blob's digest is of the bytes as they are stored
		MaxIdleConns:           idleTotal,
		MaxIdleConnsPerHost:    idlePerHost,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
	}
}

// proxy chooses a proxy. The text of an error would show the address, and with
// it a password.
func (c *Client) proxy(req *http.Request) (*url.URL, error) {
	u, err := c.options.Proxy(req)
	if err != nil {
		return nil, errors.New("choose proxy: its address is malformed")
	}
	return u, nil
}

// certDirs returns the directories for host that exist.
func (c *Client) certDirs(host string) ([]string, error) {
	roots := c.options.CertDirs
	if roots == nil {
		if home, err := os.UserHomeDir(); err == nil {
			roots = append(roots, filepath.Join(home, ".config/containers/certs.d"))
		}
		roots = append(roots, "/etc/containers/certs.d", "/etc/docker/certs.d")
	}
	if host == "" || strings.ContainsAny(host, "/\\") || strings.HasPrefix(host, ".") {
		return nil, nil
	}
	var dirs []string
	for _, root := range roots {
		dir := filepath.Join(root, host)
		info, err := os.Stat(dir)
		switch {
		case err == nil && info.IsDir():
			dirs = append(dirs, dir)
		case err != nil && !errors.Is(err, fs.ErrNotExist) && c.options.CertDirs != nil:
			return nil, fmt.Errorf("read certificates: %w", err)
		}
	}
	return dirs, nil
}

func (c *Client) tlsConfig(dirs []string, access Access) (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: access.InsecureSkipVerify, //nolint:gosec // what the user asked for, host by host
	}
	authorities := [][]byte{c.options.CAs, access.CAs}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			base, isCert := strings.CutSuffix(path, ".cert")
			switch {
			case strings.HasSuffix(path, ".crt"):
				pem, err := readFile(path, maxCertificateBytes)
				if err != nil {
					return nil, fmt.Errorf("read authority: %w", err)
				}
				authorities = append(authorities, pem)
			case isCert:
				pair, err := tls.LoadX509KeyPair(path, base+".key")
				if err != nil {
					return nil, fmt.Errorf("read client certificate %s: %w", path, err)
				}
				conf.Certificates = append(conf.Certificates, pair)
			}
		}
	}
	var err error
	conf.RootCAs, err = pool(authorities, access.OnlyCAs)
	return conf, err
}

// pool returns the authorities with or without the system's; nil, which is the
// system's, when there are none of ours.
func pool(authorities [][]byte, only bool) (*x509.CertPool, error) {
	var all *x509.CertPool
	if only {
		all = x509.NewCertPool()
	}
	for _, pem := range authorities {
		if len(pem) == 0 {
			continue
		}
		if all == nil {
			var err error
			if all, err = x509.SystemCertPool(); err != nil {
				return nil, fmt.Errorf("read the system's authorities: %w", err)
			}
		}
		if !all.AppendCertsFromPEM(pem) && !only {
			return nil, errors.New("read authorities: no certificate in PEM form")
		}
	}
	return all, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // paths come from the user's settings
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	raw, err := stream.ReadAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return raw, nil
}

// roundTrip sends req and returns its response, whose body counts bytes and is
// given up when nothing comes for the progress time-out. patience is how long the
// response's header may take. Errors are [*Error].
func (c *Client) roundTrip(ctx context.Context, conn *http.Transport, req *http.Request, patience time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancel(ctx)
	watch := &watchdog{limit: c.options.Timeouts.Progress}
	watch.timer = time.AfterFunc(patience, func() {
		watch.fired.Store(true)
		cancel()
	})
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedBody{ReadCloser: req.Body, watch: watch, sending: patience, count: &c.stats.sent}
	}
	req.Header.Set("User-Agent", c.options.UserAgent)
	c.stats.requests.Add(1)
	resp, err := conn.RoundTrip(req)
	watch.timer.Stop()
	if err != nil {
		cancel()
		return nil, transportError(req, watch.explain(err))
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: watch, cancel: cancel, count: &c.stats.bytes}
	return resp, nil
}

// watchdog ends a request that makes no progress.
type watchdog struct {
	timer *time.Timer
	limit time.Duration
	fired atomic.Bool
}

// explain replaces the error of a request that the watchdog ended.
func (w *watchdog) explain(err error) error {
	if w.fired.Load() {
		return errStalled
	}
	return err
}

// watchedBody arms the watchdog for the time of each read, so that a slow
// consumer is not taken for a slow network.
type watchedBody struct {
	io.ReadCloser

	watch   *watchdog
	cancel  context.CancelFunc // of the response's request; nil for a request's body
	sending time.Duration      // a request's body: how long after a read the next, or the response, may take; 0 for a response's
	count   *atomic.Int64
}

// Read implements [io.Reader].
func (b *watchedBody) Read(p []byte) (int, error) {
	if b.sending > 0 {
		b.watch.timer.Stop() // our own source may take its time
		n, err := b.ReadCloser.Read(p)
		b.count.Add(int64(n))
		b.watch.timer.Reset(b.sending)
		return n, err
	}
	b.watch.timer.Reset(b.watch.limit)
	n, err := b.ReadCloser.Read(p)
	b.watch.timer.Stop()
	b.count.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.watch.explain(err)
	}
	return n, err
}

// Close implements [io.Closer].
func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	if b.cancel != nil {
		b.watch.timer.Stop()
		b.cancel()
	}
	return err
}
