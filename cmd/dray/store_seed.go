//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
)

// seedFlags are the flags of store seed.
type seedFlags struct {
	out       string
	platforms []string
	prefix    string
	offline   bool
}

func newStoreSeed(app *cli.App) *cobra.Command {
	var flags seedFlags
	cmd := &cobra.Command{
		Use:   "seed REF... -o OUT",
		Short: "Make a seed: images that others need not pull",
		Long: `Writes images, whole and verified, into a seed: a read-only store that goes into a
guest's root file system, onto a device that many guests share, or to a place on a
node, and of which every command takes layers with --seed instead of pulling them.

OUT is a directory, or a file: x.tar (a tar of that directory), x.erofs or x.img (a
file system that the kernel mounts, and that --seed reads as it is, mounted or not).
Layers that the store or another seed has are taken from there. The same images give
the same bytes; the time in them is $SOURCE_DATE_EPOCH, or 1970. Needs no root.

--layout erofs, the default, puts tars with their indexes in, of which every store
makes what it needs. --layout dir puts trees in instead and --layout both all: with
--trust-seed they are used as they are by kernels that do not mount EROFS from files.
Files carry trees as data. A directory of trees has files of many owners: without root
they are those of the user namespace that dray makes, where the trees are of use, and
what cannot be there (devices) is in the layer's tar, beside the tree.` + cli.ReferenceHelp + `

Examples:
  dray store seed nginx -o /usr/share/dray/seed
  dray store seed --platforms linux/amd64,linux/arm64 nginx redis -o seed.erofs
  dray store seed --prefix /usr/share/dray/seed nginx -o seed.tar
  dray store seed --prefix /usr/share/dray/seed nginx -o rootfs` + cli.PullCodes(),
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error { return runStoreSeed(app, cmd, refs, &flags) },
	}
	f := cmd.Flags()
	f.StringVarP(&flags.out, "output", "o", "", "`path` of the seed to make")
	f.StringSliceVar(&flags.platforms, "platforms", nil, "`os/arch[/variant]` to put in, several with commas (default: --platform)")
	f.StringVar(&flags.prefix, "prefix", "", "`path` at which the seed will live: everything is below it in OUT")
	f.BoolVar(&flags.offline, "offline", false, "take what the store and seeds have, ask no registry")
	return cmd
}

func runStoreSeed(app *cli.App, cmd *cobra.Command, refs []string, flags *seedFlags) (err error) {
	if flags.out == "" {
		return cli.Usage("say with --output where the seed shall be made")
	}
	layout := dray.Layout(app.Globals.Layout)
	if layout == dray.LayoutAuto {
		layout = dray.LayoutEROFS
	}
	enter := app.EnterIfPossible
	if dray.SeedNeedsOwners(flags.out, layout) {
		enter = app.Enter
	}
	if err, finished := enter(cmd.Context()); finished {
		return err
	}
	app.Globals.Layout = string(dray.LayoutAuto) // of the store
	created, err := sourceDate()
	if err != nil {
		return err
	}
	client, err := app.Open(cmd.Context())
	if err != nil {
		return err
	}
	defer func() { err = cli.JoinClose(err, client) }()
	progress, err := app.StartProgress()
	if err != nil {
		return err
	}
	report, err := client.WriteSeed(cmd.Context(), refs, flags.out, dray.SeedOptions{
		Layout: layout, Platforms: flags.platforms, Prefix: flags.prefix, Created: created, Offline: flags.offline, Progress: progress,
	})
	if err != nil {
		return err
	}
	app.EndProgress()
	if app.Globals.JSON {
		return app.PrintJSON(report)
	}
	for _, note := range report.Notes {
		_, _ = fmt.Fprintf(app.Stderr, "note: %s\n", note)
	}
	_, err = fmt.Fprintf(app.Stdout, "%s: %d images, %d layers, %s; %s from network\n",
		report.Path, len(report.Images), len(report.Layers), cli.Size(report.Bytes), cli.Size(report.NetworkBytes))
	return err
}

// sourceDate returns the time that reproducible builds use
// (https://reproducible-builds.org/specs/source-date-epoch/).
func sourceDate() (time.Time, error) {
	const name = "SOURCE_DATE_EPOCH"
	text := os.Getenv(name)
	if text == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, cli.Usage("$%s is %q: want seconds since 1970", name, text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// printSeeds prints seeds, one a line.
func printSeeds(app *cli.App, seeds []dray.SeedStatus) error {
	for _, s := range seeds {
		if err := app.PrintJSON(s); err != nil {
			return err
		}
	}
	return nil
}
