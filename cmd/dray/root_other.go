//go:build !linux

package main

import (
	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
)

// native gives the program what only Linux has.
func native(*cli.App) {}

// nativeCommands returns what is left of commands that need Linux, as pulling, mounting,
// running and measuring do: reports are read everywhere.
func nativeCommands(app *cli.App) []*cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Read what was measured on Linux"}
	cmd.AddCommand(newBenchReportCommand(app))
	return []*cobra.Command{cmd}
}
