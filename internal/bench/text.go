package bench

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// text writes reports for people: document 000's form, with more lines.
type text struct {
	w        io.Writer
	report   *Report
	baseline *Report // nil: none
}

// WriteText writes the report; figures are compared with baseline's where it has them.
func (r *Report) WriteText(w io.Writer, baseline *Report) error {
	t := &text{w: &stickyWriter{w: w}, report: r, baseline: baseline}
	t.header()
	for _, network := range r.networks() {
		for _, mode := range []string{Individual, Continuous} {
			for _, rival := range r.Rivals {
				t.server(rival.Name, mode, network)
			}
		}
		t.ratios(network)
	}
	for i := range r.Profiles {
		p := &r.Profiles[i]
		if i == 0 || p.Rival != r.Profiles[i-1].Rival {
			t.line("\n===== Memory of %s (a run of its own, which does not count) =====", p.Rival)
		} else {
			t.line("")
		}
		p.text(t)
	}
	sticky, _ := t.w.(*stickyWriter)
	return sticky.err
}

// stickyWriter keeps the first error.
type stickyWriter struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (s *stickyWriter) Write(p []byte) (int, error) {
	if s.err == nil {
		_, s.err = s.w.Write(p)
	}
	return len(p), nil
}

func (t *text) line(format string, args ...any) { _, _ = fmt.Fprintf(t.w, format+"\n", args...) }

func (t *text) header() {
	m := &t.report.Machine
	t.line("%s, kernel %s, %d × %s, %.1f GB, %s, load %.2f", t.report.Begun.Format(time.RFC3339), m.Kernel, m.CPUs, m.CPU, float64(m.Memory)/1e9, m.fileSystem(), m.Load[0])
	t.line("seed %d, page cache %s, control groups %s", t.report.Seed, map[bool]string{true: "dropped before each run", false: "kept"}[m.DropCaches > 0],
		map[int]string{0: "none", 1: "v1", 2: "v2"}[m.Cgroup])
	for _, r := range t.report.Rivals {
		t.line("%s: %s, %s", r.Name, r.Kind, r.Version)
	}
	for _, i := range t.report.Images {
		t.line("%s: %s; %d layers, %s compressed, %s unpacked, %d files", i.Name, i.About, len(i.Layers), mb(i.CompressedBytes()), mb(i.UncompressedBytes()), i.Files())
	}
	for _, n := range t.report.Notes {
		t.line("note: %s", n)
	}
	if b := t.baseline; b != nil && b.Machine.fileSystem() != m.fileSystem() {
		t.line("note: the baseline's file system was %s: changes are not the programs' alone", b.Machine.fileSystem())
	}
	disturbed := 0
	for i := range t.report.Runs {
		if t.report.Runs[i].Disturbed {
			disturbed++
		}
	}
	if disturbed > 0 {
		t.line("note: %d of %d runs were disturbed: others used more than %.0f %% of the machine. Trust ratios more than seconds.", disturbed, len(t.report.Runs), 100*disturbedShare)
	}
}

// fileSystem says where stores were.
func (m *Machine) fileSystem() string {
	if m.FreshFS == "" {
		return m.FileSystem
	}
	return m.FileSystem + " made for each run in a file on " + m.FreshFS
}

func mb(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }

// seconds prints a time as document 000 does: 4.37s, 6m14.41s.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d >= time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return fmt.Sprintf("%.2fs", s)
}

// server prints all that one server did in one mode.
func (t *text) server(rival, mode, network string) {
	found := false
	for i := range t.report.Runs {
		r := &t.report.Runs[i]
		found = found || r.Rival == rival && r.Mode == mode && r.Network == network
	}
	if !found {
		return
	}
	over := ""
	if network != "loopback" {
		over = " over " + network
	}
	t.line("\n===== Testing server (%s): %s%s =====", mode, rival, over)
	if mode == Continuous {
		t.cell(cell{rival, "", mode, network})
		return
	}
	for i, image := range t.report.Images {
		if i > 0 {
			t.line("")
		}
		t.line("[%s]", image.Name)
		t.cell(cell{rival, image.Name, mode, network})
	}
}

