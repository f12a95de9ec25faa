package layer

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"dray/internal/stream"
)

func gz(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func zst(tb testing.TB, data []byte, o ...zstd.EOption) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil, o...)
	if err != nil {
		tb.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// sampleTar looks like a tar of one file with size bytes of noise.
func sampleTar(tb testing.TB, size int) []byte {
	tb.Helper()
	body := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(body)
	return buildTar(tb, tarEntry{name: "file", body: body})
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

const testLimit = 64 << 20

func TestDecompress(t *testing.T) {
	t.Parallel()
	plain := sampleTar(t, 300_000)
	half := len(plain) / 2
	skippable := []byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}
	tests := map[string]struct {
		in   []byte
		want []byte
		as   Compression
	}{
		"plain":                       {plain, plain, Uncompressed},
		"nothing":                     {nil, nil, Uncompressed},
		"zero blocks only":            {make([]byte, 1024), make([]byte, 1024), Uncompressed},
		"plain with a trailing text":  {cat(plain, []byte("tail")), cat(plain, []byte("tail")), Uncompressed},
		"gzip":                        {gz(t, plain), plain, Gzip},
		"gzip of nothing":             {gz(t, nil), nil, Gzip},
		"gzip of two members":         {cat(gz(t, plain[:half]), gz(t, plain[half:])), plain, Gzip},
		"gzip with an empty member":   {cat(gz(t, nil), gz(t, plain), gz(t, nil)), plain, Gzip},
		"gzip with NUL padding":       {cat(gz(t, plain), make([]byte, 70_000)), plain, Gzip},
		"zstd":                        {zst(t, plain), plain, Zstd},
		"zstd of two frames":          {cat(zst(t, plain[:half]), zst(t, plain[half:])), plain, Zstd},
		"zstd after skippable frames": {cat(skippable, skippable, zst(t, plain)), plain, Zstd},
		"zstd amid skippable frames":  {cat(zst(t, plain[:half]), skippable, zst(t, plain[half:]), skippable), plain, Zstd},
		"zstd without content":        {skippable, nil, Zstd},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for kind, src := range map[string]io.Reader{
				"at once":      bytes.NewReader(test.in),
				"in bytes":     iotest.OneByteReader(bytes.NewReader(test.in)),
				"data and EOF": iotest.DataErrReader(bytes.NewReader(test.in)),
			} {
				d, err := Decompress(src, Options{})
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				got, err := stream.ReadAll(d, testLimit)
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				if d.Compression() != test.as {
					t.Errorf("%s: compression = %v, want %v", kind, d.Compression(), test.as)
				}
				if !bytes.Equal(got, test.want) {
					t.Errorf("%s: %d bytes differ from the %d expected", kind, len(got), len(test.want))
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDecompressRefuses(t *testing.T) {
	t.Parallel()
	plain := sampleTar(t, 100_000)
	gzipped, zstded := gz(t, plain), zst(t, plain)
	flipped := bytes.Clone(gzipped)
	flipped[len(flipped)-5] ^= 1
	broken := bytes.Clone(zstded)
	broken[len(broken)-1] ^= 1
	tests := map[string]struct {
		in   []byte
		want error
		text string
	}{
		"noise":                      {[]byte(strings.Repeat("noise", 200)), ErrFormat, "noise"},
		"a short text":               {[]byte("not found"), ErrFormat, "not found"},
		"an HTML page":               {[]byte("<html>"), ErrFormat, "HTML"},
		"xz":                         {[]byte("\xfd7zXZ\x00\x00\x04"), ErrFormat, "xz"},
		"gzip header only":           {gzipped[:8], io.ErrUnexpectedEOF, "gzip"},
		"gzip cut":                   {gzipped[:len(gzipped)/2], io.ErrUnexpectedEOF, "gzip"},
		"gzip without its trailer":   {gzipped[:len(gzipped)-4], io.ErrUnexpectedEOF, "gzip"},
		"gzip with a wrong checksum": {flipped, ErrFormat, "gzip"},
		"gzip then garbage":          {cat(gzipped, []byte("garbage and more")), ErrFormat, "after the last member"},
		"gzip then a short garbage":  {cat(gzipped, []byte("g")), ErrFormat, "after the last member"},
		"gzip then padding and more": {cat(gzipped, make([]byte, 9), []byte("x")), ErrFormat, "after the last member"},
		"gzip then a cut member":     {cat(gzipped, gzipped[:20]), io.ErrUnexpectedEOF, "gzip"},
		"zstd cut":                   {zstded[:len(zstded)/2], io.ErrUnexpectedEOF, "zstd"},
		"zstd with a wrong checksum": {broken, ErrFormat, "zstd"},
		"zstd then garbage":          {cat(zstded, []byte("garbage")), ErrFormat, "zstd"},
		"zstd then one byte":         {cat(zstded, []byte("g")), io.ErrUnexpectedEOF, "zstd"},
		"zstd then half a magic":     {cat(zstded, zstded[:3]), io.ErrUnexpectedEOF, "zstd"},
		"zstd then a cut frame":      {cat(zstded, zstded[:20]), io.ErrUnexpectedEOF, "zstd"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := Decompress(bytes.NewReader(test.in), Options{})
			if err == nil {
				_, err = stream.ReadAll(d, testLimit)
				_ = d.Close()
			}
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			if !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %q does not mention %q", err, test.text)
			}
		})
	}
}

func TestDecompressLimits(t *testing.T) {
	t.Parallel()
	bomb := make([]byte, 32<<20)
	var long bytes.Buffer
	w, err := zstd.NewWriter(&long, zstd.WithWindowSize(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bomb); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// A frame of a single segment has no window of its own: its content is it.
	single := zst(t, make([]byte, 9<<20), zstd.WithSingleSegment(true))
	tests := map[string]struct {
		in   []byte
		o    Options
		want string
	}{
		"gzip bomb":            {gz(t, bomb), Options{MaxBytes: 1 << 20}, "uncompressed bytes"},
		"zstd bomb":            {zst(t, bomb), Options{MaxBytes: 1 << 20}, "uncompressed bytes"},
		"plain":                {bomb, Options{MaxBytes: 1 << 20}, "uncompressed bytes"},
		"zstd window":          {long.Bytes(), Options{MaxWindowBytes: 8 << 20}, "zstd window bytes"},
		"zstd, single segment": {single, Options{MaxWindowBytes: 8 << 20}, "zstd window bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := Decompress(bytes.NewReader(test.in), test.o)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			_, err = io.Copy(io.Discard, d)
			limit, ok := errors.AsType[*LimitError](err)
			if !ok {
				t.Fatalf("error %v, want a LimitError", err)
			}
			if diff := cmp.Diff(test.want, limit.What); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The source's own error wins over what its early end does to the decoder.
func TestDecompressKeepsSourceError(t *testing.T) {
	t.Parallel()
	plain := sampleTar(t, 100_000)
	broken := errors.New("connection reset")
	for name, in := range map[string][]byte{"plain": plain, "gzip": gz(t, plain), "zstd": zst(t, plain)} {
		for _, n := range []int{0, 3, 600, len(in) - 1, len(in)} {
			n = min(n, len(in))
			d, err := Decompress(io.MultiReader(bytes.NewReader(in[:n]), iotest.ErrReader(broken)), Options{})
			if err == nil {
				_, err = io.Copy(io.Discard, d)
				_ = d.Close()
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s, cut at %d: error %v", name, n, err)
			}
		}
	}
}

func FuzzDecompress(f *testing.F) {
	plain := sampleTar(f, 2000)
	f.Add(plain)
	f.Add(gz(f, plain))
	f.Add(cat(gz(f, plain[:700]), gz(f, plain[700:]), make([]byte, 5)))
	f.Add(zst(f, plain))
	f.Add([]byte{0x5a, 0x2a, 0x4d, 0x18, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := Decompress(bytes.NewReader(in), Options{MaxBytes: 1 << 20, MaxWindowBytes: 1 << 20})
		if err != nil {
			return
		}
		defer func() { _ = d.Close() }()
		if _, err = io.Copy(io.Discard, d); err == nil && d.Compression() == Uncompressed && d.count != int64(len(in)) {
			t.Errorf("%d bytes of %d", d.count, len(in))
		}
	})
}
