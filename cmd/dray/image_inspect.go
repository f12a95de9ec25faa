package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/durable"
)

// inspectFlags of image inspect.
type inspectFlags struct {
	dray.InspectOptions

	toc, chunks, prefetch bool
	html                  string
}

func newImageInspect(app *cli.App) *cobra.Command {
	var flags inspectFlags
	cmd := &cobra.Command{
		Use:   "inspect [flags] REF",
		Short: "Show how an image's layers are built, and check them",
		Long: `Shows of each layer whether it can be read in parts, how, and what of it a lazy mount
fetches before it is ready. Of seekable layers only the table of contents is read.

--verify reads every layer: the digest of the blob, every chunk at its offset, every
entry of the tar against the table of contents, and the diffID of the configuration.
What is wrong is printed with its layer, and the exit code is 13.` +
			cli.ExitCodes(dray.KindNotFound, dray.KindUnauthorized, dray.KindUnverified, dray.KindNoSpace, dray.KindUnreachable),
		Example: `  dray image inspect registry.example/app:1-esgz
  dray image inspect --verify local:///tmp/output
  dray image inspect --html map.html registry.example/app:1-esgz`,
		Args: cobra.ExactArgs(1),
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			return runImageInspect(ctx, app, images, args[0], flags)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&flags.Verify, "verify", false, "read all layers and check everything")
	f.BoolVar(&flags.toc, "toc", false, "list the entries of the tables of contents")
	f.BoolVar(&flags.chunks, "chunks", false, "list the chunks of every file: where they are in the blob, and their digests")
	f.BoolVar(&flags.prefetch, "prefetch", false, "list the files that a lazy mount fetches first")
	f.StringVar(&flags.html, "html", "", "`file` for a page that draws which bytes of the layers hold what")
	f.StringVar(&flags.TempDir, "tmpdir", "", "`directory` for layers that are verified (empty: the system's)")
	f.IntVar(&flags.Jobs, "jobs", 0, "layers at once (0: one per CPU)")
	return cmd
}

func runImageInspect(ctx context.Context, app *cli.App, images *dray.Images, reference string, flags inspectFlags) error {
	flags.Entries = flags.toc || flags.chunks || flags.html != ""
	report, err := images.Inspect(ctx, reference, flags.InspectOptions)
	if err != nil {
		return err
	}
	if flags.html != "" {
		var page bytes.Buffer
		if err := report.HTML(&page); err != nil {
			return err
		}
		if err := durable.WriteFile(flags.html, page.Bytes(), 0o644); err != nil {
			return err
		}
	}
	if app.Globals.JSON {
		if !flags.toc && !flags.chunks {
			for _, l := range report.Layers {
				l.Entries = nil // they were for the page
			}
		}
		err = app.PrintJSON(report)
	} else {
		err = flags.print(app.Stdout, report)
	}
	return errors.Join(err, report.Err())
}

func (f *inspectFlags) print(out io.Writer, r *dray.ImageReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "image\t%s\nmanifest\t%s\n", r.Reference, r.Manifest)
	if r.Platform != "" {
		_, _ = fmt.Fprintf(w, "platform\t%s\n", r.Platform)
	}
	_, _ = fmt.Fprintf(w, "stored\t%s (%d bytes)\nlayers\t%d, %d of them seekable\n", cli.Size(r.SizeBytes), r.SizeBytes, len(r.Layers), r.Seekable)
	_, _ = fmt.Fprintf(w, "fetched first\t%s (%d bytes) with %d files\n\n", cli.Size(r.PrefetchBytes), r.PrefetchBytes, r.PrefetchFiles)
	_, _ = fmt.Fprint(w, "LAYER\tDIGEST\tSTORED\tFORMAT\tFILES\tCHUNKS\tUNPACKED\tFIRST\tTOC")
	if f.Verify {
		_, _ = fmt.Fprint(w, "\tVERIFIED")
	}
	_, _ = fmt.Fprintln(w)
	for _, l := range r.Layers {
		f.printLayer(w, l)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range r.Layers {
		if err := f.printLists(out, l); err != nil {
			return err
		}
	}
	return nil
}

func (f *inspectFlags) printLayer(w io.Writer, l *dray.LayerReport) {
	if l.Format == "" {
		_, _ = fmt.Fprintf(w, "%d\t%.19s\t%s\tordinary\t-\t-\t-\t-\t%s", l.Index, l.Digest, cli.Size(l.SizeBytes), l.Ordinary)
	} else {
		toc := fmt.Sprintf("%.19s", l.TOCDigest)
		if !l.Vouched {
			toc += " (not in the manifest)"
		}
		_, _ = fmt.Fprintf(w, "%d\t%.19s\t%s\t%s\t%d\t%d\t%s\t%s\t%s", l.Index, l.Digest, cli.Size(l.SizeBytes), l.Format, l.Files, l.Chunks, cli.Size(l.FileBytes), first(l), toc)
	}
	if f.Verify {
		verified := "not looked at"
		if l.Checked != nil && l.Checked.OK {
			verified = "yes"
		} else if l.Checked != nil {
			verified = "NO"
		}
		_, _ = fmt.Fprintf(w, "\t%s", verified)
	}
	_, _ = fmt.Fprintln(w)
}

