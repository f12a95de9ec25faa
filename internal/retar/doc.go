// Package retar makes a tar of an unpacked layer again: of the many that could have
// become this tree, the one whose digest is the layer's diff ID, if it is one that
// the usual tools write.
//
// A tree does not say what its tar was like: in which order its entries stood, which
// of the equivalent encodings a number had, with how many zeros it ended. But most
// layers come from few programs, which are consistent. [Find] tries what these would
// have written ([Forms]) and compares digests. A match is a proof: the stream that
// [Open] gives then is the layer, to the last byte, whoever the tree came from and
// whatever they changed, and can be treated as one that was pulled. No match proves
// nothing: the tree may have been changed, or lack what its tar had (times of less
// than a second, attributes, devices), or the tar may be one of another program's.
//
// [Exact] is a form of our own, which loses nothing that a tree has, for copies.
//
// # Trees
//
// Trees are read by descriptor: no link is followed, no mount is entered, so that
// nothing outside is read. Whiteouts and opaque directories are overlayfs's, with its
// trusted or its user attributes, and become the archive's (image-spec, layer.md). A
// tree that changes while it is read gives an error or a tar of another digest.
//
// # Memory
//
// The names of the directories on the way to the entry at hand, and 16 bytes and the
// name of each file with several links.
package retar
