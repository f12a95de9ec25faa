package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"dray"
	"dray/internal/guest/api"
	"dray/internal/stream"
	"dray/internal/testkit"
)

const (
	clientCount    = 50
	imageCount     = 12
	crowdTime      = 60 * time.Second
	crowdTimeShort = 10 * time.Second
	crowdTimeNight = time.Hour

	settleTime   = 5 * time.Minute // until a service that has nothing to do holds nothing
	slackFiles   = 2               // open files, goroutines: what the check itself opens
	peakMaxBytes = 24 << 20
)

// TestConcurrency lets fifty clients of one service and two other processes pull
// overlapping images into one store, gives up on them at random, collects garbage
// meanwhile, and has the registry misbehave.
func TestConcurrency(t *testing.T) { // not parallel: it mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Mknod())
	c := newCrowd(t)
	t.Cleanup(func() { unmountBelow(t, c.home) })
	c.startService()
	if err := c.ask(t.Context(), 0, 0); err != nil { // warm
		t.Fatal(err)
	}
	idle := c.held()

	duration := crowdTime
	switch {
	case testing.Short():
		duration = crowdTimeShort
	case nightly():
		duration = crowdTimeNight
	}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var all sync.WaitGroup
	last := make([]int, clientCount) // image of each client's last call, -1 when that failed
	for n := range clientCount {
		all.Go(func() { last[n] = c.client(ctx, n) })
	}
	all.Go(func() { c.pulls(ctx) })
	all.Go(func() { c.mounts(ctx) })
	all.Go(func() { c.collects(ctx) })
	all.Go(func() { c.misbehaves(ctx) })
	all.Wait()

	c.compare(last)
	c.settle(idle)
	c.stopService()
	c.wantClean()
}

// crowd is a store, a service on it, and a registry.
type crowd struct {
	world
	registry *testkit.Server
	images   []contents
	refs     []string
	service  *exec.Cmd
	log      *os.File
	socket   string
	metrics  string

	mu      sync.Mutex // guards the fields below
	answers map[string]int
}

// newCrowd makes the images: layers that many share, at the bottom, in the middle
// and twice, in every compression, and one of each image's own.
func newCrowd(t *testing.T) *crowd {
	t.Helper()
	home := t.TempDir()
	c := &crowd{
		world:   world{t: t, home: home, store: filepath.Join(home, "store"), target: filepath.Join(home, "target")},
		socket:  filepath.Join(home, "s"),
		metrics: filepath.Join(home, "m"),
		answers: map[string]int{},
	}
	layouts := t.TempDir()
	base, many := kinds().layers, testkit.Files("many", 60)
	for i := range imageCount {
		own := []testkit.Entry{testkit.Dir("."), testkit.Random("own", int64(20_000*(i*i+1)), uint64(i+1))}
		layers := [][]testkit.Entry{base[0], many, own}
		switch i % 3 {
		case 1:
			layers = [][]testkit.Entry{base[0], base[1], own, many, base[2]}
		case 2:
			layers = [][]testkit.Entry{many, base[0], many, own}
		}
		image := newContents(layers...)
		name := fmt.Sprintf("image%d", i)
		image.write(t, testkit.LayoutAt(t, filepath.Join(layouts, name)), "v1", i)
		c.images, c.refs = append(c.images, image), append(c.refs, name+":v1")
	}
	c.registry = testkit.Registry(t, layouts)
	for i := range c.refs {
		c.refs[i] = c.registry.Ref(c.refs[i])
	}
	return c
}

// note counts what was answered; what must not be is an error of the test.
func (c *crowd) note(who, answer string, expected bool, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[who+" "+answer]++
	if !expected && c.answers[who+" "+answer] <= 3 {
		c.t.Errorf("%s: %s: %s", who, answer, why)
	}
}

