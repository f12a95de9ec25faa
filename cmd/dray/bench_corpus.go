//go:build linux

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
	"dray/internal/bench"
)

func newBenchCorpusCommand(app *cli.App) *cobra.Command {
	cmd := &cobra.Command{Use: "corpus", Short: "Make the images that benchmarks pull"}
	o := bench.BuildOptions{}
	build := &cobra.Command{
		Use:   "build DIR",
		Short: "Build images from Debian packages, as OCI layouts in DIR",
		Long: `Builds images of the shapes of well-known ones from Debian packages, which apt
downloads: the same package versions give the same bytes. Images that are there are
kept; heavy ones (several GB) are made when --only names them. Needs no root.` + cli.ExitCodes(),
		Example: app.Example("bench corpus build /var/tmp/corpus"),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Dir = args[0]
			o.Say = func(format string, args ...any) { _, _ = fmt.Fprintf(app.Stderr, format+"\n", args...) }
			return runBenchCorpusBuild(cmd.Context(), app, o)
		},
	}
	build.Flags().StringSliceVar(&o.Only, "only", nil, "`names` of images to build, heavy ones included")
	build.Flags().StringVar(&o.Cache, "cache", "", "`directory` of downloaded packages (default DIR/.packages)")
	cmd.AddCommand(build)
	return cmd
}

func runBenchCorpusBuild(ctx context.Context, app *cli.App, o bench.BuildOptions) error {
	corpus, err := bench.BuildCorpus(ctx, o)
	if err != nil {
		return err
	}
	if app.Globals.JSON {
		return app.PrintJSON(corpus)
	}
	for _, i := range corpus.Images {
		_, _ = fmt.Fprintf(app.Stdout, "%s\t%d layers\t%.1f MB compressed\t%.1f MB unpacked\t%d files\t%s\n", i.Name, len(i.Layers),
			float64(i.CompressedBytes())/1e6, float64(i.UncompressedBytes())/1e6, i.Files(), i.Manifest)
	}
	return nil
}
