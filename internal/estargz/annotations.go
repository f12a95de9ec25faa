package estargz

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"dray/internal/oci"
)

// Annotations of a layer's descriptor.
const (
	AnnotationTOCDigest        = "containerd.io/snapshot/stargz/toc.digest"            // of the uncompressed TOC
	AnnotationUncompressedSize = "io.containers.estargz.uncompressed-size"             // of the tar, in bytes
	AnnotationLayerDigest      = "containerd.io/snapshot/stargz/layer.digest"          // of the layer that an external TOC belongs to
	AnnotationChecksum         = "io.github.containers.zstd-chunked.manifest-checksum" // of the compressed TOC
	AnnotationPosition         = "io.github.containers.zstd-chunked.manifest-position" // offset:size:raw size:type
	AnnotationTarSplitPosition = "io.github.containers.zstd-chunked.tarsplit-position" // offset:size:raw size
	annotationOldChecksum      = "io.containers.zstd-chunked.manifest-checksum"        // as containerd's library writes it
	annotationOldPosition      = "io.containers.zstd-chunked.manifest-position"        // likewise
)

// Hints is what a manifest says about a seekable layer. The zero value says nothing.
type Hints struct {
	TOCDigest        oci.Digest // of the uncompressed TOC, or ""
	ManifestChecksum oci.Digest // of the compressed TOC, or ""
	TOC              Span       // Size 0 if unknown
	TarSplit         Span       // Size 0 if unknown
	Format           Format     // if TOC is known
}

// ParseHints returns what a descriptor's annotations say. Errors wrap [ErrFormat]
// or [oci.ErrDigest].
func ParseHints(annotations map[string]string) (Hints, error) {
	var h Hints
	digests := []struct {
		key  string
		into *oci.Digest
	}{
		{AnnotationTOCDigest, &h.TOCDigest},
		{annotationOldChecksum, &h.ManifestChecksum},
		{AnnotationChecksum, &h.ManifestChecksum},
	}
	for _, d := range digests {
		s, ok := annotations[d.key]
		if !ok {
			continue
		}
		parsed, err := oci.ParseDigest(s)
		if err != nil {
			return Hints{}, fmt.Errorf("read annotation %s: %w", d.key, err)
		}
		*d.into = parsed
	}
	positions := []struct {
		key    string
		parts  int
		format Format
		into   *Span
	}{
		{annotationOldPosition, 4, ZstdChunkedContainerd, &h.TOC},
		{AnnotationPosition, 4, ZstdChunked, &h.TOC},
		{AnnotationTarSplitPosition, 3, ZstdChunked, &h.TarSplit},
	}
	for _, p := range positions {
		s, ok := annotations[p.key]
		if !ok {
			continue
		}
		span, err := parsePosition(s, p.parts)
		if err != nil {
			return Hints{}, fmt.Errorf("read annotation %s: %w", p.key, err)
		}
		*p.into, h.Format = span, p.format
	}
	return h, nil
}

// parsePosition reads numbers between colons; of four the last is the TOC's type.
func parsePosition(s string, parts int) (Span, error) {
	fields := strings.Split(s, ":")
	if len(fields) != parts {
		return Span{}, malformed("position %q has %d parts instead of %d", clip(s), len(fields), parts)
	}
	var n [4]int64
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 63)
		if err != nil {
			return Span{}, malformed("position %q has an invalid number", clip(s))
		}
		n[i] = int64(v)
	}
	if parts == 4 && n[3] != tocType {
		return Span{}, malformed("TOC has the unknown type %d", n[3])
	}
	if n[1] > math.MaxInt64-n[0] || n[1] == 0 {
		return Span{}, malformed("position %q is not a part of any blob", clip(s))
	}
	return Span{Offset: n[0], Size: n[1], RawSize: n[2]}, nil
}

// clip shortens hostile input for an error message.
func clip(s string) string {
	const longest = 120
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

// IsAnnotation tells whether key is an annotation that describes a seekable layer,
// and so is wrong for any other blob.
func IsAnnotation(key string) bool {
	switch key {
	case AnnotationTOCDigest, AnnotationUncompressedSize, AnnotationLayerDigest,
		AnnotationChecksum, AnnotationPosition, AnnotationTarSplitPosition,
		annotationOldChecksum, annotationOldPosition:
		return true
	}
	return false
}
