// Package erofs turns a layer's tar into a file system without unpacking it: the
// tar is stored as it comes, and beside it an EROFS image of 512-byte blocks that
// holds names and attributes and points into the tar for the contents of files.
// The kernel mounts the two together ([Mount]).
//
// # One pass
//
// [Copy] writes the blocks of a tar to a file, one after the other, while
// [layer.Tar] looks at the same memory, and collects an [Index]. Nothing of the
// index is written before the whole stream has ended well, so that whatever
// verified the stream has spoken. [Index.WriteTo] then writes the image, of which
// every byte follows from the tar and the UUID.
//
// # The same tree
//
// The tree is the one that package apply makes of the same tar, entry for entry:
// names cleaned and resolved below the root, links followed inside it, the last
// entry of a name wins, implicit parents with mode 0755 and time 0, whiteouts as
// character devices 0:0, opaque directories as trusted.overlay.opaque. Its package
// comment has the rules; the differential tests of this package compare the two.
//
// # What cannot be expressed
//
// Sparse files, contents that do not begin at a multiple of 512 bytes, padding
// that is not zero (it would show at the end of a mapped file), attributes that
// are too large or that the kernel would refuse, and more than 2 TiB are an
// [*InexpressibleError]. The tar has then been stored and read to its end all the
// same, so that it can be unpacked from there.
//
// # Memory
//
// An entry takes about 100 bytes and its name; see [BytesPerEntry]. What exceeds
// [Options.MaxBytes] lies in a mapped, nameless file in [Options.Dir], of which a
// few MiB are mapped at a time.
//
// # The image
//
// docs/formats.md describes it. On-disk structures are those of the kernel's
// fs/erofs/erofs_fs.h.
package erofs
