// Package estargz reads, verifies and writes layers that can be read in parts:
// eStargz (gzip, with its table of contents inside or outside the blob), the
// older stargz, and zstd:chunked in the flavours of containers/storage and of
// containerd.
//
// # Words
//
// A member is a gzip member or a zstd frame; a blob is a row of members, and any
// tool can unpack it as one stream. The TOC lists every entry of the tar with its
// attributes and, for files, its chunks: where the member of a chunk starts in the
// blob (offset), where the chunk starts in what that member holds (inner offset),
// and the digest of its bytes. The footer says where the TOC is. Landmarks are
// files at the root that end the part to be fetched first, or say that there is none.
//
// # TOC and tar
//
// Such a layer says everything twice, and a signature of the manifest covers both:
// the tar through blob digest and diffID, the TOC through its digest in the layer's
// annotations. Nothing in the formats makes the two agree, so that one signed layer
// can be two different trees. dray settles it in three steps:
//   - An eager pull unpacks the tar and only the tar; no TOC is looked at.
//   - A TOC is only believed where its digest is in the manifest
//     ([Hints.TOCDigest] or [Hints.ManifestChecksum]), and every chunk is checked
//     against the TOC before a byte of it is given out.
//   - [Reader.Verify] reads all of the blob and refuses a layer whose TOC is not
//     what its tar unpacks to, name by name. Only a layer that has passed may be
//     known by its diffID; one that has not is known by its TOC digest.
//
// A tar may have a name twice; the last one holds, as it does when unpacking.
// In a TOC with a name twice the last holds too. Names are cleaned as containerd's
// library does, but those that climb above the root are errors here.
//
// # Memory
//
// A TOC is parsed as a stream. What is kept takes at most 200 bytes per entry,
// names included. [Write] holds a fixed number of work units.
//
// # Concurrency
//
// A [Reader] is safe for concurrent use if its source is.
package estargz
