// Package apply turns the entries of a layer into a directory, exactly, and is
// the only package that hands a name out of an image to a system call. It needs
// Linux 5.6 or later and /proc.
//
// # Confinement
//
// Names are cleaned lexically as if below a root: "/a", "./a", "../a" and
// "b/../a" are all "a". The parent of an entry is opened below the root with
// openat2: first along real directories only and, where a component is a
// symbolic link, with RESOLVE_IN_ROOT, so that a link leads wherever it leads
// inside the root. Mount points and magic links are never crossed. The last
// component is handed to *at calls that neither follow links (O_NOFOLLOW,
// AT_SYMLINK_NOFOLLOW) nor open what exists (O_EXCL). The target of a hard link
// is resolved in the same way; if it is itself a symbolic link, the link is
// linked. Nothing outside the root is read, made, changed or touched.
//
// # What wins
//
// The tar is applied in its order, and the last entry of a name wins. A
// directory over a directory replaces its attributes and keeps what is below.
// Anything else over anything else removes what was there, with all below it.
// A hard link to the file that has the name already changes nothing. What has
// been a file cannot have entries below it.
//
// Parents that the tar does not mention are made with mode 0755, owner 0:0 and
// time 0 (1970), and so is the root; an entry "./" sets the root's attributes.
//
// # Whiteouts
//
// A name that begins with ".wh." is a whiteout, whatever type its entry has. It
// deletes from the layers below only: an entry of the same layer and name stays,
// wherever in the tar it stands; if it is a directory, it becomes opaque.
// ".wh..wh..opq" makes its directory opaque. A directory that replaces anything
// but a directory becomes opaque too, since what it replaced hid the lower
// layers. Other names that begin with ".wh..wh." are AUFS's bookkeeping and
// ignored, with all below them. ".wh." alone, ".wh..", ".wh..." and entries below
// a whiteout are malformed.
//
// A character device 0:0 in an image is what overlayfs takes for a whiteout; it
// is made and counted as one.
//
// # Attributes
//
// The order is: data, owner, xattrs, mode, times, for chown removes file
// capabilities and setuid bits, and writing changes times. A directory keeps the
// time of its entry: while it is open for entries its time is remembered, and
// set when it is closed. If it is opened again, its time is read back from the
// file system first, so that no list of directories is held. Default ACLs are
// withheld in the same way, lest new entries inherit them. Access times are set
// to modification times. The attributes of a hard link's entry are those of its
// file and not applied.
//
// Never taken from an image: xattrs named trusted.overlay.* and user.overlay.*,
// which would speak to overlayfs, and xattrs that Linux cannot hold (unknown
// namespaces; user.* on what is neither file nor directory). They are counted in
// [Result], as is all that a user namespace does not allow. A file system
// without xattrs is an error, [ErrNoXattrs]: a lost opaque mark would bring
// deleted files back.
//
// # Concurrency
//
// Apply has one goroutine beside its caller's, which writes small files that were made
// already; it ends with Apply. Nothing else happens out of the tar's order.
//
// # Memory
//
// One entry, [maxOpenDirs] directories, two batches of small files, the journal's
// encoder.
//
// # The journal
//
// Apply can write down what it made, in the form described at [Options.Journal];
// [Check] compares a tree with it.
package apply
