package main

import (
	"bufio"
	"context"
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
	Use *dray.RecordUse `json:"use,omitempty"`

	count int // of entries, which may not be held
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
	lists, err := flags.readLists(ctx, app, images)
	if err != nil {
		return err
	}
	if len(args) == 1 && isFile(args[0]) && flags.image == "" && !app.Globals.JSON {
		return showRecordFile(ctx, app, flags, args[0], paths)
	}
	var s shown
	if len(args) == 0 {
		s.Record = lists[0]
	} else if s.Record, err = flags.read(ctx, app, images, args[0]); err != nil {
		return err
	}
	if flags.image != "" {
		if s.Use, err = images.ApplyRecord(ctx, s.Entries, flags.image); err != nil {
			return err
		}
		printNotes(app, s.Use)
	}
	if app.Globals.JSON {
		return app.PrintJSON(s)
	}
	s.count = len(s.Entries)
	if err := s.print(app.Stdout); err != nil || !paths {
		return err
	}
	out := newPathPrinter(app.Stdout)
	for _, e := range s.Entries {
		out.print(e)
	}
	return out.flush()
}

// showRecordFile shows what is in a file without holding its entries, of which there
// may be millions.
func showRecordFile(ctx context.Context, app *cli.App, flags *recordFlags, name string, paths bool) error {
	if _, err := flags.source(); err != nil {
		return err
	}
	var s shown
	var held []string // of what cannot be read again
	again := isRegular(name)
	var err error
	s.Record, err = scanRecordFile(ctx, app, name, func(e dray.RecordEntry) {
		s.count++
		if paths && !again {
			held = append(held, e.Path)
		}
	})
	if err != nil {
		return err
	}
	if err := s.print(app.Stdout); err != nil || !paths {
		return err
	}
	out := newPathPrinter(app.Stdout)
	for _, path := range held {
		out.print(dray.RecordEntry{Path: path})
	}
	if again {
		if _, err := scanRecordFile(ctx, app, name, out.print); err != nil {
			return err
		}
	}
	return out.flush()
}

// pathPrinter prints paths below what else is shown.
type pathPrinter struct{ out *bufio.Writer }

func newPathPrinter(out io.Writer) *pathPrinter {
	p := &pathPrinter{bufio.NewWriter(out)}
	_ = p.out.WriteByte('\n') // errors come back from flush
	return p
}

func (p *pathPrinter) print(e dray.RecordEntry) {
	_, _ = p.out.WriteString(e.Path) // as above
	_ = p.out.WriteByte('\n')
}

func (p *pathPrinter) flush() error { return p.out.Flush() }

func (s *shown) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "entries\t%d\nlines\t%d\nskipped lines\t%d\n", s.count, s.Lines, s.Skipped)
	if s.Source != "" {
		_, _ = fmt.Fprintf(w, "from\t%s of %s\nrecords\t%d\n", s.Source, s.Image, s.Records)
	}
	if s.Use != nil {
		s.printUse(w)
	}
	return w.Flush()
}

func (s *shown) printUse(w io.Writer) {
	u := s.Use
	_, _ = fmt.Fprintf(w, "image\t%s\nmanifest\t%s\n", u.Reference, u.Manifest)
	_, _ = fmt.Fprintf(w, "matched\t%d of %d paths, %d moved\n", u.Matched, u.Matched+len(u.Missing), len(u.Moved))
	if u.Foreign > 0 {
		_, _ = fmt.Fprintf(w, "recorded elsewhere\t%d of %d entries\n", u.Foreign, len(s.Entries))
	}
	_, _ = fmt.Fprintf(w, "share\t%.1f %% of the image's bytes (%s)\n\n", 100*u.Share, cli.Size(u.Bytes))
	_, _ = fmt.Fprintln(w, "LAYER\tDIGEST\tPATHS\tFILES\tFIRST\tOF\tSHARE")
	for n, l := range u.Layers {
		share := 0.0
		if l.TotalBytes > 0 {
			share = 100 * float64(l.Bytes) / float64(l.TotalBytes)
		}
		_, _ = fmt.Fprintf(w, "%d\t%.19s\t%d\t%d\t%s\t%s\t%.1f %%\n", n, l.Digest, len(l.Paths), l.TotalFiles, cli.Size(l.Bytes), cli.Size(l.TotalBytes), share)
	}
	for _, m := range u.Moved {
		_, _ = fmt.Fprintf(w, "moved\t%q is now %q\n", m.From, m.To)
	}
	for _, name := range u.Missing {
		_, _ = fmt.Fprintf(w, "missing\t%q\n", name)
	}
}
