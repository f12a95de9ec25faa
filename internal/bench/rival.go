//go:build linux

package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// request is one image asked of a rival.
type request struct {
	reference string // HOST:PORT/NAME@sha256:…, without a scheme
	plain     bool   // the registry speaks HTTP, not HTTPS
	bundle    string // empty directory of its own
}

// scheme is that of the registry.
func (r request) scheme() string {
	if r.plain {
		return "http://"
	}
	return "https://"
}

// rootfs is where the image's root file system is wanted, or found.
func (r request) rootfs() string { return filepath.Join(r.bundle, "rootfs") }

// driver is how a rival is measured. All of its functions work inside a site; those
// that are nil are not needed.
type driver struct {
	environment []string // NAME=VALUE, of the server, beside the bench's own
	// prepare writes configuration and does what is not to be measured.
	prepare func(ctx context.Context, s *site, r request) error
	// helper returns the command line of a server that the server needs, and the socket
	// on which that answers; nil: none.
	helper func(s *site) (argv []string, socket string)
	// server returns the command line of the server; nil for programs that run once.
	server func(s *site) []string
	// ready tells whether the server answers.
	ready func(ctx context.Context, s *site) error
	// ask pulls and mounts the image.
	ask func(ctx context.Context, s *site, r request) error
	// mount mounts, at another bundle, what ask has pulled. nil: it cannot be told apart.
	mount func(ctx context.Context, s *site, r request) error
}

// ErrUnknownRival reports a server whose kind is not recognised.
var ErrUnknownRival = errors.New("not a known kind of server: name it KIND=PATH or command:TEMPLATE")

// Kinds are the kinds of rivals: KIND=PATH chooses one for a program of another name.
func Kinds() []string {
	return []string{"imagepuller", "image-rs", "dray", "dray-guest", "containerd", "podman", "skopeo+umoci", "floor", "untar", "command"}
}

// ParseRival recognises a server by its base name, or as KIND=PATH, NAME@KIND=PATH
// or [NAME@]command:TEMPLATE with {ref} and {dir}. Arguments for a server follow its path,
// and NAME=VALUE for its environment.
func ParseRival(ctx context.Context, s string) (*Rival, error) {
	if before, template, ok := strings.Cut(s, "command:"); ok && (before == "" || strings.HasSuffix(before, "@")) {
		return commandRival(cmp.Or(strings.TrimSuffix(before, "@"), s), template)
	}
	name, kind, path := "", "", s
	if before, after, ok := strings.Cut(s, "="); ok && !strings.Contains(before, " ") {
		kind, path = before, after
		if n, k, ok := strings.Cut(kind, "@"); ok {
			name, kind = n, k
		}
	}
	if kind == "" {
		kind, _, _ = strings.Cut(filepath.Base(strings.Fields(path + " .")[0]), ":")
		if kind == "ttrpc-cdh" {
			kind = "image-rs"
		}
		for _, k := range []string{"dray-guest", "imagepuller", "image-rs", "dray"} { // dray-old, imagepuller-1.2
			if !slices.Contains(Kinds(), kind) && strings.HasPrefix(kind, k) {
				kind = k
			}
		}
	}
	if name == "" {
		name = filepath.Base(strings.Fields(path + " .")[0])
	}
	r := &Rival{Name: name, Kind: kind}
	switch kind {
	case "imagepuller", "image-rs", "dray", "dray-guest":
		return r.service(ctx, path)
	case "containerd":
		return r.containerd(ctx, path)
	case "podman":
		return r.podman(ctx)
	case "skopeo+umoci":
		return r.skopeo(ctx)
	case "floor", "untar":
		return r.own()
	}
	return nil, fmt.Errorf("server %q: %w (kinds: %s)", s, ErrUnknownRival, strings.Join(Kinds(), ", "))
}

// split takes a rival's command line apart: its path, the arguments of its server,
// and NAME=VALUE, which becomes the server's environment.
func (r *Rival) split(command string) (path string, arguments []string, err error) {
	for i, word := range strings.Fields(command) {
		switch {
		case i == 0:
			path = word
		case environmentWord.MatchString(word):
			r.environment = append(r.environment, word)
		default:
			arguments = append(arguments, word)
		}
	}
	if path == "" {
		return "", nil, fmt.Errorf("server %s: no path", r.Name)
	}
	return path, arguments, nil
}

var environmentWord = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*=`)

// find returns the absolute path of a program.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
			if found, e := exec.LookPath(filepath.Join(dir, program)); e == nil {
				return found, nil
			}
		}
		return "", fmt.Errorf("find program: %w", err)
	}
	return filepath.Abs(path)
}

// versionTimeout bounds how long a program may take to tell its version.
const versionTimeout = 10 * time.Second

// unknown is the version of a program that does not tell.
const unknown = "unknown"

// versionOf returns the first line that the program says of its version.
func versionOf(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := runQuiet(ctx, "", argv[0], argv[1:]...)
	if err != nil {
		return unknown
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// poll calls try until it succeeds, the server ends, or ctx does.
func poll(ctx context.Context, p *process, try func() error) error {
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("the server ended before it was ready: %w", said(errors.Join(p.err, err), p.said()))
		case <-ctx.Done():
			return fmt.Errorf("the server was not ready in time: %w: %w", context.Cause(ctx), err)
		}
	}
}

// dial connects to the site's socket.
func dial(ctx context.Context, s *site) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", s.socket)
}

// listening is the ready function of a server on the site's socket.
func listening(ctx context.Context, s *site) error { return s.server.listens(ctx, s.socket) }

// listens waits until the process takes connections on a socket.
func (p *process) listens(ctx context.Context, socket string) error {
	return poll(ctx, p, func() error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// shortSocket moves the socket to a short path: those of sockets are limited.
func shortSocket(s *site) error {
	const limit = 100
	if len(s.socket) > limit {
		return fmt.Errorf("the path of the socket %q is too long: choose a shorter --work", s.socket)
	}
	return os.MkdirAll(filepath.Dir(s.socket), 0o700)
}
