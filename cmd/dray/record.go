package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/durable"
)

func newRecordCommand(app *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record",
		Short: "Look at, merge and share records of what workloads read",
		Long: `A record says which files of an image a workload read, first access first: JSON
lines with path, manifestDigest and layerIndex. "dray image convert" puts those
files first in the layers. A wrong record costs speed and nothing else.

Where a RECORD is wanted, it can be
  - a file, or - for standard input;
  - the reference of a record image, as --record-out-ref makes it;
  - the reference of an image that records are attached to: all of them, merged;
  - the reference of a seekable image whose layers put files first: that order.
Of an index, --platform chooses the image.`,
	}
	cmd.AddCommand(newRecordShow(app), newRecordMerge(app), newRecordCopy(app), newRecordPush(app), newRecordPull(app))
	return cmd
}

// recordFlags choose records; not every command has all of them.
type recordFlags struct {
	from   string
	lists  []string
	image  string
	output string
}

func (f *recordFlags) addFrom(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.from, "from", "any", "what of a reference is the record: `image|attached|layers|any` (any: the first of these that there is)")
}

func (f *recordFlags) addLists(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.lists, "list", nil, "`file` of paths and globs (*, ?, [a-z], **), one a line, as one more record; needs --image; repeatable")
	cmd.Flags().StringVar(&f.image, "image", "", "`reference` of the image that the record is for")
}

func (f *recordFlags) addOutput(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`file` to write the record to instead of standard output")
}

func (f *recordFlags) source() (dray.RecordSource, error) {
	switch f.from {
	case "any":
		return dray.RecordAny, nil
	case "image", "attached", "layers":
		return dray.RecordSource(f.from), nil
	}
	return "", cli.Usage("--from %q: want image, attached, layers or any", f.from)
}

// withImages wraps what a record or inspection command does: open, close.
func withImages(app *cli.App, do func(context.Context, []string, *dray.Images) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		images, err := app.OpenImages()
		if err != nil {
			return err
		}
		defer func() { err = cli.JoinClose(err, images) }()
		return do(cmd.Context(), args, images)
	}
}

// read returns the record that an argument names, and says what could not be read.
func (f *recordFlags) read(ctx context.Context, app *cli.App, images *dray.Images, name string) (*dray.Record, error) {
	from, err := f.source()
	if err != nil {
		return nil, err
	}
	if isFile(name) {
		return readRecordFile(ctx, app, name)
	}
	found, err := images.Record(ctx, name, from)
	if err != nil {
		return nil, err
	}
	for _, why := range found.Unreadable {
		_, _ = fmt.Fprintf(app.Stderr, "note: skipped of the record: %s\n", why)
	}
	return found, nil
}

// isFile tells a file from a reference: one that exists, or that looks like one.
func isFile(name string) bool {
	if name == "-" || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".jsonl") {
		return true
	}
	info, err := os.Stat(name)
	return err == nil && !info.IsDir()
}

func readRecordFile(ctx context.Context, app *cli.App, name string) (*dray.Record, error) {
	f, err := openInput(ctx, app, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	found, err := dray.ReadRecord(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return found, nil
}

// openInput opens a file, or standard input for "-". Its reads end with ctx.
func openInput(ctx context.Context, app *cli.App, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(interruptible(ctx, app.Stdin)), nil
	}
	f, err := os.Open(name) //nolint:gosec // the user's file
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, cli.ExitWith(int(dray.KindNotFound), err)
	case err != nil:
		return nil, err
	}
	return &input{File: f, ctx: ctx}, nil
}

// checkLists refuses lists that nothing is held against.
func (f *recordFlags) checkLists() error {
	if len(f.lists) > 0 && f.image == "" {
		return cli.Usage("--list needs --image, whose files the globs are held against")
	}
	return nil
}

// readListRecord is readList for who wants a record.
func (f *recordFlags) readListRecord(ctx context.Context, app *cli.App, images *dray.Images, name string) (*dray.Record, error) {
	entries, err := f.readList(ctx, app, images, name)
	if err != nil {
		return nil, err
	}
	return &dray.Record{Entries: entries, Records: 1, Lines: entries.Len()}, nil
}

