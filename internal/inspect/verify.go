package inspect

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

// tempPattern names the files that layers are verified in. They lose their names
// as soon as they are open, so that nothing stays whatever happens.
const tempPattern = "dray-inspect-"

// fetch copies a blob into a file without a name, verified.
func (i *Image) fetch(ctx context.Context, d oci.Descriptor, dir string) (*os.File, error) {
	body, err := i.Repository.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	f, err := os.CreateTemp(dir, tempPattern)
	if err != nil {
		return nil, fmt.Errorf("verify layer %s: %w", d.Digest, err)
	}
	if err = os.Remove(f.Name()); err == nil {
		_, err = io.Copy(f, stream.NewVerifier(body, "blob", d.Digest, d.Size))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unverified tells whether err says that a layer is not what it should be; others
// say that nobody knows.
func unverified(err error) bool {
	for _, kind := range []error{stream.ErrMismatch, estargz.ErrFormat, estargz.ErrDisagree, estargz.ErrUnverified, layer.ErrFormat, oci.ErrDigest, stream.ErrTooLarge} {
		if errors.Is(err, kind) {
			return true
		}
	}
	limit := (*layer.LimitError)(nil)
	return errors.As(err, &limit)
}

func (l *Layer) fail(err error) {
	l.Err, l.Checked = err, &Checked{Error: err.Error()}
}

// check verifies a layer whose blob is the right one. A TOC that could not be read
// (opened) is wrong where there should be one.
func (l *Layer) check(ctx context.Context, toc *estargz.Reader, src io.ReaderAt, opened error, o *Options) {
	if opened != nil && !errors.Is(opened, estargz.ErrNoTOC) {
		l.fail(opened)
		return
	}
	c := &Checked{}
	var err error
	if toc != nil {
		var result estargz.VerifyResult
		result, err = toc.Verify(ctx)
		c.DiffID, c.SizeBytes, c.Names, c.Chunks = result.DiffID, result.Size, result.Entries, result.Chunks
	} else {
		c.DiffID, c.SizeBytes, err = unpacked(io.NewSectionReader(src, 0, l.SizeBytes), o.Limits)
	}
	if err == nil && l.DiffID != "" && c.DiffID != l.DiffID {
		err = &stream.MismatchError{What: "layer", Want: l.DiffID.Digest(), Got: c.DiffID.Digest(), WantSize: stream.AnySize}
	}
	if err != nil {
		l.fail(err)
		return
	}
	c.OK, l.Checked = true, c
}

// unpacked returns the diffID and the size of a layer's tar.
func unpacked(src io.Reader, limits layer.Limits) (oci.DiffID, int64, error) {
	plain, err := layer.Decompress(src, layer.Options{MaxBytes: limits.MaxBytes})
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = plain.Close() }()
	h := sha256.New()
	tar := layer.NewTar(stream.NewSlicer(io.TeeReader(plain, h), plainBlockBytes), limits)
	for err == nil {
		_, err = tar.Next()
	}
	if !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	_, err = tar.Drain()
	return oci.DiffID(oci.DigestOf(oci.SHA256, h)), tar.Offset(), err
}
