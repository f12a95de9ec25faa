package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"dray/cmd/internal/cli"
)

// Every command says what its exit codes mean, and has examples whose flags there
// are.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, cmd := range leaves(newRootCommand(&cli.App{Name: "dray"})) {
		t.Run(strings.ReplaceAll(cmd.CommandPath(), " ", "-"), func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(strings.ToLower(cmd.Long), "exit code") {
				t.Error("help does not tell the exit codes")
			}
			examples := 0
			for line := range strings.Lines(cmd.Long + "\n" + cmd.Example) {
				if example, ok := strings.CutPrefix(line, "  dray "); ok {
					examples++
					checkExample(t, strings.Fields(example))
				}
			}
			if examples == 0 {
				t.Error("help has no example")
			}
		})
	}
}

// checkExample has the program parse the arguments, but for help and not to do it.
func checkExample(t *testing.T, args []string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	app := &cli.App{Name: "dray", Stdout: &stdout, Stderr: &stderr}
	root := newRootCommand(app)
	found, _, err := root.Find(args)
	if err != nil || !found.Runnable() {
		t.Errorf("%q is no command: %v", args, err)
		return
	}
	root.SetArgs(slices.Insert(slices.Clone(args), strings.Count(found.CommandPath(), " "), "--help"))
	if code := app.Main(root); code != 0 {
		t.Errorf("%q: exit code %d: %s", args, code, stderr.String())
	}
}

// leaves returns the commands that do something.
func leaves(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, child := range cmd.Commands() {
		all = append(all, leaves(child)...)
	}
	if cmd.Runnable() && !cmd.Hidden && cmd.HasParent() {
		all = append(all, cmd)
	}
	return all
}
