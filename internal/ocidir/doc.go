// Package ocidir hides an OCI image layout (image-spec, image-layout.md), as a
// directory or in a tar file: a source of images and, as a directory, a sink.
//
// A [Layout] gives back what a registry would: [Layout.Resolve] the bytes of a
// manifest, verified and limited, [Layout.Blob] the bytes of a blob, which the
// caller verifies. An image is found by its name in index.json, the annotation
// [AnnotationRefName], or by digest: every blob of the layout can be asked for,
// whether index.json names it or not. An archive is indexed by one walk over its
// headers and never extracted.
//
// A layout is as hostile as whoever made it. Paths come only from parsed digests
// and stay inside the directory; what is not a regular file is refused; sizes are
// compared before anything is read; every document is limited.
//
// Writing: a blob is staged beside the others, verified, synced and renamed, so
// that what has a digest for a name has that digest. index.json is replaced as a
// whole under a lock on the file oci-layout, which holds between goroutines and
// processes of dray: no entry is lost. What a killed writer left is swept by the
// next [Create].
//
// A Layout is safe for concurrent use.
package ocidir
