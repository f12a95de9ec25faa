package estargz

import (
	"bytes"
	"context"
	"testing"

	"dray/internal/layer"
)

// seedBlobs are small blobs of every format that is written, with their hints.
func seedBlobs(f *testing.F) (blobs [][]byte, hints []Hints) {
	f.Helper()
	src := makeTar(f, []file{
		{name: "d/", typ: '5'},
		{name: "d/a", typ: '0', body: []byte("content of a")},
		{name: "d/empty", typ: '0'},
		{name: "d/b", typ: '0', body: bytes.Repeat([]byte("b"), 3000)},
		{name: "l", typ: '2', link: "d/a"},
		{name: "h", typ: '1', link: "d/b"},
	})
	for _, o := range []Options{
		{ChunkSize: 1000},
		{Prioritized: []string{"d/b"}},
		{MinChunkSize: 500},
		{Format: ZstdChunked, ChunkSize: 1000},
		{Format: ZstdChunked, Lossless: true},
		{Format: ZstdChunkedContainerd},
	} {
		blob, result := write(f, src, o)
		h, err := ParseHints(result.Annotations)
		if err != nil {
			f.Fatal(err)
		}
		blobs, hints = append(blobs, blob), append(hints, h)
	}
	return blobs, hints
}

// FuzzOpen reads blobs in which anything may be wrong: footer, skippable frames,
// TOC, members. Whatever is accepted must be read without more than its limits.
func FuzzOpen(f *testing.F) {
	blobs, hints := seedBlobs(f)
	for i, blob := range blobs {
		f.Add(blob, int64(0), int64(0), false)
		f.Add(blob, hints[i].TOC.Offset, hints[i].TOC.Size, true)
		f.Add(blob[:len(blob)-1], int64(0), int64(0), false)
	}
	limits := Limits{
		MaxTOCBytes: 1 << 20, MaxEntries: 1000, MaxEntryBytes: 1 << 16, MaxChunkBytes: 1 << 20,
		Layer: layer.Limits{MaxBytes: 1 << 22, MaxEntries: 1000},
	}
	f.Fuzz(func(t *testing.T, blob []byte, offset, size int64, hinted bool) {
		o := OpenOptions{Limits: limits}
		if hinted && offset >= 0 && size > 0 && offset <= 1<<40 && size <= 1<<40 {
			o.Hints = Hints{TOC: Span{Offset: offset, Size: size}, Format: ZstdChunked}
		}
		r, err := Open(bytes.NewReader(blob), int64(len(blob)), o)
		if err != nil {
			return
		}
		defer func() { _ = r.Close() }()
		buf := make([]byte, 100)
		for e := range r.Entries() {
			if _, err := r.ReadFileAt(e, buf, e.Size/2); err != nil {
				continue // it is not what the TOC says
			}
		}
		result, err := r.Verify(context.Background())
		if err == nil && result.Chunks > limits.MaxEntries {
			t.Errorf("%d chunks", result.Chunks)
		}
	})
}

// FuzzHints reads annotations, which are as hostile as the rest of a manifest.
func FuzzHints(f *testing.F) {
	_, hints := seedBlobs(f)
	f.Add(string(hints[0].TOCDigest), "10:20:30:1", "1:2:3", string(hints[3].ManifestChecksum))
	f.Add("", "9223372036854775807:1:1:1", "0:0:0", "")
	f.Fuzz(func(t *testing.T, toc, position, tarSplit, checksum string) {
		h, err := ParseHints(map[string]string{
			AnnotationTOCDigest: toc, AnnotationPosition: position, AnnotationTarSplitPosition: tarSplit, AnnotationChecksum: checksum,
		})
		if err != nil {
			return
		}
		for _, s := range []Span{h.TOC, h.TarSplit} {
			if s.Offset < 0 || s.Size < 0 || s.RawSize < 0 || s.Offset+s.Size < 0 {
				t.Errorf("accepted %+v", s)
			}
		}
	})
}