// cell prints the figures of one server and image.
func (t *text) cell(c cell) {
	for i := range t.report.Runs {
		r := &t.report.Runs[i]
		if (cell{r.Rival, r.Image, r.Mode, r.Network}) != c {
			continue
		}
		if r.Error != "" {
			t.line("FAILED (repetition %d): %s", r.Repetition+1, r.Error)
		}
		if r.Cleanup != "" {
			t.line("Left behind: %s", r.Cleanup)
		}
	}
	runs := t.report.of(c)
	if len(runs) == 0 {
		return
	}
	median := func(f func(*Run) float64) float64 { return Median(values(runs, f)) }
	bytes := func(f func(*Run) int64) string {
		return mb(int64(median(func(r *Run) float64 { return float64(f(r)) })))
	}
	t.line("Time taken: %s", seconds(median(func(r *Run) float64 { return r.Seconds })))
	memory := func(f func(*Run) int64) string {
		v := known(values(runs, func(r *Run) float64 { return float64(f(r)) }))
		if len(v) == 0 {
			return "unknown"
		}
		return mb(int64(Median(v)))
	}
	t.line("Memory peak: %s", memory(func(r *Run) int64 { return r.PeakRSS }))
	t.line("Storage used: %s", bytes(func(r *Run) int64 { return r.Storage.Blocks }))
	t.line("Storage apparent: %s in %.0f files", bytes(func(r *Run) int64 { return r.Storage.Apparent }), median(func(r *Run) float64 { return float64(r.Storage.Files) }))
	t.line("Memory of all processes: %s", memory(func(r *Run) int64 { return r.PeakRSSSum }))
	if runs[0].PeakCgroup > 0 {
		t.line("Memory peak of the control group: %s with page cache, %s without", bytes(func(r *Run) int64 { return r.PeakCgroup }), bytes(func(r *Run) int64 { return r.PeakCgroupAnon }))
	}
	if runs[0].CPUSeconds > 0 {
		t.line("CPU time: %.2fs", median(func(r *Run) float64 { return r.CPUSeconds }))
	}
	if runs[0].NetworkRequests > 0 {
		t.line("Fetched: %s in %.0f requests", bytes(func(r *Run) int64 { return r.NetworkBytes }), median(func(r *Run) float64 { return float64(r.NetworkRequests) }))
	}
	if runs[0].StartSeconds > 0 {
		t.line("Start to ready: %.1f ms, idle memory %s", 1e3*median(func(r *Run) float64 { return r.StartSeconds }), bytes(func(r *Run) int64 { return r.IdleRSS }))
	}
	if runs[0].MountSeconds > 0 {
		t.line("Mount of a pulled image: %.1f ms", 1e3*median(func(r *Run) float64 { return r.MountSeconds }))
	}
	if runs[0].FirstByteSeconds > 0 {
		t.line("First byte of a file: %s", seconds(median(func(r *Run) float64 { return r.FirstByteSeconds })))
	}
	t.criterion(c, runs)
}

// criterion prints intervals and the change against the baseline as criterion does.
func (t *text) criterion(c cell, runs []*Run) {
	times := values(runs, func(r *Run) float64 { return r.Seconds })
	i := MedianInterval(times)
	count := fmt.Sprintf("%d runs", len(runs))
	if len(runs) == 1 {
		count = "1 run: no interval"
	}
	t.line("time:   [%s %s %s] (%s)", fourDigits(i.Low), fourDigits(i.Middle), fourDigits(i.High), count)
	if image := t.report.image(c.Image); image != nil && i.Low > 0 {
		t.throughput("uncompressed", image.UncompressedBytes(), i)
		t.throughput("compressed", image.CompressedBytes(), i)
	}
	if t.baseline == nil {
		return
	}
	before := values(t.baseline.of(c), func(r *Run) float64 { return r.Seconds })
	if len(before) == 0 {
		return
	}
	change := Compare(before, times)
	sign := "<"
	if change.P >= significance {
		sign = ">"
	}
	t.line("change: [%s %s %s] (p = %.2f %s %.2f)", percent(change.Relative.Low), percent(change.Relative.Middle), percent(change.Relative.High), change.P, sign, significance)
	t.line("        %s", map[string]string{
		Improved: "Performance has improved.", Regressed: "Performance has regressed.", NoChange: "No change in performance detected.",
	}[change.Verdict])
}

