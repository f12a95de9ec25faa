package estargz

import (
	"crypto/sha256"
	"fmt"
	"io"

	"dray/internal/oci"
	"dray/internal/stream"
)

// CopyTOC writes the text of a blob's TOC to w, as it is, and returns its digest.
// It is not parsed; what o.Hints say of it is verified, after it was written. The
// errors are those of [Open].
func CopyTOC(w io.Writer, src io.ReaderAt, size int64, o OpenOptions) (oci.Digest, error) {
	r := &Reader{src: src, size: size, limits: o.Limits.withDefaults()}
	toc, err := r.find(o)
	if err != nil {
		return "", err
	}
	var verifier *stream.Verifier
	if r.footer.Format.zstd() && o.Hints.ManifestChecksum != "" {
		verifier = stream.NewVerifier(toc, "compressed TOC", o.Hints.ManifestChecksum, r.footer.TOC.Size)
		toc = verifier
	}
	text, closer, err := r.openTOC(toc)
	if err != nil {
		return "", fmt.Errorf("read TOC: %w", err)
	}
	defer closer()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(text, r.limits.MaxTOCBytes+1))
	if verifier != nil {
		if _, drained := stream.Drain(stream.NewSlicer(verifier, readBufBytes)); drained != nil {
			return "", drained
		}
	}
	switch {
	case err != nil:
		return "", err
	case n > r.limits.MaxTOCBytes:
		return "", malformed("TOC has more than %d bytes", r.limits.MaxTOCBytes)
	}
	digest := oci.DigestOf(oci.SHA256, h)
	if want := o.Hints.TOCDigest; want != "" && digest != want {
		return "", &stream.MismatchError{What: "TOC", Want: want, Got: digest, WantSize: stream.AnySize}
	}
	return digest, nil
}
