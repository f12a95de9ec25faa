package dray_test

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"dray"
	"dray/internal/testkit"
)

// BenchmarkSeed is what docs/bench.md says of seeds: an image of 6 layers and 250 MB,
// pulled and mounted. "hash" is the floor of what is not trusted, "pull" what "make"
// is compared with. Each loop does all of it, in turn, so that what disturbs one
// disturbs the others, and ratios are medians of those within a loop: of time and, where
// others wait for the processors too, of processor time. Sizes are of the sum of the
// uncompressed layers.
//
//	go test -run '^$' -bench '^BenchmarkSeed$' -benchtime 15x .
func BenchmarkSeed(b *testing.B) {
	const after = dray.SyncAfter // as the commands that mount have it
	s := newSeedBench(b)
	ops := []seedOp{
		{name: "hash", run: s.hash},
		{name: "held", against: "hash", run: s.mount(dray.Options{Seeds: []string{s.dir}, Sync: after}, false)},
		{name: "held-x.erofs", against: "hash", run: s.mount(dray.Options{Seeds: []string{s.file}, Sync: after}, false)},
		{name: "trusted", run: s.mount(dray.Options{TrustedSeeds: []string{s.dir}, Sync: after}, false)},
		{name: "trusted-x.erofs", run: s.mount(dray.Options{TrustedSeeds: []string{s.file}, Sync: after}, false)},
		{name: "copied", run: s.mount(dray.Options{Seeds: []string{s.dir}, ForeignDisks: true, Sync: after}, false)},
		{name: "again", run: s.mount(dray.Options{Seeds: []string{s.dir}, Sync: after}, true)},
		{name: "pull", run: s.pull},
		{name: "make-dir", against: "pull", run: s.make("dir")},
		{name: "make-x.erofs", against: "pull", run: s.make("x.erofs")},
		{name: "make-x.tar", against: "pull", run: s.make("x.tar")},
	}
	for _, set := range []struct {
		name string
		ops  []seedOp
	}{{"use", ops[:7]}, {"make", ops[7:]}} {
		b.Run(set.name, func(b *testing.B) { runSeedOps(b, set.ops) })
	}
}

// seedOp is one thing that is measured.
type seedOp struct {
	name    string
	against string // what it is compared with
	run     func(b *testing.B) (elapsed, cpu time.Duration)
}

func runSeedOps(b *testing.B, ops []seedOp) {
	b.Helper()
	elapsed, cpu := map[string][]float64{}, map[string][]float64{}
	for b.Loop() {
		first := len(elapsed[ops[0].name]) // whose turn it is to be first
		for i := range ops {
			op := ops[(first+i)%len(ops)]
			wall, used := op.run(b)
			elapsed[op.name] = append(elapsed[op.name], wall.Seconds()*1000)
			cpu[op.name] = append(cpu[op.name], used.Seconds()*1000)
		}
	}
	b.ReportMetric(0, "ns/op") // of all of them: of no use
	for _, op := range ops {
		b.ReportMetric(median(elapsed[op.name]), op.name+"-ms")
		b.ReportMetric(median(cpu[op.name]), op.name+"-cpu-ms")
		if op.against != "" {
			b.ReportMetric(median(ratios(elapsed[op.name], elapsed[op.against])), op.name+"/"+op.against)
			b.ReportMetric(median(ratios(cpu[op.name], cpu[op.against])), op.name+"/"+op.against+"-cpu")
		}
	}
}

func ratios(of, to []float64) []float64 {
	all := make([]float64, len(of))
	for i := range of {
		all[i] = of[i] / to[i]
	}
	return all
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return (all[len(all)/2] + all[(len(all)-1)/2]) / 2
}

// seedBench is the image, in a registry and in two seeds.
type seedBench struct {
	reference string
	dir, file string // the seeds
	tars      []string
}

