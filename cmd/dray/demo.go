//go:build linux

package main

import (
	"context"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/demo"
)

func newDemoCommand(app *cli.App) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the main job on this machine, without a network",
		Long: `Makes images from programs and files of this machine, serves them from an embedded
registry on loopback, starts the guest's pull service as a process of its own,
pulls and mounts each image through it, runs a process in each, and prints what it
took. Everything is removed afterwards. Needs no root where user namespaces work.` + cli.ExitCodes(),
		Example: app.Example("demo"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err, finished := app.Enter(cmd.Context()); finished {
				return err
			}
			return runDemo(cmd.Context(), app)
		},
	}
}

func runDemo(ctx context.Context, app *cli.App) error {
	if app.Globals.Progress == "auto" && !term.IsTerminal(int(os.Stderr.Fd())) {
		app.Globals.Progress = "none" // the closing table says it all
	}
	display := &restarting{app: app}
	return demo.Run(ctx, demo.Options{
		Output: app.Stdout, Progress: display.event, Settle: display.settle, Size: cli.Size, Log: app.Log(),
	})
}

// restarting is a progress display that begins anew after each image.
type restarting struct {
	app *cli.App

	mu   sync.Mutex // guards show
	show func(dray.Event)
}

func (r *restarting) event(e dray.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.show == nil {
		show, err := r.app.StartProgress()
		if err != nil || show == nil {
			show = func(dray.Event) {} // --progress none
		}
		r.show = show
	}
	r.show(e)
}

func (r *restarting) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.show = nil
	r.app.EndProgress()
}
