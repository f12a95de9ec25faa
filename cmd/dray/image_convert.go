package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dray"
	"dray/cmd/internal/cli"
)

// conversionFlags are those of convert and optimize.
type conversionFlags struct {
	zstdchunked  bool
	oci          bool
	platforms    []string
	allPlatforms bool
	reuse        bool
	prefetchList string

	gzipLevel, zstdLevel     int
	chunkSize, zstdChunkSize string
	minChunkSize             string
	externalTOC, keepDiffID  bool
	flavour                  string
	gzipHelper               string
	jobs                     int
	tempDir, conversions     string
	dryRun                   bool
	record, recordRef        string
}

// platformHelp says what --platform takes here, where it may be repeated.
const platformHelp = "of an index, convert the image for this `os|arch|os/arch[/variant]`; repeatable (default: this machine's)"

func (f *conversionFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.zstdchunked, "zstdchunked", false, "make zstd:chunked layers")
	flags.BoolVar(&f.oci, "oci", false, "turn Docker's media types into OCI's")
	flags.StringArrayVar(&f.platforms, "platform", nil, platformHelp)
	flags.BoolVar(&f.allPlatforms, "all-platforms", false, "convert the images for all platforms")
	flags.BoolVar(&f.reuse, "reuse", false, "pass layers through that have the form already, after verifying them")
	flags.StringVar(&f.prefetchList, "prefetch-list", "", "`file` of paths and patterns (*, ?, [], **), one a line, that come first in their layers")
	flags.IntVar(&f.gzipLevel, "estargz-compression-level", 0, "of gzip, `1-9` (0: 6)")
	flags.StringVar(&f.chunkSize, "estargz-chunk-size", "", "`size` of the parts that large files are read in (empty: 4MiB)")
	flags.StringVar(&f.minChunkSize, "estargz-min-chunk-size", "", "put files together until this `size`: smaller layers, more to read for a small file; readers before v0.13.0 of containerd's cannot read it")
	flags.BoolVar(&f.externalTOC, "estargz-external-toc", false, "put the tables of contents into an image of their own, TARGET-esgztoc")
	flags.IntVar(&f.zstdLevel, "zstdchunked-compression-level", 0, "of zstd, `1-22` (0: 3)")
	flags.StringVar(&f.zstdChunkSize, "zstdchunked-chunk-size", "", "`size`, as --estargz-chunk-size")
	flags.StringVar(&f.flavour, "zstdchunked-flavour", "podman", "`podman|containerd`: whose tools are to read the parts of zstd:chunked layers")
	flags.StringVar(&f.gzipHelper, "estargz-gzip-helper", "", "accepted and not used: gzip is decompressed here, at the speed of such `program`s")
	flags.StringVar(&f.gzipHelper, "GH", "", "the same `program`")
	flags.IntVar(&f.jobs, "jobs", 0, "layers and workers at once; the result does not depend on it (0: one per CPU)")
	flags.IntVar(&f.jobs, "estargz-parallelism", 0, "the same as --jobs")
	flags.StringVar(&f.tempDir, "tmpdir", "", "`directory` for prioritized files and TOCs that do not fit in memory (empty: the system's)")
	flags.StringVar(&f.conversions, "conversions", "", "`directory` that remembers converted layers, none for no memory (empty: dray/conversions in the user's cache)")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would become of each layer, and do nothing")
}

