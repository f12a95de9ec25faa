package dray_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"dray"
	"dray/internal/durable"
	"dray/internal/guest/api"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/testkit"
	"dray/internal/userns"
)

// pauseTime is how long a mount may take until it waits for its turn.
const pauseTime = 5 * time.Minute

// Names of the environment with which this test's binary removes a name and collects
// garbage in another process.
const (
	collectStore = "DRAY_TEST_COLLECT_STORE"
	collectName  = "DRAY_TEST_COLLECT_NAME"
)

// leaseCase is an image in a layout, and the client that is to mount it.
type leaseCase struct {
	client    *dray.Client
	dir       string // of the layout
	reference string
	want      testkit.Nodes
	merged    bool
}

func newLeaseCase(t *testing.T, layers int) *leaseCase {
	t.Helper()
	c := &leaseCase{client: newClient(t), dir: filepath.Join(t.TempDir(), "layout"), merged: layers > 1}
	if c.merged {
		c.client = needEROFS(t)
	}
	b := testkit.Image(t).Config(func(c *oci.Image) { c.Config.Cmd = []string{"/file"} })
	var all [][]testkit.Entry
	for i := range layers {
		entries := []testkit.Entry{testkit.Dir("."), testkit.File("file", strconv.Itoa(i)), testkit.File(strconv.Itoa(i), "own")}
		all = append(all, entries)
		b.Layer(entries...)
	}
	b.Write(testkit.LayoutAt(t, c.dir), "v1")
	c.reference, c.want = "local://"+c.dir+":v1", testkit.Expect(all...)
	return c
}

// collectHere removes the image's name and collects garbage by the client that mounts.
func (c *leaseCase) collectHere(t *testing.T) {
	t.Helper()
	if _, err := c.client.Remove(t.Context(), c.reference); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.GC(t.Context(), dray.GCOptions{}); err != nil {
		t.Fatal(err)
	}
}

// collectElsewhere is collectHere in another process.
func (c *leaseCase) collectElsewhere(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", collectStore+"="+c.client.Store(), collectName+"="+c.reference)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("collect in another process: %v: %s", err, out)
	}
}

