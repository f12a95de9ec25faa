package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dray/internal/oci"
)

// Environment of a test binary that plays another process on the store.
const (
	childRole = "STORE_TEST_ROLE" // a key of roles
	childRoot = "STORE_TEST_ROOT"
)

var roles = map[string]func(ctx context.Context, s *Store) error{
	"churn": churn,
	"begin": beginOnce,
}

func TestMain(m *testing.M) {
	role, ok := roles[os.Getenv(childRole)]
	if !ok {
		os.Exit(m.Run())
	}
	ctx := context.Background()
	s, err := Open(ctx, Options{Root: os.Getenv(childRoot)})
	if err == nil {
		fmt.Println("ready")
		err = role(ctx, s)
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is another process on a store.
type child struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	stdin io.WriteCloser
}

// start runs a child until it is ready.
func start(t *testing.T, role, root string) *child {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childRole+"="+role, childRoot+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, lines: bufio.NewScanner(out), stdin: in}
	if line := c.line(); line != "ready" {
		t.Fatalf("child says %q", line)
	}
	return c
}

func (c *child) line() string {
	c.lines.Scan()
	return c.lines.Text()
}

// beginOnce waits for a line, then tries to be the writer of a layer.
func beginOnce(ctx context.Context, s *Store) error {
	fmt.Println("waiting")
	if !bufio.NewScanner(os.Stdin).Scan() {
		return errors.New("no input")
	}
	txn, _, err := s.Begin(ctx, diffID("contended"))
	if err != nil {
		return err
	}
	if txn == nil {
		fmt.Println("found")
		return nil
	}
	if err := fillLayer(txn.Path(), "contended"); err != nil {
		return err
	}
	if _, err := txn.Commit(ctx, LayerRecord{Layout: LayoutDir}); err != nil {
		return err
	}
	fmt.Println("wrote")
	return nil
}

func TestOneWriterAmongProcesses(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const processes, goroutines = 4, 4
	var children []*child
	for range processes {
		c := start(t, "begin", s.Root())
		if line := c.line(); line != "waiting" {
			t.Fatal(line)
		}
		children = append(children, c)
	}
	for _, c := range children {
		if _, err := io.WriteString(c.stdin, "go\n"); err != nil {
			t.Fatal(err)
		}
	}
	results := make(chan string, processes+goroutines)
	for range goroutines {
		go func() {
			txn, layer, err := s.Begin(t.Context(), diffID("contended"))
			switch {
			case err != nil:
				results <- err.Error()
			case layer != nil:
				results <- "found"
			default:
				err := fillLayer(txn.Path(), "contended")
				if err == nil {
					_, err = txn.Commit(t.Context(), LayerRecord{Layout: LayoutDir})
				}
				results <- strings.Replace(fmt.Sprint(err), "<nil>", "wrote", 1)
			}
		}()
	}
	for _, c := range children {
		results <- c.line()
		if err := c.cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	count := map[string]int{}
	for range processes + goroutines {
		count[<-results]++
	}
	if count["wrote"] != 1 || count["found"] != processes+goroutines-1 {
		t.Errorf("results: %v", count)
	}
	wantClean(t, s)
}

// Who waits for a writer becomes the writer when that one fails, and gives up when
// its context ends.
func TestBeginWaits(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	first, _, err := s.Begin(t.Context(), diffID("a"))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, first, "half")
	errStop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errStop)
	_, _, err = s.Begin(ctx, diffID("a"))
	wantErr(t, err, errStop)
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	_, _, err = s.Begin(short, diffID("a"))
	wantErr(t, err, ErrBusy)
	wantErr(t, err, context.DeadlineExceeded)
	other, _, err := s.Begin(t.Context(), diffID("b")) // another layer does not wait
	if err != nil {
		t.Fatal(err)
	}
	waiter := make(chan error, 1)
	go func() {
		txn, layer, err := s.Begin(t.Context(), diffID("a"))
		if err == nil && layer != nil {
			err = errors.New("found a layer that nobody committed")
		}
		if err == nil {
			names, _ := readNames(txn.Path())
			if len(names) > 0 {
				err = fmt.Errorf("starts with %q", names)
			}
			err = errors.Join(err, txn.Abort())
		}
		waiter <- err
	}()
	if err := errors.Join(first.Abort(), <-waiter, other.Abort()); err != nil {
		t.Error(err)
	}
	wantClean(t, s)
}

// churn does everything that a store can do, at random, until it is killed. What
// other processes do to the same objects is expected.
func churn(ctx context.Context, s *Store) error {
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	for {
		if err := churnStep(ctx, s, rnd); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInUse) {
			return err
		}
	}
}

