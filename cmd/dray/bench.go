//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/bench"
	"dray/internal/registry"
	"dray/internal/userns"
)

// benchFlags are what `dray bench` can be told.
type benchFlags struct {
	corpus, corpusDir, work string
	freshFS                 bool
	only, modes, networks   []string
	faults                  []string
	repetitions             int
	noWarmUp                bool
	seed                    uint64
	dropCaches              int
	timeout                 time.Duration
	memoryLimit             string
	saveJSON, html, limits  string
	baseline, save, saveDir string
	profile, registry       string
	mirror                  string
	images                  []string
}

func newBenchCommand(app *cli.App) *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench SERVER...",
		Short: "Measure programs that pull images, all in the same way",
		Long: `Measures every SERVER with every image: individually (a fresh server and store for
each image) and continuously (one server, all images), against an embedded registry
on loopback. Prints time, memory, storage, CPU and network, with intervals and ratios.

SERVER is a path, recognised by its name: imagepuller, image-rs or ttrpc-cdh, dray,
dray-guest; or containerd[:SNAPSHOTTER [proxy=PLUGIN]], podman, skopeo+umoci from the
PATH; or KIND=PATH or NAME@KIND=PATH; or [NAME@]command:TEMPLATE, any program that
pulls {ref} into {dir}; or floor (fetch, inflate and hash, nothing more) and untar (GNU
tar over layers that are inflated already). Arguments for a server follow its path, and
NAME=VALUE for its environment.

Images come from a corpus: see "dray bench corpus build"; or --image names them, each
fetched once. Most servers need root; without it, what can be measured is.

  dray bench bin/dray-guest podman containerd -n 10 -o r.json --html r.html
  dray bench ./imagepuller ./ttrpc-cdh bin/dray-guest --corpus contrast
  dray bench bin/dray --image ghcr.io/me/app:v2 --profile --baseline before` + cli.ExitCodes(dray.KindNotFound),
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("seed") {
				f.seed = rand.Uint64() //nolint:gosec // an order that is recorded
			}
			return runBench(cmd.Context(), app, f, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.corpus, "corpus", "debian", "`images` to pull: debian, built in --corpus-dir when they are missing, or contrast, those of Contrast's evaluation, fetched once")
	flags.StringSliceVar(&f.images, "image", nil, "`references` of images to pull instead, fetched into --corpus-dir once")
	flags.StringVar(&f.mirror, "mirror", "", "fetch the images of --image and --corpus contrast from `[http://]HOST[:PORT][/PREFIX]` first, a mirror of the registries that they name")
	flags.StringVar(&f.registry, "registry", "", "pull from `[http://]HOST[:PORT][/PREFIX]`, which has the corpus's images by their names, or from \"origin\", where each was fetched, not from the embedded registry")
	flags.StringVar(&f.corpusDir, "corpus-dir", "/var/tmp/dray-corpus", "`directory` of the corpus")
	flags.StringSliceVar(&f.only, "only", nil, "`names` of images to pull (default: all of the corpus that are not heavy)")
	flags.StringSliceVar(&f.modes, "mode", nil, "individual, continuous (default both)")
	flags.StringSliceVar(&f.networks, "net", nil, "`network`s between registry and server: BANDWIDTH[/LATENCY[/JITTER[/PER-CONNECTION]]], as 100mbit/20ms, or loopback")
	flags.StringSliceVar(&f.faults, "fault", nil, "`faults` of the registry: 503/10, cut/10 or stall=2s/10, for every tenth blob")
	flags.IntVarP(&f.repetitions, "repetitions", "n", 5, "how often everything is measured")
	flags.BoolVar(&f.noWarmUp, "no-warm-up", false, "leave out the run of each server that does not count")
	flags.Uint64Var(&f.seed, "seed", 0, "`number` that the order of runs comes from (default random, recorded)")
	flags.IntVar(&f.dropCaches, "drop-caches", 3, "what to write to drop_caches before each run as root; 0 keeps the page cache")
	flags.DurationVar(&f.timeout, "timeout", bench.DefaultTimeout, "how long one run may take")
	flags.StringVar(&f.memoryLimit, "memory-limit", "", "`size` that the control group of a run is limited to, page cache counted")
	flags.StringVar(&f.work, "work", "/var/tmp", "`directory` for stores")
	flags.BoolVar(&f.freshFS, "fresh-fs", true, "give each run an ext4 of its own, in a file in --work, as root; =false: directories of --work's own file system, whatever it is")
	flags.StringVarP(&f.saveJSON, "output", "o", "", "`file` to write the report to as JSON")
	flags.StringVar(&f.html, "html", "", "`file` to write a page with charts to")
	flags.StringVar(&f.profile, "profile", "", "make a memory report of dray: pprof files go to `directory` (default beside the JSON)")
	flags.Lookup("profile").NoOptDefVal = besideReport
	flags.StringVar(&f.limits, "limits", "", "`file` of limits, {\"name\": {\"image\", \"time\", \"memory\", \"storage\"}}, to hold the first server to")
	flags.StringVar(&f.baseline, "baseline", "", "`name` of a saved report to compare with")
	flags.StringVar(&f.save, "save", "", "`name` to save this report under, as a baseline")
	flags.StringVar(&f.saveDir, "baseline-dir", "bench-baselines", "`directory` of baselines")
	cmd.AddCommand(newBenchCorpusCommand(app), newBenchReportCommand(app), newBenchFloorCommand())
	return cmd
}

