package inflate

import (
	"bytes"
	"math/rand/v2"
	"testing"

	kflate "github.com/klauspost/compress/flate"
)

const fuzzLimit = 300_000

// sameRaw compares the decoder with compress/flate on a raw stream.
func sameRaw(t *testing.T, in []byte) {
	t.Helper()
	want, consumed, wantErr := oracleRaw(in, fuzzLimit)
	for name, src := range sources(in) {
		for _, size := range []int{77, 5000, DirectBytes + 100, fuzzLimit} {
			if len(want) > 20_000 && size < 5000 {
				continue
			}
			r := NewRawReader(src())
			got, err := readWith(r, size, fuzzLimit)
			if n := min(len(got), len(want), fuzzLimit); !bytes.Equal(got[:n], want[:n]) {
				t.Fatalf("%s, reads of %d: output differs", name, size)
			}
			if len(want) < fuzzLimit {
				if len(got) != len(want) {
					t.Fatalf("%s, reads of %d: %d bytes, want %d (%v, %v)", name, size, len(got), len(want), err, wantErr)
				}
				if verdict(err) != verdict(wantErr) {
					t.Fatalf("%s, reads of %d: %v, want %v", name, size, err, wantErr)
				}
				if verdict(err) == "fine" && r.InputOffset() != int64(consumed) {
					t.Fatalf("%s, reads of %d: consumed %d, want %d", name, size, r.InputOffset(), consumed)
				}
			}
			_ = r.Close()
		}
	}
}

// sameGzip compares the decoder with compress/gzip.
func sameGzip(t *testing.T, in []byte) {
	t.Helper()
	want, wantErr := oracleGzip(in, fuzzLimit)
	for _, size := range []int{1000, DirectBytes + 100} {
		r := NewReader(bytes.NewReader(in))
		got, err := readWith(r, size, fuzzLimit)
		if n := min(len(got), len(want), fuzzLimit); !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("reads of %d: output differs", size)
		}
		if len(want) < fuzzLimit {
			if len(got) != len(want) {
				t.Fatalf("reads of %d: %d bytes, want %d", size, len(got), len(want))
			}
			if got, want := verdict(err), verdict(wantErr); got != want && (got != "header" || want != "truncated") {
				t.Fatalf("reads of %d: %v, want %v", size, err, wantErr)
			}
		}
		_ = r.Close()
	}
}

func FuzzRaw(f *testing.F) {
	for _, kind := range kinds {
		for _, level := range []int{-2, 0, 1, 9} {
			f.Add(deflate(f, generate(kind, 3000, 5), level))
		}
	}
	rng := rand.New(rand.NewPCG(17, 18))
	for range 4 {
		in, _ := literalStream(rng, 500, 50)
		f.Add(in)
	}
	f.Fuzz(sameRaw)
}

func FuzzGzip(f *testing.F) {
	for _, kind := range kinds {
		in := compress(f, generate(kind, 2000, 5), 6)
		f.Add(in)
		f.Add(append(bytes.Clone(in), in...))
	}
	f.Fuzz(sameGzip)
}

// FuzzRoundTrip compresses what the fuzzer finds with both compressors.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("abcabcabcabd"), 6)
	f.Add(generate("binary", 5000, 1), 1)
	f.Fuzz(func(t *testing.T, data []byte, level int) {
		level = min(9, max(-2, level%10))
		sameRaw(t, deflate(t, data, level))
		var b bytes.Buffer
		w, err := kflate.NewWriter(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		sameRaw(t, b.Bytes())
	})
}

// TestMutatedStreams flips bits and cuts streams.
func TestMutatedStreams(t *testing.T) {
	t.Parallel()
	rounds := 12
	if testing.Short() {
		rounds = 5
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(11, 12))
			for _, level := range []int{-2, 0, 1, 6} {
				for range rounds {
					in := deflate(t, generate(kind, 1+rng.IntN(60_000), rng.Uint64()), level)
					for range rng.IntN(4) {
						in[rng.IntN(len(in))] ^= 1 << rng.IntN(8)
					}
					if rng.IntN(3) == 0 {
						in = in[:rng.IntN(len(in))]
					}
					sameRaw(t, in)
				}
			}
		})
	}
}
