//go:build linux

package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options of [Bench].
type Options struct {
	Rivals      []*Rival
	Corpus      *Corpus
	Images      []string // names; nil: all of the corpus
	Missing     error    // images that could not be had: noted, and the bench has failed
	Modes       []string // nil: both
	Networks    []Network
	Registry    string // "": the embedded one; [http://]HOST[:PORT][/PREFIX] with all images, or OriginRegistry
	Faults      []Fault
	Repetitions int
	WarmUp      bool // one run of each rival on the smallest image, not counted
	Seed        uint64
	DropCaches  int           // what is written to drop_caches before each run; 0 is nothing
	Timeout     time.Duration // of one run; 0 is DefaultTimeout
	Grace       time.Duration // for a server to stop; 0 is DefaultGrace
	MemoryLimit int64         // of the run's control group; 0 is none
	Work        string        // directory for sites
	SameFS      bool          // sites are directories in Work's file system, not file systems of their own there
	ProfileDir  string        // for pprof files; "": memory is not profiled
	Program     string        // version of this program
	Say         func(format string, args ...any)
	Log         *slog.Logger
}

// DefaultTimeout bounds one run, DefaultGrace how long a server may take to stop.
const (
	DefaultTimeout = 10 * time.Minute
	DefaultGrace   = 10 * time.Second
)

// ErrSameName reports rivals that could not be told apart in the report.
var ErrSameName = errors.New("two servers are called")

// harness is one bench under way.
type harness struct {
	Options
	images     []CorpusImage
	registries map[string]*registry
	report     *Report
	family     *family
	disk       *disk // nil: runs have directories
	order      int
}

// job is one run that is planned.
type job struct {
	rival      *Rival
	images     []CorpusImage
	mode       string
	network    Network
	repetition int
}

// Bench makes all runs and returns what it found. What fails is in the report; the
// other runs go on. When ctx ends, what was found until then comes with the error.
func Bench(ctx context.Context, o Options) (report *Report, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Timeout, o.Grace = cmp.Or(o.Timeout, DefaultTimeout), cmp.Or(o.Grace, DefaultGrace)
	if len(o.Networks) == 0 {
		o.Networks = []Network{{Name: cmp.Or(o.Registry, "loopback")}}
	}
	if o.Modes == nil {
		o.Modes = []string{Individual, Continuous}
	}
	h := &harness{Options: o, registries: map[string]*registry{}}
	for i, r := range o.Rivals {
		if slices.ContainsFunc(o.Rivals[:i], func(other *Rival) bool { return other.Name == r.Name }) {
			return nil, fmt.Errorf("%w %q: name them NAME@KIND=PATH", ErrSameName, r.Name)
		}
	}
	if o.ProfileDir != "" && !slices.ContainsFunc(o.Rivals, func(r *Rival) bool { return r.Kind == profiled }) {
		return nil, ErrNoProfile
	}
	if err := h.chooseImages(); err != nil {
		return nil, err
	}
	dir, release, unswept, err := workDirectory(ctx, o.Work)
	if err != nil {
		return nil, err
	}
	h.Work = dir
	defer func() { err = errors.Join(err, release()) }()
	for _, n := range o.Networks {
		if o.Registry != "" {
			h.registries[n.Name] = namedRegistry(o.Registry)
			continue
		}
		r, err := startRegistry(ctx, o.Corpus.dir, n, o.Faults, o.Log)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, r.stop()) }()
		h.registries[n.Name] = r
	}
	h.report = &Report{
		Schema: SchemaVersion, Begun: time.Now().UTC().Truncate(time.Second), Seed: o.Seed, Rivals: o.Rivals,
		Images: h.images, Faults: o.Faults, Machine: describeMachine(dir), Runs: []Run{},
	}
	h.report.Machine.DropCaches, h.report.Machine.Program = o.DropCaches, o.Program
	for _, n := range o.Networks {
		h.report.Networks = append(h.report.Networks, n.Name)
	}
	if h.family, err = newFamily(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.family.close()) }()
	h.makeDisk(ctx)
	h.notes()
	if unswept != nil {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("an earlier bench has left something: %v", unswept))
	}
	return h.report, h.runAll(ctx)
}

