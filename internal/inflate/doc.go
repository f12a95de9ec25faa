// Package inflate decodes gzip (RFC 1952) and raw DEFLATE (RFC 1951) at the
// machine's speed, in bounded memory.
//
// It hides the bit buffer, the Huffman tables and the window. A [Reader] is an
// [io.Reader] whose large reads are decoded straight into the caller's buffer,
// which then also serves as the window, so that no byte is copied on its way.
//
// # Words
//
// A member is one gzip header, one DEFLATE stream and one trailer; a gzip
// stream is one or more members. Input is the compressed side, output the
// other. The window is the last 32 KiB of output, which matches refer to. The
// fast loop decodes while both sides have slack, so it needs no checks inside;
// the careful code decodes symbol by symbol, bit-exactly, at the edges, and
// is the reference for the fast loop.
//
// A [Parallel] decodes one stream on several cores: a stretch is a part of it that a
// helper decodes from the first block found in a segment of the input, without
// knowing the window; the reader resolves it when it comes to that block.
//
// # What is verified
//
// Each member's CRC-32 and size, and the header's CRC-16 where there is one.
// Output is tentative until [io.EOF]: a caller that commits must have seen it.
// The verdict on every stream is that of compress/gzip (or compress/flate): the
// same output, then an error or none.
//
// # Memory
//
// A reader takes its buffers from a pool when it is first read and gives them
// back in Close, [StateBytes] in all, whatever the stream says. Each helper of a
// Parallel takes [HelperBytes] besides, for as long as it has a core.
//
// # Concurrency
//
// A reader belongs to one goroutine at a time. Helpers live until Close, which waits
// for them.
package inflate
