package estargz

import (
	"archive/tar"
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"dray/internal/oci"
	"dray/internal/stream"
)

func opener(src []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(src)), nil }
}

func write(tb testing.TB, src []byte, o Options) ([]byte, *Result) {
	tb.Helper()
	var out bytes.Buffer
	r, err := Write(tb.Context(), &out, opener(src), o)
	if err != nil {
		tb.Fatal(err)
	}
	if got := oci.DigestBytes(out.Bytes()); got != r.Digest || int64(out.Len()) != r.Size {
		tb.Errorf("%d bytes with digest %s, said %d with %s", out.Len(), got, r.Size, r.Digest)
	}
	return out.Bytes(), r
}

// unpack returns the tar in blob, by programs that know nothing of any of this.
func unpack(tb testing.TB, blob []byte, f Format) []byte {
	tb.Helper()
	program := "gunzip"
	if f.zstd() {
		program = "zstd"
	}
	if _, err := exec.LookPath(program); err != nil {
		tb.Skipf("no %s: %v", program, err)
	}
	cmd := exec.CommandContext(tb.Context(), program, "-dc")
	cmd.Stdin = bytes.NewReader(blob)
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v", program, err)
	}
	return out
}

func TestWrite(t *testing.T) {
	t.Parallel()
	files := tree()
	src := makeTar(t, files)
	list := []string{"b/big", "a/hard", "not/there", "implied/deep/file"}
	for _, test := range []struct {
		name string
		o    Options
	}{
		{"defaults", Options{}},
		{"small chunks", Options{ChunkSize: 1000}},
		{"min chunks", Options{ChunkSize: 3000, MinChunkSize: 10_000}},
		{"prioritized", Options{Prioritized: list, ChunkSize: 5000}},
		{"spilled", Options{Prioritized: list, SpillMemory: 1}},
		{"level 9", Options{Level: 9}},
		{"external", Options{Format: EStargzExternal, ChunkSize: 5000}},
		{"lossless", Options{Format: EStargzExternal, ChunkSize: 5000, Lossless: true, Prioritized: list}},
		{"podman", Options{Format: ZstdChunked, ChunkSize: 5000, Prioritized: list}},
		{"podman lossless", Options{Format: ZstdChunked, Lossless: true}},
		{"containerd zstd", Options{Format: ZstdChunkedContainerd, ChunkSize: 5000}},
		{"stargz", Options{Format: LegacyStargz}},
		{"stargz, small chunks", Options{Format: LegacyStargz, ChunkSize: 5000, Level: 9}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			checkWritten(t, files, src, test.o)
		})
	}
}

func checkWritten(t *testing.T, files []file, src []byte, o Options) {
	t.Helper()
	var toc bytes.Buffer
	o.TOC, o.Jobs = &toc, 1
	blob, result := write(t, src, o)
	for _, jobs := range []int{2, 7} {
		again := o
		again.Jobs, again.TOC, again.Budget = jobs, io.Discard, stream.NewBudget(64<<20)
		if other, _ := write(t, src, again); !bytes.Equal(blob, other) {
			t.Errorf("other bytes with %d jobs", jobs)
		}
		if n := again.Budget.InUse(); n != 0 {
			t.Errorf("%d bytes of the budget are still taken", n)
		}
	}
	hints, err := ParseHints(result.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	tocBlob := bytes.Clone(toc.Bytes())
	r := mustOpen(t, blob, OpenOptions{Hints: hints, ExternalTOC: &toc})
	if r.Format() != o.Format {
		t.Errorf("format is %v, want %v", r.Format(), o.Format)
	}
	checkFiles(t, r, files)
	verified, err := r.Verify(t.Context())
	if err != nil {
		t.Error(err)
	}
	plain := unpack(t, blob, o.Format)
	if got := oci.DiffID(oci.DigestBytes(plain)); got != result.DiffID || got != verified.DiffID || int64(len(plain)) != result.UncompressedSize {
		t.Errorf("unpacks to %d bytes, %s; writer said %d, %s; reader %s", len(plain), got, result.UncompressedSize, result.DiffID, verified.DiffID)
	}
	checkTree(t, plain, src, o)
	checkPrefetch(t, r, result, o)
	switch o.Format {
	case EStargz:
		checkOracle(t, blob, result.TOCDigest, o)
	case EStargzExternal:
		d := externaltoc.NewGzipDecompressor(func() ([]byte, error) { return tocBlob, nil })
		checkOracle(t, blob, result.TOCDigest, o, oracle.WithDecompressors(d))
	case ZstdChunkedContainerd:
		checkOracle(t, blob, result.TOCDigest, o, oracle.WithDecompressors(newOracleZstd()))
	case ZstdChunked:
		checkTarSplit(t, blob, r, plain)
	case LegacyStargz:
		checkLegacy(t, blob, result)
	}
}

// checkOracle has containerd's library open and verify a blob.
func checkOracle(t *testing.T, blob []byte, toc oci.Digest, o Options, opts ...oracle.OpenOption) {
	t.Helper()
	r, err := oracle.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))), opts...)
	if err != nil {
		t.Fatalf("containerd's library: %v", err)
	}
	if got := r.TOCDigest(); got != digest.Digest(toc) {
		t.Errorf("containerd's library has the TOC digest %s, not %s", got, toc)
	}
	if o.MinChunkSize > 0 {
		return // it refuses its own
	}
	if _, err := r.VerifyTOC(digest.Digest(toc)); err != nil {
		t.Errorf("containerd's library: %v", err)
	}
}

