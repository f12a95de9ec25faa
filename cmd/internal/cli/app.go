// Package cli holds what the programs dray and dray-guest have in common: global
// flags, settings from files and the environment, logs, the commands that both
// offer, and the one place that turns errors into exit codes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"dray"
)

// App is one run of a program.
type App struct {
	Name          string // "dray" or "dray-guest"
	DefaultStore  string // "": dray.DefaultStore
	ForeignDisks  bool   // the machine's disks are those of somebody who is not trusted
	Stdin         *os.File
	Stdout        io.Writer // results
	Stderr        io.Writer // everything else
	NewProgress   func(kind string, w io.Writer) (Progress, error)
	StartProfile  func(dir string) (stop func() error, err error) // nil: the service cannot be profiled
	ReuseFiles    func(mode string) (*dray.Reuse, error)          // nil: every layer is fetched whole
	Globals       Globals
	settings      settings
	log           *slog.Logger
	closeProgress func()
	sync          dray.SyncMode
}

// Globals are the flags that mean the same everywhere.
type Globals struct {
	StorePath          string
	Config             string
	PlainHTTP          bool
	InsecureSkipVerify bool
	CertDirs           []string
	AuthFile           string
	Platform           string
	Layout             string
	ReuseFiles         string
	Seeds              []string
	TrustedSeeds       []string
	MaxLayerSize       string
	MaxEntries         int64
	Workers            int
	Memory             string
	Sync               string
	Rootless           string
	JSON               bool
	Progress           string
	LogLevel           string
	LogFormat          string
}

// noSeeds is the --seed that stands for none.
const noSeeds = "none"

// Progress shows how pulls get on.
type Progress interface {
	// Event shows one event. Safe for concurrent use.
	Event(dray.Event)
	// Close finishes the display; nothing is drawn afterwards.
	Close()
}

// usageError marks errors of the command line.
type usageError struct{ error }

// Unwrap returns the error inside.
func (e usageError) Unwrap() error { return e.error }

// Usage returns an error that ends the program with the exit code for usage.
func Usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError carries an exit code that is not that of its error's kind.
type exitError struct {
	code int
	err  error // nil: nothing to say
}

// Error implements error.
func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

// Unwrap returns the error inside.
func (e *exitError) Unwrap() error { return e.err }

// Exit returns an error that ends the program silently with code, nil for 0.
func Exit(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// ExitWith returns an error that ends the program with code and says err.
func ExitWith(code int, err error) error { return &exitError{code, err} }

// gcPercent is how much garbage may pile up between collections. What is live is
// small and its buffers are fixed, so that collecting four times as often as by
// default is not measurable in time, and is 2 MB of 20 in peak memory.
const (
	gcPercent      = 25
	serveGCPercent = 10 // a megabyte less while a zstd layer's window is held
)

// collectAt sets the percentage, unless the environment does.
func collectAt(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// Main runs the command with the process's arguments and returns the exit code.
func (a *App) Main(root *cobra.Command) int {
	collectAt(gcPercent)
	// The signals stay caught until the process ends: one that comes when the work is
	// done must not turn its result into a death by signal.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	a.addGlobals(root)
	markArgErrors(root)
	err := root.ExecuteContext(ctx)
	if a.closeProgress != nil {
		a.closeProgress()
	}
	return a.exitCode(ctx, err)
}

// exitCode is the one switch from errors to exit codes.
func (a *App) exitCode(ctx context.Context, err error) int {
	var exit *exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.err != nil {
			_, _ = fmt.Fprintf(a.Stderr, "%s: %v\n", a.Name, exit.err)
		}
		return exit.code
	case errors.As(err, &usage) || fromCobra(err):
		_, _ = fmt.Fprintf(a.Stderr, "%s: %v\n", a.Name, err)
		_, _ = fmt.Fprintf(a.Stderr, "Run '%s --help' for usage.\n", a.Name)
		return int(dray.KindUsage)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintf(a.Stderr, "%s: interrupted\n", a.Name)
		return int(dray.KindInterrupted)
	default:
		_, _ = fmt.Fprintf(a.Stderr, "%s: %v\n", a.Name, err)
		return int(dray.KindOf(err))
	}
}

// fromCobra tells whether err is one of those about the command line that cobra
// does not give a type.
func fromCobra(err error) bool {
	for _, start := range []string{"unknown command", "unknown flag", "if any flags in the group", "at least one of the flags in the group", "required flag(s)"} {
		if strings.HasPrefix(err.Error(), start) {
			return true
		}
	}
	return false
}

// markArgErrors makes wrong numbers of arguments usage errors, in root and below.
func markArgErrors(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return Usage("%w: usage: %s", err, cmd.UseLine())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		markArgErrors(sub)
	}
}

