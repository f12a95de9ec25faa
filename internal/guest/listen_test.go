package guest_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dray/internal/guest"
)

// childSockets names the variable that makes this test a service manager's child.
const childSockets = "DRAY_TEST_GUEST_LISTEN"

func TestMain(m *testing.M) {
	listen, child := os.LookupEnv(childSockets)
	if !child {
		os.Exit(m.Run())
	}
	if os.Getenv("LISTEN_FDS") != "" { // a service manager sets it between fork and exec
		_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := guest.Serve(ctx, imagesFunc(succeed), guest.Options{
		Listen: strings.Fields(listen),
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	stop()
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func absent(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: got %v, want that it does not exist", path, err)
	}
}

func TestSocketIsRootsAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "new")
	paths := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	s := serve(t, imagesFunc(succeed), guest.Options{Listen: []string{paths[0], "unix://" + paths[1]}})
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, paths[0]: fs.ModeSocket | 0o600, paths[1]: fs.ModeSocket | 0o600} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
	for _, path := range paths {
		if _, err := pull(dial(t, path), "a", t.TempDir()); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	s.stop()
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	for _, path := range paths {
		absent(t, path)
	}
}

func staleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
}

func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	staleSocket(t, path)
	serve(t, imagesFunc(succeed), guest.Options{Listen: []string{path}})
	if _, err := pull(dial(t, path), "a", t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(succeed), guest.Options{})
	other := filepath.Join(shortDir(t), "other")
	err := guest.Serve(t.Context(), imagesFunc(succeed), guest.Options{Listen: []string{other, s.socket}})
	if !errors.Is(err, guest.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	absent(t, other) // it had opened that one already
	if _, err := pull(dial(t, s.socket), "a", t.TempDir()); err != nil {
		t.Errorf("the first server: %v", err)
	}
}

// Of many servers that find one stale socket, exactly one gets it.
func TestRaceForStaleSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	staleSocket(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const rivals = 8
	ready, ended := make(chan struct{}, rivals), make(chan error, rivals)
	var all sync.WaitGroup
	for range rivals {
		all.Go(func() {
			ended <- guest.Serve(ctx, imagesFunc(succeed), guest.Options{Listen: []string{path}, Ready: func() { ready <- struct{}{} }})
		})
	}
	for range rivals - 1 {
		if err := receive(t, ended, "a loser gives up"); !errors.Is(err, guest.ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
	}
	receive(t, ready, "the winner serves")
	if _, err := pull(dial(t, path), "a", t.TempDir()); err != nil {
		t.Error(err)
	}
	cancel()
	all.Wait()
}

func TestSocketOfAnotherIsLeft(t *testing.T) {
	t.Parallel()
	s := serve(t, imagesFunc(succeed), guest.Options{})
	if err := os.Remove(s.socket); err != nil {
		t.Fatal(err)
	}
	staleSocket(t, s.socket) // somebody has taken the name
	s.stop()
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.socket); err != nil {
		t.Errorf("the other's socket: %v", err)
	}
}

func TestBadAddresses(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, address, want string }{
		{"relative", "a/b", "want unix:///PATH"},
		{"abstract", "unix://@name", "want unix:///PATH"},
		{"tcp", "tcp://127.0.0.1:1", "want unix:///PATH"},
		{"long", "/" + strings.Repeat("x", 107), "a socket's may have 107"},
		{"file", file, "not a socket"},
		{"below a file", file + "/s", "not a directory"},
		{"systemd without sockets", "fd://", "has passed no such socket"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := guest.Serve(t.Context(), imagesFunc(succeed), guest.Options{Listen: []string{test.address}})
			if err == nil || !contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
			t.Errorf("the file was touched: %q, %v", text, err)
		}
	})
}

// TestServiceManager plays systemd: it passes sockets to a child and reads its
// notifications.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, listen  string
		fds, names    string
		serves, warns []string // sockets by name; texts in the log
	}{
		{"all by default", "", "2", "one:two", []string{"one", "two"}, nil},
		{"all by address", "fd://", "2", "one:two", []string{"one", "two"}, nil},
		{"by name", "fd://two", "2", "one:two", []string{"two"}, []string{"name=one"}},
		{"own socket beside", "fd://one /OWN", "2", "one:two", []string{"one", "own"}, []string{"name=two"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = notify.Close() }()
			child := exec.CommandContext(t.Context(), os.Args[0])
			for _, name := range []string{"one", "two"} {
				l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
				if err != nil {
					t.Fatal(err)
				}
				f, err := l.File()
				if err != nil {
					t.Fatal(err)
				}
				l.SetUnlinkOnClose(false)
				_ = l.Close()
				defer func() { _ = f.Close() }()
				child.ExtraFiles = append(child.ExtraFiles, f)
			}
			log := &lockedBuffer{}
			child.Stderr = log
			child.Env = append(os.Environ(), childSockets+"="+strings.ReplaceAll(test.listen, "/OWN", filepath.Join(dir, "own")),
				"LISTEN_FDS="+test.fds, "LISTEN_FDNAMES="+test.names, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			states := make(chan string, 2)
			go func() {
				buf := make([]byte, 64)
				for range cap(states) {
					n, err := notify.Read(buf)
					if err != nil {
						return
					}
					states <- string(buf[:n])
				}
			}()
			if got := receive(t, states, "the child is ready"); got != "READY=1" {
				t.Errorf("got %q, want READY=1", got)
			}
			for _, name := range test.serves {
				if _, err := pull(dial(t, filepath.Join(dir, name)), "a", t.TempDir()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := child.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, states, "the child stops"); got != "STOPPING=1" {
				t.Errorf("got %q, want STOPPING=1", got)
			}
			if err := child.Wait(); err != nil {
				t.Errorf("child: %v\n%s", err, log)
			}
			for _, text := range test.warns {
				if !contains(log.String(), text) {
					t.Errorf("no %q in the log:\n%s", text, log)
				}
			}
			if _, err := os.Lstat(filepath.Join(dir, "one")); err != nil {
				t.Errorf("the manager's socket: %v", err) // it is not ours to remove
			}
		})
	}
}
