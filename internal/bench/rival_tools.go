//go:build linux

package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// expand turns a template's {ref}, {dir} and {store} into variables of the shell.
func expand(template string) string {
	return strings.NewReplacer("{ref}", `"$BENCH_REF"`, "{dir}", `"$BENCH_DIR"`, "{store}", `"$BENCH_STORE"`).Replace(template)
}

// podman pulls into a storage of its own and mounts a read-only image, as root.
func (r *Rival) podman(ctx context.Context) (*Rival, error) {
	podman, err := find("podman")
	if err != nil {
		return nil, err
	}
	r.Path, r.Version = podman, versionOf(ctx, podman, "--version")
	command := func(s *site, args ...string) []string {
		return append([]string{
			podman, "--root", s.store, "--runroot", filepath.Join(s.state, "run"), "--tmpdir", filepath.Join(s.state, "tmp"),
			"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
		}, args...)
	}
	environment := func(s *site) []string {
		return []string{"TMPDIR=" + s.state, "CONTAINERS_STORAGE_CONF=" + filepath.Join(s.state, "storage.conf")}
	}
	r.prepare = func(_ context.Context, s *site, _ request) error {
		return os.WriteFile(filepath.Join(s.state, "storage.conf"), []byte("[storage]\ndriver = \"overlay\"\ngraphroot = "+
			strconv.Quote(s.store)+"\nrunroot = "+strconv.Quote(filepath.Join(s.state, "run"))+"\n"), 0o600)
	}
	r.mount = func(ctx context.Context, s *site, q request) error {
		out, err := s.run(ctx, command(s, "image", "mount", q.reference), environment(s)...)
		if err != nil {
			return err
		}
		if err := os.Remove(q.rootfs()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return os.Symlink(strings.TrimSpace(out), q.rootfs()) // podman chooses where it mounts
	}
	r.ask = func(ctx context.Context, s *site, q request) error {
		if _, err := s.run(ctx, command(s, "pull", "--quiet", "--tls-verify="+strconv.FormatBool(!q.plain), q.reference), environment(s)...); err != nil {
			return err
		}
		return r.mount(ctx, s, q)
	}
	return r, nil
}

// skopeo copies the image to a layout, and umoci unpacks that, layer after layer.
func (r *Rival) skopeo(ctx context.Context) (*Rival, error) {
	skopeo, err := find("skopeo")
	umoci, umociErr := find("umoci")
	if err = errors.Join(err, umociErr); err != nil {
		return nil, err
	}
	r.Path = skopeo
	r.Version = versionOf(ctx, skopeo, "--version") + ", " + versionOf(ctx, umoci, "--version")
	r.ask = func(ctx context.Context, s *site, q request) error {
		layout := filepath.Join(s.store, "layout")
		if _, err := s.run(ctx, []string{skopeo, "copy", "--quiet", "--src-tls-verify=" + strconv.FormatBool(!q.plain), "docker://" + q.reference, "oci:" + layout + ":image"}, "TMPDIR="+s.state); err != nil {
			return err
		}
		unpacked := filepath.Join(s.store, filepath.Base(q.bundle))
		if _, err := s.run(ctx, []string{umoci, "unpack", "--image", layout + ":image", unpacked}); err != nil {
			return err
		}
		return os.Symlink(filepath.Join(unpacked, "rootfs"), q.rootfs())
	}
	return r, nil
}

// own is a part of the work, done by this program: what any puller has to do at
// least (floor), or GNU tar over layers that are inflated already (untar).
func (r *Rival) own() (*Rival, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r.Path = self
	r.Version = "this program"
	if r.Kind == "floor" {
		r.ask = func(ctx context.Context, s *site, q request) error {
			_, err := s.run(ctx, []string{self, "bench", "do-floor", q.scheme() + q.reference})
			return err
		}
		return r, nil
	}
	tars := func(s *site) string { return filepath.Join(s.state, "tars") }
	r.prepare = func(ctx context.Context, s *site, q request) error {
		return inflateLayers(ctx, q.scheme()+q.reference, tars(s))
	}
	r.ask = func(ctx context.Context, s *site, q request) error {
		found, err := filepath.Glob(filepath.Join(tars(s), "*.tar"))
		if err != nil {
			return err
		}
		for _, name := range found {
			into := filepath.Join(s.store, strings.TrimSuffix(filepath.Base(name), ".tar"))
			if err := os.MkdirAll(into, 0o700); err != nil {
				return err
			}
			if _, err := s.run(ctx, []string{"tar", "-xf", name, "-C", into}); err != nil {
				return err
			}
		}
		return os.Symlink(s.store, q.rootfs())
	}
	return r, nil
}
