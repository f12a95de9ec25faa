//go:build linux

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
)

func newStoreExport(app *cli.App) *cobra.Command {
	var out string
	var o dray.MetaExportOptions
	cmd := &cobra.Command{
		Use:   "export --meta-store DIR [--prefix PATH] [IMAGE...]",
		Short: "Write images as a work directory of image-rs",
		Long: `Writes images of the store, without arguments all of them, as image-rs keeps them:
DIR/meta_store.json and DIR/layers. An image-rs whose work_dir this is pulls only
manifest and configuration of these images, and no layer. DIR must not exist, or be
empty. It appears when it is complete, and what goes into it is verified once more.

image-rs reads absolute paths: --prefix says where DIR will be when it does. It wants
layers called 0, 1, 2 and does not start when it finds other names; versions of 2024
called them sha256_HEX, which --names digest makes.

Layers keep owners, devices and trusted.* attributes, which only root can make.` + cli.ExitCodes(dray.KindNotFound, dray.KindBusy, dray.KindCorrupt, dray.KindNoSpace),
		Example: `  dray store export --meta-store /mnt/rootfs/run/kata-containers/image --prefix /run/kata-containers/image docker.io/library/nginx`,
		Args:    cobra.ArbitraryArgs,
		RunE: withStore(app, func(cmd *cobra.Command, refs []string, client *dray.Client) error {
			if out == "" {
				return cli.Usage("export: say with --meta-store which directory to make")
			}
			done, err := client.ExportMetaStore(cmd.Context(), out, refs, o)
			if err != nil {
				return err
			}
			if app.Globals.JSON {
				return app.PrintJSON(done)
			}
			for _, note := range done.Notes {
				if _, err := fmt.Fprintln(app.Stdout, note); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(app.Stdout, "%s: %d images, %d layers\n", done.Path, len(done.Images), done.Layers)
			return err
		}),
	}
	cmd.Flags().StringVar(&out, "meta-store", "", "directory to make")
	cmd.Flags().StringVar(&o.Prefix, "prefix", "", "where the directory will be for image-rs (default: where it is made)")
	cmd.Flags().StringVar(&o.Naming, "names", "number", "names of the layers' directories: number or digest")
	return cmd
}

func newStoreImport(app *cli.App) *cobra.Command {
	var o dray.MetaImportOptions
	cmd := &cobra.Command{
		Use:   "import WORKDIR",
		Short: "Take images over from a work directory of image-rs",
		Long: `Reads WORKDIR/meta_store.json and takes its images over: layers, configuration and
name. WORKDIR is only read, and may lie elsewhere than the file says.

Each layer is verified. An unpacked layer has no bytes to hash, so the tars that the
usual tools would have made of it are made again; one that has the layer's digest is
the layer. Where none has, because the layer was changed, because image-rs lost
something of it (extended attributes, devices, fractions of seconds), or because an
unusual tool made it, the layer is refused, and with it the images that need it;
"dray pull" then fetches just these layers. --trust takes such layers as they are: for
a WORKDIR that was measured, as on a root file system under dm-verity.

image-rs keeps no manifest: an image gets one of its own. "dray pull" replaces it by
the registry's, and fetches no layer that was taken over.` + cli.ExitCodes(dray.KindNotFound, dray.KindDenied, dray.KindUnverified, dray.KindBusy, dray.KindCorrupt, dray.KindNoSpace),
		Example: `  dray store import /run/kata-containers/image
  dray run --offline mcr.microsoft.com/hello-world`,
		Args: cobra.ExactArgs(1),
		RunE: withStore(app, func(cmd *cobra.Command, args []string, client *dray.Client) error {
			done, err := client.ImportMetaStore(cmd.Context(), args[0], o)
			if done == nil {
				return err
			}
			return errors.Join(err, printImport(app, done))
		}),
	}
	cmd.Flags().BoolVar(&o.Trust, "trust", false, "take layers over that cannot be verified: WORKDIR is measured")
	return cmd
}

func printImport(app *cli.App, done *dray.MetaImport) error {
	if app.Globals.JSON {
		return app.PrintJSON(done)
	}
	lines := done.Notes
	for _, l := range done.Layers {
		line := fmt.Sprintf("layer %s: %s", l.DiffID, l.Result)
		if l.Refused != "" {
			line += ": " + l.Refused
		}
		lines = append(lines, line)
	}
	for _, i := range done.Images {
		if i.Refused != "" {
			lines = append(lines, fmt.Sprintf("image %s: refused: %s", i.Reference, i.Refused))
			continue
		}
		lines = append(lines, fmt.Sprintf("image %s: %s", i.Reference, i.Manifest))
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(app.Stdout, line); err != nil {
			return err
		}
	}
	return nil
}
