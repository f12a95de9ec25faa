package estargz

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
	oraclezstd "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"

	"dray/internal/oci"
)

// file is an entry of a test's tar.
type file struct {
	name, link string
	typ        byte
	body       []byte
	xattrs     map[string]string
	mode       int64
}

// text returns n compressible bytes that differ with seed.
func text(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%x line %d\n", rng.Uint32N(5000), rng.Uint32N(100))
	}
	return b[:n]
}

// tree is a tar with a bit of everything.
func tree() []file {
	files := []file{
		{name: "a/", typ: tar.TypeDir},
		{name: "a/empty", typ: tar.TypeReg},
		{name: "a/small", typ: tar.TypeReg, body: []byte("small")},
		{name: "a/hard", typ: tar.TypeLink, link: "a/small"},
		{name: "a/soft", typ: tar.TypeSymlink, link: "../b/big"},
		{name: "b/", typ: tar.TypeDir, mode: 0o1777},
		{name: "b/big", typ: tar.TypeReg, body: text(1, 300_000), xattrs: map[string]string{"user.x": "y\x00z"}},
		{name: "b/exact", typ: tar.TypeReg, body: text(2, 128<<10), mode: 0o4755},
		{name: "dev/null", typ: tar.TypeChar},
		{name: "fifo", typ: tar.TypeFifo},
		{name: "implied/deep/file", typ: tar.TypeReg, body: []byte("implied")},
		{name: "a/.wh.gone", typ: tar.TypeReg},
	}
	files = append(files, file{name: "many/", typ: tar.TypeDir})
	for i := range 200 {
		files = append(files, file{name: fmt.Sprintf("many/%03d", i), typ: tar.TypeReg, body: text(uint64(i), 10+37*i)})
	}
	return append(files, file{name: "z/" + string(bytes.Repeat([]byte("long"), 60)), typ: tar.TypeReg, body: []byte("long name")})
}

func makeTar(tb testing.TB, files []file) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, f := range files {
		h := &tar.Header{
			Name: f.name, Linkname: f.link, Typeflag: f.typ, Size: int64(len(f.body)), Mode: f.mode,
			Uid: 1000 + i%3, Gid: i % 2, ModTime: time.Unix(1_600_000_000+int64(i), 0), PAXRecords: map[string]string{},
		}
		if f.mode == 0 {
			h.Mode = 0o644
		}
		if f.typ == tar.TypeChar {
			h.Devmajor, h.Devminor = 1, 3
		}
		for k, v := range f.xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// oracleBuild has containerd's library convert a tar.
func oracleBuild(tb testing.TB, src []byte, opts ...oracle.Option) ([]byte, oci.Digest) {
	tb.Helper()
	blob, err := oracle.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = blob.Close() }()
	var out bytes.Buffer
	if _, err := out.ReadFrom(blob); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes(), oci.Digest(blob.TOCDigest())
}

// oracleZstd makes containerd's library write zstd:chunked.
type oracleZstd struct {
	*oraclezstd.Compressor
	*oraclezstd.Decompressor
}

func newOracleZstd() oracleZstd {
	return oracleZstd{&oraclezstd.Compressor{CompressionLevel: zstd.SpeedDefault}, &oraclezstd.Decompressor{}}
}

func mustOpen(tb testing.TB, blob []byte, o OpenOptions) *Reader {
	tb.Helper()
	r, err := Open(bytes.NewReader(blob), int64(len(blob)), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return r
}
