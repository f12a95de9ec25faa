package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dray/internal/durable"
	"dray/internal/oci"

	"github.com/google/go-cmp/cmp"
)

func ids(names ...string) []oci.DiffID {
	var ids []oci.DiffID
	for _, name := range names {
		ids = append(ids, diffID(name))
	}
	slices.Sort(ids)
	return ids
}

func gc(t *testing.T, s *Store, o GCOptions) GCReport {
	t.Helper()
	report, err := s.GC(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestGC(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	putImage(t, s, "a", "base", "a-only")
	b := putImage(t, s, "b", "base", "b-only")
	put(t, s, "alone")
	dangling := image("dangling", "alone-2")
	put(t, s, "alone-2")
	if err := s.PutImage(t.Context(), dangling); err != nil {
		t.Fatal(err)
	}
	want := GCReport{Layers: ids("alone", "alone-2"), Images: []oci.Digest{dangling.Manifest.Digest}}
	for _, name := range []string{"alone", "alone-2"} {
		want.Bytes += must(treeSize(t.Context(), s.layerPath(diffID(name))))(t).DiskBytes
	}
	if diff := cmp.Diff(gc(t, s, GCOptions{DryRun: true}), want); diff != "" {
		t.Errorf("dry run:\n%s", diff)
	}
	if diff := cmp.Diff(gc(t, s, GCOptions{}), want); diff != "" {
		t.Errorf("run:\n%s", diff)
	}
	if diff := cmp.Diff(gc(t, s, GCOptions{}), GCReport{}); diff != "" {
		t.Errorf("again:\n%s", diff)
	}
	removed, err := s.Remove(t.Context(), "b")
	if diff := cmp.Diff(removed, Removed{Refs: []string{"b"}, Image: b.Manifest.Digest}); diff != "" || err != nil {
		t.Errorf("remove b: %v\n%s", err, diff)
	}
	if got := gc(t, s, GCOptions{}).Layers; !slices.Equal(got, ids("b-only")) {
		t.Errorf("took %v, want b-only", got)
	}
	for _, name := range []string{"base", "a-only"} {
		if _, err := s.Layer(diffID(name)); err != nil {
			t.Error(err)
		}
	}
	wantClean(t, s)
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	i := putImage(t, s, "one", "l")
	for _, name := range []string{"two", "three"} {
		if err := s.SetRef(t.Context(), name, i.Manifest.Digest); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := s.Remove(t.Context(), "one")
	if diff := cmp.Diff(removed, Removed{Refs: []string{"one"}}); diff != "" || err != nil {
		t.Errorf("one of three names: %v\n%s", err, diff)
	}
	m, err := s.NewMount(t.Context(), Mount{Image: i.Manifest.Digest, Layers: i.DiffIDs, Target: "/mnt/x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "two"); err != nil {
		t.Errorf("a name of a mounted image that has another: %v", err)
	}
	for _, what := range []string{"three", string(i.Manifest.Digest)} {
		_, err = s.Remove(t.Context(), what)
		wantErr(t, err, ErrInUse)
	}
	if _, err := s.Ref("three"); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	gc(t, s, GCOptions{})
	if err := s.RemoveMount(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	lease, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.AddImage(t.Context(), i.Manifest.Digest); err != nil {
		t.Fatal(err)
	}
	removed, err = s.Remove(t.Context(), string(i.Manifest.Digest))
	if diff := cmp.Diff(removed, Removed{Refs: []string{"three"}}); diff != "" || err != nil {
		t.Errorf("a leased image: %v\n%s", err, diff)
	}
	gc(t, s, GCOptions{})
	if _, err := s.Image(i.Manifest.Digest); err != nil {
		t.Errorf("leased: %v", err)
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"one", "never", string(diffID("never"))} {
		_, err = s.Remove(t.Context(), what)
		wantErr(t, err, ErrNotFound)
	}
	if got := gc(t, s, GCOptions{}); len(got.Images) != 1 || len(got.Layers) != 1 {
		t.Errorf("took %+v", got)
	}
	wantClean(t, s)
}

func TestGCKeepsWhatIsLeasedOrMounted(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	lease, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Add(t.Context(), diffID("leased"), diffID("later")); err != nil {
		t.Fatal(err)
	}
	if err := lease.Add(t.Context(), diffID("more")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"leased", "later", "more", "mounted", "neither"} {
		put(t, s, name)
	}
	m, err := s.NewMount(t.Context(), Mount{Layers: ids("mounted"), Target: "/t"})
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, s.Root())
	if got := gc(t, other, GCOptions{}).Layers; !slices.Equal(got, ids("neither")) {
		t.Errorf("took %v", got)
	}
	if err := errors.Join(lease.Release(), s.RemoveMount(t.Context(), m.ID)); err != nil {
		t.Fatal(err)
	}
	if got := gc(t, other, GCOptions{}).Layers; !slices.Equal(got, ids("leased", "later", "more", "mounted")) {
		t.Errorf("took %v", got)
	}
	wantClean(t, s)
}

// A lease ends with its process.
func TestGCSweepsDeadLeases(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	put(t, s, "a")
	lease := s.path(dirStaging, leasePrefix+"x"+lockSuffix)
	if err := os.WriteFile(lease, []byte("layer "+diffID("a")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := gc(t, s, GCOptions{}).Layers; !slices.Equal(got, ids("a")) {
		t.Errorf("took %v", got)
	}
	wantClean(t, s)
}

// While one goroutine collects, others pull, mount and remove: what is leased,
// named or mounted is there.
func TestGCRaces(t *testing.T) {
	t.Parallel()
	root := filepath.Join(memoryDir(t), "store")
	s, collector := open(t, root), open(t, root)
	var done atomic.Bool
	var workers, collecting sync.WaitGroup
	var collected atomic.Int64
	collecting.Go(func() {
		for !done.Load() {
			report, err := collector.GC(t.Context(), GCOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			collected.Add(int64(len(report.Layers)))
		}
	})
	for _, name := range []string{"w0", "w1", "w2"} {
		workers.Go(func() {
			for range 40 {
				if err := pullMountRemove(t.Context(), s, name); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	done.Store(true)
	collecting.Wait()
	if collected.Load() == 0 {
		t.Error("the collector found nothing: the test tests nothing")
	}
	wantIntact(t, root)
}

// pullMountRemove is the life of an image; base is shared with others.
func pullMountRemove(ctx context.Context, s *Store, name string) error {
	i := image(name, "base", name)
	if err := churnPull(ctx, s, i, []string{"base", name}, false); err != nil {
		return err
	}
	m, err := s.NewMount(ctx, Mount{Image: i.Manifest.Digest, Layers: i.DiffIDs, Target: "/" + name})
	if err != nil {
		return err
	}
	if err := s.RemoveRef(ctx, name); err != nil {
		return err
	}
	for range 5 {
		for _, id := range i.DiffIDs {
			layer, err := s.Layer(id)
			if err != nil {
				return err
			}
			if problems, err := checkName(ctx, layer); err != nil || problems != nil {
				return errors.Join(err, errors.New(problems[0]))
			}
		}
	}
	return s.RemoveMount(ctx, m.ID)
}

// Where nobody knows what is referred to, nothing is taken.
func TestGCRefusesCorruptRecords(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(s *Store, i *Image, m *Mount) string{
		"reference": func(s *Store, _ *Image, _ *Mount) string { return s.refPath("a", "") },
		"image":     func(s *Store, i *Image, _ *Mount) string { return s.imagePath(i.Manifest.Digest, "") },
		"mount":     func(_ *Store, _ *Image, m *Mount) string { return filepath.Join(m.Path, stateName) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			i := putImage(t, s, "a", "l")
			m, err := s.NewMount(t.Context(), Mount{Layers: i.DiffIDs, Target: "/t"})
			if err != nil {
				t.Fatal(err)
			}
			put(t, s, "garbage")
			if err := os.WriteFile(damage(s, i, m), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = s.GC(t.Context(), GCOptions{})
			wantErr(t, err, ErrCorrupt)
			for _, layer := range []string{"l", "garbage"} {
				if _, err := s.Layer(diffID(layer)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	i := putImage(t, s, "a", "l")
	held, err := durable.Acquire(t.Context(), s.path(fileLock), durable.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	s.lockWait = 5 * time.Millisecond
	wantErr(t, s.SetRef(t.Context(), "b", i.Manifest.Digest), ErrBusy)
	_, err = s.GC(t.Context(), GCOptions{})
	wantErr(t, err, ErrBusy)
	errStop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errStop)
	_, err = s.Remove(ctx, "a")
	wantErr(t, err, errStop)
	if errors.Is(err, ErrBusy) {
		t.Errorf("a cancelled wait is not a busy store: %v", err)
	}
	// Reading and opening do not wait.
	if _, err := open(t, s.Root()).Ref("a"); err != nil {
		t.Error(err)
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s)
}

func TestUsage(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a, b := putImage(t, s, "a", "base", "a-only", "base"), putImage(t, s, "b", "base")
	if err := s.SetRef(t.Context(), "a2", a.Manifest.Digest); err != nil {
		t.Fatal(err)
	}
	put(t, s, "alone")
	m, err := s.NewMount(t.Context(), Mount{Image: a.Manifest.Digest, Layers: a.DiffIDs, Target: "/t"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Upper(), "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	users := map[oci.DiffID]int{}
	sizes := map[oci.DiffID]Size{}
	for _, layer := range u.Layers {
		users[layer.DiffID], sizes[layer.DiffID] = layer.Images, layer.Size
	}
	if diff := cmp.Diff(users, map[oci.DiffID]int{diffID("base"): 2, diffID("a-only"): 1, diffID("alone"): 0}); diff != "" {
		t.Errorf("images of each layer:\n%s", diff)
	}
	layer, err := s.Layer(diffID("base"))
	if err != nil {
		t.Fatal(err)
	}
	with := func(i *Image) []Sharer {
		return []Sharer{{Manifest: i.Manifest.Digest, Layers: 1, DiskBytes: sizes[diffID("base")].DiskBytes, SizeBytes: layer.SizeBytes}}
	}
	if u.Layers[slices.IndexFunc(u.Layers, func(l LayerUsage) bool { return l.DiffID == diffID("a-only") })].UsedBy[0] != a.Manifest.Digest {
		t.Errorf("who uses what: %+v", u.Layers)
	}
	base, own := sizes[diffID("base")], sizes[diffID("a-only")]
	total := base
	total.add(own)
	want := []ImageUsage{
		{Manifest: a.Manifest.Digest, Refs: []string{"a", "a2"}, Total: total, Own: own, Shared: base, SharedWith: with(b)},
		{Manifest: b.Manifest.Digest, Refs: []string{"b"}, Total: base, Shared: base, SharedWith: with(a)},
	}
	slices.SortFunc(want, func(x, y ImageUsage) int { return cmpDigests(x.Manifest, y.Manifest) })
	if diff := cmp.Diff(u.Images, want); diff != "" {
		t.Errorf("images:\n%s", diff)
	}
	if len(u.Mounts) != 1 || u.Mounts[0].DiskBytes < 1<<20 || u.Total.DiskBytes < u.Mounts[0].DiskBytes+total.DiskBytes {
		t.Errorf("mounts %+v, total %+v", u.Mounts, u.Total)
	}
	if u.Space.FreeBytes <= 0 || u.Space.TotalBytes < u.Space.FreeBytes {
		t.Errorf("space %+v", u.Space)
	}
}

func cmpDigests(a, b oci.Digest) int {
	if a < b {
		return -1
	}
	return 1
}
