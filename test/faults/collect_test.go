package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/testkit"
)

// TestCollectedMeanwhile has this process remove the name of an image that another one
// mounts, and collect garbage, before each call of that until the record of the mount
// holds the image. Once the image is leased, which is before anything of it is looked
// for, it is not fetched or merged again for that.
func TestCollectedMeanwhile(t *testing.T) { // not parallel: it mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Mknod())
	layouts := t.TempDir()
	l := testkit.LayoutAt(t, filepath.Join(layouts, "image"))
	few, merged := kinds(), many()
	few.write(t, l, "few", 0)
	merged.write(t, l, "many", 0)
	registry := testkit.Registry(t, layouts)
	pull, mount := []string{"pull", "MAIN"}, []string{"mount", "--sync", "never", "--workers", "1", "MAIN", "TARGET"}
	for _, c := range []struct {
		name    string
		prepare [][]string
		tag     string
		image   contents
		merges  bool
		share   int
	}{
		{"mount", [][]string{pull}, "few", few, false, 1},
		{"mount-and-pull", nil, "few", few, false, mergedShare / 3},
		{"mount-merged", [][]string{pull}, "many", merged, *layout == "" || *layout == "erofs", 1},
		{"merge-and-pull", nil, "many", merged, *layout == "" || *layout == "erofs", 3 * mergedShare},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := collecting{
				injector: injector{
					t: t, main: registry.Ref("image:" + c.tag), image: c.image, share: c.share,
					scenario: scenario{name: c.name, prepare: c.prepare, command: mount},
				},
				registry: registry, merges: c.merges,
			}
			w.all()
		})
	}
}

// collecting is a scenario into which others collect garbage.
type collecting struct {
	injector
	registry *testkit.Server
	merges   bool // many layers, in a layout in which they are merged
}

func (r *collecting) all() {
	r.t.Helper()
	w := r.world(r.t.TempDir())
	once := r.asked()
	if err := w.run("pull", w.main); err != nil {
		r.t.Fatal(err)
	}
	once = r.asked() - once
	calls := r.count()
	recorded := func(c call) bool {
		return c.name == "renameat" && strings.HasPrefix(c.what, "store/staging/mount-MOUNT, ")
	}
	calls = calls[:1+slices.IndexFunc(calls, recorded)]
	if len(calls) == 0 || once == 0 {
		r.t.Fatalf("until the mount is recorded there are %d calls, for a pull %d requests", len(calls), once)
	}
	share := r.share
	if nightly() {
		share = 1
	}
	if testing.Short() {
		share *= shortShare
	}
	var tried, missed, collected int
	random := rand.New(rand.NewPCG(*seed, 0))
	for _, c := range calls {
		if !leasing(c) && random.IntN(share) != 0 {
			continue
		}
		tried++
		had, err := r.before(c, once)
		switch {
		case errors.Is(err, errNotMade):
			missed++
		case err != nil:
			r.t.Errorf("before %s: %v", c, err)
		case had:
			collected++
		}
	}
	r.t.Logf("%d calls, %d tried, of which %d were not made, and at %d the leased image lost its name", len(calls), tried, missed, collected)
	if collected == 0 || missed > tried/4 {
		r.t.Error("that is too few")
	}
}

// leasing tells whether a call is about a lease, or asks for the turn to mount: these are
// always tried.
func leasing(c call) bool {
	return strings.Contains(c.what, "store/staging/lease-") || strings.Contains(c.what, "store/mounts.lock")
}

// errNotMade says that there were fewer calls than when they were counted: goroutines
// take turns as they like.
var errNotMade = errors.New("the call was not made")

// asked returns how many manifests the registry has been asked for.
func (r *collecting) asked() int {
	requests, _ := r.registry.Count("/manifests/")
	return requests
}

// before collects before a call, and tells whether the image was leased then.
func (r *collecting) before(c call, once int) (leased bool, err error) {
	w, err := r.newWorld()
	if err != nil {
		return false, err
	}
	defer unmountBelow(r.t, w.home)
	begin, busy := r.asked(), false
	ran, err := w.gated(r.scenario, injection{call: c.name, at: c.at, meanwhile: func() (err error) {
		busy, err = w.collect()
		return err
	}})
	switch {
	case err != nil:
		return false, err
	case ran.exit != 0 || strings.Contains(ran.stderr, "one by one"):
		return false, fmt.Errorf("exit code %d: %s", ran.exit, ran.stderr)
	case ran.hit == nil:
		return false, errNotMade
	}
	before := ran.calls[:slices.Index(ran.calls, *ran.hit)]
	leased = slices.ContainsFunc(before, func(c call) bool { return c.name == "write" && strings.HasPrefix(c.what, "store/staging/lease-") })
	fetches, merges := 0, 0 // what there is to do, if at all
	if r.scenario.prepare == nil || !leased && !busy {
		fetches = once
		if r.merges {
			merges = 1
		}
	}
	made := 0
	for _, c := range ran.calls {
		if c.name == "renameat" && strings.HasPrefix(c.what, "store/staging/merged-") {
			made++
		}
	}
	if asked := r.asked() - begin; asked != fetches || made != merges {
		return false, fmt.Errorf("leased: %v, store locked: %v: asked the registry %d times, want %d, and merged %d times, want %d", leased, busy, asked, fetches, made, merges)
	}
	return leased && !busy, r.sound(w)
}

// sound looks at what was mounted, and for what is left when it is gone.
func (r *collecting) sound(w *world) error {
	if diff := r.image.differs(r.t, w.target); diff != "" {
		return fmt.Errorf("the tree is not right: %s", diff)
	}
	err := w.run("store", "verify")
	if err == nil {
		err = w.unmount()
	}
	if err == nil {
		err = w.run("store", "gc")
	}
	if left := leftovers(r.t, w.home, w.store); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind: %v", left))
	}
	return errors.Join(err, os.RemoveAll(w.home))
}

// collect removes the name of the image and collects garbage. It does not while the
// process that waits at its call has the lock which keeps collectors out, and says so.
func (w *world) collect() (busy bool, err error) {
	lock, err := durable.TryAcquire(filepath.Join(w.store, "lock"), durable.Exclusive)
	if errors.Is(err, durable.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err = errors.Join(err, lock.Release()); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), commandTime)
	defer cancel()
	ref, err := oci.ParseReference(w.main)
	if err != nil {
		return false, err
	}
	s, err := store.Open(ctx, store.Options{Root: w.store})
	if err != nil {
		return false, err
	}
	if _, err = s.Remove(ctx, ref.String()); errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	if err == nil {
		_, err = s.GC(ctx, store.GCOptions{})
	}
	return false, errors.Join(err, s.Close())
}
