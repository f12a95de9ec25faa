// Package dray brings container images from a registry to a running root file
// system: fetched, verified to the last byte, unpacked and mounted, in one pass
// and a fixed amount of memory.
//
// A [Client] works on one store. Everything that the dray command does is a
// method of it:
//
//	client, err := dray.New(ctx, dray.Options{})
//	image, err := client.Pull(ctx, "docker.io/library/nginx", dray.PullOptions{})
//	mount, err := client.Mount(ctx, "docker.io/library/nginx", "/mnt/nginx", dray.MountOptions{})
//	code, err := client.Run(ctx, "docker.io/library/nginx", dray.RunOptions{Args: []string{"nginx", "-v"}})
//
// References are what people type: nginx, ghcr.io/a/b:tag@sha256:…,
// http://127.0.0.1:5000/x for plain HTTP, local:///path for an OCI image layout
// and oci-archive:/path.tar for one in a tar file.
//
// Errors tell their kind through [KindOf], which is also the exit code of the
// command. A pull returns [Evidence]: what was verified, where each byte came
// from, and how long each stage took.
//
// Mounting needs root, or a user namespace in which the process is root. The
// command makes one for itself; a program can run below "dray unshare".
package dray