// checkLegacy has containerd's library open stargz as what it is, and read files,
// and looks for what that form did not have yet.
func checkLegacy(t *testing.T, blob []byte, result *Result) {
	t.Helper()
	const footerBytes = 47
	footer := blob[len(blob)-footerBytes:]
	_, at, size, err := new(oracle.LegacyGzipDecompressor).ParseFooter(footer)
	if err != nil || size != 0 {
		t.Fatalf("containerd's library: %d, %v", size, err)
	}
	z, err := stdgzip.NewReader(bytes.NewReader(footer))
	if err != nil || len(z.Extra) != 22 {
		t.Errorf("footer is no member with an offset: %v", err)
	}
	toc, _, err := new(oracle.LegacyGzipDecompressor).ParseTOC(bytes.NewReader(blob[at : len(blob)-footerBytes]))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range toc.Entries {
		if e.ChunkDigest != "" || e.InnerOffset != 0 || IsMeta(e.Name) || e.Type == "reg" && e.Digest == "" {
			t.Errorf("%q: %+v", e.Name, e)
		}
	}
	if len(result.Annotations) > 0 {
		t.Errorf("annotations %v", result.Annotations)
	}
	r, err := oracle.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		t.Fatalf("containerd's library: %v", err)
	}
	if got := r.TOCDigest(); got != digest.Digest(result.TOCDigest) {
		t.Errorf("containerd's library has the TOC digest %s, not %s", got, result.TOCDigest)
	}
	for _, f := range tree() {
		if f.typ != tar.TypeReg || len(f.body) == 0 {
			continue
		}
		src, err := r.OpenFile(f.name)
		if err != nil {
			t.Fatalf("containerd's library: %v", err)
		}
		if got, err := stream.ReadAll(src, 1<<20); err != nil || !bytes.Equal(got, f.body) {
			t.Errorf("containerd's library reads %d bytes of %q, not %d: %v", len(got), f.name, len(f.body), err)
		}
	}
}

// checkTree compares what tars unpack to, but for what the formats add.
func checkTree(t *testing.T, got, want []byte, o Options) {
	t.Helper()
	if o.Lossless {
		if !bytes.Equal(got, want) {
			t.Error("the tar is not the same")
		}
		return
	}
	if diff := cmp.Diff(headers(t, got), headers(t, want)); diff != "" {
		t.Error(diff)
	}
}

func headers(t *testing.T, b []byte) map[string]*tar.Header {
	t.Helper()
	all := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if !IsMeta(h.Name) {
			all[h.Name] = h
		}
	}
}

func checkPrefetch(t *testing.T, r *Reader, result *Result, o Options) {
	t.Helper()
	size, said := r.PrefetchSize()
	switch {
	case o.Lossless:
		if want := o.Prioritized != nil; said || (r.Prioritized() != nil) != want {
			t.Errorf("prefetch %d, %v", size, r.Prioritized())
		}
	case o.Format == LegacyStargz:
		if said {
			t.Errorf("prefetch %d, want nothing said", size)
		}
	case o.Prioritized == nil:
		if size != 0 || !said {
			t.Errorf("prefetch %d, %v, want none", size, said)
		}
	default:
		want := []string{"b/big", "a/small", "a/hard", "implied/deep/file"}
		if diff := cmp.Diff(r.Prioritized(), want); diff != "" || size == 0 {
			t.Errorf("prefetch %d: %s", size, diff)
		}
		if diff := cmp.Diff(result.Missed, []string{"not/there"}); diff != "" {
			t.Error(diff)
		}
	}
}

// checkTarSplit has tar-split rebuild the tar.
func checkTarSplit(t *testing.T, blob []byte, r *Reader, plain []byte) {
	t.Helper()
	span := r.Footer().TarSplit
	raw := blob[span.Offset:][:span.Size]
	if got := oci.DigestBytes(raw); got != r.doc.tarSplitDigest {
		t.Errorf("tar-split has the digest %s, TOC says %s", got, r.doc.tarSplitDigest)
	}
	z, err := newZstd(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	out := asm.NewOutputTarStream(fileGetter{r}, storage.NewJSONUnpacker(z))
	defer func() { _ = out.Close() }()
	got, err := stream.ReadAll(out, 1<<30)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("rebuilt %d bytes of %d: %v", len(got), len(plain), err)
	}
}

type fileGetter struct{ r *Reader }

func (f fileGetter) Get(name string) (io.ReadCloser, error) {
	e, ok := f.r.Lookup(name)
	if !ok {
		return nil, errors.New("not there")
	}
	b := make([]byte, e.Size)
	_, err := f.r.ReadFileAt(e, b, 0)
	return io.NopCloser(bytes.NewReader(b)), err
}

