//go:build linux

package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// sampleInterval is how often memory is looked at, beside once when a program was
// started.
const sampleInterval = 10 * time.Millisecond

// maxPoints bounds the series of one run; a long one is thinned out.
const maxPoints = 500

// sampler watches the processes of a run.
type sampler struct {
	site *site
	stop chan struct{} // closed to end it
	done sync.WaitGroup

	mu          sync.Mutex // guards the fields below
	begin       time.Time
	points      []Point
	every       int // of the samples, one of so many is kept
	count       int
	peakSum     int64 // largest sum of RSS
	peakProcess int64 // largest VmHWM of one process
	peakAnon    int64 // largest anonymous memory of the group
}

func startSampler(s *site) *sampler {
	m := &sampler{site: s, stop: make(chan struct{}), begin: time.Now(), every: 1}
	m.done.Go(func() {
		tick := time.NewTicker(sampleInterval)
		defer tick.Stop()
		for {
			m.sample()
			select {
			case <-tick.C:
			case <-m.stop:
				return
			}
		}
	})
	return m
}

// restart begins the series anew: the request is about to be made.
func (m *sampler) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begin, m.points, m.every, m.count = time.Now(), nil, 1, 0
}

// end takes a last sample and stops.
func (m *sampler) end() {
	m.sample()
	close(m.stop)
	m.done.Wait()
}

func (m *sampler) sample() {
	sum, process := int64(0), m.site.peakAtStarts()
	for _, pid := range m.site.processes() {
		rss, peak := residentBytes(pid)
		sum += rss
		process = max(process, peak)
	}
	anon := m.site.groups.anonymousBytes()
	cpu := m.site.cpuSeconds()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peakSum, m.peakProcess, m.peakAnon = max(m.peakSum, sum), max(m.peakProcess, process), max(m.peakAnon, anon)
	if m.count%m.every == 0 {
		m.points = append(m.points, Point{time.Since(m.begin).Seconds(), sum, cpu})
	}
	m.count++
	if len(m.points) > maxPoints {
		kept := m.points[:0]
		for i := 0; i < len(m.points); i += 2 {
			kept = append(kept, m.points[i])
		}
		m.points = kept
		m.every *= 2
	}
}

// residentBytes returns what a process holds and the most it ever held.
func residentBytes(pid int) (now, peak int64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0 // it has ended
	}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "VmHWM" && name != "VmRSS" {
			continue
		}
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64) // 0 is unknown
		if name == "VmHWM" {
			peak = kib << 10
		} else {
			now = kib << 10
		}
	}
	return now, peak
}

// ticksPerSecond is USER_HZ, fixed on Linux.
const ticksPerSecond = 100

// processSeconds returns the CPU time of a process and of its children that have ended.
func processSeconds(pid int) float64 {
	var ticks int64
	for _, field := range statFields(pid, 13, 17) { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(field, 10, 64) // 0 is unknown
		ticks += n
	}
	return float64(ticks) / ticksPerSecond
}

// statFields returns fields [from, to) of /proc/PID/stat, counted from 0: process,
// name, state, parent, …; none when it has ended.
func statFields(pid, from, to int) []string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// the name, in parentheses, may hold anything
	fields := strings.Fields(string(raw[max(0, bytes.LastIndexByte(raw, ')')):]))
	const name = 1
	if len(fields) <= to-name {
		return nil
	}
	return fields[from-name : to-name]
}

// busySeconds returns the CPU time that the whole machine has used, without idle
// time and waiting for disks.
func busySeconds() float64 {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.Fields(line)
	var ticks int64
	for i, f := range fields {
		if i == 0 || i == 4 || i == 5 || i > 8 { // name, idle, iowait; guests are counted as users
			continue
		}
		n, _ := strconv.ParseInt(f, 10, 64) // 0 is unknown
		ticks += n
	}
	return float64(ticks) / ticksPerSecond
}
