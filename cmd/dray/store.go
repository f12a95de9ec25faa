//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
)

func newStoreCommand(app *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Look after what has been pulled",
	}
	cmd.AddCommand(
		newStoreLs(app), newStoreInspect(app), newStoreRm(app), newStoreGC(app), newStoreVerify(app), newStoreDu(app), newStoreConvert(app), newStoreExport(app), newStoreImport(app),
	)
	cmd.AddCommand(newStoreSeed(app))
	return cmd
}

// withStore wraps what a store command does: enter, open, close.
func withStore(app *cli.App, do func(*cobra.Command, []string, *dray.Client) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		if err, finished := app.Enter(cmd.Context()); finished {
			return err
		}
		client, err := app.Open(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { err = cli.JoinClose(err, client) }()
		return do(cmd, args, client)
	}
}

func newStoreLs(app *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List images",
		Long:    "Lists the references of the store and the images that they name." + cli.ExitCodes(dray.KindCorrupt),
		Example: app.Example("store ls --json"),
		Args:    cobra.NoArgs,
		RunE: withStore(app, func(_ *cobra.Command, _ []string, client *dray.Client) error {
			return listImages(app, client)
		}),
	}
}

// listed is one line of store ls.
type listed struct {
	Reference string      `json:"reference"`
	Manifest  dray.Digest `json:"manifest_digest"`
	Platform  string      `json:"platform"`
	Layers    int         `json:"layers"`
	SizeBytes int64       `json:"size_bytes"`
	Pulled    time.Time   `json:"pulled"`
}

func listImages(app *cli.App, client *dray.Client) error {
	refs, err := client.Refs()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(app.Stdout, 0, 0, 2, ' ', 0)
	if !app.Globals.JSON {
		_, _ = fmt.Fprintln(w, "REFERENCE\tMANIFEST\tPLATFORM\tLAYERS\tSIZE\tPULLED")
	}
	for _, ref := range refs {
		image, err := client.Find(string(ref.Digest))
		if err != nil {
			return err
		}
		l := listed{ref.Name, ref.Digest, image.Platform, len(image.Evidence.Layers), image.Evidence.SizeBytes, image.Pulled}
		if app.Globals.JSON {
			err = app.PrintJSON(l)
		} else {
			_, err = fmt.Fprintf(w, "%s\t%.19s\t%s\t%d\t%s\t%s\n", l.Reference, l.Manifest, l.Platform, l.Layers, cli.Size(l.SizeBytes), l.Pulled.Format(time.DateTime))
		}
		if err != nil {
			return err
		}
	}
	return w.Flush()
}