// options returns the library's options. What they hold open is closed by the
// second result.
func (f *conversionFlags) options(ctx context.Context, app *cli.App) (o dray.ConvertOptions, closeAll func(), err error) {
	o = dray.ConvertOptions{
		Form: dray.FormEStargz, Level: f.gzipLevel, KeepDiffID: f.keepDiffID, OCI: f.oci,
		Platforms: f.platforms, AllPlatforms: f.allPlatforms, Reuse: f.reuse, DryRun: f.dryRun,
		Jobs: f.jobs, TempDir: f.tempDir, Memory: f.conversions, RecordRef: f.recordRef,
	}
	chunkSize := f.chunkSize
	if f.zstdchunked {
		o.Level, chunkSize, o.Form = f.zstdLevel, f.zstdChunkSize, dray.FormZstdChunked
		if f.flavour == "containerd" {
			o.Form = dray.FormZstdContainerd
		}
	} else if f.externalTOC {
		o.Form = dray.FormEStargzExternal
	}
	if o.ChunkSize, err = optionalSize("chunk size", chunkSize); err != nil {
		return o, nil, err
	}
	if o.MinChunkSize, err = optionalSize("--estargz-min-chunk-size", f.minChunkSize); err != nil {
		return o, nil, err
	}
	var files []io.Closer
	closeAll = func() {
		for _, file := range files {
			_ = file.Close() // read only
		}
	}
	open := func(path string, into *io.Reader) error {
		if path == "" {
			return nil
		}
		file, err := os.Open(path) //nolint:gosec // the user names it
		if err != nil {
			return cli.Usage("%w", err)
		}
		files = append(files, file)
		*into = &input{File: file, ctx: ctx}
		return nil
	}
	if err := errors.Join(open(f.record, &o.Record), open(f.prefetchList, &o.Prefetch)); err != nil {
		closeAll()
		return o, nil, err
	}
	o.Progress, err = app.StartProgress()
	return o, closeAll, err
}

func optionalSize(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := cli.ParseSize(text)
	if err != nil {
		return 0, cli.Usage("%s: %w", name, err)
	}
	return n, nil
}

// check refuses flags that contradict each other, by their names.
func (f *conversionFlags) check(app *cli.App) error {
	switch {
	case f.flavour != "podman" && f.flavour != "containerd":
		return cli.Usage("--zstdchunked-flavour %q: want podman or containerd", f.flavour)
	case f.zstdchunked && f.externalTOC:
		return cli.Usage("--estargz-external-toc is not for --zstdchunked")
	case f.zstdchunked && f.minChunkSize != "":
		return cli.Usage("--estargz-min-chunk-size is not for --zstdchunked")
	case f.reuse && f.externalTOC:
		return cli.Usage("--reuse is not for --estargz-external-toc")
	case f.allPlatforms && len(f.platforms) > 0:
		return cli.Usage("--platform and --all-platforms contradict each other")
	}
	if f.gzipHelper != "" {
		_, _ = fmt.Fprintf(app.Stderr, "note: --estargz-gzip-helper %s is not needed and not used\n", f.gzipHelper)
	}
	return nil
}