// readList makes a record of a list.
func (f *recordFlags) readList(ctx context.Context, app *cli.App, images *dray.Images, name string) (*dray.RecordList, error) {
	file, err := openInput(ctx, app, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	entries, missed, err := images.ReadRecordList(ctx, file, f.image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, line := range missed {
		_, _ = fmt.Fprintf(app.Stderr, "%s: nothing in the image matches %q\n", name, line)
	}
	return entries, nil
}

// write gives a record to standard output or to a file, which is replaced as a whole.
func (f *recordFlags) write(app *cli.App, entries *dray.RecordList) error {
	if f.output == "" || f.output == "-" {
		_, err := entries.WriteTo(app.Stdout)
		return err
	}
	return durable.WriteFrom(f.output, entries, 0o644)
}

func newRecordMerge(app *cli.App) *cobra.Command {
	var flags recordFlags
	var weights []string
	cmd := &cobra.Command{
		Use:   "merge [flags] [RECORD...]",
		Short: "Put records together into one",
		Long: `Puts records and lists together into one record, on standard output. Each gives a
path its weight, in whole for its first path and next to nothing for its last; the
sums decide the order, and where they are the same the names.` + recordCodes(),
		Example: `  dray record merge start.json reload.json --weights 3,1 -o both.json
  dray record merge --list prefetch.txt --image registry.example/app:1 -o list.json`,
		Args: cobra.ArbitraryArgs,
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			return runRecordMerge(ctx, app, images, &flags, args, weights)
		}),
	}
	flags.addFrom(cmd)
	flags.addLists(cmd)
	flags.addOutput(cmd)
	cmd.Flags().StringSliceVar(&weights, "weights", nil, "`numbers` greater than 0, one for each RECORD and then each --list (default: all the same)")
	return cmd
}

func runRecordMerge(ctx context.Context, app *cli.App, images *dray.Images, flags *recordFlags, args, weights []string) error {
	if len(args)+len(flags.lists) == 0 {
		return cli.Usage("nothing to merge: name records, or give --list")
	}
	numbers, err := parseWeights(weights, len(args)+len(flags.lists))
	if err != nil {
		return err
	}
	if err := flags.checkLists(); err != nil {
		return err
	}
	var parts []dray.WeightedRecord
	defer func() {
		for _, p := range parts {
			p.Entries.Close()
		}
	}()
	read := func(names []string, one func(context.Context, *cli.App, *dray.Images, string) (*dray.Record, error)) error {
		for _, name := range names {
			found, err := one(ctx, app, images, name)
			if err != nil {
				return err
			}
			parts = append(parts, dray.WeightedRecord{Entries: found.Entries, Weight: numbers[len(parts)]})
		}
		return nil
	}
	if err := read(args, flags.read); err != nil {
		return err
	}
	if err := read(flags.lists, flags.readListRecord); err != nil {
		return err
	}
	if len(parts) == 1 { // its order is what it is
		return flags.write(app, parts[0].Entries)
	}
	merged, err := dray.MergeRecords(ctx, parts)
	if err != nil {
		return err
	}
	defer merged.Close()
	return flags.write(app, merged)
}

// parseWeights reads count weights; none is all the same.
func parseWeights(text []string, count int) ([]float64, error) {
	if len(text) == 0 {
		return slices.Repeat([]float64{1}, count), nil
	}
	if len(text) != count {
		return nil, cli.Usage("--weights has %d numbers for %d records", len(text), count)
	}
	weights := make([]float64, count)
	for i, s := range text {
		var rest string
		n, err := fmt.Sscanf(s+"\n", "%g%s", &weights[i], &rest)
		if n != 1 || err == nil || weights[i] <= 0 || weights[i] > 1e9 {
			return nil, cli.Usage("--weights: %q is not a number greater than 0", s)
		}
	}
	return weights, nil
}

