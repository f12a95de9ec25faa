package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/registryd"
)

func newRegistryCommand(app *cli.App) *cobra.Command {
	listen := "127.0.0.1:5000"
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "registry DIR",
		Short: "Serve an OCI image layout as a registry",
		Long: `Serves the OCI image layout in DIR over plain HTTP, and takes pushes into it. A
directory that is no layout holds one for each repository; an empty or missing one
is filled by pushes. It is meant for tests, demonstrations and benchmarks on one
machine: there is no access control, so it listens on loopback unless told
otherwise.

Prints the address on standard output once it listens.` + cli.ExitCodes(dray.KindCorrupt),
		Example: app.Example("registry /srv/layout --listen 127.0.0.1:5000"),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRegistry(cmd.Context(), app, args[0], listen, readOnly)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", listen, "`address` to listen on; port 0 takes a free one")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "refuse pushes")
	return cmd
}

func runRegistry(ctx context.Context, app *cli.App, dir, address string, readOnly bool) (err error) {
	if !readOnly {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a layout is for others to read
			return fmt.Errorf("registry: %w", err)
		}
	}
	server, err := registryd.New(registryd.Options{Dir: dir, ReadOnly: readOnly, Log: app.Log()})
	if err != nil {
		return err
	}
	defer func() { err = cli.JoinClose(err, server) }()
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	if app.Globals.JSON {
		err = app.PrintJSON(map[string]string{"address": listener.Addr().String()})
	} else {
		_, err = fmt.Fprintf(app.Stdout, "http://%s\n", listener.Addr())
	}
	if err != nil {
		return err
	}
	return registryd.Serve(ctx, server, listener)
}
