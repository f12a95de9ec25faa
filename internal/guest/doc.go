// Package guest is the pull service of a confidential guest: a ttrpc server that
// the kata agent calls, and the configuration files of the two services whose
// place it takes, Contrast's imagepuller and the Confidential Data Hub.
//
// A request names an image and a bundle directory. The service checks both,
// hands them to the engine ([Images]) and answers with a digest. Requests for
// different bundles run side by side. Requests for one bundle and one image share
// one flight, which ends early only when its last caller has gone; requests for
// one bundle and different images run in the order in which they came.
//
// A caller goes by closing its connection or by the time limit that ttrpc
// carries. A client that gives up but keeps its connection cannot say so: ttrpc
// has no message for it.
//
// What goes wrong is answered by a gRPC status. Its message is one line, made
// for the agent's log; its code comes from one function ([Options].Code) and, for
// requests that never reach the engine, from this package: InvalidArgument and
// NotFound for the request itself, DeadlineExceeded, Canceled, Unavailable while
// the service stops, ResourceExhausted above the limits, Internal for a panic.
//
// The socket is the only authority here: whoever can open it may mount images,
// so it is root's alone. A configuration file of the host may say where to fetch,
// never what is acceptable; keys that claim otherwise are refused by name.
package guest
