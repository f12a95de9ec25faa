package main

import (
	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/bench"
)

// native gives the program what only Linux has.
func native(app *cli.App) { app.StartProfile, app.ReuseFiles = bench.StartProfile, dray.ReuseFiles }

// nativeCommands returns the commands that need Linux.
func nativeCommands(app *cli.App) []*cobra.Command {
	return []*cobra.Command{
		app.PullCommand(),
		app.MountCommand(),
		app.UnmountCommand(),
		newBundleCommand(app),
		newRunCommand(app),
		app.ServeCommand(),
		newStoreCommand(app),
		newDemoCommand(app),
		newBenchCommand(app),
		app.UnshareCommand(),
	}
}
