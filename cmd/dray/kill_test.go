package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"dray"
	"dray/internal/guest/api"
	"dray/internal/testkit"
)

// killCount is how often the service is killed; fewer in short tests.
const (
	killCount      = 200
	killCountShort = 15
	killClients    = 4
)

// The service is killed at any moment, under load, again and again. Whatever it was
// doing, the next start finds no half-made layer and leaves nothing behind.
func TestKilledAtAnyMoment(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	layouts := t.TempDir()
	var references []string
	for i := range 6 {
		name := fmt.Sprintf("image%d", i)
		testkit.Image(t).
			Layer(testkit.Text("base", 300_000, 1)). // the same in all
			Layer(testkit.Files("many", 60+i)...).
			Layer(testkit.Random("own", int64(100_000*(i+1)), uint64(i+1))).
			Write(testkit.LayoutAt(t, filepath.Join(layouts, name)), "v1")
		references = append(references, name+":v1")
	}
	server := testkit.Registry(t, layouts)
	for i := range references {
		references[i] = server.Ref(references[i])
	}
	dir := t.TempDir()
	store, socket := filepath.Join(dir, "store"), filepath.Join(dir, "s")
	count := killCount
	if testing.Short() {
		count = killCountShort
	}
	for round := range count {
		killOnce(t, store, socket, dir, references)
		if t.Failed() {
			t.Fatalf("after kill %d of %d", round+1, count)
		}
	}
	wantClean(t, store, dir)
}

// killOnce starts the service, asks it for images from several clients, and kills
// it somewhere in the middle.
func killOnce(t *testing.T, store, socket, dir string, references []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "serve", "--storepath", store, "--listen", socket, "--linger", "0s", "--config", "/dev/null")
	cmd.Args[0] = "dray" // the test binary is the program under that name
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for n := range killClients {
		clients.Go(func() { askForEver(ctx, socket, filepath.Join(dir, fmt.Sprintf("bundle%d", n)), references) })
	}
	<-time.After(time.Duration(10+rand.IntN(150)) * time.Millisecond)
	_ = cmd.Process.Signal(syscall.SIGKILL) // it cannot have ended by itself
	cancel()
	clients.Wait()
	_ = cmd.Wait() // the state has it
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("the service ended by itself: %v", cmd.ProcessState)
	}
}

// askForEver asks for one image after the other until ctx ends or nobody answers.
func askForEver(ctx context.Context, socket, bundle string, references []string) {
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return
	}
	var conn net.Conn
	for conn == nil {
		var dialer net.Dialer
		conn, _ = dialer.DialContext(ctx, "unix", socket)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	service := api.NewImagePullServiceClient(client)
	for {
		reference := references[rand.IntN(len(references))]
		if _, err := service.PullImage(ctx, &api.ImagePullRequest{ImageUrl: reference, BundlePath: bundle}); errors.Is(err, ttrpc.ErrClosed) || ctx.Err() != nil {
			return
		}
	}
}

// wantClean takes away what is mounted on purpose and then looks for anything else.
func wantClean(t *testing.T, store, dir string) {
	t.Helper()
	client, err := dray.New(t.Context(), dray.Options{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := client.Mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if err := client.Unmount(t.Context(), m.Target); err != nil {
			t.Errorf("unmount %s: %v", m.Target, err)
		}
	}
	report, err := client.Verify(t.Context(), dray.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("store: %s: %s", p.Path, p.Detail)
	}
	if report.Layers == 0 {
		t.Error("no layer was ever completed: the test killed too early")
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if left := mountsBelow(dir); len(left) > 0 {
		t.Errorf("still mounted: %v", left)
	}
	staged, err := os.ReadDir(filepath.Join(store, "staging"))
	if err != nil || len(staged) > 0 {
		t.Errorf("staging holds %v (%v)", staged, err)
	}
}
