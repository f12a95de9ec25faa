// Package registryd is a small registry over OCI image layouts: that of
// `dray registry`, of the demo, of the benchmarks and of tests. It hides the
// distribution protocol's server; the protocol itself is the library's
// (cuelabs.dev/go/oci/ociregistry), and blobs are sent by the kernel, from file
// to socket.
//
// A directory with an index.json of its own is one layout, and every repository
// name means it: what `skopeo copy oci:DIR:tag` sees is what a client sees that
// pulls any/name:tag. Without one, each repository is a layout of its own at
// DIR/<name>. Either way nothing is kept beside the layouts: other tools may
// read and write them while the registry runs.
//
// Blobs are verified when they are pushed, and streamed both ways. An upload
// lives in the process that began it; after a restart clients begin again.
//
// There is no authentication and no TLS: listen on a loopback address.
package registryd
