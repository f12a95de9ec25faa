package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dray/internal/bench"
	"dray/internal/testkit"
)

// pageReport is a report whose figures are known and whose names want escaping.
func pageReport() *bench.Report {
	r := &bench.Report{
		Schema: bench.SchemaVersion, Begun: time.Unix(0, 0).UTC(), Machine: bench.Machine{CPUs: 2, CPU: "</script><b>", Kernel: "k"},
		Rivals: []*bench.Rival{{Name: "a"}, {Name: "b & c"}}, Images: []bench.CorpusImage{{Name: "small"}, {Name: "large"}},
	}
	for repetition := range 3 {
		for _, rival := range r.Rivals {
			for i, image := range r.Images {
				r.Runs = append(r.Runs, bench.Run{
					Rival: rival.Name, Image: image.Name, Mode: bench.Individual, Network: "loopback", Repetition: repetition,
					Seconds: float64(i+1) + float64(repetition)/8, CPUSeconds: 0.5, PeakRSS: 20 << 20, Storage: bench.Usage{Blocks: 100 << 20},
					Timeline: []bench.Span{{Name: "resolve", End: 0.25}, {Name: "layer", Layer: "sha256:0123456789", Bytes: 1e6, Begin: 0.25, End: 1}},
					Points:   []bench.Point{{Seconds: 0, RSSBytes: 1 << 20}, {Seconds: 1, RSSBytes: 20 << 20, CPUSeconds: 0.5}},
				})
			}
		}
	}
	r.Profiles = []bench.Profile{{
		Rival: "a", Image: "small", Seconds: 2, PeakRSS: 30 << 20,
		Recording: &bench.Recording{AllocatedBytes: 123456789, Allocations: 4242, Temporary: 4000, Peak: []bench.Site{{Place: "dray/<x>", Bytes: 1e6, Objects: 3}}},
	}}
	return r
}

func TestPageStandsAlone(t *testing.T) {
	t.Parallel()
	var page bytes.Buffer
	if err := pageReport().WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), "</script><b>") {
		t.Error("data can end the script")
	}
	if found := regexp.MustCompile(`(src|href)\s*=\s*["']?https?:`).FindString(page.String()); found != "" {
		t.Errorf("the page fetches something: %s", found)
	}
	if page.Len() > 1<<20 {
		t.Errorf("the page has %d bytes", page.Len())
	}
}

// What is drawn over time is the run in the middle, whatever the order of the runs, and
// says its own time.
func TestRunInTheMiddleIsDrawn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		seconds []float64
		want    string
	}{
		"odd":  {[]float64{0.5, 0.25, 1}, "0.5"},
		"even": {[]float64{0.75, 1, 0.25, 0.125}, "0.25"},
	} {
		r := &bench.Report{Rivals: []*bench.Rival{{Name: "a"}}, Images: []bench.CorpusImage{{Name: "i"}}}
		for _, s := range test.seconds {
			r.Runs = append(r.Runs, bench.Run{
				Rival: "a", Image: "i", Mode: bench.Individual, Network: "loopback", Seconds: s,
				Points: []bench.Point{{Seconds: s}}, Timeline: []bench.Span{{Name: "mount", End: s}},
			})
		}
		var page bytes.Buffer
		if err := r.WriteHTML(&page); err != nil {
			t.Fatal(err)
		}
		if want := `"timeline":[{"name":"mount","begin":0,"end":` + test.want + `}],"timeline_seconds":` + test.want; !strings.Contains(page.String(), want) {
			t.Errorf("%s: the page does not have %s: %s", name, want, regexp.MustCompile(`"timeline".*?[}]`).FindString(page.String()))
		}
	}
}

// act does in the browser what a reader does: filter the table, sort it by time, and
// look whether anything is cut off.
const act = `<script>
const rows = () => [...document.querySelectorAll("#table tbody tr")].map((r) => r.dataset.cell.split("|").slice(0, 2).join(" ")).join(", ");
const root = document.documentElement, time = [...document.querySelectorAll("#table th")].find((h) => h.textContent === "Time");
const filter = document.getElementById("filter"), type = (s) => { filter.value = s; filter.dispatchEvent(new Event("input")); };
type("LARGE");
root.dataset.filtered = rows();
type("individual");
time.click(); root.dataset.ascending = rows();
time.click(); root.dataset.descending = rows();
type("");
root.dataset.colors = new Set([...document.querySelector(".legend").querySelectorAll("i")].map((i) => i.style.background)).size;
root.dataset.overflow = root.scrollWidth > innerWidth;
dispatchEvent(new Event("beforeprint"));
root.dataset.paper = getComputedStyle(document.body).backgroundColor;
dispatchEvent(new Event("afterprint"));
</script>`

