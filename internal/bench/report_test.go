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
