//go:build linux

package cli

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"dray"
	"dray/internal/guest"
)

// defaultLinger is how long the service keeps a layer going for a caller that
// gave up: kata's agent asks again after its own time-out.
const defaultLinger = 30 * time.Second

// ServeCommand returns dray serve.
func (a *App) ServeCommand() *cobra.Command {
	var options dray.ServeOptions
	var reply string
	var noConfig, explain, offline bool
	var profile string
	linger := defaultLinger
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve image pulls over ttrpc, for the agent of a guest",
		Long: `Serves api.ImagePullService/PullImage over ttrpc, as Contrast's imagepuller and
the Confidential Data Hub do: the image is pulled, verified and mounted at
BUNDLE/rootfs, config.json is written beside it, and the manifest's digest comes
back. An image without a command gets no config.json. The same image into the same bundle again changes nothing; another image
replaces it. Pulls run in parallel.

--config takes dray's settings, imagepuller's imagepuller.toml or the Hub's
configuration with its [image] section. With imagepuller's, tags are refused as
imagepuller did, unless --require-digest=false. Images in files of this machine
(local://, oci-archive:) are refused unless --allow-local. Sockets may come from systemd; readiness
is notified. SIGTERM and SIGINT let running calls finish for --grace.` + ExitCodes(dray.KindBusy, dray.KindCorrupt, dray.KindNoSpace),
		Example: a.Example("serve --listen unix:///run/guest-services/imagepull.socket --require-digest", "serve --config /etc/imagepuller.toml --metrics unix:///run/dray/metrics.sock"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			mode, err := guest.ParseReplyMode(reply)
			if err != nil {
				return usageError{err}
			}
			if profile != "" {
				stop, startErr := a.StartProfile(profile)
				if startErr != nil {
					return startErr
				}
				defer func() { err = errors.Join(err, stop()) }()
			}
			options.ReplyWith = mode
			return a.runServe(cmd, options, dray.BundleOptions{NoConfig: noConfig, NoCommand: true, Pull: dray.PullOptions{Fresh: true, Offline: offline}}, linger, explain)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&options.Listen, "listen", nil, "`socket` to listen on, unix:///path or /path; repeatable (default "+guest.DefaultSocket+")")
	f.StringVar(&reply, "reply", "manifest", "what the answer carries: `manifest|config|empty`")
	f.BoolVar(&options.RequireDigest, "require-digest", false, "refuse references that are not pinned to a digest")
	f.BoolVar(&options.AllowLocal, "allow-local", false, "take local:// and oci-archive: references")
	f.BoolVar(&offline, "offline", false, "take what the store and seeds have, ask no registry")
	f.StringVar(&options.BundleRoot, "bundle-root", "", "`directory` below which every bundle must be")
	f.DurationVar(&options.Grace, "grace", guest.DefaultGrace, "how long running calls may take to finish at shutdown")
	f.DurationVar(&linger, "linger", linger, "how long a layer goes on after its caller gave up, for one that asks again")
	f.BoolVar(&noConfig, "no-config-json", false, "mount rootfs only, as imagepuller does")
	f.StringVar(&options.Metrics, "metrics", "", "serve metrics and health on `unix:///path or a loopback address`")
	f.BoolVar(&explain, "explain", false, "print the memory formula with this machine's numbers")
	if a.StartProfile != nil {
		f.StringVar(&profile, "profile", "", "record memory and CPU in `directory`, for dray bench --profile")
		_ = f.MarkHidden("profile") // it exists
	}
	return cmd
}

func (a *App) runServe(cmd *cobra.Command, options dray.ServeOptions, b dray.BundleOptions, linger time.Duration, explain bool) (err error) {
	ctx := cmd.Context()
	o, err := a.Options()
	if err != nil {
		return err
	}
	o.Linger = linger
	if a.settings.foreign {
		if err := a.adopt(&o, &options); err != nil {
			return err
		}
	}
	client, err := dray.New(ctx, o)
	if err != nil {
		return err
	}
	if a.Globals.Progress != "auto" { // nobody watches a service unless they say so
		if b.Pull.Progress, err = a.StartProgress(); err != nil {
			return err
		}
	}
	b.Pull.Progress = trimming(b.Pull.Progress)
	defer func() { err = JoinClose(err, client) }()
	if explain {
		if err := a.printFormula(client.Explain()); err != nil {
			return err
		}
	}
	spareMemory()
	return client.Serve(ctx, options, b)
}

// adopt takes over a predecessor's configuration. What the command line or the
// environment says wins.
func (a *App) adopt(o *dray.Options, s *dray.ServeOptions) error {
	config, err := guest.LoadConfig(a.settings.file)
	if err != nil {
		return usageError{err}
	}
	if config.Store != "" && a.settings.from["storepath"] == "default" {
		o.Store = config.Store
	}
	if len(s.Listen) == 0 {
		s.Listen = config.Sockets
	}
	if config.RequireDigest && a.settings.from["serve.require-digest"] == "default" {
		s.RequireDigest = true
	}
	if len(config.AuthFiles) > 0 && len(o.AuthFiles) == 0 {
		o.AuthFiles = config.AuthFiles
	}
	if o.Workers == 0 {
		o.Workers = config.MaxLayers
	}
	o.Hosts = append(o.Hosts, config.Hosts...)
	o.CAs, o.SearchRegistries = config.CAs, config.SearchRegistries
	for name, value := range config.ExtraEnv { // read by the first request, which is still to come
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	for _, name := range config.Ignored {
		_, _ = fmt.Fprintf(a.Stderr, "%s: %s: %s does not concern images and is left alone\n", a.Name, a.settings.file, name)
	}
	return nil
}

// UnshareCommand returns dray unshare.
func (a *App) UnshareCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unshare [--] [COMMAND [ARG...]]",
		Short: "Run a command in dray's user namespace, where rootless mounts are visible",
		Long: `Runs COMMAND, or $SHELL, in the user and mount namespaces in which dray works
when it is not root.

Exit codes: the command's own; 1 when it could not be run, 2 usage.`,
		Example: a.Example("unshare ls /mnt/nginx"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err, finished := a.Enter(cmd.Context()); finished {
				return err
			}
			if len(args) == 0 {
				args = []string{shell()}
			}
			return execve(args)
		},
	}
	cmd.Flags().SetInterspersed(false) // the command's flags are its own
	return cmd
}

func shell() string {
	if s := os.Getenv("SHELL"); s != "" {
		return s
	}
	return "/bin/sh"
}