// profileDir returns a directory of a browser, whose helpers may still write to it when
// the browser itself has ended.
func profileDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "browser") //nolint:usetesting // it is removed once
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := os.RemoveAll(dir)
		for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); err = os.RemoveAll(dir) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}

// browse loads the report's page in a real browser and returns what became of it.
func browse(t *testing.T, r *bench.Report, size string) string {
	t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		testkit.Lacking(t, "chromium", err.Error())
	}
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(path, append(page.Bytes(), act...), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // a browser that hangs
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size="+size,
		"--user-data-dir="+profileDir(t), "--virtual-time-budget=2000", "--dump-dom", "file://"+path)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "CONSOLE") {
			t.Errorf("the browser complains: %s", line)
		}
	}
	return out.String()
}

func TestPageOnASmallScreen(t *testing.T) {
	if dom := browse(t, pageReport(), "500,900"); !strings.Contains(dom, `data-overflow="false"`) {
		t.Errorf("something is cut off: %s", regexp.MustCompile(`<html[^>]*>`).FindString(dom))
	}
}

// The page in a real browser: no error, all charts, and the figures are the report's.
func TestPageInBrowser(t *testing.T) {
	dom := browse(t, pageReport(), "1400,2000")
	if !strings.Contains(dom, `data-plots="8"`) { // time, memory, CPU, storage; memory and CPU over time; two timelines
		t.Errorf("not all charts were drawn: %s", regexp.MustCompile(`<html[^>]*>`).FindString(dom))
	}
	for _, want := range []string{
		`data-filtered="a large, b &amp; c large"`, `data-ascending="a small, b &amp; c small, a large, b &amp; c large"`,
		`data-descending="a large, b &amp; c large, a small, b &amp; c small"`, `data-overflow="false"`, `data-paper="rgb(255, 255, 255)"`,
		`data-key="peak_rss_bytes" data-value="20971520"`, `data-key="storage_bytes" data-value="104857600"`, `data-key="cpu_seconds" data-value="0.5"`,
		`data-spans="[[&quot;resolve&quot;,0,0.25],[&quot;layer&quot;,0.25,1]]"`,
		`data-key="allocated_bytes" data-value="123456789">123 MB (61.7 MB/s)<`, `data-value="4242">4242 (2121/s)<`, `>dray/&lt;x&gt;<`,
	} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page does not say %s", want)
		}
	}
	for _, rival := range []string{"a", "b &amp; c"} {
		for image, want := range map[string]string{"small": "1.125", "large": "2.125"} {
			row := fmt.Sprintf(`(?s)<tr data-cell="%s\|%s\|individual\|loopback">.*?data-key="seconds" data-value="%s"`, rival, image, regexp.QuoteMeta(want))
			if !regexp.MustCompile(row).MatchString(dom) {
				t.Errorf("%s, %s: the table does not say %s", rival, image, want)
			}
		}
	}
}

// Every server has a colour of its own, and what nobody knows of it is said.
func TestPageOfManyServers(t *testing.T) {
	r := pageReport()
	for n := range 20 {
		name := fmt.Sprintf("server %d", n)
		r.Rivals = append(r.Rivals, &bench.Rival{Name: name})
		r.Runs = append(r.Runs, bench.Run{Rival: name, Image: "small", Mode: bench.Individual, Network: "loopback", Seconds: 1})
	}
	dom := browse(t, r, "1400,2000")
	if !strings.Contains(dom, `data-colors="22"`) {
		t.Errorf("servers look the same: %s", regexp.MustCompile(`<html[^>]*>`).FindString(dom))
	}
	if n := len(regexp.MustCompile(`data-key="peak_rss_bytes"[^>]*>unknown<`).FindAllString(dom, -1)); n != 20 {
		t.Errorf("the memory of %d servers is unknown, want 20", n)
	}
}