// besideReport is --profile without a directory.
const besideReport = "beside"

// newBenchFloorCommand is what the server "floor" runs.
func newBenchFloorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "do-floor REF", Short: "Fetch, inflate and hash an image, and keep nothing", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return bench.Floor(cmd.Context(), args[0]) },
	}
}

func runBench(ctx context.Context, app *cli.App, f benchFlags, servers []string) error {
	if err := userns.Isolate(unix.MS_SLAVE); err != nil {
		return err
	}
	o, err := f.options(ctx, app, servers)
	if err != nil {
		return err
	}
	var limits *bench.Limits
	if f.limits != "" {
		if limits, err = bench.ReadLimits(f.limits); err != nil {
			return err
		}
	}
	var baseline *bench.Report
	if f.baseline != "" {
		if baseline, err = bench.ReadReport(bench.BaselinePath(f.saveDir, f.baseline)); err != nil {
			return err
		}
	}
	report, err := bench.Bench(ctx, o)
	if errors.Is(err, bench.ErrSameName) || errors.Is(err, bench.ErrNoProfile) {
		return cli.Usage("%w", err)
	}
	if report == nil {
		return err
	}
	return errors.Join(err, finishBench(app, f, report, baseline, limits))
}

// finishBench prints and saves the report, and says how it went.
func finishBench(app *cli.App, f benchFlags, report, baseline *bench.Report, limits *bench.Limits) error {
	var problems []error // of files: the figures are printed all the same
	if f.saveJSON != "" {
		problems = append(problems, report.Write(f.saveJSON))
	}
	if f.html != "" {
		problems = append(problems, report.SaveHTML(f.html))
	}
	if f.save != "" {
		problems = append(problems, bench.SaveBaseline(f.saveDir, f.save, report))
	}
	problems = append(problems, printReport(app, report, baseline))
	if limits != nil {
		exceeded, warnings := limits.Check(report)
		for _, w := range warnings {
			_, _ = fmt.Fprintf(app.Stderr, "bench: warning: %s\n", w)
		}
		if len(exceeded) > 0 {
			problems = append(problems, fmt.Errorf("bench: %w", errors.Join(exceeded...)))
		}
	}
	if report.Failed() {
		problems = append(problems, errors.New("bench: some runs failed: see the report"))
	}
	return errors.Join(problems...)
}

