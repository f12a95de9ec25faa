package pull

import (
	"time"

	"dray/internal/oci"
)

// Pays tells whether a layer of which that is known is put together.
func Pays(blobBytes, sparedBytes, copiedBytes int64, requests int, bytesPerSecond float64, latency time.Duration) (paid bool, why string) {
	return estimate{blobBytes, sparedBytes, copiedBytes, requests, bytesPerSecond, latency}.pays()
}

// ReuseFilesAt reuses files as if the network had that speed, and no latency.
func ReuseFilesAt(bytesPerSecond float64) *Reuse {
	r := ReuseFiles(false)
	r.pays = func(e estimate) (bool, string) {
		e.bytesPerSecond, e.latency = bytesPerSecond, 0
		return e.pays()
	}
	return r
}

// Seekable tells whether files of a layer may be reused.
func Seekable(r *Reuse, d oci.Descriptor) bool {
	return (&Engine{options: Options{Reuse: r}}).seekable(d)
}
