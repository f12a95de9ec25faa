//go:build linux

package bench

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"time"
)

// logLine is what a timeline needs of a line of dray's log (docs/formats.md).
type logLine struct {
	Time    time.Time     `json:"time"`
	Level   string        `json:"level"`
	Message string        `json:"msg"`
	Elapsed time.Duration `json:"elapsed"`
	DiffID  string        `json:"diff_id"`
	Stored  int64         `json:"stored_bytes"`
	Stages  struct {
		Resolve time.Duration `json:"resolve"`
		Layers  time.Duration `json:"layers"`
		Sync    time.Duration `json:"sync"`
	} `json:"stages"`
}

// timeline reads the stages of the pull of one image from dray's log. A log without
// them, as an older dray's, gives none.
func timeline(log []byte, begin time.Time, seconds float64) (spans []Span) {
	at := func(t time.Time) float64 { return min(max(0, t.Sub(begin).Seconds()), seconds) }
	var pulled, mounted time.Time
	for line := range bytes.Lines(log) {
		var l logLine
		if json.Unmarshal(line, &l) != nil || l.Time.Before(begin) {
			continue // not of the log, or of the start
		}
		switch {
		case l.Message == "layer stored":
			spans = append(spans, Span{"layer", l.DiffID, l.Stored, at(l.Time.Add(-l.Elapsed)), at(l.Time)})
		case l.Message == "image pulled" && l.Stages.Resolve > 0:
			pulled = l.Time
			resolve := l.Time.Add(-l.Elapsed)
			sync := resolve.Add(l.Stages.Resolve + l.Stages.Layers)
			spans = append(spans, Span{Name: "resolve", Begin: at(resolve), End: at(resolve.Add(l.Stages.Resolve))},
				Span{Name: "layers", Begin: at(resolve.Add(l.Stages.Resolve)), End: at(sync)},
				Span{Name: "sync", Begin: at(sync), End: at(sync.Add(l.Stages.Sync))})
		case l.Message == "mounted" && mounted.IsZero():
			mounted = l.Time
		}
	}
	if pulled.IsZero() {
		return nil
	}
	if !mounted.IsZero() {
		spans = append(spans, Span{Name: "mount", Begin: at(pulled), End: at(mounted)}, Span{Name: "answer", Begin: at(mounted), End: seconds})
	}
	slices.SortStableFunc(spans, func(a, b Span) int {
		return cmp.Or(min(len(a.Layer), 1)-min(len(b.Layer), 1), cmp.Compare(a.Begin, b.Begin)) // layers last
	})
	return spans
}

// drayTimeline is that of the run under way, nil where there is none.
func drayTimeline(s *site, rival *Rival, begin time.Time, seconds float64) []Span {
	if s.server == nil || rival.Kind != "dray" && rival.Kind != "dray-guest" {
		return nil
	}
	return timeline(s.server.complaints(), begin.Round(0), seconds) // the log tells no monotonic time
}