func TestWriteOddTars(t *testing.T) {
	t.Parallel()
	var global bytes.Buffer
	w := tar.NewWriter(&global)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"uid": "77"}},
		{Name: "a", Typeflag: tar.TypeReg},
		{Name: "b", Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		src  []byte
		list []string
		want []string
	}{
		{"empty", makeTar(t, nil), []string{"x"}, []string{NoPrefetchLandmark}},
		{"repeated", makeTar(t, []file{
			{name: "a", typ: tar.TypeReg, body: []byte("1")},
			{name: "b", typ: tar.TypeReg},
			{name: "./a", typ: tar.TypeReg, body: []byte("22")},
		}), nil, []string{NoPrefetchLandmark, "b", "a"}},
		{"repeated and prioritized", makeTar(t, []file{
			{name: "a", typ: tar.TypeReg, body: []byte("1")},
			{name: "b", typ: tar.TypeReg},
			{name: "./a", typ: tar.TypeReg, body: []byte("22")},
		}), []string{"/a"}, []string{"a", PrefetchLandmark, "b"}},
		{"seekable already", makeTar(t, []file{
			{name: PrefetchLandmark, typ: tar.TypeReg, body: []byte{15}},
			{name: "b", typ: tar.TypeReg},
			{name: TOCName, typ: tar.TypeReg, body: []byte("{}")},
		}), nil, []string{NoPrefetchLandmark, "b"}},
		{"global header", global.Bytes(), []string{"b"}, []string{"b", PrefetchLandmark, "a"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			blob, result := write(t, test.src, Options{Prioritized: test.list})
			r := mustOpen(t, blob, OpenOptions{Hints: Hints{TOCDigest: result.TOCDigest}})
			if _, err := r.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			var names []string
			for e := range r.Entries() {
				names = append(names, e.Name)
			}
			if diff := cmp.Diff(names, test.want); diff != "" {
				t.Error(diff)
			}
			if e, _ := r.Lookup("b"); test.name == "global header" && e.UID != 77 {
				t.Errorf("owner is %d", e.UID)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		file file
		want error
	}{
		{"climbing", file{name: "../x", typ: tar.TypeReg}, ErrFormat},
		{"not UTF-8", file{name: "a\xff", typ: tar.TypeReg}, ErrUnsupported},
	} {
		src := makeTar(t, []file{test.file})
		if _, err := Write(t.Context(), io.Discard, opener(src), Options{}); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
	src := makeTar(t, tree())
	if _, err := Write(t.Context(), io.Discard, opener(src[:len(src)/2]), Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: got %v", err)
	}
	if _, err := Write(t.Context(), failing{}, opener(src), Options{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("failing target: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Write(ctx, io.Discard, opener(src), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestVerifyFindsDisagreement exchanges the tar below a TOC that stays.
func TestVerifyFindsDisagreement(t *testing.T) {
	t.Parallel()
	files := []file{{name: "a", typ: tar.TypeReg, mode: 0o644, body: []byte("a")}, {name: "b", typ: tar.TypeSymlink, link: "a"}}
	var toc bytes.Buffer
	write(t, makeTar(t, files), Options{Format: EStargzExternal, Lossless: true, TOC: &toc})
	for _, test := range []struct {
		name   string
		change func(f []file) []file
	}{
		{"mode", func(f []file) []file { f[0].mode = 0o755; return f }},
		{"target", func(f []file) []file { f[1].link = "c"; return f }},
		{"one more", func(f []file) []file { return append(f, file{name: "c", typ: tar.TypeReg}) }},
		{"one less", func(f []file) []file { return f[:1] }},
		{"type", func(f []file) []file { f[1].typ = tar.TypeLink; return f }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			blob, _ := write(t, makeTar(t, test.change(slices.Clone(files))), Options{Format: EStargzExternal, Lossless: true, TOC: io.Discard})
			r, err := Open(bytes.NewReader(blob), int64(len(blob)), OpenOptions{ExternalTOC: bytes.NewReader(toc.Bytes())})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			if _, err := r.Verify(t.Context()); !errors.Is(err, ErrDisagree) && !errors.Is(err, stream.ErrMismatch) && !errors.Is(err, ErrFormat) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSparseFilesBecomeFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := make([]byte, 3<<20)
	copy(want[1<<20:], "middle")
	f, err := os.Create(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("middle"), 1<<20)
	if err := errors.Join(err, f.Truncate(int64(len(want))), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		src, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "--format="+format, "--sparse", "-c", "s").Output()
		if err != nil {
			t.Skipf("tar: %v", err)
		}
		blob, _ := write(t, src, Options{ChunkSize: 1 << 20})
		r := mustOpen(t, blob, OpenOptions{})
		if _, err := r.Verify(t.Context()); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		checkFiles(t, r, []file{{name: "s", typ: tar.TypeReg, body: want}})
		if _, err := Write(t.Context(), io.Discard, opener(src), Options{Format: ZstdChunked, Lossless: true}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: lossless: got %v", format, err)
		}
	}
}
