package main

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
)

func run() int {
	app := &cli.App{Name: programName(os.Args[0]), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, NewProgress: newProgress}
	native(app)
	runtime.MemProfileRate = 0 // only --profile reads it, and it costs memory
	return app.Main(newRootCommand(app))
}

// programName returns "ctr-remote" for a program that was linked or installed under
// that name, so that its users see the name that they typed, and "dray" otherwise.
func programName(arg string) string {
	const alias = "ctr-remote"
	if filepath.Base(arg) == alias {
		return alias
	}
	return "dray"
}

func newRootCommand(app *cli.App) *cobra.Command {
	root := &cobra.Command{
		Use:   app.Name,
		Short: "From a registry to a running root file system",
		Long: `dray brings a container image from a registry to a running root file system:
fetched, verified to the last byte, unpacked and mounted, in one pass and a fixed
amount of memory.

Every flag is also a key of the settings file and a DRAY_ variable: see
"dray config --help".`,
		Version: version(),
	}
	root.AddCommand(nativeCommands(app)...)
	root.AddCommand(
		newImageCommand(app),
		newRecordCommand(app),
		newRegistryCommand(app),
		app.ConfigCommand(),
		newManCommand(),
	)
	return root
}

// version returns what the build recorded of its source.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	isRevision := func(s debug.BuildSetting) bool { return s.Key == "vcs.revision" }
	if i := slices.IndexFunc(info.Settings, isRevision); i >= 0 {
		version += " " + info.Settings[i].Value
	}
	return version + " " + info.GoVersion
}
