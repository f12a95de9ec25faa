package erofs_test

import (
	"bytes"
	"testing"

	"dray/internal/erofs"
	"dray/internal/layer"
)

// The index of many files is shifted whole. Those of odd layers are in the
// differential tests.
func TestShift(t *testing.T) {
	t.Parallel()
	const offset = 5 << 9
	tar := many(3000, 50)
	index := image(t, bytes.NewReader(tar), erofs.Options{})
	var got bytes.Buffer
	if err := erofs.Shift(&got, bytes.NewReader(index), int64(len(index)), offset); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), image(t, bytes.NewReader(tar), erofs.Options{DeviceOffset: offset})) {
		t.Error("another index")
	}
}

// FuzzShift: whatever an index holds, it is shifted or an error.
func FuzzShift(f *testing.F) {
	f.Add(image(f, bytes.NewReader(many(20, 5)), erofs.Options{}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b bytes.Buffer
		if err := erofs.Shift(&b, bytes.NewReader(raw), int64(len(raw)), 1<<20); err == nil && b.Len() != len(raw) {
			t.Fatalf("%d bytes of %d", b.Len(), len(raw))
		}
		_ = erofs.Walk(t.Context(), bytes.NewReader(raw), func(*layer.Entry, int64) error { return nil })
	})
}