func newImageConvert(app *cli.App) *cobra.Command {
	var f conversionFlags
	var estargz, stargz, uncompress, referrers bool
	var recordCopy string
	cmd := &cobra.Command{
		Use:   "convert --estargz|--zstdchunked|--stargz|--uncompress [flags] SRC DST",
		Short: "Make the layers of an image readable in parts, or plain",
		Long: `Reads the image SRC, makes eStargz, zstd:chunked or plain layers of its layers, and
stores the result as DST. What comes first in the layers, so that it is fetched
before anything else, is told by a record or a list.

--stargz is for readers that are older than eStargz: its tables of contents have no
digests of chunks, so that nobody can verify a file before it has all of it, and
nothing comes first. --estargz-compression-level and --estargz-chunk-size are its too.

Layers go from SRC to DST as streams; on the disk are at most the files that come
first and the table of contents, of the layers under way. The same image
and options give the same bytes, on any machine. A converted layer is remembered
by its digest and the options: the next image that has it needs not convert it.
DST is tagged when all of it is there.

Of an index, the images of --platform are converted and the others left out; with
--all-platforms all are. What is no image is copied.` + cli.ReferenceHelp + `

Examples:
  dray image convert --estargz --oci docker.io/library/golang:1.26 registry.example.com/golang:1.26-esgz
  dray image convert --zstdchunked --all-platforms local:///images/app oci-archive:/tmp/app.tar
  dray image convert --estargz --estargz-record-in record.json http://127.0.0.1:5000/app http://127.0.0.1:5000/app:esgz` +
			cli.ExitCodes(imageKinds()...),
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case !estargz && !f.zstdchunked && !stargz && !uncompress:
				return cli.Usage("say what the layers shall become: --estargz, --zstdchunked, --stargz or --uncompress")
			case stargz && (f.externalTOC || f.minChunkSize != ""):
				return cli.Usage("--estargz-external-toc and --estargz-min-chunk-size are not for --stargz")
			case stargz && f.reuse:
				return cli.Usage("--reuse is not for --stargz: no manifest vouches for its layers")
			case f.keepDiffID && !f.externalTOC && !f.zstdchunked:
				return cli.Usage("--estargz-keep-diff-id needs --estargz-external-toc: otherwise the TOC is in the tar")
			}
			if err := f.check(app); err != nil {
				return err
			}
			return convertImage(cmd.Context(), app, &f, args[0], args[1], func(o *dray.ConvertOptions) {
				switch {
				case uncompress:
					o.Form, o.Level, o.ChunkSize = dray.FormUncompressed, 0, 0
				case stargz:
					o.Form = dray.FormStargz
				}
				o.Referrers, o.CopyFrom = referrers, recordCopy
			})
		},
	}
	flags := cmd.Flags()
	f.add(flags)
	flags.BoolVar(&estargz, "estargz", false, "make eStargz layers")
	flags.BoolVar(&stargz, "stargz", false, "make stargz layers, as readers that do not know eStargz want them")
	flags.BoolVar(&uncompress, "uncompress", false, "make plain tars")
	flags.BoolVar(&f.keepDiffID, "estargz-keep-diff-id", false, "leave the tars as they are, and so the image's configuration; needs --estargz-external-toc, or --zstdchunked")
	for _, form := range []string{"estargz", "zstdchunked"} {
		flags.StringVar(&f.record, form+"-record-in", "", "`file` with a record (JSON lines): the files of it come first")
		flags.StringVar(&f.recordRef, form+"-record-in-ref", "", "`ref` of a record image, the same")
		flags.StringVar(&recordCopy, form+"-record-copy", "", "`ref` of an eStargz or zstd:chunked image: what comes first there comes first here")
	}
	flags.BoolVar(&referrers, "record-from-referrers", false, "the records attached to SRC: the files of them come first")
	cmd.MarkFlagsMutuallyExclusive("estargz", "zstdchunked", "stargz", "uncompress")
	for _, form := range []string{"estargz", "zstdchunked"} {
		cmd.MarkFlagsMutuallyExclusive("prefetch-list", form+"-record-in", form+"-record-in-ref", form+"-record-copy", "record-from-referrers", "stargz", "uncompress")
	}
	return cmd
}

// imageKinds are the kinds of errors of what reads images and writes them.
func imageKinds() []dray.Kind {
	return []dray.Kind{dray.KindNotFound, dray.KindUnauthorized, dray.KindUnverified, dray.KindNoSpace, dray.KindUnreachable}
}

// convertImage converts and prints the result.
func convertImage(ctx context.Context, app *cli.App, f *conversionFlags, source, target string, more func(*dray.ConvertOptions)) (err error) {
	images, err := app.OpenImages()
	if err != nil {
		return err
	}
	defer func() { err = cli.JoinClose(err, images) }()
	o, closeAll, err := f.options(ctx, app)
	if err != nil {
		return err
	}
	defer closeAll()
	if more != nil {
		more(&o)
	}
	result, err := images.Convert(ctx, source, target, o)
	app.EndProgress()
	if err != nil {
		return err
	}
	if app.Globals.JSON {
		return app.PrintJSON(result)
	}
	return printConverted(app, target, result)
}

