//go:build linux

package bench

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"dray/internal/durable"
)

// Files of one recording.
const (
	recordingFile = "recording.json"
	allocsFile    = "allocs.pb.gz" // since the program's start
	peakFile      = "heap-peak.pb.gz"
	cpuFile       = "cpu.pb.gz"
)

// profileRate is the mean distance, in bytes, between allocations whose place is
// recorded: 128 times closer than Go's default. Totals do not depend on it.
const profileRate = 4 << 10

// profileTick is how often the recorder looks whether garbage was collected.
const profileTick = 2 * time.Millisecond

// maxSites bounds how many places a recording lists.
const maxSites = 15

// recorder profiles its own program.
type recorder struct {
	dir  string
	cuts int

	begin    time.Time
	base     runtime.MemStats
	baseOwn  held  // what the recorder itself had allocated by then
	ownLive  int64 // what it holds, as of the last collection
	peakHeap int64
	peakLive int64
	cycles   uint64
	peak     []Site
	headLive int64  // when peakHead was taken
	peakHead []byte // the peak as a pprof file
	cpu      bytes.Buffer
	records  []runtime.MemProfileRecord // kept, so that looking allocates little
}

// held is a size in bytes and a number of objects.
type held struct{ bytes, objects int64 }

// StartProfile records memory and CPU of this program, into dir. SIGUSR1 ends one
// recording, which becomes the directory 1, 2, … with all its files at once, and begins
// the next; stop ends the last. One program can have one recorder.
func StartProfile(dir string) (stop func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for others to read
		return nil, fmt.Errorf("start profile: %w", err)
	}
	runtime.MemProfileRate = profileRate
	r := &recorder{dir: dir}
	if err := r.restart(); err != nil {
		return nil, err
	}
	signals := make(chan os.Signal, 1) // one cut is under way, one may wait
	signal.Notify(signals, syscall.SIGUSR1)
	ended := make(chan struct{})
	var failed error // to be read after done
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(profileTick)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.look()
			case <-signals:
				failed = errors.Join(failed, r.cut(), r.restart(), r.publish()) // seen once the next has begun
			case <-ended:
				failed = errors.Join(failed, r.cut(), r.publish())
				return
			}
		}
	})
	return func() error {
		signal.Stop(signals)
		close(ended)
		done.Wait()
		return failed
	}, nil
}

// restart begins a recording.
func (r *recorder) restart() error {
	r.peakHeap, r.peakLive, r.headLive, r.cycles, r.peak, r.peakHead = 0, 0, 0, 0, nil, nil
	r.cpu.Reset()
	if err := pprof.StartCPUProfile(&r.cpu); err != nil {
		return fmt.Errorf("start profile: %w", err)
	}
	r.baseOwn = r.ownAllocated()
	runtime.ReadMemStats(&r.base)
	r.begin = time.Now()
	return nil
}

// look takes the heap's size and, after a collection that left more than any
// before, what is live.
func (r *recorder) look() {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(samples)
	r.peakHeap = max(r.peakHeap, int64(samples[0].Value.Uint64())-r.ownLive)
	if cycles := samples[1].Value.Uint64(); cycles != r.cycles {
		r.cycles = cycles
		r.keepPeak()
	}
}

// Growth of what is live, in percent, after which a new peak is kept, and after which
// it becomes a file: writing one disturbs what it measures.
const (
	peakGrowth = 2
	headGrowth = 20
)

func (r *recorder) keepPeak() {
	all := r.memProfile()
	var live int64
	r.ownLive = 0
	for i := range all {
		h := inUse(&all[i])
		if ownRecord(&all[i]) {
			r.ownLive += h.bytes
		} else {
			live += h.bytes
		}
	}
	if live <= r.peakLive+r.peakLive*peakGrowth/100 {
		return
	}
	r.peakLive, r.peak = live, sites(all, inUse)
	if live <= r.headLive+r.headLive*headGrowth/100 {
		return
	}
	var head bytes.Buffer
	if pprof.Lookup("heap").WriteTo(&head, 0) == nil { // a buffer takes everything
		r.headLive, r.peakHead = live, head.Bytes()
	}
}

// memProfile returns the runtime's records of allocations, as of a recent collection,
// until it is called again.
func (r *recorder) memProfile() []runtime.MemProfileRecord {
	for {
		n, ok := runtime.MemProfile(r.records, true)
		if ok {
			return r.records[:n]
		}
		r.records = make([]runtime.MemProfileRecord, 2*n)
	}
}

