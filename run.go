//go:build linux

package dray

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"dray/internal/bundle"
	"dray/internal/durable"
	"dray/internal/mount"
	"dray/internal/stream"
	"dray/internal/userns"
)

// RunOptions of [Client.Run].
type RunOptions struct {
	Pull     PullOptions
	Spec     SpecOptions // command, environment, mounts, user, network
	ReadOnly bool
	Keep     bool   // leave the bundle in place afterwards
	ID       string // of the container; "": a random one
	Runtime  string // "": runc, else crun; or a path
	Stdin    *os.File
	Stdout   *os.File
	Stderr   *os.File

	Signals <-chan os.Signal // passed on to the container; while it runs, ctx no longer stops it. nil: none
	Started func()           // called before the runtime starts, when all output is the container's; nil: not
}

// Run starts the image as a container and waits for its end: pull if needed,
// bundle, runc or crun, clean up. It returns the exit code of the container's
// process; an error means that it did not run to its end. Ending ctx stops the
// container. What a run that was killed has left is taken away by the next.
func (c *Client) Run(ctx context.Context, reference string, o RunOptions) (code int, err error) {
	if o.ID == "" {
		o.ID = "dray-" + strings.ToLower(rand.Text()[:12])
	}
	runs, err := c.openRuns(ctx)
	if err != nil {
		return 0, err
	}
	r, err := runs.begin(o.ID)
	if err == nil {
		err = r.note(o.Runtime)
	}
	if err != nil {
		return 0, err
	}
	defer func() {
		if o.Keep && err == nil {
			err = r.keep()
			return
		}
		err = errors.Join(err, r.end(context.WithoutCancel(ctx)))
	}()
	if o.Spec.CgroupsPath == "" {
		o.Spec.CgroupsPath = "/dray-" + o.ID
	}
	made, err := c.Bundle(ctx, reference, r.dir, BundleOptions{Pull: o.Pull, Spec: o.Spec, ReadOnly: o.ReadOnly, Create: true})
	if err != nil {
		return 0, err
	}
	config, err := made.Image.config()
	if err != nil {
		return 0, err
	}
	stop, err := bundle.ParseSignal(config.Config.StopSignal)
	if err != nil {
		return 0, err
	}
	if o.Started != nil {
		o.Started()
	}
	if o.Signals != nil {
		ctx = context.WithoutCancel(ctx)
	}
	code, err = bundle.Run(ctx, bundle.RunOptions{
		Runtime: o.Runtime, Bundle: r.dir, ID: o.ID, Root: runs.root, Rootless: userns.Inside(),
		Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Terminal: o.Spec.Terminal, Signals: o.Signals, StopSignal: stop,
	})
	if err != nil {
		return code, fmt.Errorf("run %s: %w", reference, err)
	}
	return code, nil
}

// runs is the directory of running containers, which is gone after a boot:
// DIR/ID is a bundle, DIR/ID.lock is held by the process that runs it, and
// DIR/.runtime is the runtime's own state.
type runs struct {
	client *Client
	dir    string
	root   string
}

const (
	lockSuffix     = ".lock" // its content is the runtime as it was asked for
	maxRuntimeName = 4096
)

// openRuns makes the directory and takes away what killed processes left there.
func (c *Client) openRuns(ctx context.Context) (*runs, error) {
	dir := "/run/dray"
	if os.Geteuid() != 0 || userns.Inside() {
		var err error
		if dir, err = userns.RuntimeDir(); err != nil {
			return nil, err
		}
	}
	r := &runs{client: c, dir: filepath.Join(dir, "run"), root: filepath.Join(dir, "runtime")}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for containers: %w", err)
	}
	return r, r.sweep(ctx)
}

// sweep ends every run whose process is gone.
func (r *runs) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("look for containers: %w", err)
	}
	for _, e := range entries {
		id, isLock := strings.CutSuffix(e.Name(), lockSuffix)
		if !isLock {
			continue
		}
		left, err := r.begin(id)
		if errors.Is(err, durable.ErrLocked) {
			continue
		}
		if err == nil {
			r.client.log.LogAttrs(ctx, slog.LevelWarn, "container left by a killed process", slog.String("id", id))
			err = left.end(ctx)
		}
		if err != nil { // another store's, perhaps: it must not stop this run
			r.client.log.LogAttrs(ctx, slog.LevelWarn, "container not cleaned up", slog.String("id", id), slog.Any("error", err))
		}
	}
	return nil
}

// oneRun is a container and its bundle.
type oneRun struct {
	runs *runs
	id   string
	dir  string
	lock *durable.Lock
}

// begin claims the name id.
func (r *runs) begin(id string) (*oneRun, error) {
	dir := filepath.Join(r.dir, id)
	if filepath.Dir(dir) != r.dir || strings.HasPrefix(id, ".") {
		return nil, fmt.Errorf("name container %q: want letters, digits, '_', '.' and '-': %w", id, bundle.ErrOption)
	}
	lock, err := durable.TryAcquire(dir+lockSuffix, durable.Exclusive)
	if err != nil {
		return nil, fmt.Errorf("name container %q: %w", id, err)
	}
	return &oneRun{runs: r, id: id, dir: dir, lock: lock}, nil
}

// note writes the runtime down, for whoever cleans up.
func (o *oneRun) note(runtime string) error {
	_, err := o.lock.File().WriteString(runtime)
	if err == nil {
		_, err = o.lock.File().Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("name container %q: %w", o.id, errors.Join(err, o.lock.Release()))
	}
	return nil
}

// end removes the container, its mount and its bundle, as far as they exist.
func (o *oneRun) end(ctx context.Context) error {
	runtime, err := stream.ReadAll(o.lock.File(), maxRuntimeName)
	if err == nil {
		err = bundle.Delete(ctx, bundle.RunOptions{Runtime: string(runtime), Bundle: o.dir, ID: o.id, Root: o.runs.root, Rootless: userns.Inside()})
	}
	if errors.Is(err, bundle.ErrNoRuntime) {
		err = nil // so there never was one
	}
	unmountErr := o.runs.client.mounter.Unmount(ctx, filepath.Join(o.dir, rootfsName))
	if errors.Is(unmountErr, mount.ErrNotMounted) {
		unmountErr = nil
	}
	if err = errors.Join(err, unmountErr); err != nil {
		return errors.Join(err, o.lock.Release())
	}
	for _, name := range []string{filepath.Join(o.dir, bundle.ConfigName), filepath.Join(o.dir, rootfsName), o.dir, o.dir + lockSuffix} {
		if removeErr := os.Remove(name); removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return errors.Join(err, o.lock.Release())
}

// keep leaves the bundle to its user: without the lock's file no later run takes
// it away.
func (o *oneRun) keep() error {
	return errors.Join(os.Remove(o.dir+lockSuffix), o.lock.Release())
}
