package inspect

import (
	"context"
	"io"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/repo"
	"dray/internal/stream"
)

// The rings in front of and behind the inflater.
const (
	storedBlocks     = 4
	storedBlockBytes = 64 << 10
	plainBlocks      = 4
	plainBlockBytes  = 128 << 10
)

// tarReader is what [OpenTar] returns.
type tarReader struct {
	io.Reader
	close func()
}

// Close implements [io.Closer].
func (t *tarReader) Close() error {
	t.close()
	return nil
}

// OpenTar opens a layer's tar, fetched and inflated ahead of who reads it. It ends
// with [io.EOF] only if the blob had its digest and the tar its diffID; of a diffID
// "" nothing is checked. count, if not nil, is told how much of the blob was read.
// The caller closes it.
func OpenTar(ctx context.Context, source *repo.Repository, d oci.Descriptor, diffID oci.DiffID, l layer.Limits, count func(int)) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	body, err := source.Blob(ctx, d, 0)
	if err != nil {
		cancel()
		return nil, err
	}
	var src io.Reader = body
	if count != nil {
		src = &counter{body, count}
	}
	fetched := stream.NewAhead(ctx, stream.NewVerifier(src, "blob", d.Digest, d.Size), storedBlocks, storedBlockBytes)
	plain, err := layer.Decompress(fetched, layer.Options{MaxBytes: l.MaxBytes})
	if err != nil {
		cancel()
		_ = fetched.Close()
		_ = body.Close()
		return nil, err
	}
	inflated := stream.NewAhead(ctx, plain, plainBlocks, plainBlockBytes)
	t := &tarReader{Reader: inflated, close: func() {
		cancel()
		_ = inflated.Close()
		_ = plain.Close()
		_ = fetched.Close()
		_ = body.Close()
	}}
	if diffID != "" {
		t.Reader = stream.NewVerifier(inflated, "layer", diffID.Digest(), stream.AnySize)
	}
	return t, nil
}

type counter struct {
	r     io.Reader
	count func(int)
}

// Read implements [io.Reader].
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.count(n)
	return n, err
}
