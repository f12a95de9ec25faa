package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"dray/internal/durable"
)

// SchemaVersion is the version of the JSON that [Report] is: fields may be added
// within a version; readers refuse a newer one.
const SchemaVersion = 1

// Report is everything that a bench has found.
type Report struct {
	Schema   int           `json:"schema"`
	Begun    time.Time     `json:"begun"`
	Seed     uint64        `json:"seed"`
	Machine  Machine       `json:"machine"`
	Rivals   []*Rival      `json:"rivals"`
	Images   []CorpusImage `json:"images"`
	Faults   []Fault       `json:"faults,omitempty"`
	Networks []string      `json:"networks,omitempty"` // names, in the order in which they were given
	Notes    []string      `json:"notes,omitempty"`    // what could not be measured, and why
	Runs     []Run         `json:"runs"`

	Incomplete bool `json:"incomplete,omitempty"` // images could not be had: see Notes

	Profiles []Profile `json:"profiles,omitempty"` // of dray's memory, from runs that do not count
}

// Machine is where the bench ran.
type Machine struct {
	Kernel     string     `json:"kernel"`
	CPU        string     `json:"cpu"`
	CPUs       int        `json:"cpus"`
	Memory     int64      `json:"memory_bytes"`
	FileSystem string     `json:"file_system"`
	FreshFS    string     `json:"fresh_fs,omitempty"` // each run had a file system of its own, in a file on one of this type
	Cgroup     int        `json:"cgroup_version"`     // 0: none could be used
	Root       bool       `json:"root"`
	Load       [3]float64 `json:"load"` // before the first run
	DropCaches int        `json:"drop_caches"`
	Program    string     `json:"program"` // version of the harness
}

// Modes of a run.
const (
	Individual = "individual" // a fresh server and store for the image
	Continuous = "continuous" // one server and store for all images, one after another
)

// Run is one rival asked once, for one image or, in continuous mode, for all.
type Run struct {
	Rival      string `json:"rival"`
	Image      string `json:"image"` // "" in continuous mode
	Mode       string `json:"mode"`
	Network    string `json:"network"`
	Repetition int    `json:"repetition"`
	Order      int    `json:"order"`             // in which the runs were made
	Error      string `json:"error,omitempty"`   // the run failed: no figure counts
	Cleanup    string `json:"cleanup,omitempty"` // what it left behind that could not be removed, or had to be killed

	StartSeconds     float64 `json:"start_seconds,omitempty"`      // from exec to ready
	Seconds          float64 `json:"seconds"`                      // from the request to the mounted root
	MountSeconds     float64 `json:"mount_seconds,omitempty"`      // the image is in the store: mounting it once more
	FirstByteSeconds float64 `json:"first_byte_seconds,omitempty"` // from the request to a byte of a file in the mounted root
	CPUSeconds       float64 `json:"cpu_seconds"`

	PeakRSS         int64 `json:"peak_rss_bytes"`                   // of the largest process: VmHWM, as time -v says; 0 is unknown
	PeakRSSSum      int64 `json:"peak_rss_sum_bytes"`               // of all processes at one moment, sampled
	IdleRSS         int64 `json:"idle_rss_bytes,omitempty"`         // of the server, before the request
	PeakCgroup      int64 `json:"peak_cgroup_bytes,omitempty"`      // with page cache and kernel memory
	PeakCgroupAnon  int64 `json:"peak_cgroup_anon_bytes,omitempty"` // without page cache, sampled
	OOMKills        int64 `json:"oom_kills,omitempty"`
	Storage         Usage `json:"storage"`
	NetworkBytes    int64 `json:"network_bytes"`
	NetworkRequests int64 `json:"network_requests"`

	OthersCPU float64 `json:"others_cpu"` // share of the machine that others used meanwhile
	Disturbed bool    `json:"disturbed"`
	Points    []Point `json:"points,omitempty"`
	Timeline  []Span  `json:"timeline,omitempty"` // of a dray, individual mode
}

// disturbedShare is the share of the machine that others may use before a run
// counts as disturbed.
const disturbedShare = 0.10

// Rival is a program under test.
type Rival struct {
	Name    string `json:"name"` // as it was given
	Kind    string `json:"kind"`
	Path    string `json:"path,omitempty"`
	Version string `json:"version"`

	driver // how it is measured; empty where it cannot be, and in reports that were read
}

