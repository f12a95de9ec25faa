package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
)

// shown is what record show prints.
type shown struct {
	*dray.Record

	use *dray.RecordUse // nil without an image
}

func newRecordShow(app *cli.App) *cobra.Command {
	var flags recordFlags
	var paths bool
	cmd := &cobra.Command{
		Use:   "show [flags] RECORD | show --list FILE --image REF",
		Short: "Show what a record says, and what it means for an image",
		Long: `Counts what is in a record. With --image, also which of its paths the image shows, in
which layer, and which share of the image they are; what the image does not have is
skipped by a conversion and counted here.` + recordCodes(),
		Example: `  dray record show start.json --image registry.example/app:1
  dray record show --paths registry.example/app:1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(flags.lists) == 1 {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			return runRecordShow(ctx, app, images, &flags, args, paths)
		}),
	}
	flags.addFrom(cmd)
	flags.addLists(cmd)
	cmd.Flags().BoolVar(&paths, "paths", false, "print the paths, too, in the record's order")
	return cmd
}

func runRecordShow(ctx context.Context, app *cli.App, images *dray.Images, flags *recordFlags, args []string, paths bool) error {
	err := flags.checkLists()
	if err != nil {
		return err
	}
	var s shown
	if len(args) == 0 {
		s.Record, err = flags.readListRecord(ctx, app, images, flags.lists[0])
	} else {
		s.Record, err = flags.read(ctx, app, images, args[0])
	}
	if err != nil {
		return err
	}
	defer s.Close()
	if flags.image != "" {
		if s.use, err = images.ApplyRecord(ctx, s.Entries, flags.image); err != nil {
			return err
		}
		defer s.use.Close()
		printNotes(app, s.use)
	}
	out := bufio.NewWriter(app.Stdout)
	if app.Globals.JSON {
		err = s.printJSON(out)
	} else {
		err = s.print(out, paths)
	}
	return errors.Join(err, out.Flush())
}

// print prints for people. Errors of writing come back from out's Flush.
func (s *shown) print(out *bufio.Writer, paths bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "entries\t%d\nlines\t%d\nskipped lines\t%d\n", s.Entries.Len(), s.Lines, s.Skipped)
	if s.Source != "" {
		_, _ = fmt.Fprintf(w, "from\t%s of %s\nrecords\t%d\n", s.Source, s.Image, s.Records)
	}
	if s.use != nil {
		s.printUse(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.use != nil { // not in the table, which is held until its end is known
		for m, err := range s.use.Moved() {
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(out, "moved    %q is now %q\n", m.From, m.To)
		}
		for name, err := range s.use.Missing.All() {
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(out, "missing  %q\n", name)
		}
	}
	if !paths {
		return nil
	}
	_ = out.WriteByte('\n')
	for e, err := range s.Entries.All() {
		if err != nil {
			return err
		}
		_, _ = out.WriteString(e.Path)
		_ = out.WriteByte('\n')
	}
	return nil
}

func (s *shown) printUse(w io.Writer) {
	u := s.use
	_, _ = fmt.Fprintf(w, "image\t%s\nmanifest\t%s\n", u.Reference, u.Manifest)
	_, _ = fmt.Fprintf(w, "matched\t%d of %d paths, %d moved\n", u.Matched, u.Matched+u.Missing.Len(), u.MovedCount())
	if u.Foreign > 0 {
		_, _ = fmt.Fprintf(w, "recorded elsewhere\t%d of %d entries\n", u.Foreign, s.Entries.Len())
	}
	_, _ = fmt.Fprintf(w, "share\t%.1f %% of the image's bytes (%s)\n\n", 100*u.Share, cli.Size(u.Bytes))
	_, _ = fmt.Fprintln(w, "LAYER\tDIGEST\tPATHS\tFILES\tFIRST\tOF\tSHARE")
	for n, l := range u.Layers {
		share := 0.0
		if l.TotalBytes > 0 {
			share = 100 * float64(l.Bytes) / float64(l.TotalBytes)
		}
		_, _ = fmt.Fprintf(w, "%d\t%.19s\t%d\t%d\t%s\t%s\t%.1f %%\n", n, l.Digest, l.Paths.Len(), l.TotalFiles, cli.Size(l.Bytes), cli.Size(l.TotalBytes), share)
	}
}
