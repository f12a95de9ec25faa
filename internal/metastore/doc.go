// Package metastore reads and writes the work directory of image-rs, the image
// puller of Confidential Containers:
//
//	WORKDIR/meta_store.json    what image-rs knows: images by the digest of their configuration, layers by that of their blob
//	WORKDIR/layers/NAME/       one unpacked layer each; NAME is a number, or sha256_HEX of the blob in older versions
//
// The file says where each layer lies, as an absolute path: PREFIX/layers/NAME.
// PREFIX is where the work directory will be when image-rs reads it, which need not
// be where it is now; a layer is always looked for below the work directory at hand.
//
// # What is believed
//
// Nothing. A document is refused, with [ErrFormat], when it is not exactly what
// image-rs would understand (keys twice, fields missing, digests of unknown
// algorithms), when it contradicts itself, or when a path leads out of PREFIX/layers.
// Layers are opened by descriptor without following links. That a tree is the layer
// it is said to be is for the caller to find out, with package retar:
//
//	dir, err := workDir.OpenLayer(layer)                                  // one of workDir.ByDiffID(id)
//	form, size, err := retar.Find(ctx, dir, layer.DiffID, retar.Options{}) // is there a tar with the digest?
//	tar := retar.Open(ctx, dir, form, retar.Options{})                     // its size bytes, to be verified as they come
//
// # What image-rs does with the fields
//
// It takes an image for present when its configuration has the digest of a key of
// image_db, and a layer when its blob has that of a key of layer_db; then it mounts
// what lies at store_path, without a further look. decoder and signed are never set
// by it (always "Gzip" and false), snapshot_db is never filled. An encrypted layer
// lies there decrypted.
package metastore
