// Package mount turns layers of the store into root file systems with overlayfs,
// and takes them away again, whatever happened in between.
//
// # A mount's life
//
//  1. The record is written, in the state "preparing" ([store.Store.NewMount]).
//  2. The overlay is made and not yet attached to any directory: if the process is
//     killed here, the kernel drops it.
//  3. It is attached to the target, in one step.
//  4. The record becomes "mounted".
//
// Unmounting goes the other way: "unmounting", umount, upper and work directory
// and record removed. [Mounter.Recover] finds what a killed process left at any of
// these points, and mounts that are gone: those of another boot, those that
// somebody else unmounted.
//
// Every overlay has "dray:ID" as its source, ID being that of its record. By this,
// not by paths, a line of mountinfo is known as a mount of ours. A record belongs
// to one mount namespace; mounts of other namespaces cannot be seen from here, and
// are only cleared away when it is certain that they are gone: the kernel does not
// lend an upper directory in use to a second overlay, which is asked for as proof.
//
// # The stack
//
// Layers are given to the kernel top first, by file descriptor where it takes them
// so (Linux 6.13), by the descriptor's path in /proc where not (6.8), and as one
// string of such paths to mount(2) on older ones, which limits their number to
// what fits a page. Nothing in a layer's or a target's name can therefore be taken
// for an option. At least Linux 5.10.
//
// A layer that is a tar with an index is mounted first, by the descriptors of its
// files, attached nowhere, and gone with the overlay. Of many such layers
// ([DefaultMergeAbove]) the indexes are merged into one ([erofs.Merge]), which the store
// keeps, and which is mounted in their place with all tars as its devices: a mount that
// was made of layers is never changed into one of the merged index, or back.
//
// overlayfs refuses a directory that occurs twice (ELOOP). Of a repeated layer the
// topmost occurrence is kept, which changes nothing. Take a path p and the layer A,
// once as the topmost occurrence and once further down. If A has p, or has above p
// something that hides what is below (a file, a whiteout, an opaque directory), the
// topmost A decides p, and no lower layer is looked at. If not, A says nothing of
// p, and the lower occurrence says nothing either. If A has p as a plain directory
// p's attributes are the topmost A's, and its names are merged with those further
// down: of each of them the same is true. What A's directory hides below it, a file
// of the same name, ends the merge with or without the lower A.
//
// A mount that can be written has an upper and a work directory of its own, and is
// volatile: its files are removed with it, so nothing ever has to be synced. A
// read-only mount has none. overlayfs wants two layers then; where the image has
// fewer, empty directories of the mount's own make up for them.
//
// The root directory's mode, owner, times and extended attributes are those that
// the image says; see rootLayer.
//
// # Concurrency
//
// A [Mounter] is safe for concurrent use, and any number of processes may use one
// store. All changes to mounts of a store happen one after another, under the lock
// ROOT/mounts.lock: they take about a millisecond each. Deleting an upper
// directory, which takes longer, happens after it. A record that is seen as
// "preparing" or "unmounting" under the lock is therefore that of a dead process.
// Lock order: ROOT/mounts.lock before any of the store's.
package mount
