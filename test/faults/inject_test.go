package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/testkit"
)

const (
	commandTime = 5 * time.Minute // a command that takes longer hangs
	atOnce      = 2               // injections
	shortShare  = 12              // of so many calls one is chosen in short tests
	mergedShare = 12              // and where an image has many layers, unless it is night

	exitNoSpace = 16
)

// faults are what each call meets.
func faults() []fault {
	return []fault{{"EIO", unix.EIO}, {"ENOSPC", unix.ENOSPC}, {"KILL", 0}}
}

// world is a store and what it is filled from.
type world struct {
	t             testing.TB
	home          string // below which everything is
	store, target string
	main, other   string // references
	seed          string // "": the usual ones
}

// drayArgs is a command line.
func (w *world) drayArgs(args ...string) []string {
	line := append([]string{program}, args...)
	line = append(line, "--storepath", w.store, "--config", "/dev/null", "--progress", "none")
	if *layout != "" && slices.Contains([]string{"pull", "mount", "serve"}, args[0]) {
		line = append(line, "--layout", *layout)
	}
	if w.seed != "" {
		line = append(line, "--seed", w.seed)
	}
	return line
}

// run runs dray without faults and returns what it says if it does not end well.
func (w *world) run(args ...string) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), commandTime)
	defer cancel()
	line := w.drayArgs(args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("dray %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// scenario is a command at which calls fail.
type scenario struct {
	name    string
	prepare [][]string // commands before it
	command []string
	without string // below the store: what is removed before it
}

// scenarios: MAIN, OTHER and TARGET stand for the references and the directory.
func scenarios() []scenario {
	pull, mount := []string{"pull", "MAIN"}, []string{"mount", "MAIN", "TARGET"}
	both := [][]string{pull, {"pull", "OTHER"}}
	return []scenario{
		{name: "pull", command: pull},
		{name: "mount", prepare: [][]string{pull}, command: mount},
		{name: "mount-and-pull", command: mount},
		{name: "mount-read-only", prepare: [][]string{pull}, command: []string{"mount", "--read-only", "MAIN", "TARGET"}},
		{name: "mount-replace", prepare: [][]string{pull, {"mount", "OTHER", "TARGET"}}, command: []string{"mount", "--replace", "MAIN", "TARGET"}},
		{name: "unmount", prepare: [][]string{mount}, command: []string{"unmount", "TARGET"}},
		{name: "rm", prepare: both, command: []string{"store", "rm", "MAIN"}},
		{name: "gc", prepare: append(slices.Clone(both), []string{"store", "rm", "MAIN"}), command: []string{"store", "gc"}},
	}
}

// mergedScenarios are those of an image of many layers, whose indexes are merged.
func mergedScenarios() []scenario {
	pull, mount := []string{"pull", "MAIN"}, []string{"mount", "MAIN", "TARGET"}
	return []scenario{
		{name: "merge", prepare: [][]string{pull}, without: "merged", command: mount},
		{name: "mount-merged", prepare: [][]string{pull}, command: mount},
		{name: "unmount-merged", prepare: [][]string{mount}, command: []string{"unmount", "TARGET"}},
		{name: "gc-merged", prepare: [][]string{pull, {"store", "rm", "MAIN"}}, command: []string{"store", "gc"}},
	}
}

// seededScenarios are those of an image of many layers that lie in a seed.
func seededScenarios() []scenario {
	pull, mount := []string{"pull", "MAIN"}, []string{"mount", "MAIN", "TARGET"}
	return []scenario{
		{name: "pull-seeded", command: pull},
		{name: "merge-seeded", prepare: [][]string{pull}, without: "merged", command: mount},
		{name: "mount-seeded", prepare: [][]string{pull}, command: mount},
		{name: "gc-seeded", prepare: [][]string{pull, {"store", "rm", "MAIN"}}, command: []string{"store", "gc"}},
	}
}

func (w *world) fill(args []string) []string {
	filled := slices.Clone(args)
	for i, arg := range filled {
		switch arg {
		case "MAIN":
			filled[i] = w.main
		case "OTHER":
			filled[i] = w.other
		case "TARGET":
			filled[i] = w.target
		}
	}
	return filled
}

// TestInjection makes every call of every command go wrong in every way.
func TestInjection(t *testing.T) { // not parallel: it mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Mknod())
	layouts := t.TempDir()
	image, second := kinds(), other()
	l := testkit.LayoutAt(t, filepath.Join(layouts, "image"))
	image.write(t, l, "main", 0)
	second.write(t, l, "other", 1)
	registry := testkit.Registry(t, layouts)
	local := "local://" + filepath.Join(layouts, "image")
	for _, s := range scenarios() {
		t.Run(s.name+"/local", func(t *testing.T) {
			r := injector{t: t, scenario: s, main: local + ":main", other: local + ":other", image: image}
			r.all()
		})
	}
	for _, s := range scenarios()[:1] {
		t.Run(s.name+"/registry", func(t *testing.T) {
			r := injector{t: t, scenario: s, main: registry.Ref("image:main"), other: registry.Ref("image:other"), image: image}
			r.all()
		})
	}
}

// TestInjectionMerged is TestInjection where many layers are mounted as one.
func TestInjectionMerged(t *testing.T) { // not parallel: it mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Mknod())
	if *layout != "" && *layout != "erofs" {
		t.Skip("there is nothing to merge")
	}
	dir := filepath.Join(t.TempDir(), "image")
	image := many()
	image.write(t, testkit.LayoutAt(t, dir), "main", 0)
	for _, s := range mergedScenarios() {
		t.Run(s.name, func(t *testing.T) {
			r := injector{t: t, scenario: s, main: "local://" + dir + ":main", image: image}
			if !nightly() {
				r.share = mergedShare
			}
			r.all()
		})
	}
}

// TestInjectionSeeded is TestInjectionMerged where the layers lie in a seed, and the
// merged index is over it.
func TestInjectionSeeded(t *testing.T) { // not parallel: it mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Mknod())
	home := t.TempDir()
	dir, seed := filepath.Join(home, "image"), filepath.Join(home, "seed")
	image := many()
	image.write(t, testkit.LayoutAt(t, dir), "main", 0)
	w := world{t: t, home: home, store: filepath.Join(home, "store"), main: "local://" + dir + ":main"}
	if err := w.run("store", "seed", w.main, "-o", seed); err != nil {
		t.Fatal(err)
	}
	w.seed = seed
	if err := w.run("pull", w.main); err != nil {
		t.Fatal(err)
	}
	records, err := filepath.Glob(filepath.Join(w.store, "merged", "sha256", "*", "merged.json"))
	if err != nil || len(records) > 1 {
		t.Fatal(records, err)
	}
	if raw, err := os.ReadFile(strings.Join(records, "")); err != nil || !bytes.Contains(raw, []byte(`"seeds"`)) {
		t.Skipf("layers are used where they lie if the kernel mounts EROFS from files: %v", err)
	}
	for _, s := range seededScenarios() {
		t.Run(s.name, func(t *testing.T) {
			r := injector{t: t, scenario: s, main: w.main, seed: seed, image: image}
			if !nightly() {
				r.share = 2 * mergedShare
			}
			r.all()
		})
	}
}

// TestInjectionReuse is TestInjection where files of another image are taken.
func TestInjectionReuse(t *testing.T) { // not parallel: it mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Mknod())
	layouts := t.TempDir()
	l := testkit.LayoutAt(t, filepath.Join(layouts, "image"))
	same := []testkit.Entry{testkit.Dir("."), testkit.Random("same", 300_000, 1), testkit.Random("also", 100_000, 2)}
	newContents(same).writeSeekable(t, l, "other")
	image := newContents(append(slices.Clone(same), testkit.Random("new", 100_000, 3), testkit.Hardlink("link", "same")))
	layer := image.writeSeekable(t, l, "main")
	registry := testkit.Registry(t, layouts)
	r := injector{
		t: t, main: registry.Ref("image:main"), other: registry.Ref("image:other"), image: image,
		scenario: scenario{name: "pull-reusing", prepare: [][]string{{"pull", "OTHER"}}, command: []string{"pull", "--reuse-files", "always", "MAIN"}},
	}
	if !nightly() {
		r.share = mergedShare
	}
	r.all()
	if n, sent := registry.Count("/blobs/" + string(layer)); n < 3 || sent == 0 {
		t.Errorf("in %d requests nothing was reused", n)
	}
}

// injector makes the calls of one scenario go wrong.
type injector struct {
	t           *testing.T
	scenario    scenario
	main, other string
	seed        string
	image       contents
	share       int // of so many calls one is chosen; 0: all

	mu      sync.Mutex // guards the fields below
	done    map[string]int
	ignored map[string]int // faults that a rule of mayPass let pass, by what the rule says
	missed  int            // calls that were not made this time
}

func (r *injector) all() {
	begin := time.Now()
	r.done, r.ignored = map[string]int{}, map[string]int{}
	calls := r.count()
	var work []injection
	share := max(1, r.share)
	if testing.Short() {
		share *= shortShare
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	for _, c := range calls {
		for _, f := range faults() {
			if random.IntN(share) != 0 {
				continue
			}
			work = append(work, injection{fault: f, call: c.name, at: c.at})
		}
	}
	queue := make(chan injection)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := range queue {
				if err := r.once(i); err != nil {
					r.t.Errorf("%s: %v", i, err)
				}
			}
		})
	}
	for _, i := range work {
		queue <- i
	}
	close(queue)
	workers.Wait()
	var counts []string
	for _, name := range slices.Sorted(maps.Keys(r.done)) {
		counts = append(counts, fmt.Sprintf("%s %d", name, r.done[name]))
	}
	r.t.Logf("%d calls, %d injections in %.1f s, %d of them after the last call: %s", len(calls), len(work), time.Since(begin).Seconds(), r.missed, strings.Join(counts, ", "))
	for _, why := range slices.Sorted(maps.Keys(r.ignored)) {
		r.t.Logf("%d may pass: %s", r.ignored[why], why)
	}
}