func (f *benchFlags) options(ctx context.Context, app *cli.App, servers []string) (bench.Options, error) {
	o := bench.Options{
		Modes: f.modes, Repetitions: f.repetitions, WarmUp: !f.noWarmUp, Seed: f.seed,
		DropCaches: f.dropCaches, Timeout: f.timeout, Work: f.work, SameFS: !f.freshFS, Program: version(), Log: app.Log(),
		Say: func(format string, args ...any) { _, _ = fmt.Fprintf(app.Stderr, format+"\n", args...) },
	}
	if o.ProfileDir = f.profile; f.profile == besideReport {
		o.ProfileDir = strings.TrimSuffix(cmp.Or(f.saveJSON, "bench"), ".json") + ".profiles"
	}
	var err error
	for _, m := range f.modes {
		if m != bench.Individual && m != bench.Continuous {
			return o, cli.Usage("--mode %q: want individual or continuous", m)
		}
	}
	if f.repetitions < 1 {
		return o, cli.Usage("--repetitions %d: want at least 1", f.repetitions)
	}
	if f.dropCaches < 0 || f.dropCaches > 3 {
		return o, cli.Usage("--drop-caches %d: want 0 to 3", f.dropCaches)
	}
	if f.corpus != "debian" && f.corpus != contrastImages {
		return o, cli.Usage("--corpus %q: want debian or %s", f.corpus, contrastImages)
	}
	if o.Registry = f.registry; f.registry != "" && len(f.networks)+len(f.faults) > 0 {
		return o, cli.Usage("--net and --fault are of the embedded registry: leave out --registry")
	}
	if f.memoryLimit != "" {
		if o.MemoryLimit, err = cli.ParseSize(f.memoryLimit); err != nil {
			return o, cli.Usage("--memory-limit: %w", err)
		}
	}
	for _, n := range f.networks {
		network, err := bench.ParseNetwork(n)
		if err != nil {
			return o, cli.Usage("%w", err)
		}
		o.Networks = append(o.Networks, network)
	}
	for _, s := range f.faults {
		fault, err := bench.ParseFault(s)
		if err != nil {
			return o, cli.Usage("%w", err)
		}
		o.Faults = append(o.Faults, fault)
	}
	for _, s := range servers {
		r, err := bench.ParseRival(ctx, s)
		if err != nil {
			return o, cli.Usage("%w", err)
		}
		o.Rivals = append(o.Rivals, r)
	}
	return o, f.chooseImages(ctx, app, &o)
}

// contrastImages is the --corpus of [bench.KnownImages].
const contrastImages = "contrast"

// chooseImages opens the corpus, with all images that are wanted in it.
func (f *benchFlags) chooseImages(ctx context.Context, app *cli.App, o *bench.Options) (err error) {
	if f.corpus == contrastImages && f.images == nil {
		f.images = bench.KnownImages()
	}
	if f.images != nil {
		if o.Images, err = f.fetchImages(ctx, app, o); err != nil && len(o.Images) == 0 {
			return err
		}
		if err != nil { // the others can be measured
			o.Say("bench: warning: %v", err)
			o.Missing = err
		}
		o.Images = append(o.Images, f.only...)
		o.Corpus, err = bench.OpenCorpus(f.corpusDir)
		return err
	}
	o.Images = f.only
	o.Corpus, err = bench.OpenCorpus(f.corpusDir)
	if errors.Is(err, bench.ErrNoCorpus) {
		o.Corpus, err = bench.BuildCorpus(ctx, bench.BuildOptions{Dir: f.corpusDir, Only: f.only, Say: o.Say})
	}
	if err == nil && o.Images == nil {
		o.Images = o.Corpus.LightNames()
	}
	return err
}

func (f *benchFlags) fetchImages(ctx context.Context, app *cli.App, o *bench.Options) (names []string, err error) {
	settings, err := app.Options()
	if err != nil {
		return nil, err
	}
	hosts := settings.Hosts
	if f.mirror != "" {
		url := f.mirror
		if !strings.Contains(url, "://") {
			url = "https://" + url
		}
		hosts = append(hosts, registry.Host{Match: ".", Mirrors: []registry.Mirror{{URL: url}}})
	}
	client, err := registry.NewClient(registry.Options{
		Hosts: hosts, AuthFiles: settings.AuthFiles, CertDirs: settings.CertDirs, InsecureSkipVerify: settings.InsecureSkipVerify, PlainHTTP: settings.PlainHTTP, Log: app.Log(),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	return bench.FetchImages(ctx, bench.FetchOptions{Dir: f.corpusDir, References: f.images, Registry: client, Say: o.Say})
}