func (a *App) addGlobals(root *cobra.Command) {
	g := &a.Globals
	store := a.DefaultStore
	if store == "" {
		store = dray.DefaultStore()
	}
	f := root.PersistentFlags()
	f.StringVar(&g.StorePath, "storepath", store, "`directory` of the store")
	f.StringVarP(&g.Config, "config", "c", "", "settings `file` (TOML); for serve also imagepuller's or the Confidential Data Hub's")
	f.BoolVar(&g.PlainHTTP, "plain-http", false, "speak HTTP, not HTTPS, to every registry")
	f.BoolVar(&g.InsecureSkipVerify, "insecure-skip-verify", false, "accept any certificate (contents are verified all the same)")
	f.StringArrayVar(&g.CertDirs, "cert-dir", nil, "`directory` of certificates in the layout of certs.d, HOST/*.crt; repeatable")
	f.StringVar(&g.AuthFile, "authfile", "", "`file` of credentials instead of the usual places")
	f.StringVar(&g.Platform, "platform", "", "`os/arch[/variant]` to pull instead of this machine's")
	f.StringVar(&g.MaxLayerSize, "max-layer-size", "", "`size` that a layer may have uncompressed, such as 20GiB (empty: 1 TiB)")
	f.Int64Var(&g.MaxEntries, "max-entries", 0, "`number` of files that a layer may have (0: ten million)")
	f.StringVar(&g.Layout, "layout", "auto", "how new layers are stored: `auto|dir|erofs` (auto: erofs where the kernel mounts it from files; see store inspect --layouts)")
	if a.ReuseFiles != nil {
		f.StringVar(&g.ReuseFiles, "reuse-files", dray.ReuseAuto, "take files of seekable layers from the store and fetch only the rest: `auto|always|never` (auto: where an image of the same repository has them and the network is slower than copying; always: of any image)")
	}
	f.StringArrayVar(&g.Seeds, "seed", nil, "`path` of a seed, a directory or file with layers that need not be pulled; repeatable (default: /usr/share/dray/seed and /var/lib/dray/seeds/*; none: not even those)")
	f.StringArrayVar(&g.TrustedSeeds, "trust-seed", nil, "`path` of a seed that is used without being hashed: only where a trusted party alone can write, as on a measured root file system; repeatable")
	f.IntVar(&g.Workers, "workers", 0, "layers in flight at once (0: one per CPU)")
	f.StringVar(&g.Memory, "memory", "", "`size` that buffers may take together, such as 16MiB (empty: what the formula of --explain says)")
	f.StringVar(&g.Sync, "sync", "auto", "when what was pulled is made safe from power loss: `before|after|never` the command has its result (auto: pull before, others after)")
	f.StringVar(&g.Rootless, "rootless", "auto", "run in a user namespace: `auto|always|never`")
	f.BoolVar(&g.JSON, "json", false, "print results as JSON, one object per line")
	f.StringVar(&g.Progress, "progress", "auto", "progress on standard error: `auto|tty|plain|json|none`")
	f.StringVar(&g.LogLevel, "log-level", "warn", "`debug|info|warn|error`")
	f.StringVar(&g.LogFormat, "log-format", "text", "`text|json`")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) }
}

