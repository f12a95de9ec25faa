// Package bundle turns an image's configuration into an OCI runtime bundle and
// runs it: [Spec] computes a config.json by the image specification's conversion
// rules (conversion.md) with Docker's defaults where those leave it open, [Write]
// puts it into the bundle, [Run] hands the bundle to runc or crun.
//
// Both the configuration and the root file system come from the image and are
// hostile. Files of the root file system are opened below it (openat2), must be
// regular and have a size limit; labels that runtimes take as orders are dropped
// and logged. What the user asks for in [Options] is obeyed, or refused by name.
//
// Spec changes nothing on disk: a missing working directory is made by the
// runtime, with mode 0755 and owned by root, as Docker does. Decisions that the
// specifications leave open:
//
//   - An image's volumes are ordinary directories of the container's writable
//     root, which goes away with the container. Where that root is read-only, or
//     the image has no such directory, a tmpfs is mounted, seeded with what the
//     image has there.
//   - Numeric users get the groups that the image lists for them, like names.
//   - The seccomp filter is Docker's default profile for the machine on which
//     Spec runs.
//   - Rootless means: inside a user namespace that the caller has set up and in
//     which it is root. The container gets no user namespace of its own, no
//     cgroup, and no device rules.
//
// Functions are safe for concurrent use. A container has one [Run].
package bundle