func newStoreInspect(app *cli.App) *cobra.Command {
	var raw, config, layouts, seeds bool
	cmd := &cobra.Command{
		Use:   "inspect REF | inspect --layouts | inspect --seeds",
		Short: "Show all that is known of an image, or what the store's machine can do",
		Long: `Prints the image's evidence, references and layers as JSON, or its manifest or
configuration byte for byte. With --layouts, prints how layers can be stored here,
and how new ones are, with the reason. With --seeds, prints the seeds in force, one
a line: what they say is in them, and how it would be used.` + cli.ExitCodes(dray.KindNotFound, dray.KindCorrupt),
		Example: app.Example("store inspect docker.io/library/nginx", "store inspect --layouts"),
		Args: func(cmd *cobra.Command, args []string) error {
			if layouts || seeds {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: withStore(app, func(cmd *cobra.Command, args []string, client *dray.Client) error {
			if seeds {
				return printSeeds(app, client.Seeds())
			}
			if layouts {
				report, err := client.Layouts(cmd.Context())
				if err != nil {
					return err
				}
				return app.PrintJSON(report)
			}
			found, err := client.Inspect(args[0])
			if err != nil {
				return err
			}
			switch {
			case raw:
				_, err = app.Stdout.Write(found.RawManifest)
			case config:
				_, err = app.Stdout.Write(found.RawConfig)
			default:
				err = app.PrintJSON(found)
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "print the manifest as it was received")
	cmd.Flags().BoolVar(&config, "image-config", false, "print the image's configuration as it was received")
	cmd.Flags().BoolVar(&layouts, "layouts", false, "print what layouts are possible")
	cmd.Flags().BoolVar(&seeds, "seeds", false, "print the seeds in force")
	cmd.MarkFlagsMutuallyExclusive("raw", "image-config", "layouts", "seeds")
	return cmd
}

func newStoreConvert(app *cli.App) *cobra.Command {
	var flags cli.PullFlags
	cmd := &cobra.Command{
		Use:   "convert --layout dir|erofs REF...",
		Short: "Store the layers of images in the other layout",
		Long: `Turns the layers of images that are in another layout than --layout into that one.
A tar is unpacked where it is. An unpacked layer is fetched again, from where the
image came, since its tar is gone. Layers that are mounted are refused.` + cli.PullCodes(),
		Example: app.Example("store convert --layout dir docker.io/library/nginx"),
		Args:    cobra.MinimumNArgs(1),
		RunE: withStore(app, func(cmd *cobra.Command, refs []string, client *dray.Client) error {
			o, err := app.PullOptions(&flags)
			if err != nil {
				return err
			}
			for _, ref := range refs {
				done, err := client.Convert(cmd.Context(), ref, dray.Layout(app.Globals.Layout), o)
				app.EndProgress()
				if err != nil {
					return err
				}
				if err := printConversion(app, done); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	flags.Add(cmd)
	return cmd
}

func printConversion(app *cli.App, done *dray.Conversion) error {
	if app.Globals.JSON {
		return app.PrintJSON(done)
	}
	for _, why := range done.Fallbacks {
		if _, err := fmt.Fprintln(app.Stdout, why); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(app.Stdout, "%s: %d layers converted to %s, %d cannot be\n", done.Image.Manifest, len(done.Converted), done.Layout, len(done.Kept))
	return err
}

func newStoreRm(app *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:     "rm REF...",
		Short:   "Remove references, and images that no reference names any more",
		Long:    "Removes references; with a manifest digest, the image and every reference to it.\nLayers stay until \"dray store gc\"." + cli.ExitCodes(dray.KindNotFound, dray.KindBusy, dray.KindCorrupt),
		Example: app.Example("store rm docker.io/library/nginx"),
		Args:    cobra.MinimumNArgs(1),
		RunE: withStore(app, func(cmd *cobra.Command, args []string, client *dray.Client) error {
			for _, ref := range args {
				removed, err := client.Remove(cmd.Context(), ref)
				if err != nil {
					return err
				}
				if err := printRemoved(app, removed); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

func printRemoved(app *cli.App, removed dray.Removed) error {
	if app.Globals.JSON {
		return app.PrintJSON(removed)
	}
	for _, name := range removed.Refs {
		if _, err := fmt.Fprintln(app.Stdout, name); err != nil {
			return err
		}
	}
	if removed.Image == "" {
		return nil
	}
	_, err := fmt.Fprintln(app.Stdout, removed.Image)
	return err
}

func newStoreGC(app *cli.App) *cobra.Command {
	var o dray.GCOptions
	cmd := &cobra.Command{
		Use:     "gc",
		Short:   "Remove layers that no image, mount or pull uses",
		Long:    "Removes layers that nothing uses and what killed processes left. Of a layer that\nlies in a seed only what the store has of it goes." + cli.ExitCodes(dray.KindBusy, dray.KindCorrupt),
		Example: app.Example("store gc --keep 24h --dry-run"),
		Args:    cobra.NoArgs,
		RunE: withStore(app, func(cmd *cobra.Command, _ []string, client *dray.Client) error {
			report, err := client.GC(cmd.Context(), o)
			if err != nil {
				return err
			}
			if app.Globals.JSON {
				return app.PrintJSON(report)
			}
			verb := "removed"
			if o.DryRun {
				verb = "would remove"
			}
			_, err = fmt.Fprintf(app.Stdout, "%s %d layers, %s\n", verb, len(report.Layers), cli.Size(report.Bytes))
			return err
		}),
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would go")
	cmd.Flags().DurationVar(&o.Keep, "keep", 0, "spare unused layers younger than this")
	return cmd
}

// errProblems makes verify end with the exit code for a corrupt store.
var errProblems = errors.New("the store has problems; --repair removes what is wrong")

func newStoreVerify(app *cli.App) *cobra.Command {
	var o dray.VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check every record and every file of the store",
		Long: `Checks that every record can be read and holds what its digest promises, that
every image has its layers, and that every file of every layer is as it was when
the layer was pulled. --repair moves what is wrong to quarantine, so that the next
pull fetches it again. A layer that lies in a seed is read there; --seeds reads all
that the seeds hold, which are never written to.` + cli.ExitCodes(dray.KindBusy, dray.KindCorrupt),
		Example: app.Example("store verify --repair"),
		Args:    cobra.NoArgs,
		RunE: withStore(app, func(cmd *cobra.Command, _ []string, client *dray.Client) error {
			report, err := client.Verify(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := printVerify(app, report); err != nil {
				return err
			}
			if len(report.Problems) > 0 && !o.Repair {
				return cli.ExitWith(int(dray.KindCorrupt), errProblems)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&o.Repair, "repair", false, "move what is wrong to quarantine")
	cmd.Flags().BoolVar(&o.Quick, "quick", false, "records only, not the contents of layers")
	cmd.Flags().BoolVar(&o.Seeds, "seeds", false, "every layer of the seeds too")
	return cmd
}

func printVerify(app *cli.App, report dray.VerifyReport) error {
	if app.Globals.JSON {
		return app.PrintJSON(report)
	}
	for _, p := range report.Problems {
		if _, err := fmt.Fprintln(app.Stdout, strings.TrimSpace(p.Path+": "+p.Detail+" "+p.Action)); err != nil {
			return err
		}
	}
	if report.SeedLayers > 0 {
		if _, err := fmt.Fprintf(app.Stdout, "checked %d layers of seeds\n", report.SeedLayers); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(app.Stdout, "checked %d layers, %d images, %d references: %d problems\n",
		report.Layers, report.Images, report.Refs, len(report.Problems))
	return err
}

func newStoreDu(app *cli.App) *cobra.Command {
	wide := false
	cmd := &cobra.Command{
		Use:   "du",
		Short: "Show what images and layers take on the disk",
		Long: `Shows for every image the blocks that it takes, how many of them it shares with
others, and how many are its own, which removing it frees; for every seed what it
spares the store. --wide names who shares with whom, as --json does.` + cli.ExitCodes(dray.KindCorrupt),
		Example: app.Example("store du --wide"),
		Args:    cobra.NoArgs,
		RunE: withStore(app, func(cmd *cobra.Command, _ []string, client *dray.Client) error {
			usage, err := client.DiskUsage(cmd.Context())
			if err != nil {
				return err
			}
			if app.Globals.JSON {
				return app.PrintJSON(usage)
			}
			return printUsage(app, usage, wide)
		}),
	}
	cmd.Flags().BoolVar(&wide, "wide", false, "name the images that share, and those that use a seed")
	return cmd
}

func printUsage(app *cli.App, usage dray.Usage, wide bool) error {
	names := map[dray.Digest]string{}
	for _, i := range usage.Images {
		names[i.Manifest] = strings.Join(append([]string{fmt.Sprintf("%.19s", i.Manifest)}, i.Refs...), " ")
	}
	w := tabwriter.NewWriter(app.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "IMAGE\tREFERENCES\tON DISK\tSHARED\tOWN\tINODES")
	for _, i := range usage.Images {
		_, _ = fmt.Fprintf(w, "%.19s\t%s\t%s\t%s\t%s\t%d\n", i.Manifest, strings.Join(i.Refs, " "),
			cli.Size(i.Total.DiskBytes), cli.Size(i.Shared.DiskBytes), cli.Size(i.Own.DiskBytes), i.Total.Inodes)
		for _, other := range i.SharedWith {
			if wide {
				_, _ = fmt.Fprintf(w, "  with\t%s\t%d layers of %s\t%s\t\t\n", names[other.Manifest], other.Layers, cli.Size(other.SizeBytes), cli.Size(other.DiskBytes))
			}
		}
	}
	for _, m := range usage.Mounts {
		_, _ = fmt.Fprintf(w, "mount %s\t%s\t%s\t\t\t%d\n", m.ID, m.Target, cli.Size(m.DiskBytes), m.Inodes)
	}
	for _, s := range usage.Seeds {
		_, _ = fmt.Fprintf(w, "seed %s\t%d layers of %d images\t%s saved\t\t\t\n", s.Seed, s.Layers, s.Images, cli.Size(s.SavedBytes))
		for _, user := range s.UsedBy {
			if wide {
				_, _ = fmt.Fprintf(w, "  for\t%s\t\t\t\t\n", names[user])
			}
		}
	}
	_, _ = fmt.Fprintf(w, "total of %d layers\t\t%s\t\t\t%d\n", len(usage.Layers), cli.Size(usage.Total.DiskBytes), usage.Total.Inodes)
	return w.Flush()
}
