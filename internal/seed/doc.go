// Package seed is what is there before anyone pulls: read-only stores in the root
// file system of a guest, on a device that many guests share, or on a node.
//
// A seed is a directory in the format of a store (docs/formats.md, "Seeds"), or a
// file that holds such a directory: a tar, or an EROFS image that is a tar behind
// its index ([Writer] makes all three). A store of dray's, an OCI image layout and a
// work directory of image-rs are seeds too. A seed is never written to.
//
// # What is believed
//
// Nothing, unless the user trusts the seed. Manifests, indexes and configs count
// when they have the digest that is asked for; a layer counts when its bytes hash to
// the diff ID that such a manifest names, and the names, modes and whiteouts in it
// are read from those bytes, never from an index or a record of the seed's. Every
// path is opened below the seed's directory without following a link. An archive is
// walked by its headers; of an EROFS image only where its tar begins is read, so
// that no file system of a stranger's making is ever mounted.
//
// # What stays true
//
// Bytes that were hashed may be changed afterwards by whoever owns the medium they
// are on, and the kernel reads them again when it likes. So they are used where they
// lie only if a [Hold] says that they stay what they were; otherwise what was hashed
// is what was copied (docs/threats.md, "Seeds").
//
// # Concurrency
//
// A [Set] is safe for concurrent use and holds nothing open: a seed may go away and
// come back.
package seed
