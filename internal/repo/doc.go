// Package repo hides where images are: a repository of a registry, an OCI image
// layout in a directory or in a tar file is one type, [Repository], to read from
// and to write to.
//
// What is read is verified where its end is known: manifests always, and blobs on
// their way from one repository to another. [Repository.Blob] and
// [Repository.BlobAt] give bytes as they come, and their readers verify them.
//
// Writing has an order, so that a reader never sees half an image: blobs, then
// manifests, those first that others name, then [Repository.Tag], then
// [Repository.Commit]. Until then a layout's index.json and a registry's tags are
// as they were; an archive is written as a whole by Commit, beside its place, and
// renamed.
//
// A Repository is safe for concurrent use, but for Commit and Close.
package repo