func (h *harness) chooseImages() error {
	for _, name := range h.Images {
		i := h.Corpus.Image(name)
		if i == nil {
			if !slices.Contains(CorpusNames(), name) {
				return fmt.Errorf("image %q is not in the corpus, and none that can be built: there are %s", name, strings.Join(CorpusNames(), ", "))
			}
			return fmt.Errorf("image %q is not in the corpus: `dray bench corpus build --only %s` makes it", name, name)
		}
		h.images = append(h.images, *i)
	}
	if h.Images == nil {
		h.images = slices.Clone(h.Corpus.Images)
	}
	if len(h.images) == 0 {
		return fmt.Errorf("the corpus has no image: %w", ErrNoCorpus)
	}
	return nil
}

// makeDisk makes what gives each run a file system of its own, where that can be.
func (h *harness) makeDisk(ctx context.Context) {
	if h.SameFS || !h.report.Machine.Root {
		return
	}
	d, err := newDisk(ctx, h.Work, diskSize(h.images, h.Modes))
	if err != nil {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("runs share a file system (%v): on ext4 what one run removes can slow the next ones", err))
		return
	}
	h.disk = d
	h.report.Machine.FileSystem, h.report.Machine.FreshFS = "ext4", h.report.Machine.FileSystem
}

// notes says what this machine does not let us measure.
func (h *harness) notes() {
	m := &h.report.Machine
	if h.Missing != nil {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("not measured: %v", h.Missing))
		h.report.Incomplete = true
	}
	if h.Registry != "" {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("images came from %s: the network is not under control, and bytes and requests are not counted", h.Registry))
	}
	if !m.Root {
		h.report.Notes = append(h.report.Notes, "not root: the page cache is not dropped, and servers that need root will fail, dray's service among them (`command:dray pull --storepath {store} http://{ref}` needs none)")
		h.DropCaches, m.DropCaches = 0, 0
	}
	g, err := newGroups(groupPrefix+strconv.Itoa(os.Getpid())+"-probe", 0)
	if err != nil {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("no control groups (%v): no peak with page cache; what short processes hold is missed", err))
		return
	}
	m.Cgroup = g.version
	if lack := g.lacks(); lack != "" {
		h.report.Notes = append(h.report.Notes, "the control groups do not count "+lack)
	}
	_ = g.remove() // swept with the next bench
}

// plan lists all runs in the order in which they are made. Each repetition is shuffled
// by itself, so that what is compared lies near in time.
func (h *harness) plan() (jobs []job) {
	for repetition := range h.Repetitions {
		begin := len(jobs)
		for _, rival := range h.Rivals {
			for _, n := range h.Networks {
				jobs = append(jobs, h.runsOf(rival, n, repetition)...)
			}
		}
		round := jobs[begin:]
		random := rand.New(rand.NewPCG(h.Seed, uint64(repetition))) //nolint:gosec // an order that can be repeated
		random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
	}
	return jobs
}

func (h *harness) runsOf(rival *Rival, n Network, repetition int) (jobs []job) {
	for _, mode := range h.Modes {
		if mode == Continuous {
			jobs = append(jobs, job{rival, h.images, mode, n, repetition})
			continue
		}
		for _, i := range h.images {
			jobs = append(jobs, job{rival, []CorpusImage{i}, mode, n, repetition})
		}
	}
	return jobs
}

// runAll makes the runs.
func (h *harness) runAll(ctx context.Context) error {
	jobs := h.plan()
	if h.WarmUp {
		smallest := slices.MinFunc(h.images, func(a, b CorpusImage) int { return int(a.CompressedBytes() - b.CompressedBytes()) })
		for _, rival := range h.Rivals {
			h.Say("warm-up: %s", rival.Name)
			_ = h.run(ctx, job{rival, []CorpusImage{smallest}, Individual, h.Networks[0], 0}) // does not count
		}
	}
	for i, j := range jobs {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("bench: %w", context.Cause(ctx))
		}
		run := h.run(ctx, j)
		run.Order = i
		if ctx.Err() != nil {
			return fmt.Errorf("bench: %w", context.Cause(ctx)) // the run under way does not count
		}
		h.report.Runs = append(h.report.Runs, run)
		h.sayRun(i+1, len(jobs), &run)
	}
	if h.ProfileDir != "" {
		return h.profiles(ctx)
	}
	return nil
}