func printConverted(app *cli.App, target string, r *dray.ConvertResult) error {
	var out, notes strings.Builder
	for _, image := range r.Images {
		how := map[string]int{}
		var before, after int64
		for _, l := range image.Layers {
			how[string(l.How)]++
			before, after = before+l.SourceSize, after+l.TargetSize
		}
		_, _ = fmt.Fprintf(&notes, "%s: %d layers, %s", image.Platform, len(image.Layers), cli.Size(before))
		if image.Target != "" {
			_, _ = fmt.Fprintf(&notes, " to %s", cli.Size(after))
		}
		separator := ": "
		for _, kind := range []string{"converted", "remembered", "reused", "kept"} {
			if how[kind] > 0 {
				_, _ = fmt.Fprintf(&notes, "%s%d %s", separator, how[kind], kind)
				separator = ", "
			}
		}
		if image.Requested > 0 {
			_, _ = fmt.Fprintf(&notes, "; %d files first (%.1f %% of the bytes), %d not in the image", image.Prioritized, 100*image.Share, image.MissingCount)
		}
		notes.WriteByte('\n')
	}
	for _, d := range r.LeftBehind {
		_, _ = fmt.Fprintf(&notes, "note: %s (%s) refers to the source and was not copied\n", d.Digest, d.ArtifactType)
	}
	for _, note := range r.Notes {
		_, _ = fmt.Fprintf(&notes, "note: %s\n", note)
	}
	if r.Target.Digest == "" {
		for _, image := range r.Images {
			for i, l := range image.Layers {
				_, _ = fmt.Fprintf(&out, "%s layer %d %s %s would be %s\n", image.Platform, i, l.Source, cli.Size(l.SourceSize), l.How)
			}
		}
	} else {
		_, _ = fmt.Fprintf(&out, "%s@%s\n", target, r.Target.Digest)
	}
	if r.ExternalTOC != nil {
		_, _ = fmt.Fprintf(&out, "extra image: %s@%s\n", r.TOCTag, r.ExternalTOC.Digest)
	}
	if _, err := io.WriteString(app.Stderr, notes.String()); err != nil {
		return err
	}
	_, err := io.WriteString(app.Stdout, out.String())
	return err
}

func newImageCp(app *cli.App) *cobra.Command {
	var o dray.CopyOptions
	cmd := &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy an image, with all that belongs to it, from anywhere to anywhere",
		Long: `Copies the image, the index with all of its images, the record or the artifact SRC
to DST, byte for byte, and what refers to them: signatures, attestations, records.
What DST has is not transferred again, so that a copy that broke off goes on where
it was; within a registry, layers are mounted across repositories.

With --platform, of an index only the image for it is copied.` + cli.ReferenceHelp + `

Examples:
  dray image cp docker.io/library/busybox:1.36 local:///images/busybox
  dray image cp --platform linux/arm64 oci-archive:app.tar http://127.0.0.1:5000/app:arm64` + cli.ExitCodes(imageKinds()...),
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.Platform, app.Globals.Platform = app.Globals.Platform, ""
			images, err := app.OpenImages()
			if err != nil {
				return err
			}
			defer func() { err = cli.JoinClose(err, images) }()
			if o.Progress, err = app.StartProgress(); err != nil {
				return err
			}
			result, err := images.Copy(cmd.Context(), args[0], args[1], o)
			app.EndProgress()
			if err != nil {
				return err
			}
			if app.Globals.JSON {
				return app.PrintJSON(result)
			}
			_, _ = fmt.Fprintf(app.Stderr, "%d manifests, %d of them referrers, %d blobs: %s sent, %s mounted, %s there already\n",
				result.Manifests, result.Referrers, result.Blobs, cli.Size(result.SentBytes), cli.Size(result.MountedBytes), cli.Size(result.FoundBytes))
			_, err = fmt.Fprintf(app.Stdout, "%s@%s\n", args[1], result.Root.Digest)
			return err
		},
	}
	cmd.Flags().BoolVar(&o.NoReferrers, "no-referrers", false, "leave behind what refers to the image")
	cmd.Flags().IntVar(&o.Jobs, "jobs", 0, "blobs at once (0: 4, or one per CPU)")
	return cmd
}
