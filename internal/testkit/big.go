package testkit

import (
	"compress/gzip"
	"fmt"
	"iter"
	"testing"
)

// Files returns count small files below dir, a thousand to a directory, of the
// sizes and times of a distribution: most of a few hundred bytes.
func Files(dir string, count int) []Entry {
	entries := make([]Entry, 0, count+count/1000+2)
	for e := range FileSeq(dir, count) {
		entries = append(entries, e)
	}
	return entries
}

// FileSeq is Files for counts that should not be held in memory.
//
//	testkit.Image(t).LayerOf(testkit.FileSeq("usr", 1_000_000))
func FileSeq(dir string, count int) iter.Seq[Entry] {
	const perDir = 1000
	return func(yield func(Entry) bool) {
		if !yield(Dir(dir)) {
			return
		}
		for i := range count {
			sub := fmt.Sprintf("%s/%04d", dir, i/perDir)
			if i%perDir == 0 && !yield(Dir(sub)) {
				return
			}
			size := int64(100 + i*7919%900)
			if !yield(Text(fmt.Sprintf("%s/file-%06d", sub, i), size, uint64(i)).At(Epoch+int64(i), int64(i))) {
				return
			}
		}
	}
}

// Big returns an image of layerCount layers with one file of fileBytes each,
// made by kind: [Text] or [Random].
//
//	testkit.Big(t, 1, 2<<30, testkit.Random).Write(layout, "2g")
func Big(tb testing.TB, layerCount int, fileBytes int64, kind func(name string, size int64, seed uint64) Entry) *Builder {
	tb.Helper()
	b := Image(tb)
	for i := range layerCount {
		b.Layer(Dir("big"), kind(fmt.Sprintf("big/%03d", i), fileBytes, uint64(i+1))).GzipLevel(gzip.BestSpeed)
	}
	return b
}
