package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// ErrInUse reports a socket on which another server answers.
var ErrInUse = errors.New("another server answers on it")

const (
	systemdPrefix = "fd://"
	maxSocketPath = 107 // sun_path of unix(7) without its NUL
	probeTimeout  = time.Second
	lockTimeout   = 5 * time.Second
	acceptBackoff = 100 * time.Millisecond // when the process is out of descriptors or memory
)

// listener accepts for the ttrpc server.
type listener struct {
	net.Listener
	name   string // for the log
	log    *slog.Logger
	conns  *connections
	file   os.FileInfo // of the socket that we made; nil for one that systemd keeps
	once   sync.Once
	closed chan struct{}
}

// listenAll opens all addresses, or none.
func listenAll(ctx context.Context, addresses []string, logger *slog.Logger) (all []*listener, err error) {
	defer func() {
		if err != nil {
			_ = closeAll(all)
			all = nil
		}
	}()
	passed, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("take sockets from the service manager: %w", err)
	}
	if len(addresses) == 0 {
		addresses = []string{DefaultSocket}
		if len(passed) > 0 {
			addresses = []string{systemdPrefix}
		}
	}
	for _, address := range addresses {
		if name, ok := strings.CutPrefix(address, systemdPrefix); ok {
			taken, err := take(passed, name, logger)
			all = append(all, taken...)
			if err != nil {
				return all, fmt.Errorf("listen on %q: %w", address, err)
			}
			continue
		}
		l, err := listenUnix(ctx, address, logger)
		if err != nil {
			return all, fmt.Errorf("listen on %q: %w", address, err)
		}
		all = append(all, l)
	}
	for name, unused := range passed {
		logger.LogAttrs(ctx, slog.LevelWarn, "socket of the service manager is not among those to serve", slog.String("name", name))
		for _, l := range unused {
			_ = l.Close()
		}
	}
	return all, nil
}

// take moves the sockets of one name, or all for "", out of passed.
func take(passed map[string][]net.Listener, name string, log *slog.Logger) ([]*listener, error) {
	var all []*listener
	for from, sockets := range passed {
		if name != "" && from != name {
			continue
		}
		delete(passed, from)
		for _, l := range sockets {
			all = append(all, newListener(l, systemdPrefix+from, log))
			if _, ok := l.(*net.UnixListener); !ok {
				return all, errors.New("the service manager's socket is not a unix stream socket")
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("the service manager has passed no such socket")
	}
	return all, nil
}

func newListener(l net.Listener, name string, log *slog.Logger) *listener {
	return &listener{Listener: l, name: name, log: log, closed: make(chan struct{})}
}

// listenUnix makes the socket at address, unix:///PATH or /PATH, for root alone.
// A socket that a dead server has left is replaced.
func listenUnix(ctx context.Context, address string, log *slog.Logger) (l *listener, err error) {
	path := strings.TrimPrefix(address, "unix://")
	switch {
	case !filepath.IsAbs(path):
		return nil, errors.New("want unix:///PATH, /PATH or fd://")
	case len(path) > maxSocketPath:
		return nil, fmt.Errorf("the path has %d bytes, a socket's may have %d", len(path), maxSocketPath)
	}
	path = filepath.Clean(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	// Of two servers that start together and see the same stale socket, the
	// second would remove the first one's new socket: they take turns.
	unlock, err := lockDirectory(ctx, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// The kernel gives the socket's file the mode of the socket itself (unix_bind),
	// so it is never open to others, not even between bind and a chmod.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	inner, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if u, ok := inner.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // Close does it, if the file is still ours
	}
	l = newListener(inner, "unix://"+path, log)
	if l.file, err = os.Lstat(path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// lockDirectory takes the flock of a directory, which leaves no file behind.
func lockDirectory(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir) //nolint:gosec // the directory of our own socket
	if err != nil {
		return nil, fmt.Errorf("lock directory of socket: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock directory of socket: %w", err), f.Close())
		}
		if !wait(ctx.Done(), 10*time.Millisecond) {
			return nil, errors.Join(fmt.Errorf("lock directory of socket: %w", context.Cause(ctx)), f.Close())
		}
	}
}

// wait returns true after d, false when done is closed before.
func wait(done <-chan struct{}, d time.Duration) bool { return !within(done, d) }

// removeStale removes the socket at path if nobody answers on it.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is not a socket")
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return ErrInUse
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w, or is about to: %w", ErrInUse, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// Accept returns the next connection, guarded. It outlasts a shortage of
// descriptors or memory, and turns away who is too many.
func (l *listener) Accept() (net.Conn, error) {
	ctx := context.Background() // for the log
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			added, err := l.conns.add(c)
			if err == nil {
				return added, nil
			}
			l.log.LogAttrs(ctx, slog.LevelWarn, "connection turned away", slog.Any("error", err))
			_ = c.Close()
		case passing(err):
			l.log.LogAttrs(ctx, slog.LevelWarn, "connection not accepted", slog.Any("error", err))
			if !wait(l.closed, acceptBackoff) {
				return nil, net.ErrClosed
			}
		default:
			return nil, err
		}
	}
}

// passing tells whether accept4(2) may succeed when called again.
func passing(err error) bool {
	for _, errno := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Close stops listening and removes the socket's file if it is still the one
// that [listenUnix] made. Only the first call does anything.
func (l *listener) Close() (err error) {
	l.once.Do(func() {
		close(l.closed)
		if l.file != nil {
			if now, lerr := os.Lstat(l.path()); lerr == nil && os.SameFile(now, l.file) {
				err = os.Remove(l.path())
			}
		}
		err = errors.Join(err, l.Listener.Close())
	})
	return err
}

func (l *listener) path() string { return strings.TrimPrefix(l.name, "unix://") }

func closeAll(all []*listener) error {
	var errs []error
	for _, l := range all {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