// newWorld makes a store in which the scenario's command can run.
func (r *injector) newWorld() (*world, error) {
	home, err := os.MkdirTemp(r.t.TempDir(), "")
	if err != nil {
		return nil, err
	}
	w := r.world(home)
	for _, args := range r.scenario.prepare {
		if err := w.run(w.fill(args)...); err != nil {
			return w, fmt.Errorf("prepare: %w", err)
		}
	}
	if r.scenario.without == "" {
		return w, nil
	}
	return w, os.RemoveAll(filepath.Join(w.store, r.scenario.without))
}

// world returns an empty one.
func (r *injector) world(home string) *world {
	return &world{t: r.t, home: home, store: filepath.Join(home, "store"), target: filepath.Join(home, "target"), main: r.main, other: r.other, seed: r.seed}
}

// count runs the command without a fault and returns its calls.
func (r *injector) count() []call {
	w, err := r.newWorld()
	if err != nil {
		r.t.Fatal(err)
	}
	defer unmountBelow(r.t, w.home)
	ran, err := w.gated(r.scenario, injection{})
	if err != nil || ran.exit != 0 {
		r.t.Fatalf("without a fault: exit code %d, %v: %s", ran.exit, err, ran.stderr)
	}
	if testing.Verbose() {
		for _, c := range ran.calls {
			r.t.Log(c)
		}
	}
	if err := w.heal(r.image); err != nil {
		r.t.Fatalf("without a fault: %v", err)
	}
	return ran.calls
}

