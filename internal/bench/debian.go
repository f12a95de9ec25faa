//go:build linux

package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// debPackage is one package file that apt would install.
type debPackage struct {
	name string // of the file, as it is in the cache: name_version_arch.deb
}

// id is the package without the file's suffix.
func (p debPackage) id() string { return strings.TrimSuffix(p.name, ".deb") }

// wanted is the name=version that apt downloads.
func (p debPackage) wanted() (string, error) {
	parts := strings.Split(p.id(), "_")
	if len(parts) != 3 {
		return "", fmt.Errorf("read package name %q: want name_version_arch", p.name)
	}
	version, err := url.PathUnescape(strings.ReplaceAll(parts[1], "+", "%2b"))
	if err != nil {
		return "", fmt.Errorf("read package name %q: %w", p.name, err)
	}
	return parts[0] + "=" + version, nil
}

// debCache fetches packages and keeps their files.
type debCache struct {
	dir string
	say func(format string, args ...any)
}

// closure returns what an empty machine would install for the roots, in the
// order of their names.
func (c *debCache) closure(ctx context.Context, roots []string) ([]debPackage, error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil { //nolint:gosec // a cache of public files
		return nil, fmt.Errorf("make package cache: %w", err)
	}
	status := filepath.Join(c.dir, "status")                 // what is installed there: nothing
	if err := os.WriteFile(status, nil, 0o644); err != nil { //nolint:gosec // as above
		return nil, fmt.Errorf("make package cache: %w", err)
	}
	// an empty directory of archives, so that apt leaves no file out because it is there already
	empty, err := os.MkdirTemp(c.dir, "archives-")
	if err != nil {
		return nil, fmt.Errorf("make package cache: %w", err)
	}
	defer func() { _ = os.RemoveAll(empty) }()
	if err := os.Mkdir(filepath.Join(empty, "partial"), 0o755); err != nil { //nolint:gosec // as above
		return nil, fmt.Errorf("make package cache: %w", err)
	}
	args := []string{
		"install", "--print-uris", "-qq", "-y", "--no-install-recommends", "-o", "Debug::NoLocking=1",
		"-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + empty + "/",
		"-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=",
	}
	out, err := runQuiet(ctx, "", "apt-get", append(args, roots...)...)
	if err != nil {
		return nil, fmt.Errorf("ask apt for %s: %w (is `apt-get update` due?)", strings.Join(roots, " "), err)
	}
	return parseURIs(out)
}

// parseURIs reads what apt prints: 'URI' FILE SIZE HASH.
func parseURIs(out []byte) ([]debPackage, error) {
	var packages []debPackage
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || !strings.HasPrefix(fields[0], "'") {
			continue
		}
		if !strings.HasSuffix(fields[1], ".deb") || strings.ContainsRune(fields[1], '/') {
			return nil, fmt.Errorf("read apt's answer: unexpected file %q", fields[1])
		}
		packages = append(packages, debPackage{name: fields[1]})
	}
	slices.SortFunc(packages, func(a, b debPackage) int { return strings.Compare(a.name, b.name) })
	return packages, lines.Err()
}

// downloadBatch bounds the packages of one command line.
const downloadBatch = 100

// fetch downloads what the cache does not have.
func (c *debCache) fetch(ctx context.Context, packages []debPackage) error {
	var missing []string
	for _, p := range packages {
		_, err := os.Stat(filepath.Join(c.dir, p.name))
		if errors.Is(err, fs.ErrNotExist) {
			wanted, err := p.wanted()
			if err != nil {
				return err
			}
			missing = append(missing, wanted)
		} else if err != nil {
			return fmt.Errorf("look into package cache: %w", err)
		}
	}
	for batch := range slices.Chunk(missing, downloadBatch) {
		c.say("fetching %d packages …", len(batch))
		args := append([]string{"download", "-qq", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"}, batch...)
		if _, err := runQuiet(ctx, c.dir, "apt-get", args...); err != nil {
			return fmt.Errorf("fetch packages from Debian's mirror: %w (no network?)", err)
		}
	}
	for _, p := range packages {
		if _, err := os.Stat(filepath.Join(c.dir, p.name)); err != nil {
			return fmt.Errorf("fetch package %s: apt left another file: %w", p.id(), err)
		}
	}
	return nil
}

// maxSaid bounds what is kept of a program's complaints.
const maxSaid = 2 << 10

// outputDelay bounds how long output is waited for when a program has ended, for what it
// left behind may have that open.
const outputDelay = time.Second

// runQuiet runs a program and returns its output; what it complained of is in the error.
func runQuiet(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // programs of the harness and of its user
	var out, complaint bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &complaint
	cmd.Env, cmd.WaitDelay = append(os.Environ(), "LC_ALL=C"), outputDelay
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, said(err, complaint.String())
	}
	return out.Bytes(), nil
}

// said adds the end of what a program said to its error.
func said(err error, complaint string) error {
	complaint = strings.TrimSpace(complaint)
	if len(complaint) > maxSaid {
		complaint = "…" + complaint[len(complaint)-maxSaid:]
	}
	if complaint == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, complaint)
}
