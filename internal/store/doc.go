// Package store is what dray keeps on disk: layers by diff ID, images by the
// digest of their manifest, references by name, and the records of mounts.
//
//	ROOT/version                       format of the store
//	ROOT/lock                          the store's lock, see below
//	ROOT/boot                          the last boot in which the store was opened
//	ROOT/layers/sha256/HEX/            one layer: fs/, journal, layer.json; or layer.tar, index.erofs, layer.json
//	ROOT/images/sha256/HEX.json        one image: manifest, config, diff IDs
//	ROOT/refs/HEX.json                 one name (HEX is its sha256) and its manifest digest
//	ROOT/mounts/ID/                    upper/, work/, state.json
//	ROOT/staging/X, ROOT/staging/X.lock   work in progress, whoever does it holds X.lock
//	ROOT/facts/NAME.json               what was found out about the machine in this boot
//	ROOT/merged/sha256/HEX.BOOT/       an index over the tars of all layers of a chain, made in this boot
//	ROOT/quarantine/                   what [Store.Verify] took out of the way
//
// Every object is a file or directory of its own, made elsewhere and renamed to
// its place: it is there in full or it is not there. There is no database and no
// file that every pull rewrites. A process may be killed at any moment; what it
// left in staging is removed when a store is opened.
//
// # Power loss
//
// A killed process loses nothing, because the kernel still has what it wrote.
// Power loss does: the contents of a renamed layer may never have reached the
// disk. [Txn.Commit] therefore does not wait for the disk but adds an empty file
// "unsynced-BOOT" to the layer, named after this boot of the machine. A file
// system orders names even where it does not order contents, so that no layer is
// ever seen without its mark. [Store.Sync] writes the file system out once and
// takes the marks away. A layer with the mark of another boot is as good as
// absent: it is never returned, and it is removed, with a warning, when the store
// is first opened after the machine has started.
//
// Images and references are written durably when all their layers are. When not,
// the pull was told not to sync, and their files carry the boot in their names
// (HEX.BOOT.json): after power loss they too are absent, and an older durable
// reference of that name is in force again.
//
// # Locks
//
// All locks are flock(2) on files, so that they work between processes as between
// goroutines, and end with their holder. In the order in which they are taken:
//
//  1. staging/X.lock, exclusive: the writer of a layer, the holder of a lease, who
//     prepares a mount. A process may wait for one while it holds none of the
//     following.
//  2. ROOT/lock. Shared, while an object is put in place or a lease is extended: the
//     time of a rename. Exclusive, while something decides that an object is not in
//     use and takes its name away ([Store.GC], [Store.Remove], repairs): the time
//     of reading the records. Deleting trees comes after that, without the lock.
//
// Nothing waits for a lock of the first kind while it holds the second. No lock
// is held across a callback.
//
// Leases connect the two: a layer or an image that a live [Lease] names is not
// collected, from before a pull asks whether it is there until a reference names the
// image or, where it is pulled to be mounted, the record of the mount does.
//
// # Words
//
// A mark or stale object: see "Power loss". An image is dangling when no reference
// points to it. Trash is what no longer has a name in the store.
package store