func newRecordPush(app *cli.App) *cobra.Command {
	var flags recordFlags
	var attach bool
	cmd := &cobra.Command{
		Use:   "push [flags] RECORD REF",
		Short: "Store a record as a record image, or attach it to an image",
		Long: `Stores a record as a record image REF: one layer with the file stargz.record.json,
as containerd's tools read it. With --attach, REF is an image, and the record is
stored beside it as its referrer, where "dray image convert --record-from-referrers"
finds it; in a registry without the list of referrers, under the tag that stands for
it.` + recordCodes(),
		Example: `  dray record push start.json registry.example/app:record-1
  dray record push --attach start.json registry.example/app:1`,
		Args: cobra.ExactArgs(2),
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			found, err := flags.read(ctx, app, images, args[0])
			if err != nil {
				return err
			}
			defer found.Close()
			store := images.PushRecord
			if attach {
				store = images.AttachRecord
			}
			return pushRecord(ctx, app, found.Entries, args[1], store)
		}),
	}
	flags.addFrom(cmd)
	cmd.Flags().BoolVar(&attach, "attach", false, "attach the record to the image REF")
	return cmd
}

func pushRecord(ctx context.Context, app *cli.App, entries *dray.RecordList, target string, store func(context.Context, *dray.RecordList, string) (*dray.PushedRecord, error)) error {
	pushed, err := store(ctx, entries, target)
	if err != nil {
		return err
	}
	if app.Globals.JSON {
		return app.PrintJSON(pushed)
	}
	_, err = fmt.Fprintln(app.Stdout, pushed.Digest)
	return err
}

func newRecordPull(app *cli.App) *cobra.Command {
	var flags recordFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] REF",
		Short: "Fetch a record",
		Long: `Writes the record that REF has to standard output: the one in a record image, those
that are attached to an image, merged, or the order of files in its seekable layers.` + recordCodes(),
		Example: `  dray record pull registry.example/app:record-1 -o start.json
  dray record pull --from layers registry.example/app:1-esgz`,
		Args: cobra.ExactArgs(1),
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			if isFile(args[0]) {
				return cli.Usage("%s is a file, not a reference", args[0])
			}
			found, err := flags.read(ctx, app, images, args[0])
			if err != nil {
				return err
			}
			defer found.Close()
			return flags.write(app, found.Entries)
		}),
	}
	flags.addFrom(cmd)
	flags.addOutput(cmd)
	return cmd
}

func newRecordCopy(app *cli.App) *cobra.Command {
	var flags recordFlags
	cmd := &cobra.Command{
		Use:   "copy [flags] SRC IMAGE",
		Short: "Attach an image's record to another build of it",
		Long: `Takes the record that SRC has (a record image, records attached to an image, or the
order of files in its seekable layers), keeps of it what IMAGE shows, and attaches
that to IMAGE. Files are found by their path; those that have moved, by their
content, where the record knows it.` + recordCodes(),
		Example: `  dray record copy registry.example/app:1-esgz registry.example/app:2`,
		Args:    cobra.ExactArgs(2),
		RunE: withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
			found, err := flags.read(ctx, app, images, args[0])
			if err != nil {
				return err
			}
			defer found.Close()
			use, err := images.ApplyRecord(ctx, found.Entries, args[1])
			if err != nil {
				return err
			}
			defer use.Close()
			printNotes(app, use)
			_, _ = fmt.Fprintf(app.Stderr, "%d of %d paths are in the image, %d of them moved\n", use.Matched, use.Matched+use.Missing.Len(), use.MovedCount())
			if use.Matched == 0 {
				return fmt.Errorf("copy record to %s: none of its paths is in the image: %w", args[1], dray.ErrNoRecord)
			}
			kept, err := use.Rewrite(found.Entries)
			if err != nil {
				return err
			}
			defer kept.Close()
			return pushRecord(ctx, app, kept, args[1], images.AttachRecord)
		}),
	}
	flags.addFrom(cmd)
	return cmd
}

// printNotes tells what was fallen back to while a record was held against an image.
func printNotes(app *cli.App, use *dray.RecordUse) {
	for _, note := range use.Notes {
		_, _ = fmt.Fprintf(app.Stderr, "note: %s\n", note)
	}
}

func recordCodes() string {
	return cli.ExitCodes(dray.KindNotFound, dray.KindUnauthorized, dray.KindUnverified, dray.KindUnreachable)
}
