// Package layer reads layers: [Decompress] turns stored bytes into the tar they
// hold, and [Tar] walks that tar without copying a file's body.
//
// # Compression
//
// What a media type says is not believed; the first bytes decide. Gzip may have
// any number of members. NUL bytes after the last member are padding and
// ignored; any other byte there is an error. Zstandard may have any number of
// frames and skippable frames; anything else after a frame is an error. Bytes
// that are none of the two and do not begin a tar are an error. No bytes at all
// are an empty layer.
//
// # Tar
//
// Read are v7, ustar, star, PAX and GNU archives: PAX records of entries and
// global ones, long names and links, base-256 numbers, sparse files in all four
// forms, xattrs in star's and libarchive's form. Names are bytes and stay as
// they are, with "..", a leading slash and all: to confine them is the sink's
// work.
//
// Where readers differ, this one does as archive/tar does, which is what most
// tools around containers use, except where that would lose something:
//   - PAX global records apply to the entries that follow, as POSIX says.
//   - A PAX record with an empty value cancels what was said before it, so that
//     the field of the entry's own header holds again. Xattrs are different: an
//     empty value is a value.
//   - Of two PAX headers in a row the second holds; within one header the last
//     record of a name.
//   - Hard links, symbolic links, directories, devices and FIFOs have no body,
//     whatever their size field says.
//   - A name with a trailing slash makes an entry of the old type NUL a
//     directory, and no other.
//   - GNU's directory listings (type D) are directories, the listing skipped.
//     Volume labels (V) are skipped. Continuations (M), names in GNU's first
//     form (N) and types that nobody has defined are errors, since guessing
//     would yield a tree that nobody meant.
//   - Numbers that cannot be an owner, a size or a device are errors.
//
// The archive ends at two zero blocks or where the input ends between entries;
// the padding of the last entry may be missing. One zero block with something
// else behind it is an error. What follows the end is not looked at but is part
// of the diffID: [Tar.Drain] reads it.
//
// # Limits
//
// Everything that the input could make grow has a limit, in [Limits] and
// [Options]. Exceeding one is a [*LimitError]. A Tar holds one PAX header, one
// entry and the sparse map of one file, and nothing that grows with the archive.
//
// # Errors
//
// Malformed input wraps [ErrFormat], input that ends too early wraps
// [io.ErrUnexpectedEOF], and errors of the source pass unchanged. The first
// error is final.
package layer
