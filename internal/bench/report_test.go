package bench_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dray/internal/bench"
)

// Two versions under one name are compared, not mixed; a report merged with itself has
// each server once.
func TestMergeKeepsVersionsApart(t *testing.T) {
	t.Parallel()
	before, after := pageReport(), pageReport()
	before.Rivals[0].Version, after.Rivals[0].Version = "1", "2"
	after.Images[0].Manifest = "sha256:other"
	merged := bench.Merge(before, after, after)
	var names []string
	for _, r := range merged.Rivals {
		names = append(names, r.Name+" "+r.Version)
	}
	if got := strings.Join(names, ", "); got != "a 1, b & c , a (2) 2" {
		t.Errorf("rivals %s", got)
	}
	counts := map[string]int{}
	for _, r := range merged.Runs {
		counts[r.Rival]++
	}
	if counts["a"] != 6 || counts["a (2)"] != 12 || counts["b & c"] != 18 {
		t.Errorf("runs %v", counts)
	}
	if len(before.Rivals) != 2 || len(before.Runs) != 12 || after.Rivals[0].Name != "a" {
		t.Error("a report that was merged has changed")
	}
	var out bytes.Buffer
	if err := merged.WriteText(&out, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/ a (2)", "image small is  in one report and sha256:other in another"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the text does not say %q", want)
		}
	}
}

// What is JSON, and no report, is refused or printed, and crashes nothing.
func TestOddReports(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{
		`{"schema": 1, "rivals": [null]}`:                           "a rival without a name",
		`{"schema": 1, "profiles": [{"image": "i"}], "runs": [{}]}`: "",
		`{"schema": 1, "rivals": [{"name": "a"}, {"name": "b"}]}`:   "",
		`{"schema": 1, "runs": {}}`:                                 "cannot unmarshal",
		`[]`:                                                        "cannot unmarshal",
		`{"schema": 1, "rivals": [{"name": "a"}], "runs": [{"rival": "a", "image": "gone", "mode": "individual"}]}`: "",
	} {
		path := filepath.Join(t.TempDir(), "r.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := bench.ReadReport(path)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", content, err)
			}
			continue
		}
		var out bytes.Buffer
		if err != nil || r.WriteText(&out, r) != nil || r.WriteHTML(&out) != nil {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// The order is the one that was asked for, not that of runs that were shuffled.
func TestOrderOfNetworks(t *testing.T) {
	t.Parallel()
	r := &bench.Report{
		Rivals: []*bench.Rival{{Name: "a"}, {Name: "b"}}, Images: []bench.CorpusImage{{Name: "i"}, {Name: "j"}}, Networks: []string{"fast", "slow"},
	}
	for _, network := range []string{"slow", "fast"} {
		for _, c := range []string{"b j", "a j", "a i", "b i"} {
			r.Runs = append(r.Runs, bench.Run{Rival: c[:1], Image: c[2:], Mode: bench.Individual, Network: network, Seconds: map[string]float64{"slow": 9, "fast": 1}[network]})
		}
	}
	if _, warnings := (&bench.Limits{"i": {Time: 5}}).Check(r); len(warnings) > 0 {
		t.Errorf("the limits are held to another network: %v", warnings)
	}
	var text, page bytes.Buffer
	if err := errors.Join(r.WriteText(&text, nil), r.WriteHTML(&page)); err != nil {
		t.Fatal(err)
	}
	if fast, slow := strings.Index(text.String(), "over fast"), strings.Index(text.String(), "over slow"); fast < 0 || slow < fast {
		t.Errorf("fast at %d, slow at %d", fast, slow)
	}
	if !strings.Contains(text.String(), "(1 run: no interval)") || !strings.Contains(text.String(), "1.00 (1 run)") {
		t.Errorf("an interval of one run: %s", text.String())
	}
	var order []string
	for _, m := range regexp.MustCompile(`"rival":"(.)","image":"(.)","mode":"individual","network":"(.)`).FindAllStringSubmatch(page.String(), -1) {
		order = append(order, strings.Join(m[1:], ""))
	}
	if got := strings.Join(order, " "); got != "aif ajf bif bjf ais ajs bis bjs" {
		t.Errorf("rows of the page: %s", got)
	}
}

// limitedReport has runs of "a" whose memory was known, or 0 where it was not.
func limitedReport(peaks ...int64) *bench.Report {
	r := &bench.Report{Rivals: []*bench.Rival{{Name: "a"}}, Images: []bench.CorpusImage{{Name: "i"}}}
	for n, peak := range peaks {
		r.Runs = append(r.Runs, bench.Run{
			Rival: "a", Image: "i", Mode: bench.Individual, Network: "loopback", Repetition: n,
			Seconds: 0.02, PeakRSS: peak, PeakRSSSum: peak, Storage: bench.Usage{Blocks: 3e6},
		})
	}
	return r
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		limits            bench.Limits
		peaks             []int64
		exceeded, warning string
	}{
		"generous":                  {bench.Limits{"i": {Time: 1, Memory: 3, Storage: 4}}, []int64{2e6}, "", ""},
		"none":                      {bench.Limits{"i": {}}, []int64{0}, "", ""},
		"memory":                    {bench.Limits{"m": {Image: "i", Memory: 1}}, []int64{2e6}, "m: memory peak 2.0 MB, the limit is 1 MB", ""},
		"memory that was not seen":  {bench.Limits{"m": {Image: "i", Memory: 1}}, []int64{0}, "m: memory peak unknown: ", ""},
		"memory that was seen once": {bench.Limits{"m": {Image: "i", Memory: 3}}, []int64{0, 2e6, 0}, "in 2 of 3 runs", ""},
		"storage":                   {bench.Limits{"i": {Storage: 2}}, []int64{2e6}, "i: storage 3.0 MB, the limit is 2 MB", ""},
		"time":                      {bench.Limits{"i": {Time: 0.01}}, []int64{2e6}, "", "i: 0.0 s, the limit is 0.01 s"},
		"no run":                    {bench.Limits{"other": {}}, []int64{2e6}, "other: no run of a", ""},
	} {
		exceeded, warnings := test.limits.Check(limitedReport(test.peaks...))
		if err := errors.Join(exceeded...); (err == nil) != (test.exceeded == "") || err != nil && !strings.Contains(err.Error(), test.exceeded) {
			t.Errorf("%s: got %v, want %q", name, err, test.exceeded)
		}
		if got := strings.Join(warnings, "\n"); got != test.warning {
			t.Errorf("%s: got warning %q, want %q", name, got, test.warning)
		}
	}
}

