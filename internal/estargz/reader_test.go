package estargz

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
	"dray/internal/stream"
)

func TestReadsWhatContainerdWrites(t *testing.T) {
	t.Parallel()
	files := tree()
	src := makeTar(t, files)
	z := newOracleZstd()
	for _, test := range []struct {
		name   string
		opts   []oracle.Option
		format Format
	}{
		{"defaults", nil, EStargz},
		{"small chunks", []oracle.Option{oracle.WithChunkSize(1000)}, EStargz},
		{"min chunks", []oracle.Option{oracle.WithMinChunkSize(5000), oracle.WithChunkSize(7000)}, EStargz},
		{"prioritized", []oracle.Option{oracle.WithPrioritizedFiles([]string{"many/100", "a/hard"})}, EStargz},
		{"zstd", []oracle.Option{oracle.WithCompression(z), oracle.WithChunkSize(1000)}, ZstdChunkedContainerd},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			blob, digest := oracleBuild(t, src, test.opts...)
			r := mustOpen(t, blob, OpenOptions{Hints: Hints{TOCDigest: digest}})
			if r.Format() != test.format {
				t.Errorf("format is %v, want %v", r.Format(), test.format)
			}
			if _, err := r.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			checkFiles(t, r, files)
			if test.name == "prioritized" {
				want := []string{"many/100", "a/small", "a/hard"}
				if diff := cmp.Diff(r.Prioritized(), want); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// checkFiles reads all files, in whole and in parts.
func checkFiles(t *testing.T, r *Reader, files []file) {
	t.Helper()
	last := map[string]file{}
	for _, f := range files {
		last[f.name] = f
	}
	for _, f := range last {
		e, ok := r.Lookup(f.name)
		if !ok {
			t.Errorf("%q is not there", f.name)
			continue
		}
		if f.typ == tar.TypeLink {
			f.body = last[f.link].body
		}
		if r.Format() == LegacyStargz && e.ChunkCount > 1 {
			if n, err := r.ReadFileAt(e, make([]byte, len(f.body)), 0); n > 0 || !errors.Is(err, ErrUnverified) {
				t.Errorf("read of %q, whose chunks have no digests: %d bytes, %v", f.name, n, err)
			}
			continue
		}
		got := make([]byte, len(f.body)+1)
		if n, err := r.ReadFileAt(e, got, 0); n != len(f.body) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], f.body) {
			t.Errorf("read of %q: %d bytes, %v", f.name, n, err)
		}
		if len(f.body) > 5000 {
			part := make([]byte, 2500)
			if _, err := r.ReadFileAt(e, part, 1234); err != nil || !bytes.Equal(part, f.body[1234:][:2500]) {
				t.Errorf("read of a part of %q: %v", f.name, err)
			}
		}
	}
}

// TestVerifiesWholeFiles exchanges a chunk, and a file's digest, in a layer whose
// chunks have no digests.
func TestVerifiesWholeFiles(t *testing.T) {
	t.Parallel()
	files := tree()
	blob, _ := write(t, makeTar(t, files), Options{Format: LegacyStargz, ChunkSize: 5000})
	r := mustOpen(t, blob, OpenOptions{})
	if _, err := r.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, _ := r.Lookup("b/big")
	row := r.table.nodes[e.node].first
	good := r.table.chunks[row]
	r.table.chunks[row].offset = r.table.chunks[row+1].offset
	if _, err := r.Verify(t.Context()); !errors.Is(err, stream.ErrMismatch) {
		t.Errorf("a chunk twice: got %v", err)
	}
	r.table.chunks[row] = good
	x := &r.table.extras[r.table.nodes[e.node].extra-1]
	x.has = false
	if _, err := r.Verify(t.Context()); !errors.Is(err, ErrUnverified) {
		t.Errorf("no digest at all: got %v", err)
	}
}

func TestRefusesOtherTOC(t *testing.T) {
	t.Parallel()
	blob, _ := oracleBuild(t, makeTar(t, tree()))
	_, err := Open(bytes.NewReader(blob), int64(len(blob)), OpenOptions{Hints: Hints{TOCDigest: oci.DigestBytes(nil)}})
	if !errors.Is(err, stream.ErrMismatch) {
		t.Errorf("got %v", err)
	}
}

func TestRefusesOrdinaryLayers(t *testing.T) {
	t.Parallel()
	for _, blob := range [][]byte{nil, {1}, makeTar(t, tree())} {
		if _, err := Open(bytes.NewReader(blob), int64(len(blob)), OpenOptions{}); !errors.Is(err, ErrNoTOC) {
			t.Errorf("%d bytes: got %v", len(blob), err)
		}
	}
}

func TestRefusesLyingTOCs(t *testing.T) {
	t.Parallel()
	digest := `"digest":"` + oci.DigestBytes(nil).String() + `"`
	for _, test := range []struct{ name, entries string }{
		{"gap", `{"name":"a","type":"reg","size":9,"chunkSize":3,"offset":1},{"name":"a","type":"chunk","chunkOffset":4,"offset":5}`},
		{"overlap in the file", `{"name":"a","type":"reg","size":9,"chunkSize":3,"offset":1},{"name":"a","type":"chunk","chunkOffset":2,"offset":5}`},
		{"overlap in the blob", `{"name":"a","type":"reg","size":9,"offset":1},{"name":"b","type":"reg","size":9,"offset":1,"innerOffset":8}`},
		{"same place", `{"name":"a","type":"reg","size":9,"offset":1},{"name":"b","type":"reg","size":9,"offset":1}`},
		{"missing end", `{"name":"a","type":"reg","size":9,"chunkSize":3,"offset":1}`},
		{"beyond the end", `{"name":"a","type":"reg","size":9,"chunkSize":10,"offset":1}`},
		{"negative size", `{"name":"a","type":"reg","size":-1}`},
		{"negative offset", `{"name":"a","type":"reg","size":1,"offset":-1}`},
		{"negative chunk", `{"name":"a","type":"reg","size":9,"chunkSize":-3,"offset":1}`},
		{"negative inner offset", `{"name":"a","type":"reg","size":1,"offset":1,"innerOffset":-1}`},
		{"behind the payload", `{"name":"a","type":"reg","size":1,"offset":1000}`},
		{"owner", `{"name":"a","type":"dir","uid":4294967295}`},
		{"climbing name", `{"name":"a/../../b","type":"dir"}`},
		{"climbing target", `{"name":"a","type":"hardlink","linkName":"../b"}`},
		{"lone chunk", `{"name":"a","type":"chunk"}`},
		{"chunk of another", `{"name":"a","type":"reg","size":9,"chunkSize":3,"offset":1},{"name":"b","type":"chunk","chunkOffset":3,"offset":5}`},
		{"link to itself", `{"name":"a","type":"hardlink","linkName":"a"}`},
		{"link to nothing", `{"name":"a","type":"hardlink","linkName":"b"}`},
		{"link to a directory", `{"name":"b","type":"dir"},{"name":"a","type":"hardlink","linkName":"b"}`},
		{"below a file", `{"name":"a","type":"reg"},{"name":"a/b/c","type":"dir"}`},
		{"type", `{"name":"a","type":"door"}`},
		{"digest", `{"name":"a","type":"reg","digest":"sha256:12"}`},
		{"time", `{"name":"a","type":"dir","modtime":"yesterday"}`},
		{"too many", `{"name":"a","type":"dir"},{"name":"b","type":"dir"},{"name":"c","type":"dir"},{"name":"d","type":"dir"}`},
		{"huge entry", `{"name":"a","type":"dir","x":"` + string(bytes.Repeat([]byte("x"), 200_000)) + `"}`},
		{"cut off", `{"name":"a"`},
		{"entries twice", `],"entries":[`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := `{"version":1,"entries":[` + test.entries + `]}`
			l := Limits{MaxEntries: 3, MaxEntryBytes: 1000}.withDefaults()
			if _, err := decodeTOC(bytes.NewReader([]byte(text)), 100, l); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v", err)
			}
		})
	}
	for _, good := range []string{
		`{"name":"a","type":"reg","size":9,"offset":1,` + digest + `},{"name":"b","type":"reg","size":9,"offset":1,"innerOffset":9}`,
		`{"name":"a","type":"reg"},{"name":"a","type":"dir"}`,
	} {
		if _, err := decodeTOC(bytes.NewReader([]byte(`{"version":1,"entries":[`+good+`]}`)), 100, Limits{}.withDefaults()); err != nil {
			t.Error(err)
		}
	}
}

// counting counts requests.
type counting struct {
	io.ReaderAt
	requests int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.requests++
	return c.ReaderAt.ReadAt(p, off)
}

func TestOpensWithOneRequest(t *testing.T) {
	t.Parallel()
	src := makeTar(t, tree())
	for _, format := range []Format{EStargz, ZstdChunked, ZstdChunkedContainerd} {
		blob, result := write(t, src, Options{Format: format})
		hints, err := ParseHints(result.Annotations)
		if err != nil {
			t.Fatal(err)
		}
		c := &counting{ReaderAt: bytes.NewReader(blob)}
		if _, err := Open(c, int64(len(blob)), OpenOptions{Hints: hints}); err != nil || c.requests != 1 {
			t.Errorf("%v: %d requests, %v", format, c.requests, err)
		}
	}
}