func (c *crowd) startService() {
	c.t.Helper()
	line := c.drayArgs("serve", "--listen", c.socket, "--metrics", "unix://"+c.metrics, "--linger", "500ms")
	c.service = exec.CommandContext(c.t.Context(), line[0], line[1:]...)
	c.service.Env = environment()
	log, err := os.Create(filepath.Join(c.home, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.log, c.service.Stderr = log, log
	if err := c.service.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = c.service.Process.Kill() // ended long ago, but after a failure
		_ = log.Close()
	})
	deadline := time.Now().Add(commandTime)
	for {
		var dialer net.Dialer
		conn, err := dialer.DialContext(c.t.Context(), "unix", c.socket)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the service does not listen: %v", err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (c *crowd) bundle(n int) string { return filepath.Join(c.home, fmt.Sprintf("bundle%d", n)) }

// ask has the service pull an image into a client's bundle, on a connection of its
// own.
func (c *crowd) ask(ctx context.Context, n, image int) error {
	if err := os.MkdirAll(c.bundle(n), 0o700); err != nil {
		return err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(c.t.Context(), "unix", c.socket) //nolint:contextcheck // it may outlast the time of the crowd
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	_, err = api.NewImagePullServiceClient(client).PullImage(ctx, &api.ImagePullRequest{ImageUrl: c.refs[image], BundlePath: c.bundle(n)})
	return err
}

// client asks for one image after the other until ctx ends. Of three calls it gives
// up one at any moment; now and then it looks at what it got.
func (c *crowd) client(ctx context.Context, n int) int {
	random := rand.New(rand.NewPCG(*seed, uint64(n)))
	last := -1
	for ctx.Err() == nil {
		image := random.IntN(imageCount)
		call, cancel := context.WithTimeout(c.t.Context(), commandTime)
		if random.IntN(3) == 0 {
			cancel()
			call, cancel = context.WithTimeout(c.t.Context(), time.Duration(random.IntN(400))*time.Millisecond)
		}
		err := c.ask(call, n, image) //nolint:contextcheck // it may outlast the time of the crowd
		gaveUp := call.Err() != nil
		cancel()
		last = -1
		switch code := status.Code(err); {
		case err == nil:
			last = image
			c.note("client", "ok", true, "")
			if random.IntN(10) == 0 {
				c.wantImage(filepath.Join(c.bundle(n), "rootfs"), image)
			}
		case gaveUp, code == codes.DeadlineExceeded: // the service may be the first to see it
			c.note("client", "gave up", true, "")
		default: // what the registry's faults come to
			c.note("client", code.String(), code == codes.Unavailable || code == codes.DataLoss, err.Error())
		}
	}
	return last
}

func (c *crowd) wantImage(rootfs string, image int) {
	if diff := c.images[image].differs(c.t, rootfs); diff != "" {
		c.t.Errorf("%s is not image %d: %s", rootfs, image, diff)
	}
}

// interrupted runs dray and sends it SIGINT at any moment in one of three cases.
func (c *crowd) interrupted(random *rand.Rand, args ...string) (exit int, out string) {
	line := c.drayArgs(args...)
	ctx, cancel := context.WithTimeout(c.t.Context(), commandTime)
	defer cancel()
	if random.IntN(3) == 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Duration(5+random.IntN(300))*time.Millisecond)
		defer stop()
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = environment()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = commandTime
	raw, err := cmd.CombinedOutput()
	if exited := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exited) && ctx.Err() == nil {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), strings.TrimSpace(string(raw))
}

// mayFail are exit codes of commands that met a fault of the registry (13, 17), an
// interruption (130; -1 before the handler is there), or what others use (14).
func mayFail(exit int, out string) bool {
	return slices.Contains([]int{0, 13, 14, 17, 130}, exit) || exit == -1 && out == ""
}

func (c *crowd) pulls(ctx context.Context) {
	random := rand.New(rand.NewPCG(*seed, 1000))
	for ctx.Err() == nil {
		exit, out := c.interrupted(random, "pull", c.refs[random.IntN(imageCount)]) //nolint:contextcheck // it may outlast the time of the crowd
		c.note("dray pull", strconv.Itoa(exit), mayFail(exit, out), out)
	}
}

func (c *crowd) mounts(ctx context.Context) {
	random := rand.New(rand.NewPCG(*seed, 1001))
	for ctx.Err() == nil {
		image := random.IntN(imageCount)
		exit, out := c.interrupted(random, "mount", "--replace", c.refs[image], c.target) //nolint:contextcheck // it may outlast the time of the crowd
		c.note("dray mount", strconv.Itoa(exit), mayFail(exit, out), out)
		if exit == 0 {
			c.wantImage(c.target, image)
		}
		if random.IntN(2) == 0 {
			exit, out = c.interrupted(random, "unmount", c.target) //nolint:contextcheck // it may outlast the time of the crowd
			c.note("dray unmount", strconv.Itoa(exit), mayFail(exit, out) || exit == int(dray.KindNotFound), out)
		}
	}
}

// collects removes references and garbage. What is mounted or being pulled stays.
func (c *crowd) collects(ctx context.Context) {
	random := rand.New(rand.NewPCG(*seed, 1002))
	for ctx.Err() == nil {
		exit, out := c.interrupted(random, "store", "rm", c.refs[random.IntN(imageCount)]) //nolint:contextcheck // it may outlast the time of the crowd
		c.note("dray store rm", strconv.Itoa(exit), mayFail(exit, out) || exit == int(dray.KindNotFound), out)
		exit, out = c.interrupted(random, "store", "gc") //nolint:contextcheck // it may outlast the time of the crowd
		c.note("dray store gc", strconv.Itoa(exit), mayFail(exit, out), out)
	}
}

// misbehaves gives the registry another fault for one or two requests, again and
// again, and at the end none.
func (c *crowd) misbehaves(ctx context.Context) {
	random := rand.New(rand.NewPCG(*seed, 1003))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			c.registry.Mend()
			return
		case <-tick.C:
		}
		at := int64(random.IntN(100_000))
		f := [...]testkit.Fault{
			testkit.Cut("/blobs/", at), testkit.Stall("/blobs/", at), testkit.Flip("/blobs/", at), testkit.Slow("/blobs/", 16<<10, 20*time.Millisecond),
			testkit.Status("/blobs/", http.StatusServiceUnavailable), testkit.Status("/manifests/", http.StatusInternalServerError),
			testkit.Status("/", http.StatusTooManyRequests, "Retry-After", "0"), testkit.Cut("/manifests/", at%500),
		}[random.IntN(8)]
		c.registry.Mend()
		c.registry.Add(f.Times(1 + random.IntN(2)))
	}
}

