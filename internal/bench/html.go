package bench

import (
	"bytes"
	"cmp"
	_ "embed" // the page and the charting library
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"slices"

	"dray/internal/durable"
)

// Parts of the page. uPlot 1.6.32 is Leon Sorokin's, MIT licence, as npm has it:
// scripts/uplot fetches it anew.
var (
	//go:embed page/page.html
	pageHTML string
	//go:embed page/page.css
	pageCSS string
	//go:embed page/page.js
	pageScript string
	//go:embed page/uPlot.iife.min.js
	chartScript string
	//go:embed page/uPlot.min.css
	chartCSS string
	//go:embed page/LICENSE.uPlot
	chartLicense string
)

// line is one row of the page's table: the runs of one cell.
type line struct {
	Rival     string              `json:"rival"`
	Image     string              `json:"image"` // "" in continuous mode
	Mode      string              `json:"mode"`
	Network   string              `json:"network"`
	Runs      int                 `json:"runs"`
	Failed    int                 `json:"failed"`
	Disturbed int                 `json:"disturbed"`
	Figures   map[string]Interval `json:"figures"`          // those that are known
	Points    []Point             `json:"points,omitempty"` // of the run in the middle
	Timeline  []Span              `json:"timeline,omitempty"`
	Seconds   float64             `json:"timeline_seconds"` // of that run
}

// figure is one that the page draws.
type figure struct {
	Key   string `json:"key"`
	Title string `json:"title"`
	Unit  string `json:"unit"` // s or B
	of    func(*Run) float64
}

func figures() []figure {
	return []figure{
		{"seconds", "Time", "s", func(r *Run) float64 { return r.Seconds }},
		{"peak_rss_bytes", "Memory peak (largest process)", "B", func(r *Run) float64 { return float64(r.PeakRSS) }},
		{"cpu_seconds", "CPU time", "s", func(r *Run) float64 { return r.CPUSeconds }},
		{"storage_bytes", "Storage", "B", func(r *Run) float64 { return float64(r.Storage.Blocks) }},
		{"network_bytes", "Fetched", "B", func(r *Run) float64 { return float64(r.NetworkBytes) }},
		{"mount_seconds", "Mount of a pulled image", "s", func(r *Run) float64 { return r.MountSeconds }},
	}
}

// lines condenses the runs for the page, in the order of the report's networks, modes,
// servers and images.
func (r *Report) lines() (lines []line) {
	seen := map[cell]bool{}
	for i := range r.Runs {
		run := &r.Runs[i]
		c := cell{run.Rival, run.Image, run.Mode, run.Network}
		if seen[c] {
			continue
		}
		seen[c] = true
		l := line{Rival: c.Rival, Image: c.Image, Mode: c.Mode, Network: c.Network, Figures: map[string]Interval{}}
		runs := r.of(c)
		l.Runs = len(runs)
		for j := range r.Runs {
			other := &r.Runs[j]
			if (cell{other.Rival, other.Image, other.Mode, other.Network}) == c && other.Error != "" {
				l.Failed++
			}
		}
		for _, f := range figures() {
			v := values(runs, f.of)
			if f.Key == "peak_rss_bytes" {
				v = known(v)
			}
			if len(v) > 0 {
				l.Figures[f.Key] = MedianInterval(v)
			}
		}
		for _, run := range runs {
			if run.Disturbed {
				l.Disturbed++
			}
		}
		slices.SortStableFunc(runs, func(a, b *Run) int { return cmp.Compare(a.Seconds, b.Seconds) })
		if len(runs) > 0 {
			middle := runs[(len(runs)-1)/2]
			l.Points, l.Timeline, l.Seconds = middle.Points, middle.Timeline, middle.Seconds
		}
		lines = append(lines, l)
	}
	networks := r.networks()
	slices.SortStableFunc(lines, func(a, b line) int {
		return cmp.Or(
			slices.Index(networks, a.Network)-slices.Index(networks, b.Network), -cmp.Compare(a.Mode, b.Mode), // individual first
			slices.IndexFunc(r.Rivals, func(x *Rival) bool { return x.Name == a.Rival })-slices.IndexFunc(r.Rivals, func(x *Rival) bool { return x.Name == b.Rival }),
			slices.IndexFunc(r.Images, func(x CorpusImage) bool { return x.Name == a.Image })-slices.IndexFunc(r.Images, func(x CorpusImage) bool { return x.Name == b.Image }),
		)
	})
	return lines
}

// WriteHTML writes the report as one page that needs no network.
func (r *Report) WriteHTML(w io.Writer) error {
	slim := *r
	slim.Runs = nil
	data, err := json.Marshal(struct { // Marshal escapes <, > and &: it cannot end the script
		Report  *Report  `json:"report"`
		Figures []figure `json:"figures"`
		Lines   []line   `json:"lines"`
	}{&slim, figures(), r.lines()})
	if err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	page, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	err = page.Execute(w, map[string]any{
		"CSS": template.CSS(chartCSS + pageCSS), "Chart": template.JS(chartScript), "Script": template.JS(pageScript), //nolint:gosec // embedded
		"Data": template.JS(data), "License": chartLicense, //nolint:gosec // escaped by Marshal
	})
	if err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// SaveHTML writes the page to a file.
func (r *Report) SaveHTML(path string) error {
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		return err
	}
	return durable.WriteFile(path, page.Bytes(), 0o644)
}