// Fault is something that the registry does wrong, once in so many requests for
// blobs.
type Fault struct {
	Name  string        `json:"name"`
	Every int64         `json:"every"`
	code  int           // answer with it
	cut   bool          // end the connection in the middle of the answer
	stall time.Duration // answer late
}

// Point is what the processes of a run held and had used at one moment.
type Point struct {
	Seconds    float64 `json:"s"`   // since the request
	RSSBytes   int64   `json:"rss"` // sum over all processes
	CPUSeconds float64 `json:"cpu"` // since the run began
}

// Usage is what a directory takes on the disk, hard links counted once.
type Usage struct {
	Blocks   int64 `json:"blocks_bytes"`
	Apparent int64 `json:"apparent_bytes"`
	Files    int64 `json:"files"`
}

// Span is one stage of a pull, or one layer in it; seconds since the request.
type Span struct {
	Name  string  `json:"name"` // resolve, layers, sync, mount, answer; or layer
	Layer string  `json:"layer,omitempty"`
	Bytes int64   `json:"bytes,omitempty"` // of the layer, as it was sent
	Begin float64 `json:"begin"`
	End   float64 `json:"end"`
}

// Profile is the memory report of one pull, as heaptrack makes them for others.
type Profile struct {
	Rival     string     `json:"rival"`
	Image     string     `json:"image"`
	Error     string     `json:"error,omitempty"`
	Seconds   float64    `json:"seconds"` // of the pull
	PeakRSS   int64      `json:"peak_rss_bytes"`
	Files     string     `json:"files,omitempty"` // directory of the pprof files
	Recording *Recording `json:"recording,omitempty"`
}

// Recording is what a program allocated between two cuts, without what the recorder
// itself did, which is estimated.
type Recording struct {
	Seconds         float64 `json:"seconds"`
	AllocatedBytes  int64   `json:"allocated_bytes"`     // in total, whether freed or not
	Allocations     int64   `json:"allocations"`         // calls
	Temporary       int64   `json:"temporary"`           // of them, those that were garbage at the end
	PeakHeapBytes   int64   `json:"peak_heap_bytes"`     // objects, garbage not yet collected included; sampled
	PeakLiveBytes   int64   `json:"peak_live_bytes"`     // the most that a collection left
	LiveBeforeBytes int64   `json:"live_before_bytes"`   // after a collection
	LiveAfterBytes  int64   `json:"live_after_bytes"`    // after a collection
	Collections     int64   `json:"garbage_collections"` // the cuts' own included
	Peak            []Site  `json:"peak_sites"`          // what was live when most was, by place, sampled
	Allocated       []Site  `json:"allocated_sites"`     // what was allocated since the program's start, by place, sampled
}

// Site is a place in the program and what it has allocated.
type Site struct {
	Place   string `json:"place"` // function file:line, and dray's own caller of it
	Bytes   int64  `json:"bytes"`
	Objects int64  `json:"objects"`
}

// ErrNewerSchema reports a report that this program is too old for.
var ErrNewerSchema = errors.New("the report is of a newer schema: use a newer dray")

// ReadReport reads a report that [Report.Write] wrote.
func ReadReport(path string) (*Report, error) {
	raw, err := os.ReadFile(path) //nolint:gosec // the user's file
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var head struct{ Schema int }
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("read report %s: %w", path, err)
	}
	if head.Schema > SchemaVersion {
		return nil, fmt.Errorf("read report %s: schema %d, known is %d: %w", path, head.Schema, SchemaVersion, ErrNewerSchema)
	}
	if head.Schema < 1 {
		return nil, fmt.Errorf("read report %s: not a report of dray bench", path)
	}
	r := &Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("read report %s: %w", path, err)
	}
	if slices.Contains(r.Rivals, nil) {
		return nil, fmt.Errorf("read report %s: a rival without a name", path)
	}
	return r, nil
}

// Write writes the report as JSON.
func (r *Report) Write(path string) error {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return durable.WriteFile(path, append(raw, '\n'), 0o644)
}

// Failed tells whether any run failed, or could not be made.
func (r *Report) Failed() bool {
	if r.Incomplete {
		return true
	}
	for i := range r.Runs {
		if r.Runs[i].Error != "" {
			return true
		}
	}
	return false
}

