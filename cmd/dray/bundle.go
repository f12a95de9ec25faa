//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/bundle"
)

// specFlags are how a container differs from its image, named as people know
// them from docker and podman.
type specFlags struct {
	env        []string
	volumes    []string
	workdir    string
	user       string
	entrypoint string
	hostname   string
	net        string
	readOnly   bool
	terminal   bool
}

func (s *specFlags) add(f *pflag.FlagSet) {
	f.StringArrayVarP(&s.env, "env", "e", nil, "`KEY=VALUE`, or KEY for the caller's value; repeatable")
	f.StringArrayVarP(&s.volumes, "volume", "v", nil, "`SRC:DST[:ro]` to bind into the container; repeatable")
	f.StringVarP(&s.workdir, "workdir", "w", "", "working `directory` of the process")
	f.StringVarP(&s.user, "user", "u", "", "`USER[:GROUP]`, by name or number")
	f.StringVar(&s.entrypoint, "entrypoint", "", "`program` instead of the image's entrypoint; its command is dropped too")
	f.StringVar(&s.hostname, "hostname", "", "`name` of the container (default: its ID)")
	f.StringVar(&s.net, "net", "none", "`host|none`: the host's network, or only a loopback device")
	f.BoolVar(&s.readOnly, "read-only", false, "the container cannot write its root file system")
}

// spec returns the library's options. flags tells which were given.
func (s *specFlags) spec(flags *pflag.FlagSet, args []string) (dray.SpecOptions, error) {
	o := dray.SpecOptions{
		Args: args, Env: s.env, WorkingDir: s.workdir, User: s.user,
		Hostname: s.hostname, ReadonlyRootfs: s.readOnly, Terminal: s.terminal,
	}
	if flags.Changed("entrypoint") {
		entrypoint := []string{}
		if s.entrypoint != "" {
			entrypoint = append(entrypoint, s.entrypoint)
		}
		o.Entrypoint = &entrypoint
	}
	net, err := bundle.ParseNetMode(s.net)
	if err != nil {
		return o, cli.Usage("--net: %w", err)
	}
	o.Net = net
	for _, v := range s.volumes {
		m, err := bundle.ParseVolume(v)
		if err != nil {
			return o, cli.Usage("-v: %w", err)
		}
		o.Mounts = append(o.Mounts, m)
	}
	return o, nil
}

func newBundleCommand(app *cli.App) *cobra.Command {
	var pull cli.PullFlags
	var spec specFlags
	var replace bool
	cmd := &cobra.Command{
		Use:   "bundle REF DIR [-- ARG...]",
		Short: "Make an OCI bundle: root file system and config.json, ready for runc",
		Long: `Makes DIR a bundle of the OCI runtime specification: the image's root file system
mounted at DIR/rootfs and a config.json made from the image's configuration.
"runc run --bundle DIR NAME" starts it; "dray unmount DIR/rootfs" ends it.` + cli.ReferenceHelp + cli.PullCodes(),
		Example: app.Example("bundle docker.io/library/busybox /tmp/b -- echo hi"),
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err, finished := app.Enter(cmd.Context()); finished {
				return err
			}
			o, err := spec.spec(cmd.Flags(), args[2:])
			if err != nil {
				return err
			}
			return runBundle(cmd.Context(), app, args[0], args[1], &pull, dray.BundleOptions{Spec: o, ReadOnly: spec.readOnly, Replace: replace, Create: true})
		},
	}
	pull.AddFresh(cmd)
	spec.add(cmd.Flags())
	cmd.Flags().BoolVarP(&spec.terminal, "tty", "t", false, "the process gets a terminal")
	cmd.Flags().BoolVar(&replace, "replace", false, "take another image's bundle in DIR away first")
	return cmd
}

