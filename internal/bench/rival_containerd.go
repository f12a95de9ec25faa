//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// parallelUnpacks is what containerd 2 is told: max_concurrent_unpacks.
const parallelUnpacks = 4

// containerd is Debian's or any other containerd, asked through the ctr beside it or
// on the PATH: [PATH][:SNAPSHOTTER] [proxy=PLUGIN]. Programs beside it, as a mkfs.erofs,
// come before those of the PATH.
//
// PLUGIN is a snapshotter of its own process: the rest of the line, where it has
// {socket}, is started with a fresh {store} for each run, as a part of the server; else
// it is the socket of one that somebody has started, which is not measured.
func (r *Rival) containerd(ctx context.Context, command string) (*Rival, error) {
	command, plugin, proxied := strings.Cut(command, " proxy=")
	path, extra, err := r.split(command)
	if err != nil {
		return nil, err
	}
	path, snapshotter, _ := strings.Cut(path, ":")
	if snapshotter == "" {
		snapshotter = "overlayfs"
	}
	daemon, err := find(path)
	if err != nil {
		return nil, err
	}
	beside := filepath.Dir(daemon)
	ctr, err := find(filepath.Join(beside, "ctr"))
	if err != nil {
		if ctr, err = find("ctr"); err != nil {
			return nil, err
		}
	}
	r.Path, r.Version = daemon, versionOf(ctx, daemon, "--version")
	r.environment = append([]string{"PATH=" + beside + string(os.PathListSeparator) + os.Getenv("PATH")}, r.environment...)
	second := strings.Contains(r.Version, " v2.") || strings.Contains(r.Version, " 2.")
	if second {
		r.Version += fmt.Sprintf(", max_concurrent_unpacks = %d", parallelUnpacks)
	}
	if snapshotter == "erofs" {
		r.Version += ", " + versionOf(ctx, "/usr/bin/env", r.environment[0], "mkfs.erofs", "--version")
	}
	if len(r.environment) > 1 {
		r.Version += ", " + strings.Join(r.environment[1:], " ")
	}
	proxy := func(*site) string { return plugin }
	if proxied {
		if proxy, err = r.proxy(plugin); err != nil {
			return nil, err
		}
	}
	r.prepare = func(_ context.Context, s *site, _ request) error {
		config := firstConfig(s)
		if second {
			config = secondConfig(s, snapshotter)
		}
		if proxied {
			config += "[proxy_plugins." + strconv.Quote(snapshotter) + "]\n  type = \"snapshot\"\n  address = " + strconv.Quote(proxy(s)) + "\n"
		}
		return os.WriteFile(filepath.Join(s.state, "config.toml"), []byte(config), 0o600)
	}
	r.server = func(s *site) []string {
		return append([]string{daemon, "-c", filepath.Join(s.state, "config.toml"), "-l", "error"}, extra...)
	}
	r.askContainerd(ctr, snapshotter)
	return r, nil
}

// proxy reads what is said of a snapshotter's plugin, and returns where it answers.
func (r *Rival) proxy(plugin string) (socket func(*site) string, err error) {
	if !strings.Contains(plugin, "{socket}") {
		r.Version += ", snapshotter at " + plugin + ", which somebody started: its memory, time and storage are not counted, nothing of it is wiped"
		return func(*site) string { return plugin }, nil
	}
	words := strings.Fields(plugin)
	if words[0], err = find(words[0]); err != nil {
		return nil, err
	}
	r.Version += ", " + filepath.Base(words[0]) + " of " + fingerprint(words[0])
	socket = func(s *site) string { return filepath.Join(s.state, "proxy.socket") }
	r.helper = func(s *site) ([]string, string) {
		argv := slices.Clone(words)
		for i := range argv {
			argv[i] = strings.NewReplacer("{socket}", socket(s), "{store}", filepath.Join(s.store, "proxy")).Replace(argv[i])
		}
		return argv, socket(s)
	}
	return socket, nil
}

// askContainerd asks through ctr.
func (r *Rival) askContainerd(ctr, snapshotter string) {
	client := func(s *site, args ...string) []string { return append([]string{ctr, "-a", s.socket}, args...) }
	r.ready = func(ctx context.Context, s *site) error {
		if err := listening(ctx, s); err != nil {
			return err
		}
		return poll(ctx, s.server, func() error { // it listens before it can answer
			_, err := runQuiet(ctx, "", ctr, "-a", s.socket, "version")
			return err
		})
	}
	r.mount = func(ctx context.Context, s *site, q request) error {
		if err := os.MkdirAll(q.rootfs(), 0o700); err != nil {
			return err
		}
		_, err := s.run(ctx, client(s, "images", "mount", "--snapshotter", snapshotter, "--rw", q.reference, q.rootfs()))
		return err
	}
	r.ask = func(ctx context.Context, s *site, q request) error {
		pull := []string{"images", "pull", "--snapshotter", snapshotter}
		if q.plain {
			pull = append(pull, "--plain-http")
		}
		if _, err := s.run(ctx, client(s, append(pull, q.reference)...)); err != nil {
			return err
		}
		if err := r.mount(ctx, s, q); err != nil {
			return errors.Join(errors.New("it was pulled, and not mounted"), err)
		}
		return nil
	}
}

// directories is what the configurations of all versions begin with.
func directories(s *site) string {
	return "root = " + strconv.Quote(s.store) + "\nstate = " + strconv.Quote(filepath.Join(s.state, "c")) + "\n"
}

// firstConfig is of containerd 1.
func firstConfig(s *site) string {
	return "version = 2\n" + directories(s) + "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = " + strconv.Quote(s.socket) + "\n"
}

// secondConfig is of containerd 2: parallel unpacking, and the EROFS snapshotter with
// its differ as its documentation wants them (docs/snapshotters/erofs.md).
func secondConfig(s *site, snapshotter string) string {
	config := "version = 3\n" + directories(s) + "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n" +
		"[grpc]\n  address = " + strconv.Quote(s.socket) + "\n" +
		"[plugins.'io.containerd.transfer.v1.local']\n  max_concurrent_unpacks = " + strconv.Itoa(parallelUnpacks) + "\n" +
		"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"linux/" + runtime.GOARCH + "\"\n  snapshotter = " + strconv.Quote(snapshotter) + "\n"
	if snapshotter == "erofs" {
		config += "  differ = \"erofs\"\n" +
			"[plugins.'io.containerd.service.v1.diff-service']\n  default = [\"erofs\", \"walking\"]\n" +
			"[plugins.'io.containerd.differ.v1.erofs']\n  mkfs_options = [\"-T0\", \"--mkfs-time\", \"--sort=none\"]\n"
	}
	return config
}