// compare looks at every bundle whose last pull succeeded, and after one more pull
// at the others.
func (c *crowd) compare(last []int) {
	var group errgroup.Group
	group.SetLimit(4)
	for n, image := range last {
		group.Go(func() error {
			if image < 0 {
				image = n % imageCount
				if err := c.ask(c.t.Context(), n, image); err != nil {
					return fmt.Errorf("client %d, with nothing in the way: %w", n, err)
				}
			}
			c.wantImage(filepath.Join(c.bundle(n), "rootfs"), image)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		c.t.Error(err)
	}
	for _, answer := range slices.Sorted(maps.Keys(c.answers)) {
		c.t.Logf("%6d %s", c.answers[answer], answer)
	}
	if c.answers["client ok"] == 0 || c.answers["dray pull 0"] == 0 || c.answers["dray mount 0"] == 0 {
		c.t.Error("nothing ever succeeded")
	}
}

// holdings are what a service has open.
type holdings struct{ goroutines, files int }

// held asks the service for its goroutines and the kernel for its files. Idle
// connections to the registry are no leak: the registry's end is not counted.
func (c *crowd) held() holdings {
	c.t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", c.metrics)
		},
	}}
	request, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "http://service/metrics", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		c.t.Fatalf("ask the service: %v", err)
	}
	defer func() { _ = answer.Body.Close() }()
	raw, err := stream.ReadAll(answer.Body, 1<<20)
	if err != nil {
		c.t.Fatal(err)
	}
	var h holdings
	for line := range strings.Lines(string(raw)) {
		_, _ = fmt.Sscanf(line, "go_goroutines %d", &h.goroutines)
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.service.Process.Pid))
	if err != nil || h.goroutines == 0 {
		c.t.Fatalf("count what the service holds: %v, %d goroutines", err, h.goroutines)
	}
	h.files = len(files)
	return h
}

// settle waits until the service holds no more than when it was idle before.
func (c *crowd) settle(idle holdings) {
	c.t.Helper()
	deadline := time.Now().Add(settleTime)
	h := c.held()
	for h.goroutines > idle.goroutines+slackFiles || h.files > idle.files+slackFiles {
		if time.Now().After(deadline) {
			_ = c.service.Process.Signal(syscall.SIGQUIT) // its stacks go to the log
			_ = c.service.Wait()
			raw, _ := os.ReadFile(c.log.Name())
			c.t.Fatalf("the service holds %+v, idle it was %+v:\n%s", h, idle, raw[max(0, len(raw)-20_000):])
		}
		<-time.After(100 * time.Millisecond)
		h = c.held()
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.service.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), "VmHWM:")
	var peakKiB int64
	if _, err := fmt.Sscanf(after, "%d kB", &peakKiB); err != nil {
		c.t.Fatal(err)
	}
	c.t.Logf("the service holds %+v, idle it was %+v; peak memory %.1f MB", h, idle, float64(peakKiB)*1024/1e6)
	if peakKiB<<10 > peakMaxBytes {
		c.t.Logf("that is more than the %d MB of one pull", peakMaxBytes>>20)
	}
}

func (c *crowd) stopService() {
	c.t.Helper()
	if err := c.service.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if err := c.service.Wait(); err != nil {
		raw, _ := os.ReadFile(c.log.Name())
		c.t.Errorf("stop the service: %v: %s", err, raw[max(0, len(raw)-5000):])
	}
}

// wantClean unmounts all and looks for anything that is left, and for layers that
// the collector should have taken or should not.
func (c *crowd) wantClean() {
	c.t.Helper()
	for _, target := range mountsBelow(c.t, c.home) {
		w := c.world
		w.target = target
		if err := w.unmount(); err != nil {
			c.t.Error(err)
		}
	}
	for _, args := range [][]string{{"store", "verify"}, {"store", "gc"}, {"store", "verify"}} {
		if err := c.run(args...); err != nil {
			c.t.Error(err)
		}
	}
	if left := leftovers(c.t, c.home, c.store); len(left) > 0 {
		c.t.Errorf("left behind: %v", left)
	}
	client, err := dray.New(c.t.Context(), dray.Options{Store: c.store})
	if err != nil {
		c.t.Fatal(err)
	}
	images, err := client.Images()
	if err != nil {
		c.t.Fatal(err)
	}
	referenced := map[string]bool{}
	for _, image := range images {
		found, err := client.Inspect(string(image.Manifest))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, l := range found.Layers {
			referenced[l.DiffID.Hex()] = true
		}
	}
	entries, err := os.ReadDir(filepath.Join(c.store, "layers", "sha256"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		if !referenced[e.Name()] {
			c.t.Errorf("layer %s belongs to no image, and is there", e.Name())
		}
	}
	if len(entries) != len(referenced) {
		c.t.Errorf("%d layers, %d referenced", len(entries), len(referenced))
	}
	if err := client.Close(); err != nil {
		c.t.Error(err)
	}
}