func (t *text) throughput(what string, size int64, i Interval) {
	rate := func(s float64) string { return significant(float64(size)/(1<<20)/s) + " MiB/s" }
	t.line("thrpt:  [%s %s %s] of %s bytes", rate(i.High), rate(i.Middle), rate(i.Low), what)
}

func fourDigits(s float64) string {
	if s < 1 {
		return significant(s*1e3) + " ms"
	}
	return significant(s) + " s"
}

// significant prints a number with five digits.
func significant(v float64) string {
	if v <= 0 {
		return "0"
	}
	return fmt.Sprintf("%.*f", max(0, 4-int(math.Floor(math.Log10(v)))), v)
}

func percent(v float64) string { return strings.Replace(fmt.Sprintf("%+.4f%%", 100*v), "-", "−", 1) }

// ratios compares every server with the first one, within this report.
func (t *text) ratios(network string) {
	if len(t.report.Rivals) < 2 {
		return
	}
	first := t.report.Rivals[0].Name
	t.line("\n===== Time of %s as a ratio of the others', %s (median and 95 %% interval) =====", first, network)
	w := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprint(w, "image")
	for _, r := range t.report.Rivals[1:] {
		_, _ = fmt.Fprintf(w, "\t/ %s", r.Name)
	}
	_, _ = fmt.Fprintln(w)
	for _, row := range append(t.report.Images[:len(t.report.Images):len(t.report.Images)], CorpusImage{}) {
		mode, name := Individual, row.Name
		if name == "" {
			mode, name = Continuous, "(continuous)"
		}
		of := func(rival string) []float64 {
			return values(t.report.of(cell{rival, row.Name, mode, network}), func(r *Run) float64 { return r.Seconds })
		}
		ours := of(first)
		if len(ours) == 0 {
			continue
		}
		_, _ = fmt.Fprint(w, name)
		for _, r := range t.report.Rivals[1:] {
			theirs := of(r.Name)
			i := RatioInterval(ours, theirs)
			switch {
			case i.Middle == 0:
				_, _ = fmt.Fprint(w, "\t-")
			case len(ours) == 1 && len(theirs) == 1:
				_, _ = fmt.Fprintf(w, "\t%.2f (1 run)", i.Middle)
			default:
				_, _ = fmt.Fprintf(w, "\t%.2f [%.2f %.2f]", i.Middle, i.Low, i.High)
			}
		}
		_, _ = fmt.Fprintln(w)
	}
	_ = w.Flush() // t.w keeps its error
}

// text writes the memory report in heaptrack's words.
func (p *Profile) text(t *text) {
	t.line("[%s]", p.Image)
	r := p.Recording
	if p.Error != "" || r == nil {
		t.line("FAILED: %s", cmp.Or(p.Error, "nothing was recorded"))
		return
	}
	rate := func(n int64) float64 { return float64(n) / max(p.Seconds, 1e-9) }
	t.line("bytes allocated in total (ignoring deallocations): %s (%.2fMB/s)", heapMB(r.AllocatedBytes), rate(r.AllocatedBytes)/1e6)
	t.line("calls to allocation functions: %d (%.0f/s)", r.Allocations, rate(r.Allocations))
	t.line("temporary memory allocations: %d (%.0f/s)", r.Temporary, rate(r.Temporary))
	t.line("peak heap memory consumption: %s, of it live %s", heapMB(r.PeakHeapBytes), heapMB(r.PeakLiveBytes))
	t.line("peak RSS (including the recorder): %s", heapMB(p.PeakRSS))
	t.line("still live after the pull: %s (before it: %s; including the recorder)", heapMB(r.LiveAfterBytes), heapMB(r.LiveBeforeBytes))
	t.line("live at the peak, by place (sampled):")
	for _, s := range r.Peak {
		t.line("  %s in %d: %s", heapMB(s.Bytes), s.Objects, s.Place)
	}
	t.line("profiles: %s", p.Files)
}

// heapMB prints a size as heaptrack does.
func heapMB(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%dB", n)
	case n < 1e6:
		return fmt.Sprintf("%.2fKB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.2fMB", float64(n)/1e6)
}
