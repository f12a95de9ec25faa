// Command dray-guest is dray for a confidential guest: the pull service, and what
// is needed to look at it. It leaves out all that builds, serves or measures.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
)

// defaultStore is where the agents of Kata Containers keep images.
const defaultStore = "/run/kata-containers/image"

func main() { os.Exit(run()) }

func run() int {
	app := &cli.App{Name: "dray-guest", DefaultStore: defaultStore, ForeignDisks: true, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	root := &cobra.Command{
		Use:   "dray-guest",
		Short: "Pull and mount container images inside a guest",
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(app.ServeCommand(), app.PullCommand(), app.MountCommand(), app.UnmountCommand(), app.ConfigCommand())
	return app.Main(root)
}