// first says what of a layer is fetched first.
func first(l *dray.LayerReport) string {
	switch {
	case len(l.Prefetch) > 0 || l.PrefetchBytes > 0:
		return fmt.Sprintf("%s, %d files", cli.Size(l.PrefetchBytes), len(l.Prefetch))
	case l.Landmark != "":
		return "nothing"
	}
	return "not said"
}

// printLists prints what was asked for beyond the table.
func (f *inspectFlags) printLists(out io.Writer, l *dray.LayerReport) error {
	if l.Format == "" || !f.toc && !f.chunks && !f.prefetch {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "\nlayer %d %s\n", l.Index, l.Digest)
	if f.prefetch {
		for _, name := range l.Prefetch {
			_, _ = fmt.Fprintf(w, "first\t%q\n", name)
		}
	}
	if f.toc {
		_, _ = fmt.Fprintln(w, "TYPE\tMODE\tOWNER\tSIZE\tMODIFIED\tNAME")
		for i := range l.Entries {
			e := &l.Entries[i]
			link := ""
			if e.Link != "" {
				link = fmt.Sprintf(" -> %q", e.Link)
			}
			_, _ = fmt.Fprintf(w, "%s\t%04o\t%d:%d\t%d\t%s\t%q%s\n", e.Type, e.Mode, e.UID, e.GID, e.Size, e.MTime.Format("2006-01-02T15:04:05Z"), e.Name, link)
		}
	}
	if f.chunks {
		_, _ = fmt.Fprintln(w, "OFFSET\tEND\tINNER\tIN FILE\tSIZE\tDIGEST\tNAME")
		for i := range l.Entries {
			e := &l.Entries[i]
			for _, c := range e.Chunks {
				digest := string(c.Digest)
				if c.Zeros {
					digest = "zeros"
				}
				_, _ = fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t%s\t%q\n", c.Offset, c.EndOffset, c.InnerOffset, c.FileOffset, c.Size, digest, e.Name)
			}
		}
	}
	return w.Flush()
}

func newImageGetTOCDigest(app *cli.App) *cobra.Command {
	var dump, zstd bool
	cmd := &cobra.Command{
		Use:   "get-toc-digest [flags] REF [LAYER]",
		Short: "Print the digest of a layer's table of contents, or the table itself",
		Long: `Prints the digest of the uncompressed table of contents of a seekable layer, which is
what the annotation ` + "containerd.io/snapshot/stargz/toc.digest" + ` has. LAYER is the digest or the
number of a layer, from 0; without it, every seekable layer is printed with its digest.` +
			cli.ExitCodes(dray.KindNotFound, dray.KindUnauthorized, dray.KindUnverified, dray.KindUnreachable),
		Example: `  dray image get-toc-digest registry.example/app:1-esgz
  dray image get-toc-digest --dump-toc registry.example/app:1-esgz 0`,
		Args: cobra.RangeArgs(1, 2),
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			switch {
			case len(args) == 2:
				return printTOC(ctx, app, images, args[0], args[1], dump)
			case dump:
				return printTOC(ctx, app, images, args[0], "", dump)
			}
			return listTOCs(ctx, app, images, args[0])
		}),
	}
	cmd.Flags().BoolVar(&dump, "dump-toc", false, "print the table of contents, indented")
	cmd.Flags().BoolVar(&zstd, "zstdchunked", false, "accepted and not needed: the layer says what it is")
	return cmd
}

func printTOC(ctx context.Context, app *cli.App, images *dray.Images, reference, layer string, dump bool) error {
	if !dump {
		digest, err := images.TOC(ctx, reference, layer, io.Discard)
		if err != nil {
			return err
		}
		return printDigest(app, digest)
	}
	var text, indented bytes.Buffer
	if _, err := images.TOC(ctx, reference, layer, &text); err != nil {
		return err
	}
	if err := json.Indent(&indented, text.Bytes(), "", "\t"); err != nil {
		return fmt.Errorf("read TOC of %s: %w", reference, err)
	}
	_, err := fmt.Fprintf(app.Stdout, "%s\n", indented.Bytes())
	return err
}

func printDigest(app *cli.App, digest dray.Digest) error {
	if app.Globals.JSON {
		return app.PrintJSON(map[string]dray.Digest{"toc_digest": digest})
	}
	_, err := fmt.Fprintln(app.Stdout, digest)
	return err
}

func listTOCs(ctx context.Context, app *cli.App, images *dray.Images, reference string) error {
	report, err := images.Inspect(ctx, reference, dray.InspectOptions{})
	if err != nil {
		return err
	}
	if report.Seekable == 0 {
		return fmt.Errorf("read TOCs of %s: %w", reference, dray.ErrNoTOC)
	}
	for _, l := range report.Layers {
		if l.Format == "" {
			continue
		}
		if app.Globals.JSON {
			err = app.PrintJSON(map[string]dray.Digest{"layer": l.Digest, "toc_digest": l.TOCDigest})
		} else {
			_, err = fmt.Fprintf(app.Stdout, "%s %s\n", l.Digest, l.TOCDigest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