// What nobody saw is no figure: neither 0 nor a part of a median.
func TestUnknownMemory(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]*bench.Report{
		"unknown": limitedReport(0, 0), "2.00 MB": limitedReport(0, 2e6, 0),
	} {
		var text, page bytes.Buffer
		if err := errors.Join(r.WriteText(&text, nil), r.WriteHTML(&page)); err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"\nMemory peak: ", "\nMemory of all processes: "} {
			if !strings.Contains(text.String(), line+want+"\n") {
				t.Errorf("want %s%s: %s", line, want, text.String())
			}
		}
		if known := strings.Contains(page.String(), `"peak_rss_bytes":{"low":2000000,"middle":2000000,`); known != (want != "unknown") || strings.Contains(page.String(), `"peak_rss_bytes":{"low":0`) {
			t.Errorf("want %s: %s", want, regexp.MustCompile(`"figures":{.*?}}`).FindString(page.String()))
		}
	}
}

// Document 000's form: headings, names, and the three lines in their order.
func TestTextHasTheKnownForm(t *testing.T) {
	t.Parallel()
	report := pageReport()
	report.Images[0].Layers = []bench.CorpusLayer{{CompressedBytes: 4e6, UncompressedBytes: 10e6}}
	for _, r := range report.Runs[:3] {
		r.Mode, r.Image = bench.Continuous, ""
		report.Runs = append(report.Runs, r)
	}
	var out bytes.Buffer
	if err := report.WriteText(&out, report); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`(?m)^===== Testing server \(individual\): a =====\n\[small\]\nTime taken: 1\.13s\nMemory peak: 20\.97 MB\nStorage used: 104\.86 MB\n`,
		`(?m)^===== Testing server \(continuous\): a =====\nTime taken: [0-9.]+m?s\nMemory peak: 20\.97 MB\nStorage used: 104\.86 MB\n`,
		`(?m)^time:   \[[0-9.]+ (ms|s) [0-9.]+ (ms|s) [0-9.]+ (ms|s)\] \(3 runs\)$`,
		`(?m)^thrpt:  \[[0-9.]+ MiB/s 8\.4771 MiB/s [0-9.]+ MiB/s\] of uncompressed bytes$`,
		`(?m)^change: \[[+−][0-9.]+% [+−]0\.0000% [+−][0-9.]+%\] \(p = 1\.00 > 0\.05\)\n +No change in performance detected\.$`,
	} {
		if !regexp.MustCompile(want).Match(out.Bytes()) {
			t.Errorf("the report does not match %s:\n%s", want, out.String())
		}
	}
}
