//go:build linux

package dray

import (
	"testing"

	"dray/internal/inflate"
)

// What layers and helpers take of a larger --memory is no more than there is beyond
// what blobs fetched in parts always have.
func TestFormulaOfMoreMemory(t *testing.T) {
	t.Parallel()
	large := 0
	for workers := 1; workers <= 16; workers++ {
		for memory := int64(16 << 20); memory <= 512<<20; memory += 8 << 20 {
			f := (&Client{options: Options{Workers: workers, Memory: memory}}).Explain()
			if f.Buffers() > max(memory, f.Buffers()-f.RangesBytes) {
				t.Errorf("%d workers, %d bytes: buffers take %d", workers, memory, f.Buffers())
			}
			taken := f.surplusTaken()
			if taken < 0 || taken > max(0, f.RangesBytes-rangesBytes) {
				t.Errorf("%d workers, %d bytes: %d of %d bytes are taken", workers, memory, taken, f.RangesBytes)
			}
			if !f.largeStretches() {
				continue
			}
			large++
			helpers := int64(min(workers-2, inflate.MaxHelpers))
			if more := helpers * int64(inflate.LargeHelperBytes-inflate.HelperBytes); helpers <= 0 || taken < more {
				t.Errorf("%d workers, %d bytes: %d helpers have large stretches for %d bytes", workers, memory, helpers, taken)
			}
		}
	}
	if large == 0 {
		t.Error("helpers never have room for large stretches")
	}
}
