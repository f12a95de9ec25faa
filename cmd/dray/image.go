package main

import (
	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
)

// newImageCommand returns what works on images where they are.
func newImageCommand(app *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Aliases: []string{"images", "i"},
		Short:   "Convert, copy and look into images, where they are",
		Long: `Works on images in registries, image layouts and archives. No store is needed, no
daemon, and no right to mount.`,
	}
	cmd.AddCommand(newImageConvert(app), newImageOptimize(app), newImageCp(app), newImageInspect(app), newImageGetTOCDigest(app))
	return cmd
}