func churnStep(ctx context.Context, s *Store, rnd *rand.Rand) error {
	name := fmt.Sprintf("image-%d", rnd.IntN(3))
	layers := []string{"base", name, fmt.Sprintf("layer-%d", rnd.IntN(4))}
	i := image(name, layers...)
	switch rnd.IntN(9) {
	case 0:
		_, err := s.Remove(ctx, name)
		return err
	case 1:
		_, err := s.GC(ctx, GCOptions{})
		return err
	case 2:
		m, err := s.NewMount(ctx, Mount{Image: i.Manifest.Digest, Layers: i.DiffIDs, Target: "/t"})
		if err != nil {
			return err
		}
		m.State = MountMounted
		if err := s.UpdateMount(ctx, m); err != nil {
			return err
		}
		return s.RemoveMount(ctx, m.ID)
	case 3:
		txn, _, err := s.Begin(ctx, diffID("aborted"))
		if err != nil {
			return err
		}
		return errors.Join(fillLayer(txn.Path(), "aborted"), txn.Abort())
	case 4:
		return s.Settle(ctx, i.Manifest.Digest)
	}
	return churnPull(ctx, s, i, layers, rnd.IntN(4) > 0)
}

// churnPull does what a pull does.
func churnPull(ctx context.Context, s *Store, i *Image, layers []string, sync bool) error {
	lease, err := s.Lease(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(lease.Add(ctx, i.DiffIDs...), lease.AddImage(ctx, i.Manifest.Digest)); err != nil {
		return err
	}
	for _, name := range layers {
		txn, _, err := s.Begin(ctx, diffID(name))
		if err != nil {
			return err
		}
		if txn == nil {
			continue
		}
		if err := fillLayer(txn.Path(), name); err != nil {
			return err
		}
		if _, err := txn.Commit(ctx, LayerRecord{Layout: LayoutDir, Notes: []string{name}}); err != nil {
			return err
		}
	}
	if sync {
		if err := s.Sync(ctx, i.DiffIDs); err != nil {
			return fmt.Errorf("leased layers: %w", noLonger(err))
		}
	}
	if err := s.PutImage(ctx, i); err != nil {
		return fmt.Errorf("leased layers: %w", noLonger(err))
	}
	if err := s.SetRef(ctx, i.Reference, i.Manifest.Digest); err != nil {
		return err // another may have removed the image
	}
	return lease.Release()
}

// noLonger makes an ErrNotFound an error that is none.
func noLonger(err error) error { return errors.New(err.Error()) }

// memoryDir returns a directory in memory, where syncs cost nothing and more
// happens between two kills.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store-test-") //nolint:usetesting // in memory, which TempDir may not be
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// checkName is a content check: a layer holds its name, as fillLayer wrote it.
func checkName(_ context.Context, layer *Layer) ([]string, error) {
	content, err := os.ReadFile(filepath.Join(layer.FS(), "etc", "name"))
	if err != nil {
		return []string{err.Error()}, nil //nolint:nilerr // an unreadable file is the finding
	}
	if got := diffID(string(content)); got != layer.DiffID {
		return []string{fmt.Sprintf("holds %q", content)}, nil
	}
	return nil, nil
}

// wantIntact opens the store as the next process does: nothing is left of killed
// ones, and everything that is there is whole.
func wantIntact(t *testing.T, root string) {
	t.Helper()
	s := open(t, root)
	wantClean(t, s)
	report, err := s.Verify(t.Context(), VerifyOptions{Check: checkName})
	if err != nil || !report.OK() {
		t.Fatalf("Verify: %+v, %v", report.Problems, err)
	}
	for _, ref := range must(s.Refs())(t) {
		if _, err := s.Image(ref.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// issue 2: SIGKILL at any moment.
func TestKilledProcessesLeaveNothing(t *testing.T) {
	t.Parallel()
	rounds, processes := 60, 2 // 120 kills
	if testing.Short() {
		rounds = 5
	}
	root := filepath.Join(memoryDir(t), "store")
	rnd := rand.New(rand.NewPCG(1, 1))
	for range rounds {
		var children []*child
		for range processes {
			children = append(children, start(t, "churn", root))
		}
		timer := time.NewTimer(time.Duration(rnd.IntN(20_000)) * time.Microsecond)
		<-timer.C
		for _, c := range children {
			if err := c.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range children {
			if line := c.line(); line != "" {
				t.Errorf("child says %q", line)
			}
			_ = c.cmd.Wait()
		}
		wantIntact(t, root)
	}
	// What survived can be used, and all of it can go.
	s := open(t, root)
	putImage(t, s, "last", "base", "layer-0")
	for _, m := range must(s.Mounts())(t) {
		if err := s.RemoveMount(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range must(s.Refs())(t) {
		if _, err := s.Remove(t.Context(), ref.Name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s.path(dirLayers, oci.SHA256))
	wantEmpty(t, s.path(dirImages, oci.SHA256))
	wantIntact(t, root)
}

// Two processes do everything at once for a while, and nobody gets an error.
func TestProcessesDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	root := filepath.Join(memoryDir(t), "store")
	s := open(t, root)
	c := start(t, "churn", root)
	rnd := rand.New(rand.NewPCG(2, 2))
	for range 300 {
		if err := churnStep(t.Context(), s, rnd); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInUse) {
			t.Error(err)
			break
		}
	}
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if line := c.line(); line != "" {
		t.Errorf("child says %q", line)
	}
	_ = c.cmd.Wait()
	wantIntact(t, root)
}
