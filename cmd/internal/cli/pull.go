//go:build linux

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"dray"
)

// PullFlags are the flags of every command that may pull.
type PullFlags struct {
	offline       bool
	requireDigest bool
	fresh         bool
}

// Add adds the flags to cmd.
func (p *PullFlags) Add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.offline, "offline", false, "take what the store and seeds have, ask no registry")
	cmd.Flags().BoolVar(&p.requireDigest, "require-digest", false, "refuse references that are not pinned to a digest")
}

// AddFresh adds them to a command that pulls only if needed.
func (p *PullFlags) AddFresh(cmd *cobra.Command) {
	p.Add(cmd)
	cmd.Flags().BoolVar(&p.fresh, "pull", false, "ask the registry even if the store has the image")
}

// PullOptions returns the library's options, with the progress display started and the
// program's own pages kept few.
func (a *App) PullOptions(p *PullFlags) (dray.PullOptions, error) {
	progress, err := a.StartProgress()
	return dray.PullOptions{Offline: p.offline, RequireDigest: p.requireDigest, Fresh: p.fresh, Progress: trimming(progress)}, err
}

// PullCommand returns dray pull.
func (a *App) PullCommand() *cobra.Command {
	var flags PullFlags
	var explain bool
	cmd := &cobra.Command{
		Use:   "pull REF...",
		Short: "Pull images into the store",
		Long: `Fetches, verifies and unpacks images into the store, in one pass. What the store
has is not fetched again. Prints the manifest digest of each image and what it
took; with --json the whole evidence.` + ReferenceHelp + PullCodes(),
		Example: a.Example("pull docker.io/library/nginx", "pull --json --require-digest ghcr.io/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "pull --platform linux/arm64/v8 local:///srv/layout:v1 oci-archive:/tmp/image.tar"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 && !explain {
				return fmt.Errorf("name at least one image")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, refs []string) error {
			if err, finished := a.Enter(cmd.Context()); finished {
				return err
			}
			return a.runPull(cmd.Context(), refs, &flags, explain)
		},
	}
	flags.Add(cmd)
	cmd.Flags().BoolVar(&explain, "explain", false, "print the memory formula with this machine's numbers first")
	return cmd
}

func (a *App) runPull(ctx context.Context, refs []string, flags *PullFlags, explain bool) (err error) {
	client, err := a.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = JoinClose(err, client) }()
	if explain {
		if err := a.printFormula(client.Explain()); err != nil {
			return err
		}
	}
	options, err := a.PullOptions(flags)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		image, err := client.Pull(ctx, ref, options)
		if err != nil {
			return err
		}
		a.EndProgress()
		if err := a.printImage(image); err != nil {
			return err
		}
		if options, err = a.PullOptions(flags); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) printFormula(f dray.Formula) error {
	if a.Globals.JSON {
		return a.PrintJSON(f)
	}
	_, err := fmt.Fprintln(a.Stdout, f)
	return err
}

func (a *App) printImage(image *dray.Image) error {
	if a.Globals.JSON {
		return a.PrintJSON(image.Evidence)
	}
	e := image.Evidence
	_, err := fmt.Fprintf(a.Stdout, "%s@%s\n", image.Reference, image.Manifest)
	if err == nil {
		_, err = fmt.Fprintf(a.Stderr, "%d layers, %s: %s from network, %s from seeds, %s in store already, %s, peak memory %s\n",
			len(e.Layers), Size(e.SizeBytes), Size(e.NetworkBytes), Size(e.SeedBytes), Size(e.StoreBytes),
			time.Duration(e.Stages.Total).Round(time.Millisecond), Size(e.PeakBytes))
	}
	if err == nil && e.ReusedBytes > 0 {
		_, err = fmt.Fprintf(a.Stderr, "%s not fetched: the store had the files\n", Size(e.ReusedBytes))
	}
	for _, fallback := range e.Fallbacks {
		if err == nil {
			_, err = fmt.Fprintf(a.Stderr, "note: %s\n", fallback)
		}
	}
	return err
}
