package inflate

import (
	"bytes"
	"math/bits"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// bitWriter builds DEFLATE streams that no compressor writes.
type bitWriter struct {
	out []byte
	n   uint // bits used of the last byte; 0 if all
}

func (w *bitWriter) bits(v uint64, n uint) {
	for ; n > 0; n-- {
		if w.n == 0 {
			w.out = append(w.out, 0)
		}
		w.out[len(w.out)-1] |= byte(v&1) << w.n
		w.n = (w.n + 1) % 8
		v >>= 1
	}
}

// code writes a Huffman code, its first bit first.
func (w *bitWriter) code(c code) {
	w.bits(uint64(bits.Reverse32(uint32(c.bits)))>>(32-c.len), uint(c.len))
}

// stored writes a stored block that is not the last.
func (w *bitWriter) stored(b []byte) {
	w.bits(0, 3)
	w.n = 0
	w.out = append(w.out, byte(len(b)), byte(len(b)>>8), ^byte(len(b)), ^byte(len(b)>>8))
	w.out = append(w.out, b...)
}

type code struct {
	bits uint16
	len  uint8
}

// canonical returns the codes of the lengths, RFC 1951 section 3.2.2.
func canonical(lens []uint8) []code {
	codes := make([]code, len(lens))
	next := uint16(0)
	for n := uint8(1); n <= maxCodeBits; n++ {
		for sym, l := range lens {
			if l == n {
				codes[sym] = code{next, n}
				next++
			}
		}
		next <<= 1
	}
	return codes
}

// match writes a length and a distance, each with any symbol that can say it.
func (w *bitWriter) match(lit, dist []code, length, distance int) {
	i := len(lengthBase) - 1
	for int(lengthBase[i])+minMatch > length {
		i--
	}
	w.code(lit[endOfBlock+1+i])
	w.bits(uint64(length-minMatch-int(lengthBase[i])), uint(lengthExtra[i]))
	sym := uint32(29)
	base, extra := distanceOf(sym)
	for int(base) > distance {
		sym--
		base, extra = distanceOf(sym)
	}
	w.code(dist[sym])
	w.bits(uint64(distance-int(base)), extra)
}

func fixedLens() (lit, dist []uint8) {
	lit = slices.Concat(bytes.Repeat([]byte{8}, 144), bytes.Repeat([]byte{9}, 112), bytes.Repeat([]byte{7}, 24), bytes.Repeat([]byte{8}, 8))
	return lit, bytes.Repeat([]byte{5}, 32)
}

// sameRawOnce compares with compress/flate, reading in the two ways there are.
func sameRawOnce(t *testing.T, in []byte) (ok bool) {
	t.Helper()
	want, consumed, wantErr := oracleRaw(in, 1<<22)
	for _, size := range []int{10_000, 1 << 20} {
		r := NewRawReader(bytes.NewReader(in))
		got, err := readWith(r, size, 1<<22)
		if !bytes.Equal(got, want) || verdict(err) != verdict(wantErr) {
			t.Fatalf("%d bytes, %v; want %d, %v", len(got), err, len(want), wantErr)
		}
		if verdict(err) == "fine" && r.InputOffset() != int64(consumed) {
			t.Fatalf("consumed %d, want %d", r.InputOffset(), consumed)
		}
		_ = r.Close()
	}
	return verdict(wantErr) == "fine"
}

func TestEveryDistanceAndAlignment(t *testing.T) {
	t.Parallel()
	litLens, distLens := fixedLens()
	lit, dist := canonical(litLens), canonical(distLens)
	rng := rand.New(rand.NewPCG(1, 1))
	distances := []int{}
	for d := 1; d <= 70; d++ {
		distances = append(distances, d)
	}
	for d := 128; d <= windowBytes; d *= 2 {
		distances = append(distances, d-1, d, min(d+1, windowBytes))
	}
	for align := range 32 {
		w := &bitWriter{}
		w.stored(generate("random", windowBytes+align, uint64(align)))
		w.bits(1, 1)
		w.bits(1, 2)
		for _, d := range distances {
			for _, length := range []int{3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 257, maxMatch, 3 + rng.IntN(256)} {
				w.match(lit, dist, length, d)
				for range rng.IntN(3) {
					w.code(lit[rng.IntN(256)])
				}
			}
		}
		w.code(lit[endOfBlock])
		w.bits(0, 7)
		if !sameRawOnce(t, append(w.out, make([]byte, 40)...)) {
			t.Fatal("the stream is invalid")
		}
	}
}

// TestDistanceTooFar checks the first position at which each distance is valid.
func TestDistanceTooFar(t *testing.T) {
	t.Parallel()
	litLens, distLens := fixedLens()
	lit, dist := canonical(litLens), canonical(distLens)
	for _, d := range []int{1, 2, 8, 15, 16, 17, 100, 5000, 32767, windowBytes} {
		for _, have := range []int{d - 1, d} {
			w := &bitWriter{}
			w.stored(generate("random", have, 1))
			w.bits(1, 1)
			w.bits(1, 2)
			w.match(lit, dist, 10, d)
			w.code(lit[endOfBlock])
			in := append(w.out, make([]byte, 40)...)
			if ok := sameRawOnce(t, in); ok != (have == d) {
				t.Errorf("distance %d with %d bytes: valid is %v", d, have, ok)
			}
		}
	}
}

// randomLens returns the lengths of a complete code for some of n symbols, must
// among them.
func randomLens(rng *rand.Rand, n, used, maxBits int, must int) []uint8 {
	leaves := []uint8{0}
	for len(leaves) < used {
		i := rng.IntN(len(leaves))
		if rng.IntN(3) > 0 { // deep ones
			i = len(leaves) - 1
		}
		if int(leaves[i]) == maxBits {
			if i = slices.IndexFunc(leaves, func(l uint8) bool { return int(l) < maxBits }); i < 0 {
				break
			}
		}
		leaves[i]++
		leaves = append(leaves, leaves[i])
	}
	if len(leaves) == 1 {
		leaves[0] = 1
	}
	rng.Shuffle(len(leaves), func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	lens := make([]uint8, n)
	syms := rng.Perm(n)[:len(leaves)]
	if must >= 0 && !slices.Contains(syms, must) {
		syms[0] = must
	}
	for i, sym := range syms {
		lens[sym] = leaves[i]
	}
	return lens
}

// dynamicHeader writes the header of a dynamic block.
func (w *bitWriter) dynamicHeader(rng *rand.Rand, lit, dist []uint8, final uint64) {
	w.bits(final, 1)
	w.bits(2, 2)
	w.bits(uint64(len(lit)-257), 5)
	w.bits(uint64(len(dist)-1), 5)
	w.bits(15, 4)
	lens := bytes.Repeat([]byte{5}, lensCodeSyms)
	for i := range 13 {
		lens[i] = 4
	}
	for i := range 19 { // complete: 13 of 4 bits, 6 of 5 bits
		w.bits(uint64(lens[lensOrder[i]]), 3)
	}
	codes := canonical(lens)
	all := slices.Concat(lit, dist)
	for i := 0; i < len(all); {
		run := 1
		for i+run < len(all) && all[i+run] == all[i] {
			run++
		}
		switch {
		case all[i] == 0 && run >= 11 && rng.IntN(4) > 0:
			run = min(run, 138)
			w.code(codes[18])
			w.bits(uint64(run-11), 7)
		case all[i] == 0 && run >= 3 && rng.IntN(4) > 0:
			run = min(run, 10)
			w.code(codes[17])
			w.bits(uint64(run-3), 3)
		case i > 0 && all[i-1] == all[i] && run >= 3:
			run = min(run, 6)
			w.code(codes[16])
			w.bits(uint64(run-3), 2)
		default:
			run = 1
			w.code(codes[all[i]])
		}
		i += run
	}
}

// TestRandomCodes decodes symbols of random codes, some of them invalid.
func TestRandomCodes(t *testing.T) {
	t.Parallel()
	rounds := 1000
	if testing.Short() {
		rounds = 300
	}
	rng := rand.New(rand.NewPCG(3, 4))
	valid := 0
	for range rounds {
		w := &bitWriter{}
		w.stored(generate("random", rng.IntN(300), rng.Uint64()))
		nlit, ndist := 257+rng.IntN(30), 1+rng.IntN(30)
		lit := randomLens(rng, nlit, 1+rng.IntN(nlit), 9+rng.IntN(7), endOfBlock)
		dist := randomLens(rng, ndist, 1+rng.IntN(ndist), 5+rng.IntN(11), -1)
		switch rng.IntN(12) {
		case 0:
			lit[rng.IntN(nlit)] = uint8(rng.IntN(16))
		case 1:
			dist[rng.IntN(ndist)] = uint8(rng.IntN(16))
		case 2:
			clear(dist)
		}
		w.dynamicHeader(rng, lit, dist, 1)
		litCodes, distCodes := canonical(lit), canonical(dist)
		for range rng.IntN(3000) {
			sym := rng.IntN(nlit)
			if lit[sym] == 0 || sym == endOfBlock {
				continue
			}
			w.code(litCodes[sym])
			if sym < endOfBlock {
				continue
			}
			w.bits(rng.Uint64(), uint(lengthExtra[sym-endOfBlock-1]))
			far := rng.IntN(ndist)
			for range 30 {
				if dist[far] != 0 && (far < 14 || rng.IntN(200) == 0) {
					break
				}
				far = rng.IntN(ndist)
			}
			w.code(distCodes[far])
			_, extra := distanceOf(uint32(far))
			w.bits(rng.Uint64(), extra)
		}
		w.code(litCodes[endOfBlock])
		in := w.out
		if rng.IntN(2) == 0 {
			in = append(in, generate("random", 40, rng.Uint64())...)
		}
		if sameRawOnce(t, in) {
			valid++
		}
	}
	if valid < rounds/20 {
		t.Errorf("only %d of %d streams are valid", valid, rounds)
	}
}

// inputFile stands for the name of a file with the input, for tools that read no pipe.
const inputFile = "INPUT"

// TestOtherCompressors decodes what the tools on this machine write.
func TestOtherCompressors(t *testing.T) {
	t.Parallel()
	tools := [][]string{
		{"gzip", "-1"},
		{"gzip", "-9"},
		{"zopfli", "-c", "--i1", inputFile},
		{"pigz", "-p", "2", "-b", "128"},
		{"pigz", "-11"}, // zopfli's compressor
		{"igzip", "-0"},
		{"igzip", "-3"},
		{"libdeflate-gzip", "-1"},
		{"libdeflate-gzip", "-12"},
		{"7z", "a", "-tgzip", "-si", "-so", "-mx=9", "an.gz"},
	}
	for _, tool := range tools {
		t.Run(tool[0]+tool[1], func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(tool[0]); err != nil {
				if os.Getenv("DRAY_REQUIRE") == "all" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			for _, kind := range kinds {
				data := generate(kind, 300_000, 9)
				args := slices.Clone(tool[1:])
				if i := slices.Index(args, inputFile); i >= 0 {
					args[i] = filepath.Join(t.TempDir(), "input")
					if err := os.WriteFile(args[i], data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				cmd := exec.CommandContext(t.Context(), tool[0], args...)
				cmd.Stdin = bytes.NewReader(data)
				in, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v: %v", tool, err)
				}
				for _, size := range []int{5000, 1 << 20} {
					r := NewReader(bytes.NewReader(in))
					got, err := readWith(r, size, 1<<30)
					if verdict(err) != "fine" || !bytes.Equal(got, data) {
						t.Errorf("%s: %v", kind, err)
					}
					_ = r.Close()
				}
			}
		})
	}
}