// TestMain lets this test's binary be the other process. A command of dray's would wait for
// the lock that holds the mount up.
func TestMain(m *testing.M) {
	var err error
	if os.Getenv(collectStore) != "" {
		err = collect(context.Background(), os.Getenv(collectStore), os.Getenv(collectName))
	} else if err = userns.Isolate(unix.MS_SHARED); err == nil { // others' tests make namespaces
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func collect(ctx context.Context, root, name string) error {
	s, err := store.Open(ctx, store.Options{Root: root})
	if err != nil {
		return err
	}
	if _, err = s.Remove(ctx, name); err == nil {
		_, err = s.GC(ctx, store.GCOptions{})
	}
	return errors.Join(err, s.Close())
}

// heldUp runs mount until it asks for the lock under which mounts are made, has others
// do something, and lets it go on. The image has been pulled or found by then, and no
// record of a mount names it.
func (c *leaseCase) heldUp(t *testing.T, mount func() error, others func(*testing.T)) error {
	t.Helper()
	path := filepath.Join(c.client.Store(), "mounts.lock")
	lock, err := durable.Acquire(t.Context(), path, durable.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	done, asked := make(chan error, 1), make(chan error, 1)
	go func() { done <- mount() }()
	go func() {
		_, err := watch.Read(make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1))
		asked <- err
	}()
	timer := time.NewTimer(pauseTime)
	defer timer.Stop()
	select {
	case err = <-done:
		done <- err
		t.Errorf("it ended before its turn: %v", err)
	case err = <-asked:
		asked <- err
		others(t)
	case <-timer.C:
		t.Error("it never asked for its turn")
	}
	if err := errors.Join(lock.Release(), watch.Close()); err != nil {
		t.Error(err)
	}
	if err := <-asked; err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	return <-done
}

// What is mounted once it was pulled, or found in the store, cannot be collected
// between, whoever removes its name and collects, by whichever way it is mounted.
func TestCollectedBeforeMount(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	ways := map[string]func(*leaseCase, *testing.T, string) error{
		"mount": (*leaseCase).mount, "bundle": (*leaseCase).bundle, "service": (*leaseCase).service,
	}
	who := map[string]func(*leaseCase, *testing.T){"here": (*leaseCase).collectHere, "elsewhere": (*leaseCase).collectElsewhere}
	for name, way := range ways {
		for where, collect := range who {
			for pulled, before := range map[string]bool{"pulls": false, "stored": true} {
				t.Run(name+"/"+where+"/"+pulled, func(t *testing.T) { newLeaseCase(t, 1).test(t, way, collect, before) })
			}
			t.Run(name+"/"+where+"/merged", func(t *testing.T) { newLeaseCase(t, 35).test(t, way, collect, true) })
		}
	}
}

func (c *leaseCase) test(t *testing.T, way func(*leaseCase, *testing.T, string) error, collect func(*leaseCase, *testing.T), before bool) {
	t.Helper()
	if before {
		if _, err := c.client.Pull(t.Context(), c.reference, dray.PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(c.dir); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(c.client.Store(), "merged", "sha256")
	dir := t.TempDir()
	err := c.heldUp(t, func() error { return way(c, t, dir) }, func(t *testing.T) {
		t.Helper()
		had := names(t, merged)
		collect(c, t)
		if got := names(t, merged); len(got) != len(had) || c.merged != (len(got) > 0) {
			t.Errorf("of the merged indexes %v there are %v left", had, got)
		}
		if err := os.RemoveAll(c.dir); err != nil { // it cannot be pulled again
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if diff := testkit.Diff(c.want, testkit.Tree(t, rootfs)); diff != "" {
		t.Error(diff)
	}
	mounts, err := c.client.Mounts(t.Context())
	if err != nil || len(mounts) != 1 || mounts[0].Merged != c.merged {
		t.Errorf("mounted: %+v, %v", mounts, err)
	}
	wantSound(t, c.client)
	if err := c.client.Unmount(t.Context(), rootfs); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.GC(t.Context(), dray.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"staging", "mounts", "refs", "images/sha256", "layers/sha256", "merged/sha256"} {
		if left := names(t, filepath.Join(c.client.Store(), name)); len(left) > 0 {
			t.Errorf("left in %s: %v", name, left)
		}
	}
}

// A lease holds no seed. One that goes away between the pull and the mount fails that,
// by name, and leaves nothing; the next mount pulls.
func TestSeedVanishesBeforeMount(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	if layouts, err := newClient(t).Layouts(t.Context()); err != nil || layouts.Backing != "files" {
		t.Skipf("layers are used where they lie if the kernel mounts EROFS from files: %+v, %v", layouts, err)
	}
	from := newSeedCase(t)
	seed := filepath.Join(t.TempDir(), "seed")
	from.seed(t, seed)
	c := &leaseCase{client: clientWith(t, dray.Options{Seeds: []string{seed}}), reference: from.pinned}
	dir := t.TempDir()
	err := c.heldUp(t, func() error { return c.mount(t, dir) }, func(t *testing.T) {
		t.Helper()
		if err := os.RemoveAll(seed); err != nil {
			t.Error(err)
		}
	})
	if dray.KindOf(err) != dray.KindNotFound || !strings.Contains(err.Error(), "in seed "+seed) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"staging", "mounts"} {
		if left := names(t, filepath.Join(c.client.Store(), name)); len(left) > 0 {
			t.Errorf("left in %s: %v", name, left)
		}
	}
	mounted := mountAt(t, c.client, c.reference, filepath.Join(dir, "rootfs"), dray.MountOptions{})
	if diff := testkit.Diff(from.want, testkit.Tree(t, mounted.Target)); diff != "" {
		t.Error(diff)
	}
}

// names lists a directory, if it is there.
func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (c *leaseCase) mount(t *testing.T, dir string) error {
	t.Helper()
	_, err := c.client.Mount(t.Context(), c.reference, filepath.Join(dir, "rootfs"), dray.MountOptions{})
	return err
}

func (c *leaseCase) bundle(t *testing.T, dir string) error {
	t.Helper()
	_, err := c.client.Bundle(t.Context(), c.reference, dir, dray.BundleOptions{})
	return err
}

// service asks a service of the client's, and ends it.
func (c *leaseCase) service(t *testing.T, dir string) (err error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- c.client.Serve(ctx, dray.ServeOptions{Listen: []string{socket}, AllowLocal: true, Ready: func() { close(ready) }}, dray.BundleOptions{})
	}()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		return err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer func() { err = errors.Join(err, client.Close()) }()
	_, err = api.NewImagePullServiceClient(client).PullImage(ctx, &api.ImagePullRequest{ImageUrl: c.reference, BundlePath: dir})
	return err
}
