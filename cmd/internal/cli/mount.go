//go:build linux

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dray"
)

// MountCommand returns dray mount.
func (a *App) MountCommand() *cobra.Command {
	var flags PullFlags
	var options dray.MountOptions
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Mount an image's root file system",
		Long: `Mounts the image's root file system at DIR, which is made if it does not exist,
and pulls the image first if the store does not have it. Each mount has a
writable layer of its own that goes with it; --read-only has none. Mounting the
same image there again changes nothing.

Without root, the mount lives in dray's user namespace: look at it with
"dray unshare ls DIR".` + ReferenceHelp + PullCodes(),
		Example: a.Example("mount docker.io/library/nginx /mnt/nginx", "mount --read-only http://127.0.0.1:5000/x /mnt/x"),
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err, finished := a.Enter(cmd.Context()); finished {
				return err
			}
			return a.runMount(cmd.Context(), args[0], args[1], &flags, options)
		},
	}
	flags.AddFresh(cmd)
	cmd.Flags().BoolVar(&options.ReadOnly, "read-only", false, "nothing can be written")
	cmd.Flags().BoolVar(&options.Replace, "replace", false, "take another image's mount at DIR away first")
	return cmd
}

func (a *App) runMount(ctx context.Context, ref, dir string, flags *PullFlags, o dray.MountOptions) (err error) {
	client, err := a.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = JoinClose(err, client) }()
	if o.Pull, err = a.PullOptions(flags); err != nil {
		return err
	}
	mounted, err := client.Mount(ctx, ref, dir, o)
	if err != nil {
		return err
	}
	a.EndProgress()
	if a.Globals.JSON {
		return a.PrintJSON(mounted)
	}
	_, err = fmt.Fprintln(a.Stdout, mounted.Target)
	return err
}

// UnmountCommand returns dray unmount.
func (a *App) UnmountCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "unmount DIR",
		Aliases: []string{"umount"},
		Short:   "Unmount a root file system, with what was written to it",
		Long: `Takes the root file system that dray mounted at DIR away, and the writable layer
with all that was written to it. The image stays in the store.` + ExitCodes(dray.KindNotFound, dray.KindBusy, dray.KindCorrupt),
		Example: a.Example("unmount /mnt/nginx"),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err, finished := a.Enter(cmd.Context()); finished {
				return err
			}
			client, err := a.Open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = JoinClose(err, client) }()
			return client.Unmount(cmd.Context(), args[0])
		},
	}
}
