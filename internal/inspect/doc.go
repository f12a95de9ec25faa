// Package inspect looks into images where they are: which names their layers have,
// how layers that can be read in parts are built, and whether all of that is true.
//
// # What is read
//
// Of a seekable layer the TOC, in one or two requests; of another one all of it,
// and only where names are asked for. [Verify] reads every layer once from its
// repository, into a file that has no name, and checks it there.
//
// # What is verified
//
// Manifests and configurations always. A TOC is believed by [Names] only where the
// manifest vouches for it; a [Report] shows any, and says whether it is vouched
// for. What a layer's tar really holds is known after [Verify], and not before.
package inspect
