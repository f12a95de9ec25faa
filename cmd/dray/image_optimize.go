package main

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dray"
	"dray/cmd/internal/cli"
)

// workloadFlags say how the image would be run to see what it reads. Without that
// run they are checked and not used.
type workloadFlags struct {
	terminal, interactive                bool
	period                               int
	user, cwd, entrypoint, args, waitFor string
	env, mounts                          []string
	envFile                              string
	nameservers, searchDomains           string
	dnsOptions, addHosts                 string
	cni, netHost, waitOnSignal           bool
	cniConfDir, cniConfigDir, cniDir     string
	gpus                                 string
}

func (w *workloadFlags) add(flags *pflag.FlagSet) {
	flags.BoolVarP(&w.terminal, "terminal", "t", false, "of the workload: attach a terminal")
	flags.BoolVarP(&w.interactive, "interactive", "i", false, "of the workload: attach the standard input")
	flags.IntVar(&w.period, "period", 10, "of the workload: `seconds` to run it at most")
	flags.BoolVar(&w.waitOnSignal, "wait-on-signal", false, "of the workload: run it until SIGINT")
	flags.StringVar(&w.waitFor, "wait-on-line", "", "of the workload: run it until it prints this `text`")
	flags.StringVar(&w.user, "user", "", "of the workload: `user[:group]`")
	flags.StringVar(&w.cwd, "cwd", "", "of the workload: working `directory`")
	flags.StringVar(&w.entrypoint, "entrypoint", "", "of the workload: entrypoint, a `JSON` array")
	flags.StringVar(&w.args, "args", "", "of the workload: arguments, a `JSON` array")
	flags.StringArrayVar(&w.env, "env", nil, "of the workload: environment, `NAME=VALUE`; repeatable")
	flags.StringVar(&w.envFile, "env-file", "", "of the workload: `file` with environment variables")
	flags.StringArrayVar(&w.mounts, "mount", nil, "of the workload: `type=…,source=…,destination=…,options=a:b`; repeatable")
	flags.StringVar(&w.nameservers, "dns-nameservers", "", "of the workload: `addresses` with commas between them")
	flags.StringVar(&w.searchDomains, "dns-search-domains", "", "of the workload: `domains` with commas between them")
	flags.StringVar(&w.dnsOptions, "dns-options", "", "of the workload: `options` with commas between them")
	flags.StringVar(&w.addHosts, "add-hosts", "", "of the workload: `name:address` with commas between them")
	flags.BoolVar(&w.cni, "cni", false, "of the workload: give it a network by CNI plugins")
	flags.StringVar(&w.cniConfDir, "cni-plugin-conf-dir", "", "of the workload: `directory` of CNI configurations")
	flags.StringVar(&w.cniConfigDir, "cni-plugin-config-dir", "", "the same `directory`")
	flags.StringVar(&w.cniDir, "cni-plugin-dir", "", "of the workload: `directory` of CNI plugins")
	flags.BoolVar(&w.netHost, "net-host", false, "of the workload: the host's network")
	flags.StringVar(&w.gpus, "gpus", "", "of the workload: GPU `numbers`, or all")
}

// check refuses what no run could use.
func (w *workloadFlags) check() error {
	for _, list := range []struct{ name, text string }{{"--entrypoint", w.entrypoint}, {"--args", w.args}} {
		var words []string
		if list.text != "" && json.Unmarshal([]byte(list.text), &words) != nil {
			return cli.Usage("%s %q: want a JSON array of strings", list.name, list.text)
		}
	}
	switch {
	case w.terminal && !w.interactive:
		return cli.Usage("--terminal needs --interactive")
	case w.terminal && w.waitOnSignal:
		return cli.Usage("--terminal and --wait-on-signal contradict each other")
	}
	return nil
}

func newImageOptimize(app *cli.App) *cobra.Command {
	var f conversionFlags
	var w workloadFlags
	var noOptimize bool
	var recordOut, recordOutRef string
	cmd := &cobra.Command{
		Use:   "optimize --no-optimize|--prefetch-list FILE [flags] SRC DST",
		Short: "Make an image eStargz, with what a workload reads first",
		Long: `Converts SRC to DST as "dray image convert --estargz" does, with the flags of
"ctr-remote image optimize".

This version does not run the image to see what it reads: one of --no-optimize
(nothing comes first) and --prefetch-list (what comes first is told by a list) must
be given. What a list means in SRC is shared as a record by --record-out and
--record-out-ref. A record that another tool has made is used by
"dray image convert --estargz --estargz-record-in FILE". The flags of the workload
are accepted and not used.` + cli.ReferenceHelp + `

Examples:
  dray image optimize --no-optimize --plain-http ghcr.io/a/b:1 http://registry2:5000/b:1-esgz
  dray image optimize --prefetch-list hot.txt --reuse ghcr.io/a/b:1-esgz local:///tmp/output
  dray image optimize --oci --prefetch-list hot.txt --record-out-ref registry.example/b:record-1 ghcr.io/a/b:1 registry.example/b:1-esgz` +
			cli.ExitCodes(imageKinds()...),
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case noOptimize && f.prefetchList != "":
				return cli.Usage("--no-optimize and --prefetch-list contradict each other")
			case !noOptimize && f.prefetchList == "":
				return cli.Usage("this version does not run images to see what they read: use --no-optimize or --prefetch-list FILE, or \"dray image convert --estargz --estargz-record-in FILE\" with a record")
			case noOptimize && (recordOut != "" || recordOutRef != ""):
				return cli.Usage("--record-out and --record-out-ref have nothing to record with --no-optimize: use --prefetch-list FILE")
			case (recordOut != "" || recordOutRef != "") && !isRegular(f.prefetchList):
				return cli.Usage("--prefetch-list %s is read twice, for the layers and for the record: it has to be a regular file", f.prefetchList)
			}
			if err := w.check(); err != nil {
				return err
			}
			if err := f.check(app); err != nil {
				return err
			}
			if err := convertImage(cmd.Context(), app, &f, args[0], args[1], func(*dray.ConvertOptions) {}); err != nil || f.dryRun {
				return err
			}
			return withImages(app, func(ctx context.Context, args []string, images *dray.Images) error {
				return recordOfList(ctx, app, images, f.prefetchList, args[0], recordOut, recordOutRef)
			})(cmd, args)
		},
	}
	flags := cmd.Flags()
	f.add(flags)
	w.add(flags)
	flags.BoolVar(&noOptimize, "no-optimize", false, "convert only: nothing comes first")
	flags.StringVar(&recordOut, "record-out", "", "`file` for a record of what comes first")
	flags.StringVar(&recordOutRef, "record-out-ref", "", "`ref` for a record image of what comes first")
	return cmd
}

// recordOfList shares what a list means in an image as a record: in a file, and as a
// record image, where they are wanted.
func recordOfList(ctx context.Context, app *cli.App, images *dray.Images, list, source, file, target string) error {
	if file == "" && target == "" {
		return nil
	}
	flags := recordFlags{image: source, output: file}
	entries, err := flags.readList(ctx, app, images, list)
	if err != nil {
		return err
	}
	defer entries.Close()
	if file != "" {
		err = flags.write(app, entries)
	}
	if err == nil && target != "" {
		err = pushRecord(ctx, app, entries, target, images.PushRecord)
	}
	return err
}
