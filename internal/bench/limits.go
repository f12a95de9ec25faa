package bench

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limit is what one image may take: whole seconds and megabytes. 0 is no limit.
type Limit struct {
	Image   string  `json:"image"` // of the corpus, "" with the key "continuous"
	Time    float64 `json:"time"`
	Memory  float64 `json:"memory"`
	Storage float64 `json:"storage"`
}

// Limits is a limits file: by name.
type Limits map[string]Limit

// ReadLimits reads a limits file.
func ReadLimits(path string) (*Limits, error) {
	raw, err := os.ReadFile(path) //nolint:gosec // the user's file
	if err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	l := &Limits{}
	if err := json.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("read limits %s: %w", path, err)
	}
	return l, nil
}

// Check holds the medians of the first server to the limits. Memory and storage
// beyond them are errors, and so is memory that is not known; time is a warning, as it
// depends on the machine.
func (l *Limits) Check(r *Report) (exceeded []error, warnings []string) {
	for _, name := range slices.Sorted(maps.Keys(*l)) {
		limit := (*l)[name]
		c := cell{r.Rivals[0].Name, limit.Image, Individual, r.networks()[0]}
		if limit.Image == "" {
			c.Image = name
		}
		if name == Continuous {
			c.Image, c.Mode = "", Continuous
		}
		runs := r.of(c)
		if len(runs) == 0 {
			exceeded = append(exceeded, fmt.Errorf("%s: no run of %s to hold to its limits", name, c.Rival))
			continue
		}
		median := func(f func(*Run) float64) float64 { return Median(values(runs, f)) }
		peaks := known(values(runs, func(r *Run) float64 { return float64(r.PeakRSS) / 1e6 }))
		if v := Median(peaks); limit.Memory > 0 && len(peaks) < len(runs) {
			exceeded = append(exceeded, fmt.Errorf("%s: memory peak unknown: no process was seen in %d of %d runs", name, len(runs)-len(peaks), len(runs)))
		} else if limit.Memory > 0 && v > limit.Memory {
			exceeded = append(exceeded, fmt.Errorf("%s: memory peak %.1f MB, the limit is %g MB", name, v, limit.Memory))
		}
		if v := median(func(r *Run) float64 { return float64(r.Storage.Blocks) / 1e6 }); limit.Storage > 0 && v > limit.Storage {
			exceeded = append(exceeded, fmt.Errorf("%s: storage %.1f MB, the limit is %g MB", name, v, limit.Storage))
		}
		if v := median(func(r *Run) float64 { return r.Seconds }); limit.Time > 0 && v > limit.Time {
			warnings = append(warnings, fmt.Sprintf("%s: %.1f s, the limit is %g s", name, v, limit.Time))
		}
	}
	return exceeded, warnings
}

// BaselinePath returns the file of a baseline.
func BaselinePath(dir, name string) string {
	return filepath.Join(dir, strings.ReplaceAll(name, string(filepath.Separator), "-")+".json")
}

// SaveBaseline saves the report as a baseline.
func SaveBaseline(dir, name string, r *Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for others to read
		return fmt.Errorf("save baseline: %w", err)
	}
	return r.Write(BaselinePath(dir, name))
}