func newSeedBench(b *testing.B) *seedBench {
	b.Helper()
	const layers, filesPerLayer, fileBytes = 6, 200, 210 << 10
	dir := b.TempDir()
	image := testkit.Image(b)
	for l := range layers {
		var entries []testkit.Entry
		for f := range filesPerLayer {
			entries = append(entries, testkit.Text(strconv.Itoa(l)+"/"+strconv.Itoa(f), fileBytes, uint64(l*filesPerLayer+f)))
		}
		image = image.Layer(entries...)
	}
	built := image.Write(testkit.LayoutAt(b, filepath.Join(dir, "app")), "v1")
	s := &seedBench{reference: testkit.Registry(b, dir).Ref("app@" + string(built.Manifest.Digest)), dir: filepath.Join(b.TempDir(), "seed")}
	s.file = s.dir + ".erofs"
	if _, err := openBench(b, dray.Options{}).WriteSeed(b.Context(), []string{s.reference}, s.dir, dray.SeedOptions{}); err != nil {
		b.Fatal(err)
	}
	if _, err := openBench(b, dray.Options{TrustedSeeds: []string{s.dir}}).WriteSeed(b.Context(), []string{s.reference}, s.file, dray.SeedOptions{Offline: true}); err != nil {
		b.Fatal(err)
	}
	var err error
	if s.tars, err = filepath.Glob(filepath.Join(s.dir, "layers", "sha256", "*", "layer.tar")); err != nil || len(s.tars) != layers {
		b.Fatal(s.tars, err)
	}
	return s
}

// timed measures what do does.
func timed(b *testing.B, do func() error) (elapsed, cpu time.Duration) {
	b.Helper()
	runtime.GC() // not what was left by the one before
	before, begin := cpuTime(b), time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return time.Since(begin), cpuTime(b) - before
}

func (s *seedBench) hash(b *testing.B) (elapsed, cpu time.Duration) {
	b.Helper()
	return timed(b, func() error {
		var group errgroup.Group
		for _, tar := range s.tars {
			group.Go(func() error { return hashFile(tar) })
		}
		return group.Wait()
	})
}

// mount opens a store, pulls and mounts; again measures the second time.
func (s *seedBench) mount(o dray.Options, again bool) func(b *testing.B) (elapsed, cpu time.Duration) {
	return func(b *testing.B) (elapsed, cpu time.Duration) {
		b.Helper()
		client, end := openBench(b, o), filepath.Join(b.TempDir(), "rootfs")
		mount := func() error {
			_, err := client.Mount(b.Context(), s.reference, end, dray.MountOptions{Pull: dray.PullOptions{Offline: true}})
			return err
		}
		unmount := func() {
			if err := client.Unmount(b.Context(), end); err != nil {
				b.Fatal(err)
			}
		}
		if again {
			if err := mount(); err != nil {
				b.Fatal(err)
			}
			unmount()
		}
		elapsed, cpu = timed(b, mount)
		unmount()
		s.end(b, client, client.Store()) // with what it syncs in the background
		return elapsed, cpu
	}
}

func (s *seedBench) pull(b *testing.B) (elapsed, cpu time.Duration) {
	b.Helper()
	client := openBench(b, dray.Options{Seeds: []string{}, Sync: dray.SyncBefore})
	defer s.end(b, client, client.Store())
	return timed(b, func() error {
		_, err := client.Pull(b.Context(), s.reference, dray.PullOptions{})
		return err
	})
}

func (s *seedBench) make(name string) func(b *testing.B) (elapsed, cpu time.Duration) {
	return func(b *testing.B) (elapsed, cpu time.Duration) {
		b.Helper()
		client, out := openBench(b, dray.Options{Seeds: []string{}}), filepath.Join(b.TempDir(), name)
		defer s.end(b, client, out)
		var report *dray.SeedReport
		elapsed, cpu = timed(b, func() (err error) {
			report, err = client.WriteSeed(b.Context(), []string{s.reference}, out, dray.SeedOptions{})
			return err
		})
		b.ReportMetric(float64(sizeOf(b, out))/float64(report.Bytes), "make-"+name+"-bytes/layers")
		return elapsed, cpu
	}
}

// sizeOf adds up files.
func sizeOf(b *testing.B, root string) (sizeBytes int64) {
	b.Helper()
	err := filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sizeBytes += info.Size()
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return sizeBytes
}

// end closes the client and removes what it made, so that neither is under way during
// the next.
func (*seedBench) end(b *testing.B, client *dray.Client, made string) {
	b.Helper()
	if err := errors.Join(client.Close(), os.RemoveAll(made)); err != nil {
		b.Fatal(err)
	}
}

// cpuTime returns the processor time of this process, which is what can be compared
// where others wait for the processors too. The registry is in it.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func openBench(b *testing.B, o dray.Options) *dray.Client {
	b.Helper()
	o.Store, o.AuthFiles = filepath.Join(b.TempDir(), "store"), []string{}
	client, err := dray.New(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	return client
}

func hashFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.CopyBuffer(sha256.New(), struct{ io.Reader }{f}, make([]byte, 128<<10))
	return err
}