// prepare reads the settings and sets up logging, before any command runs.
func (a *App) prepare(cmd *cobra.Command) error {
	if err := a.settings.load(a, cmd); err != nil {
		return usageError{err}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.Globals.LogLevel)); err != nil {
		return Usage("--log-level %q: want debug, info, warn or error", a.Globals.LogLevel)
	}
	switch a.Globals.LogFormat {
	case "text":
		a.log = slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: level}))
	case "json":
		a.log = slog.New(slog.NewJSONHandler(a.Stderr, &slog.HandlerOptions{Level: level}))
	default:
		return Usage("--log-format %q: want text or json", a.Globals.LogFormat)
	}
	return a.chooseSync(cmd)
}

// chooseSync reads --sync. Whoever asks for a pull wants it kept; whoever asks for
// a mount wants it soon.
func (a *App) chooseSync(cmd *cobra.Command) error {
	switch mode := a.Globals.Sync; {
	case mode == "before", mode == "auto" && cmd.Name() == "pull":
		a.sync = dray.SyncBefore
	case mode == "after", mode == "auto":
		a.sync = dray.SyncAfter
	case mode == "never":
		a.sync = dray.SyncNever
	default:
		return Usage("--sync %q: want auto, before, after or never", mode)
	}
	return nil
}

// Log returns the program's logger.
func (a *App) Log() *slog.Logger { return a.log }

// Options returns the library's options as the flags say.
func (a *App) Options() (dray.Options, error) {
	g := &a.Globals
	o := dray.Options{
		Store:              g.StorePath,
		PlainHTTP:          g.PlainHTTP,
		InsecureSkipVerify: g.InsecureSkipVerify,
		CertDirs:           g.CertDirs,
		Platform:           g.Platform,
		Layout:             dray.Layout(g.Layout),
		Seeds:              g.Seeds,
		TrustedSeeds:       g.TrustedSeeds,
		ForeignDisks:       a.ForeignDisks,
		MaxEntries:         g.MaxEntries,
		Workers:            g.Workers,
		Sync:               a.sync,
		Log:                a.log,
	}
	if len(g.Seeds) == 1 && g.Seeds[0] == noSeeds {
		o.Seeds = []string{}
	}
	switch o.Layout {
	case dray.LayoutAuto, dray.LayoutDir, dray.LayoutEROFS:
	default:
		return o, Usage("--layout %q: want auto, dir or erofs", g.Layout)
	}
	if a.ReuseFiles != nil {
		var err error
		if o.Reuse, err = a.ReuseFiles(g.ReuseFiles); err != nil {
			return o, Usage("--reuse-files: %w", err)
		}
	}
	if g.AuthFile != "" {
		o.AuthFiles = []string{g.AuthFile}
	}
	if g.MaxLayerSize != "" {
		n, err := ParseSize(g.MaxLayerSize)
		if err != nil {
			return o, Usage("--max-layer-size: %w", err)
		}
		o.MaxLayerBytes = n
	}
	if g.Memory != "" {
		n, err := ParseSize(g.Memory)
		if err != nil {
			return o, Usage("--memory: %w", err)
		}
		o.Memory = n
	}
	return o, nil
}

// OpenImages returns what works on images without a store, as the flags say.
func (a *App) OpenImages() (*dray.Images, error) {
	o, err := a.Options()
	if err != nil {
		return nil, err
	}
	return dray.NewImages(o)
}

// StartProgress returns where a pull sends its events.
func (a *App) StartProgress() (func(dray.Event), error) {
	if a.NewProgress == nil || a.Globals.Progress == "none" {
		return nil, nil //nolint:nilnil // nil: nobody wants events
	}
	p, err := a.NewProgress(a.Globals.Progress, a.Stderr)
	if err != nil {
		return nil, usageError{err}
	}
	a.closeProgress = p.Close
	return p.Event, nil
}

// EndProgress finishes the display, so that results come below it.
func (a *App) EndProgress() {
	if a.closeProgress != nil {
		a.closeProgress()
		a.closeProgress = nil
	}
}
