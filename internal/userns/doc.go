// Package userns gives dray the rights that mounting needs when the caller is
// not root: a user namespace and a mount namespace of the caller's own.
//
// A Go program has several threads and can neither unshare nor join a user
// namespace, so [Reexec] runs the program once more, inside. One pair of
// namespaces serves all commands of a user: the mount that one command makes is
// there for the next. The pair is held open by a small process, the holder,
// whose record lies in the user's runtime directory:
//
//	RUNTIME/ns         JSON: pid, start time and boot of the holder
//	RUNTIME/ns.lock    held while the holder is looked for, started or stopped
//	RUNTIME/users.lock shared by every command that runs inside
//
// RUNTIME is $XDG_RUNTIME_DIR/dray, or /tmp/dray-UID where that is not set. The
// last command to leave stops the holder when no mount of dray's is left in its
// namespace; [Stop] stops it in any case. Lock order: ns.lock, then users.lock.
//
// IDs: with newuidmap, newgidmap and entries in /etc/subuid and /etc/subgid the
// namespace has the caller as root and the subordinate IDs above. Without them
// it has one ID, and everything that an image says about owners is lost; that is
// said aloud. The mount namespace receives the mounts of the outside and sends
// none: the kernel makes every mount in it a slave.
//
// Outside programs: nsenter and setpriv (util-linux), sh, sleep, and for the full
// range newuidmap and newgidmap (Debian: uidmap). Under systemd a service that
// reports its readiness from inside needs NotifyAccess=all.
package userns
