// Package bench measures programs that pull container images, all in the same
// way: a registry under control, real images, fresh stores, interleaved runs.
//
// A rival ([Rival]) is how to start a program, when it is ready, how to ask it for
// an image, how to stop it and where its store is. A run ([Run]) is one rival
// asked for one image over one network, once; a plan shuffles all of them with a
// recorded seed. Each run happens in a site: a directory and, as root, a control
// group of its own, both removed afterwards, and swept when the bench that made
// them was killed.
//
// What is measured, and how it can mislead, is in docs/bench.md. Results are a
// [Report]: text, JSON of a versioned schema, and a page of charts.
//
// The corpus ([BuildCorpus]) is a set of images made from Debian packages: the
// same package versions give the same bytes.
package bench