func runBundle(ctx context.Context, app *cli.App, ref, dir string, pull *cli.PullFlags, o dray.BundleOptions) (err error) {
	client, err := app.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = cli.JoinClose(err, client) }()
	if o.Pull, err = app.PullOptions(pull); err != nil {
		return err
	}
	made, err := client.Bundle(ctx, ref, dir, o)
	if err != nil {
		return err
	}
	app.EndProgress()
	if app.Globals.JSON {
		return app.PrintJSON(made)
	}
	_, err = fmt.Fprintln(app.Stdout, made.Dir)
	return err
}

func newRunCommand(app *cli.App) *cobra.Command {
	var pull cli.PullFlags
	var spec specFlags
	var o dray.RunOptions
	var remove, tty, interactive bool
	cmd := &cobra.Command{
		Use:   "run [FLAG...] REF [--] [ARG...]",
		Short: "Run a process in a container of the image",
		Long: `Pulls the image if needed, mounts it, writes config.json, starts it with runc or
crun, passes signals on and ends with the process's exit code. Afterwards
container, mount and what was written are gone, unless --rm=false.

ARG... replaces the image's command. A terminal on standard input and output is
passed on.` + cli.ReferenceHelp + `

Exit codes: the process's own; 125 when the container could not be made for a
reason that has no code of its own; otherwise those of "dray pull".`,
		Example: app.Example("run docker.io/library/busybox -- echo hi", "run -it --net host -v /srv:/srv:ro docker.io/library/busybox"),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err, finished := app.Enter(cmd.Context()); finished {
				return err
			}
			spec.terminal = tty || !cmd.Flags().Changed("tty") && term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
			command := args[1:]
			if len(command) > 0 && command[0] == "--" { // what follows REF is not parsed
				command = command[1:]
			}
			spec, err := spec.spec(cmd.Flags(), command)
			if err != nil {
				return err
			}
			if spec.Terminal {
				spec.Columns, spec.Rows = terminalSize()
			}
			o.Spec, o.ReadOnly, o.Keep = spec, spec.ReadonlyRootfs, !remove
			o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
			return runRun(cmd.Context(), app, args[0], &pull, o)
		},
	}
	cmd.Flags().SetInterspersed(false)
	pull.AddFresh(cmd)
	spec.add(cmd.Flags())
	f := cmd.Flags()
	f.BoolVarP(&tty, "tty", "t", false, "the process gets a terminal (default: when there is one)")
	f.BoolVarP(&interactive, "interactive", "i", true, "standard input is passed on")
	f.BoolVar(&remove, "rm", true, "remove container and mount afterwards")
	f.StringVar(&o.Runtime, "runtime", "", "`runc|crun|path` (default: the first that is installed)")
	f.StringVar(&o.ID, "name", "", "`name` of the container (default: a random one)")
	return cmd
}

// terminalSize returns that of the terminal, 0 where it does not tell.
func terminalSize() (columns, rows uint) {
	width, height, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || width < 0 || height < 0 {
		return 0, 0
	}
	return uint(width), uint(height)
}

// notStarted is the exit code for a container that the runtime refused, as with
// docker and podman.
const notStarted = 125

func runRun(ctx context.Context, app *cli.App, ref string, pull *cli.PullFlags, o dray.RunOptions) (err error) {
	client, err := app.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = cli.JoinClose(err, client) }()
	if o.Pull, err = app.PullOptions(pull); err != nil {
		return err
	}
	signals := make(chan os.Signal, 8) // room for a few while the container starts
	o.Signals = signals
	o.Started = func() {
		app.EndProgress()
		signal.Notify(signals, bundle.Signals()...)
	}
	defer signal.Stop(signals)
	code, err := client.Run(ctx, ref, o)
	if failed := (*bundle.StartError)(nil); errors.As(err, &failed) {
		if failed.Printed { // by the runtime, where the container's errors go
			err = nil
		}
		return cli.ExitWith(notStarted, err)
	}
	if err != nil {
		return err
	}
	return cli.Exit(code)
}
