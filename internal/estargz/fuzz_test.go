package estargz

import (
	"bytes"
	"runtime"
	"testing"
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

// TestTableSize measures the memory of a TOC per entry.
func TestTableSize(t *testing.T) {
	files := make([]file, 0, 20_000)
	for i := range cap(files) {
		files = append(files, file{name: "usr/lib/some/package/of/average/depth/" + string(text(uint64(i), 20)), typ: '0', body: []byte{byte(i), byte(i >> 8)}})
		files[i].name = string(bytes.ReplaceAll([]byte(files[i].name), []byte("\n"), []byte("-"))) + string(rune('a'+i%26)) + string(rune(0x4e00+i))
	}
	blob, _ := write(t, makeTar(t, files), Options{Level: 1})
	used := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := used()
	r, err := Open(bytes.NewReader(blob), int64(len(blob)), OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := float64(used()-before) / float64(r.Len())
	t.Logf("%.0f bytes per entry of %d", got, r.Len())
	if got > 200 {
		t.Errorf("%.0f bytes per entry", got)
	}
	runtime.KeepAlive(r)
	runtime.KeepAlive(blob)
}