func (w *world) gated(s scenario, i injection) (outcome, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), commandTime)
	defer cancel()
	return runGated(ctx, w.home, i, w.drayArgs(w.fill(s.command)...)...)
}

// once makes one call go wrong and looks at what comes of it.
func (r *injector) once(i injection) error {
	w, err := r.newWorld()
	if err != nil {
		return err
	}
	ran, err := w.gated(r.scenario, i)
	if err != nil {
		return err
	}
	err = r.judge(i, ran)
	if healErr := w.heal(r.image); healErr != nil {
		err = errors.Join(err, fmt.Errorf("afterwards: %w", healErr))
	}
	if err != nil {
		unmountBelow(r.t, w.home)
		if ran.hit != nil {
			err = fmt.Errorf("%s: %w (exit code %d, %q)", ran.hit, err, ran.exit, ran.stderr)
		}
		return err
	}
	return os.RemoveAll(w.home)
}

// judge says whether the command ended as it should.
func (r *injector) judge(i injection, ran outcome) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[i.call]++
	if ran.hit == nil {
		r.missed++
		if ran.exit != 0 {
			return errors.New("failed without a fault")
		}
		return nil
	}
	if i.err == 0 {
		if ran.exit != -1 {
			return errors.New("was not killed")
		}
		return nil
	}
	if ran.exit == 0 {
		if why := mayPass(r.scenario.name, i.err, ran); why != "" {
			r.ignored[why]++
			return nil
		}
		return errors.New("did not notice")
	}
	switch {
	case ran.exit < 0 || ran.exit == 2:
		return errors.New("broke down")
	case len(strings.TrimSpace(ran.stderr)) == 0 && ran.hit.what != "stderr":
		return errors.New("says nothing")
	case i.err == unix.ENOSPC && ran.exit != exitNoSpace && !mounting(i.call) && !strings.HasPrefix(ran.hit.what, "std"):
		return fmt.Errorf("ended with %d, not %d", ran.exit, exitNoSpace)
	}
	return nil
}

// heal runs what has to work after anything: the store is sound, the image can be
// pulled, mounted and unmounted, is what it should be, and nothing is left.
func (w *world) heal(image contents) error {
	for _, args := range [][]string{{"store", "verify"}, {"pull", w.main}, {"mount", "--replace", w.main, w.target}} {
		if err := w.run(args...); err != nil {
			return err
		}
	}
	if diff := image.differs(w.t, w.target); diff != "" {
		return fmt.Errorf("the tree is not right: %s", diff)
	}
	if err := w.unmount(); err != nil {
		return err
	}
	if left := leftovers(w.t, w.home, w.store); len(left) > 0 {
		return fmt.Errorf("left behind: %v", left)
	}
	return nil
}

// unmount unmounts the target. A process that another worker is just starting has
// this one's open files until its exec is through: that is asked for again.
func (w *world) unmount() error {
	for end := time.Now().Add(commandTime); ; {
		err := w.run("unmount", w.target)
		if err == nil || time.Now().After(end) || !strings.Contains(err.Error(), "mount is in use") {
			return err
		}
		<-time.After(10 * time.Millisecond)
	}
}