func (h *harness) sayRun(i, of int, r *Run) {
	if r.Error != "" {
		h.Say("%d/%d %s %s%s: %s", i, of, r.Rival, r.Mode, space(r.Image), r.Error)
		return
	}
	flag := ""
	if r.Disturbed {
		flag = fmt.Sprintf(", disturbed: others used %.0f %% of the machine", 100*r.OthersCPU)
	}
	memory := "memory unknown"
	if r.PeakRSS > 0 {
		memory = fmt.Sprintf("%.1f MB", float64(r.PeakRSS)/1e6)
	}
	h.Say("%d/%d %s %s%s, %s: %.2fs, %s%s", i, of, r.Rival, r.Mode, space(r.Image), r.Network, r.Seconds, memory, flag)
}

func space(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}

// run makes one run. It never leaves anything behind that it can remove.
func (h *harness) run(ctx context.Context, j job) (r Run) {
	r = Run{Rival: j.rival.Name, Mode: j.mode, Network: j.network.Name, Repetition: j.repetition}
	if j.mode == Individual {
		r.Image = j.images[0].Name
	}
	registry := h.registries[j.network.Name]
	s, err := h.newSite(ctx)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, fmt.Errorf("the run took longer than %s", h.Timeout))
	defer cancel()
	err = h.measure(ctx, s, j, registry, &r)
	if err != nil {
		r.Error = err.Error()
	}
	if err := s.close(ctx, h.Grace); err != nil {
		r.Cleanup = err.Error()
	}
	return r
}

// request returns what to ask for an image, its bundle made.
func (h *harness) request(s *site, j job, i CorpusImage, kind string) (request, error) {
	q, err := h.registries[j.network.Name].request(i)
	if err != nil {
		return q, err
	}
	q.bundle = filepath.Join(s.dir, kind, i.Name)
	return q, os.MkdirAll(q.bundle, 0o700)
}

// prepare does all that comes before the server starts.
func (h *harness) prepare(ctx context.Context, s *site, j job) error {
	for _, i := range j.images {
		q, err := h.request(s, j, i, "bundle")
		if err != nil {
			return err
		}
		if j.rival.prepare != nil {
			if err := j.rival.prepare(ctx, s, q); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
		}
	}
	if err := shortSocket(s); err != nil {
		return err
	}
	if err := dropCaches(h.DropCaches); err != nil {
		return err
	}
	for _, i := range j.images {
		if h.Registry != "" {
			break // not ours to read
		}
		if err := warm(ctx, filepath.Join(h.Corpus.dir, i.Name)); err != nil {
			return err
		}
	}
	return nil
}

// measure starts the server, asks, and takes all figures.
func (h *harness) measure(ctx context.Context, s *site, j job, registry *registry, r *Run) error {
	if err := h.prepare(ctx, s, j); err != nil {
		return err
	}
	if err := h.startServer(ctx, s, j.rival, r); err != nil {
		return err
	}
	sampling := startSampler(s)
	for _, pid := range s.processes() {
		rss, _ := residentBytes(pid)
		r.IdleRSS = max(r.IdleRSS, rss)
	}
	err := h.askAll(ctx, s, j, registry, r, sampling)
	sampling.end()
	r.PeakRSS, r.PeakRSSSum = sampling.peakProcess, max(sampling.peakSum, sampling.peakProcess)
	r.PeakCgroupAnon, r.Points = sampling.peakAnon, sampling.points
	r.PeakCgroup, r.OOMKills = s.groups.peakBytes(), s.groups.oomKills()
	if err != nil {
		return h.explain(ctx, s, r, err)
	}
	return h.afterwards(ctx, s, j, r)
}

// endTimeout bounds how long a server that has closed its connections may take to end.
const endTimeout = 2 * time.Second

