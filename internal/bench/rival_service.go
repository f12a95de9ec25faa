//go:build linux

package bench

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/ttrpc"

	"dray/internal/guest/api"
)

// service is a program that serves api.ImagePullService over ttrpc.
//
// What follows the path after a space is added to the server's command line or, as
// NAME=VALUE, to its environment.
func (r *Rival) service(ctx context.Context, command string) (*Rival, error) {
	path, extra, err := r.split(command)
	if err != nil {
		return nil, err
	}
	if path == r.Kind && filepath.Base(path) == path {
		if _, err := os.Stat(path); err == nil {
			path = "./" + path // a file of that name here comes before the PATH
		}
	}
	found, err := find(path)
	if err != nil {
		return nil, err
	}
	r.Path, r.Version = found, buildOf(ctx, found)+", "+fingerprint(found)
	r.ready, r.ask = listening, pullByService(bareReference)
	r.mount = r.ask // asked again, for another bundle
	r.prepare = func(context.Context, *site, request) error { return nil }
	switch r.Kind {
	case "dray", "dray-guest":
		r.ask = pullByService(drayReference)
		r.mount = r.ask
		r.server = func(s *site) []string {
			return append([]string{
				found, "serve", "--storepath", s.store, "--listen", s.socket, "--rootless", "never", "--config", "/dev/null", "--progress", "none",
				"--log-level", "debug", "--log-format", "json", // the timeline is drawn from it
			}, extra...)
		}
	case "imagepuller":
		r.server = func(s *site) []string { return append([]string{found, "--storepath", s.store}, extra...) }
		r.prepare, r.ready = preparePuller, pullerListens
	case "image-rs":
		r.prepare = writeHubConfig
		r.server = func(s *site) []string {
			return append([]string{found, "-c", filepath.Join(s.state, "cdh.toml")}, extra...)
		}
	}
	return r, nil
}

// pullerSockets are where imagepuller listens, and nowhere else: now, and in its first
// versions.
func pullerSockets() []string {
	return []string{"/run/guest-services/imagepull.socket", "/run/confidential-containers/imagepuller.sock"}
}

// preparePuller makes sure that nobody else would be measured. The server makes the
// directory of its socket; so that none is left behind, the site does it here.
func preparePuller(ctx context.Context, s *site, _ request) error {
	for _, s.socket = range pullerSockets() {
		if conn, err := dial(ctx, s); err == nil {
			_ = conn.Close()
			return fmt.Errorf("somebody serves %s already, perhaps another bench: stop it first", s.socket)
		}
		dir := filepath.Dir(s.socket)
		if err := os.Mkdir(dir, 0o700); err == nil {
			s.made = append(s.made, dir)
		} else if !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// pullerListens waits until one of the sockets takes connections, which is then the
// site's.
func pullerListens(ctx context.Context, s *site) error {
	return poll(ctx, s.server, func() (err error) {
		for _, s.socket = range pullerSockets() {
			conn, e := dial(ctx, s)
			if e == nil {
				return conn.Close()
			}
			err = errors.Join(err, e)
		}
		return err
	})
}

// bareReference is for those who take loopback for plain HTTP, or are told in their
// configuration.
func bareReference(r request) string { return r.reference }

// drayReference says http:// where dray would speak HTTPS.
func drayReference(r request) string {
	if r.plain {
		return "http://" + r.reference
	}
	return r.reference
}

// pullByService asks the service for the image.
func pullByService(reference func(request) string) func(context.Context, *site, request) error {
	return func(ctx context.Context, s *site, r request) error {
		conn, err := dial(ctx, s)
		if err != nil {
			return fmt.Errorf("connect to the server: %w", err)
		}
		client := ttrpc.NewClient(conn)
		defer func() { _ = client.Close() }()
		_, err = api.NewImagePullServiceClient(client).PullImage(ctx, &api.ImagePullRequest{ImageUrl: reference(r), BundlePath: r.bundle})
		if err != nil {
			return fmt.Errorf("the server answered: %w", err)
		}
		return nil
	}
}

// writeHubConfig configures a Confidential Data Hub for the site's store and registry.
// No attestation agent is named: one of this machine would put every pull into its
// measurements, which cannot be taken back. Without the variable it writes what is in
// that file to a directory of the machine.
func writeHubConfig(_ context.Context, s *site, r request) error {
	socket := strconv.Quote("unix://" + s.socket)
	config := "socket = " + socket + `

[aa]
aa_socket = ` + strconv.Quote("unix://"+filepath.Join(s.state, "none.socket")) + `

[kbc]
name = "offline_fs_kbc"
url = ""

[image]
work_dir = ` + strconv.Quote(s.store) + "\n"
	if r.plain {
		host, _, _ := strings.Cut(r.reference, "/")
		config += `
[[image.registry_config.registry]]
prefix = ` + strconv.Quote(host) + `
location = ` + strconv.Quote(host) + `
insecure = true
`
	}
	keys := filepath.Join(s.state, "ocicrypt.json")
	s.environment = []string{"OCICRYPT_KEYPROVIDER_CONFIG=" + keys}
	return errors.Join(os.WriteFile(keys, []byte(`{"key-providers":{"attestation-agent":{"ttrpc":`+socket+`}}}`), 0o600),
		os.WriteFile(filepath.Join(s.state, "cdh.toml"), []byte(config), 0o600))
}

// buildOf returns what a program says of its version or, when it says nothing and is
// Go's, what it was built from.
func buildOf(ctx context.Context, path string) string {
	said := versionOf(ctx, path, "--version")
	info, err := buildinfo.ReadFile(path)
	if said != unknown || err != nil {
		return said
	}
	words := []string{info.Main.Path, info.Main.Version, info.GoVersion}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			words = append(words, setting.Value)
		}
	}
	return strings.Join(words, " ")
}

// fingerprint names a program whatever it tells of its version: size and digest.
func fingerprint(path string) string {
	f, err := os.Open(path) //nolint:gosec // the user's program
	if err != nil {
		return unknown
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return unknown
	}
	return fmt.Sprintf("%d bytes, sha256:%.12x", n, h.Sum(nil))
}

// commandRival is any program that pulls {ref} into {dir} and ends.
func commandRival(name, template string) (*Rival, error) {
	if template == "" {
		return nil, errors.New("server command: the template is empty")
	}
	r := &Rival{Name: name, Kind: "command", Version: unknown}
	r.ask = func(ctx context.Context, s *site, q request) error {
		dir := q.rootfs()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		// the shell gets both as variables, not as text
		argv := []string{"/bin/sh", "-c", expand(template)}
		_, err := s.run(ctx, argv, "BENCH_REF="+q.reference, "BENCH_DIR="+dir, "BENCH_STORE="+s.store, "HOME="+s.state, "TMPDIR="+s.state)
		return err
	}
	return r, nil
}
