package estargz

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"dray/internal/oci"
)

func FuzzFooter(f *testing.F) {
	f.Add(appendEStargzFooter(nil, 0), int64(100))
	f.Add(appendLegacyFooter(nil, 0), int64(100))
	f.Add(appendExternalFooter(nil), int64(100))
	f.Add(appendZstdFooter(nil, Footer{Format: ZstdChunked}), int64(100))
	f.Add(appendZstdFooter(nil, Footer{Format: ZstdChunkedContainerd}), int64(100))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		footer, err := ParseFooter(tail, size)
		if err == nil && (footer.PayloadSize < 0 || footer.TOC.Offset+footer.TOC.Size > size) {
			t.Errorf("accepted %+v in %d bytes", footer, size)
		}
	})
}

func FuzzTOC(f *testing.F) {
	src := makeTar(f, tree())
	blob, _ := write(f, src, Options{ChunkSize: 5000})
	r := mustOpen(f, blob, OpenOptions{})
	f.Add([]byte(`{"version":1,"entries":[{"name":"a","type":"reg","size":2,"offset":1,"chunkSize":1,"digest":""},{"name":"a","type":"chunk","chunkOffset":1,"offset":5}]}`))
	f.Add([]byte(`{"version":1,"entries":[{"name":"a","type":"hardlink","linkName":"a"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := decodeTOC(bytes.NewReader(text), int64(len(blob)), Limits{}.withDefaults())
		if err != nil {
			return
		}
		all := &Reader{src: r.src, size: r.size, footer: r.footer, doc: d, table: d.table, limits: r.limits}
		for e := range all.Entries() {
			var at int64
			for c := range all.Chunks(e) {
				if c.FileOffset != at || c.Size <= 0 || c.EndOffset <= c.Offset {
					t.Fatalf("%q has the chunk %+v at %d", e.Name, c, at)
				}
				at += c.Size
			}
			if at != e.Size {
				t.Fatalf("%q has %d bytes in chunks, not %d", e.Name, at, e.Size)
			}
			all.Resolve(e)
		}
		all.Prioritized()
		all.PrefetchSize()
	})
}

// TestTableSize measures the memory of a TOC per entry. The TOC is made here: to write
// a layer of so many members takes longer than all else.
func TestTableSize(t *testing.T) {
	const count, memberBytes = 10_000, 100
	var entries bytes.Buffer
	for i := range count {
		name := fmt.Sprintf("usr/lib/some/package/of/average/depth/%-20d%c%c", i, 'a'+i%26, 0x4e00+i)
		digest := oci.DigestBytes([]byte(name))
		_, _ = fmt.Fprintf(&entries, `,{"name":%q,"type":"reg","size":2,"modtime":"2020-09-13T12:26:40Z","mode":420,"uid":%d,"gid":%d,"offset":%d,"digest":%q,"chunkDigest":%q}`,
			name, 1000+i%3, i%2, memberBytes*(i+1), digest, digest)
	}
	text := slices.Concat([]byte(`{"version":1,"entries":[`), entries.Bytes()[1:], []byte(`]}`))
	var blob bytes.Buffer
	blob.Write(make([]byte, memberBytes*(count+1)))
	at := int64(blob.Len())
	z := gzip.NewWriter(&blob)
	if _, err := z.Write(makeTar(t, []file{{name: "stargz.index.json", typ: tar.TypeReg, body: text}})); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	all := appendEStargzFooter(blob.Bytes(), at)
	used := func() int64 {
		runtime.GC()
		runtime.GC() // what pools hold lives through one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := used()
	r := mustOpen(t, all, OpenOptions{})
	got := float64(used()-before) / count
	if r.Len() != count {
		t.Errorf("%d entries", r.Len())
	}
	t.Logf("%.0f bytes per entry", got)
	if got > 200 {
		t.Errorf("%.0f bytes per entry", got)
	}
	runtime.KeepAlive(r)
	runtime.KeepAlive(all)
}