// explain adds what is known of a request that failed.
func (h *harness) explain(ctx context.Context, s *site, r *Run, err error) error {
	if r.OOMKills > 0 {
		err = fmt.Errorf("%w (the kernel killed %d processes for want of memory)", err, r.OOMKills)
	}
	if s.server == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	select {
	case <-s.server.ended:
		if s.server.err == nil {
			err = fmt.Errorf("%w (the server had ended)", err)
		} else {
			err = fmt.Errorf("%w (the server had ended: %w)", err, s.server.err)
		}
	case <-ctx.Done():
	}
	if text := s.server.said(); text != "" {
		err = fmt.Errorf("%w (the server's log ends: %s)", err, text)
	}
	return err
}

// readyTimeout bounds how long a server may take to answer.
const readyTimeout = 30 * time.Second

func (h *harness) startServer(ctx context.Context, s *site, rival *Rival, r *Run, extra ...string) error {
	if rival.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	begin := time.Now()
	var err error
	if rival.helper != nil {
		argv, socket := rival.helper(s)
		if s.helper, err = s.start(argv, rival.environment...); err != nil {
			return err
		}
		if err := s.helper.listens(ctx, socket); err != nil {
			return err
		}
	}
	if s.server, err = s.start(append(rival.server(s), extra...), rival.environment...); err != nil {
		return err
	}
	if err := rival.ready(ctx, s); err != nil {
		return err
	}
	r.StartSeconds = time.Since(begin).Seconds()
	return nil
}

// askAll asks for every image and measures time, CPU, network and disturbance.
func (h *harness) askAll(ctx context.Context, s *site, j job, registry *registry, r *Run, sampling *sampler) error {
	sent, requests := registry.count.bytes.Load(), registry.count.requests.Load()
	busy, used, own := busySeconds(), s.cpuSeconds(), selfSeconds()
	sampling.restart()
	begin := time.Now()
	for _, i := range j.images {
		q, err := h.request(s, j, i, "bundle")
		if err != nil {
			return err
		}
		if err := j.rival.ask(ctx, s, q); err != nil {
			return fmt.Errorf("pull %s: %w", i.Name, err)
		}
		r.Seconds = time.Since(begin).Seconds()
		if j.mode == Individual && j.rival.Kind != "floor" && (j.rival.Kind != "command" || !empty(q.rootfs())) {
			if err := readFirst(q.rootfs()); err != nil {
				return fmt.Errorf("read a file of %s: %w", i.Name, err)
			}
			r.FirstByteSeconds = time.Since(begin).Seconds()
		}
		if j.mode == Individual {
			r.Timeline = drayTimeline(s, j.rival, begin, r.Seconds)
		}
		if j.mode == Continuous {
			if err := unmountBelow(filepath.Join(s.dir, "bundle")); err != nil {
				return err
			}
		}
	}
	r.CPUSeconds = s.cpuSeconds() - used
	r.NetworkBytes, r.NetworkRequests = registry.count.bytes.Load()-sent, registry.count.requests.Load()-requests
	ours := r.CPUSeconds + selfSeconds() - own
	r.OthersCPU = max(0, busySeconds()-busy-ours) / (time.Since(begin).Seconds() * float64(h.report.Machine.CPUs))
	r.Disturbed = r.OthersCPU > disturbedShare
	return nil
}

// afterwards measures storage, and the time of a mount without a pull.
func (h *harness) afterwards(ctx context.Context, s *site, j job, r *Run) error {
	var err error
	if r.Storage, err = diskUsage(s.store); err != nil {
		return err
	}
	if j.rival.mount == nil || j.mode == Continuous {
		return nil
	}
	q, err := h.request(s, j, j.images[0], "again")
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := j.rival.mount(ctx, s, q); err != nil {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("%s cannot mount %s a second time: %v", j.rival.Name, j.images[0].Name, err))
		return nil
	}
	r.MountSeconds = time.Since(begin).Seconds()
	return nil
}

func empty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err != nil || len(entries) == 0
}

// errNoFile reports a root file system without a file that has content.
var errNoFile = errors.New("no regular file with content in the root file system")

// readFirst reads a byte of the first regular file below dir.
func readFirst(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	found := errNoFile
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path) //nolint:gosec // a file of the image, no link
		if err != nil {
			return err
		}
		n, _ := f.Read(make([]byte, 1)) // 0 at the end of an empty file
		_ = f.Close()
		if n == 0 {
			return nil
		}
		found = nil
		return fs.SkipAll
	})
	return errors.Join(err, found)
}
