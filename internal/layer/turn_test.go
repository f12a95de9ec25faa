package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"dray/internal/layer"
	"dray/internal/testkit"
)

// A zstd layer is read when the one before it is closed, and not after its caller
// has gone.
func TestZstdTurns(t *testing.T) {
	t.Parallel()
	want := testkit.Tar(testkit.File("a", "content"))
	var blob bytes.Buffer
	z, err := zstd.NewWriter(&blob)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	turns := layer.NewZstdTurns(1)
	open := func(ctx context.Context) (*layer.Decompressor, error) {
		return layer.Decompress(bytes.NewReader(blob.Bytes()), layer.Options{Turn: turns.Turn(ctx)})
	}
	first, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("nobody waits")
	cancel(cause)
	if _, err := open(gone); !errors.Is(err, cause) {
		t.Errorf("got %v for a caller that has gone, want %v", err, cause)
	}
	type result struct {
		d   *layer.Decompressor
		err error
	}
	second := make(chan result)
	go func() {
		d, err := open(t.Context())
		second <- result{d, err}
	}()
	select {
	case <-second:
		t.Fatal("two layers were read at once")
	default:
	}
	readAll(t, first, want)
	r := <-second
	if r.err != nil {
		t.Fatal(r.err)
	}
	readAll(t, r.d, want)
	third, err := layer.Decompress(bytes.NewReader(blob.Bytes()[:blob.Len()-9]), layer.Options{Turn: turns.Turn(t.Context())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(third); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v for a layer that was cut", err)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
	last, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, last, want)
	early := turns.Turn(t.Context())
	if err := early.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := open(gone); !errors.Is(err, cause) {
		t.Errorf("got %v while a layer that is not open has the turn, want %v", err, cause)
	}
	early.End() // it was no zstd layer
	early.End()
	if err := early.Wait(); err != nil {
		t.Fatal(err)
	}
	waited, err := layer.Decompress(bytes.NewReader(blob.Bytes()), layer.Options{Turn: early})
	if err != nil {
		t.Fatal(err)
	}
	early.End() // the open layer has it
	if _, err := open(gone); !errors.Is(err, cause) {
		t.Errorf("got %v while a layer is open, want %v", err, cause)
	}
	readAll(t, waited, want)
}

// readAll reads d to its end and closes it.
func readAll(t *testing.T, d *layer.Decompressor, want []byte) {
	t.Helper()
	got, err := io.ReadAll(d)
	if err = errors.Join(err, d.Close()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d: %v", len(got), len(want), err)
	}
}
