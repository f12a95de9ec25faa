package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"dray"
	"dray/internal/bundle"
	"dray/internal/ocidir"
	"dray/internal/registryd"
)

// Options of [Run].
type Options struct {
	Output   io.Writer
	Progress func(dray.Event) // what the service says of its pulls
	Settle   func()           // called before anything is printed below a progress display
	Size     func(int64) string
	Log      *slog.Logger
}

// row is one line of the closing table.
type row struct {
	image    image
	elapsed  time.Duration
	again    time.Duration
	evidence *dray.Evidence
}

// demo is one demonstration under way.
type demo struct {
	Options
	dir     string
	address string
	service *service
}

// Run shows the main job. It needs to be root, of the machine or of a user
// namespace.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "dray-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d := &demo{Options: o, dir: dir}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	d.say("Making images from what this machine has …")
	begin := time.Now()
	layouts := filepath.Join(dir, "registry")
	images, err := d.makeAll(ctx, layouts)
	if err != nil {
		return err
	}
	d.say("  done in %s", time.Since(begin).Round(time.Millisecond))

	stop, err := d.startRegistry(ctx, layouts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if d.service, err = startService(ctx, filepath.Join(dir, "store"), filepath.Join(dir, "pull.socket"), d.Progress); err != nil {
		return err
	}
	d.say("A registry listens on %s, the pull service (process %d) on a socket of its own.", d.address, d.service.cmd.Process.Pid)
	var rows []row
	for _, i := range images {
		r, showErr := d.show(ctx, i)
		if showErr != nil {
			return errors.Join(showErr, d.cleanUp(ctx))
		}
		rows = append(rows, r)
	}
	d.table(rows, d.service.peakBytes())
	return d.cleanUp(ctx)
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.Output, format+"\n", args...) }

// makeAll makes every image below dir.
func (d *demo) makeAll(ctx context.Context, dir string) ([]image, error) {
	scratch, err := ocidir.Create(ctx, filepath.Join(d.dir, "scratch"))
	if err != nil {
		return nil, err
	}
	images, err := makeImages(ctx, scratch, dir)
	return images, errors.Join(err, scratch.Close())
}

// startRegistry serves the layouts on a loopback port and returns how to stop.
func (d *demo) startRegistry(ctx context.Context, dir string) (stop func() error, err error) {
	server, err := registryd.New(registryd.Options{Dir: dir, ReadOnly: true, Log: d.Log})
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start registry: %w", err), server.Close())
	}
	d.address = listener.Addr().String()
	serving, cancel := context.WithCancel(ctx)
	done := make(chan error, 1) // one value: how serving ended
	go func() { done <- registryd.Serve(serving, server, listener) }()
	return func() error {
		cancel()
		return errors.Join(<-done, server.Close())
	}, nil
}

func (d *demo) reference(i image) string { return "http://" + d.address + "/" + i.name }

func (d *demo) bundle(i image) string {
	return filepath.Join(d.dir, "bundles", strings.ReplaceAll(i.name, "/", "-"))
}

// show pulls one image through the service and runs it.
func (d *demo) show(ctx context.Context, i image) (row, error) {
	d.say("\n%s: %s", i.name, i.about)
	dir := d.bundle(i)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return row{}, fmt.Errorf("demo: %w", err)
	}
	begin := time.Now()
	digest, err := d.service.pull(ctx, d.reference(i), dir)
	elapsed := time.Since(begin)
	d.Settle()
	if err != nil {
		return row{}, err
	}
	d.say("  pulled and mounted in %s as %.19s", elapsed.Round(time.Millisecond), digest)
	evidence, err := d.evidence(ctx, i)
	if err != nil {
		return row{}, err
	}
	begin = time.Now()
	if _, err := d.service.pull(ctx, d.reference(i), dir); err != nil {
		return row{}, err
	}
	again := time.Since(begin)
	d.Settle()
	return row{image: i, elapsed: elapsed, again: again, evidence: evidence}, d.runIn(ctx, i, dir)
}

// runIn runs the image's command in its bundle, with the runtime there is.
func (d *demo) runIn(ctx context.Context, i image, dir string) error {
	output, err := os.CreateTemp(d.dir, "output-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { _ = output.Close() }()
	how := "in a container"
	code, err := bundle.Run(ctx, bundle.RunOptions{
		Bundle: dir, ID: filepath.Base(dir), Root: filepath.Join(d.dir, "runtime"), Stdout: output, Stderr: output,
	})
	if errors.Is(err, bundle.ErrNoRuntime) {
		how = "below chroot, because neither runc nor crun is installed"
		code, err = d.chroot(ctx, i, dir, output)
	}
	said, readErr := os.ReadFile(output.Name())
	if err := errors.Join(err, readErr); err != nil {
		return err
	}
	for line := range strings.Lines(string(said)) {
		d.say("  | %s", strings.TrimRight(line, "\n"))
	}
	d.say("  ran %s: exit code %d", how, code)
	if code != 0 {
		return fmt.Errorf("demo: %s ended with exit code %d", i.name, code)
	}
	return nil
}

func (d *demo) chroot(ctx context.Context, i image, dir string, output *os.File) (int, error) {
	argv := append(append([]string{}, i.config.Entrypoint...), i.config.Cmd...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the demonstration's own image
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: filepath.Join(dir, "rootfs")}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", i.config.Env, output, output
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// evidence asks the store what the pull has proved.
func (d *demo) evidence(ctx context.Context, i image) (*dray.Evidence, error) {
	client, err := dray.New(ctx, dray.Options{Store: filepath.Join(d.dir, "store"), Log: d.Log})
	if err != nil {
		return nil, err
	}
	found, err := client.Find(d.reference(i))
	if err = errors.Join(err, client.Close()); err != nil {
		return nil, err
	}
	return found.Evidence, nil
}

// table prints the closing table.
func (d *demo) table(rows []row, peak int64) {
	d.say("")
	w := tabwriter.NewWriter(d.Output, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "image\tlayers\tof them shared\tfetched\tunpacked\tpull + mount\tagain\t")
	var disk int64
	seen := map[string]bool{}
	for _, r := range rows {
		shared := 0
		for _, l := range r.evidence.Layers {
			if l.Source == "store" {
				shared++
			}
			if !seen[string(l.DiffID)] {
				seen[string(l.DiffID)] = true
				disk += l.SizeBytes
			}
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t\n", r.image.name, len(r.evidence.Layers), shared,
			d.Size(r.evidence.NetworkBytes), d.Size(r.evidence.SizeBytes),
			r.elapsed.Round(time.Millisecond), r.again.Round(100*time.Microsecond))
	}
	_ = w.Flush()
	d.say("\nThe service's peak memory was %s; the store holds %s of layers, each once.", d.Size(peak), d.Size(disk))
}

// cleanUp unmounts everything and stops the service.
func (d *demo) cleanUp(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := d.service.stop()
	client, openErr := dray.New(ctx, dray.Options{Store: filepath.Join(d.dir, "store"), Log: d.Log})
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	mounts, listErr := client.Mounts(ctx)
	err = errors.Join(err, listErr)
	for _, m := range mounts {
		err = errors.Join(err, client.Unmount(ctx, m.Target))
	}
	return errors.Join(err, client.Close())
}