// cut ends the recording and writes it.
func (r *recorder) cut() error {
	var end, after runtime.MemStats
	runtime.ReadMemStats(&end)
	seconds := time.Since(r.begin).Seconds()
	pprof.StopCPUProfile()
	own := r.ownAllocated()
	r.look()
	runtime.ReadMemStats(&after)
	allocations := max(0, int64(end.Mallocs-r.base.Mallocs)-(own.objects-r.baseOwn.objects))
	kept := int64(after.HeapObjects) - int64(r.base.HeapObjects)
	made := Recording{
		Seconds: seconds, AllocatedBytes: int64(end.TotalAlloc-r.base.TotalAlloc) - (own.bytes - r.baseOwn.bytes), Allocations: allocations,
		Temporary: allocations - max(kept, 0), PeakHeapBytes: r.peakHeap, PeakLiveBytes: r.peakLive,
		LiveBeforeBytes: int64(r.base.HeapAlloc), LiveAfterBytes: int64(after.HeapAlloc), Collections: int64(after.NumGC - r.base.NumGC),
		Peak: r.peak, Allocated: sites(r.memProfile(), allocated),
	}
	if err := r.write(&made); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	return nil
}

func (r *recorder) write(made *Recording) error {
	raw, err := json.MarshalIndent(made, "", " ")
	if err != nil {
		return err
	}
	var allocs bytes.Buffer
	if err := pprof.Lookup("allocs").WriteTo(&allocs, 0); err != nil {
		return err
	}
	r.cuts++
	staged := r.path() + stagedSuffix
	if err := os.MkdirAll(staged, 0o755); err != nil { //nolint:gosec // for others to read
		return err
	}
	for name, content := range map[string][]byte{recordingFile: raw, allocsFile: allocs.Bytes(), peakFile: r.peakHead, cpuFile: r.cpu.Bytes()} {
		if err := durable.WriteFile(filepath.Join(staged, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stagedSuffix marks a recording that is not to be read yet.
const stagedSuffix = ".part"

// path is the directory of the last recording that was cut.
func (r *recorder) path() string { return filepath.Join(r.dir, strconv.Itoa(r.cuts)) }

// publish shows the last recording.
func (r *recorder) publish() error { return os.Rename(r.path()+stagedSuffix, r.path()) }

// unsample estimates what there was from what was recorded: an allocation of n bytes
// is recorded with the probability 1 - exp(-n/rate) (documentation of runtime.MemProfile).
func unsample(sizeBytes, objects int64) held {
	if objects == 0 {
		return held{}
	}
	mean := float64(sizeBytes) / float64(objects)
	scale := 1 / (1 - math.Exp(-mean/profileRate))
	return held{int64(float64(sizeBytes) * scale), int64(float64(objects) * scale)}
}

func inUse(m *runtime.MemProfileRecord) held     { return unsample(m.InUseBytes(), m.InUseObjects()) }
func allocated(m *runtime.MemProfileRecord) held { return unsample(m.AllocBytes, m.AllocObjects) }

// ownAllocated is what the recorder has allocated since the program's start. It
// collects garbage until the records are of now (documentation of runtime.MemProfile).
func (r *recorder) ownAllocated() (sum held) {
	runtime.GC()
	runtime.GC()
	all := r.memProfile()
	for i := range all {
		if ownRecord(&all[i]) {
			h := allocated(&all[i])
			sum.bytes, sum.objects = sum.bytes+h.bytes, sum.objects+h.objects
		}
	}
	return sum
}

// ownRecord tells whether the recorder, or the runtime's profiler for it, allocated.
func ownRecord(m *runtime.MemProfileRecord) bool {
	frames := runtime.CallersFrames(m.Stack())
	for {
		f, more := frames.Next()
		if strings.HasPrefix(f.Function, "runtime/pprof.") || strings.Contains(f.Function, "bench.(*recorder)") {
			return true
		}
		if !more {
			return false
		}
	}
}

// sites adds up records by place, the largest first, without the recorder's own.
func sites(records []runtime.MemProfileRecord, of func(*runtime.MemProfileRecord) held) []Site {
	byPlace := map[string]*Site{}
	for i := range records {
		h := of(&records[i])
		if h.objects == 0 || ownRecord(&records[i]) {
			continue
		}
		place := placeOf(records[i].Stack())
		if byPlace[place] == nil {
			byPlace[place] = &Site{Place: place}
		}
		byPlace[place].Bytes += h.bytes
		byPlace[place].Objects += h.objects
	}
	found := make([]Site, 0, len(byPlace))
	for _, s := range byPlace {
		found = append(found, *s)
	}
	slices.SortFunc(found, func(a, b Site) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Place, b.Place))
	})
	return found[:min(len(found), maxSites)]
}

// placeOf names the function that allocated and, when that is a library's, the
// nearest of dray's own that called it.
func placeOf(stack []uintptr) string {
	frames := runtime.CallersFrames(stack)
	place := ""
	for {
		f, more := frames.Next()
		switch {
		case f.Function == "" || strings.HasPrefix(f.Function, "runtime.") || strings.HasPrefix(f.Function, "internal/runtime/"):
		case strings.HasPrefix(f.Function, "dray") || strings.HasPrefix(f.Function, "main."):
			if place != "" {
				place += " < "
			}
			return place + frameName(f)
		case place == "":
			place = frameName(f)
		}
		if !more {
			return cmp.Or(place, "runtime")
		}
	}
}

func frameName(f runtime.Frame) string {
	return fmt.Sprintf("%s %s:%d", f.Function, filepath.Base(f.File), f.Line)
}
