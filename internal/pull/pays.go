package pull

import (
	"fmt"
	"time"
)

// When files of the store are taken instead of a part of a blob, see [estimate.pays].
const (
	leastShare = 4 // what is spared, at least: one part in so many of the blob
	clearly    = 2 // how many times longer than copying it, at least, its transfer would take

	// copiedPerSecond is how many bytes of files are looked for, read, hashed and read
	// again in a second, by a core that has something else to do as well.
	copiedPerSecond = 300e6
)

// estimate is what is known of a layer and of the way to it before it is put together.
type estimate struct {
	blobBytes   int64
	sparedBytes int64 // of the blob, that would not be fetched
	copiedBytes int64 // uncompressed, of files
	requests    int   // for the rest

	bytesPerSecond float64 // that one connection has brought
	latency        time.Duration
}

// pays tells whether the layer is put together, and why or why not. It has to be clear:
// files turn out to be others, and who puts a layer together cannot check the digest of
// its blob.
func (e estimate) pays() (paid bool, why string) {
	if e.sparedBytes < max(1, e.blobBytes/leastShare) {
		return false, fmt.Sprintf("fetched whole: the store has files for %d of %d bytes", e.sparedBytes, e.blobBytes)
	}
	transfer := float64(e.sparedBytes) / e.bytesPerSecond
	price := float64(e.copiedBytes)/copiedPerSecond + float64(e.requests)*e.latency.Seconds()/requestsAhead
	why = fmt.Sprintf("%.2f s to fetch what the store has, at %.1f MB/s, against %.2f s to copy it, with %d requests of %.1f ms",
		transfer, e.bytesPerSecond/1e6, price, e.requests, e.latency.Seconds()*1000)
	if transfer < clearly*price {
		return false, "fetched whole: " + why
	}
	return true, why
}