// Merge adds the runs of other reports, their rivals and images. A rival that has the
// name of another version in an earlier report gets a name of its own, so that the two
// are compared, not mixed.
func Merge(reports ...*Report) *Report {
	merged := *reports[0]
	merged.Rivals, merged.Images, merged.Notes = slices.Clone(merged.Rivals), slices.Clone(merged.Images), slices.Clone(merged.Notes)
	merged.Runs, merged.Profiles = slices.Clone(merged.Runs), slices.Clone(merged.Profiles)
	for _, r := range reports[1:] {
		merged.Incomplete = merged.Incomplete || r.Incomplete
		names := map[string]string{}
		for _, rival := range r.Rivals {
			names[rival.Name] = merged.adopt(rival)
		}
		for _, i := range r.Images {
			known := merged.image(i.Name)
			if known == nil {
				merged.Images = append(merged.Images, i)
			} else if known.Manifest != i.Manifest {
				merged.Notes = append(merged.Notes, fmt.Sprintf("image %s is %s in one report and %s in another: its figures are not comparable", i.Name, known.Manifest, i.Manifest))
			}
		}
		if r.Machine.Kernel != merged.Machine.Kernel || r.Machine.CPU != merged.Machine.CPU {
			merged.Notes = append(merged.Notes, "merged from different machines: compare with care")
		}
		if was, is := merged.Machine.fileSystem(), r.Machine.fileSystem(); was != is {
			merged.Notes = append(merged.Notes, fmt.Sprintf("merged from different file systems, %s and %s: compare with care", was, is))
		}
		merged.Networks = append(merged.Networks[:len(merged.Networks):len(merged.Networks)], r.Networks...)
		merged.Notes = append(merged.Notes, r.Notes...)
		for _, run := range r.Runs {
			run.Rival = cmp.Or(names[run.Rival], run.Rival)
			merged.Runs = append(merged.Runs, run)
		}
		for _, profile := range r.Profiles {
			profile.Rival = cmp.Or(names[profile.Rival], profile.Rival)
			merged.Profiles = append(merged.Profiles, profile)
		}
	}
	return &merged
}

// adopt adds a rival unless it is there, and returns the name that it has now.
func (r *Report) adopt(rival *Rival) string {
	name := rival.Name
	for n := 2; ; n++ {
		known := r.rival(name)
		if known == nil {
			break
		}
		if known.Kind == rival.Kind && known.Version == rival.Version {
			return name
		}
		name = fmt.Sprintf("%s (%d)", rival.Name, n)
	}
	renamed := *rival
	renamed.Name = name
	r.Rivals = append(r.Rivals, &renamed)
	return name
}

func (r *Report) rival(name string) *Rival {
	for _, x := range r.Rivals {
		if x.Name == name {
			return x
		}
	}
	return nil
}

func (r *Report) image(name string) *CorpusImage {
	for i := range r.Images {
		if r.Images[i].Name == name {
			return &r.Images[i]
		}
	}
	return nil
}

// cell chooses the runs of one line of the report.
type cell struct{ Rival, Image, Mode, Network string }

// of returns the successful runs of a cell.
func (r *Report) of(c cell) (runs []*Run) {
	for i := range r.Runs {
		run := &r.Runs[i]
		if (cell{run.Rival, run.Image, run.Mode, run.Network}) == c && run.Error == "" {
			runs = append(runs, run)
		}
	}
	return runs
}

// values returns one figure of each run.
func values(runs []*Run, figure func(*Run) float64) []float64 {
	v := make([]float64, len(runs))
	for i, r := range runs {
		v[i] = figure(r)
	}
	return v
}

// known leaves out the runs of which nobody knows a figure that no run has as 0.
func known(v []float64) []float64 {
	return slices.DeleteFunc(v, func(f float64) bool { return f == 0 })
}

// networks lists the networks of the runs, in the order in which they were given; those
// of older reports as they appear.
func (r *Report) networks() (names []string) {
	seen := map[string]bool{}
	for i := range r.Runs {
		seen[r.Runs[i].Network] = true
	}
	for _, n := range r.Networks {
		if seen[n] {
			seen[n] = false
			names = append(names, n)
		}
	}
	for i := range r.Runs {
		if n := r.Runs[i].Network; seen[n] {
			seen[n] = false
			names = append(names, n)
		}
	}
	return names
}
