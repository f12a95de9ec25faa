package inflate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/cpu"
)

// incompressible returns size bytes with little in them for a compressor: nearly all
// of its codes are those of the literal mode.
func incompressible(size int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 2))
	out := make([]byte, 0, size+10)
	for len(out) < size {
		out = append(out, byte(rng.Uint32()&(rng.Uint32()|0x7f)))
		if n := len(out); n > 100 && rng.IntN(150) == 0 {
			out = append(out, out[n-100:][:3+rng.IntN(7)]...)
		}
	}
	return out[:size]
}

// wantLiterals checks that the decoder has decoded at least so many literals in the
// literal mode since it had decoded before, if there is assembly.
func wantLiterals(t *testing.T, d *decoder, before uint64, least int) {
	t.Helper()
	if got := int(d.literals.count - before); hasLoops() && got < least {
		t.Errorf("%d literals were decoded in the literal mode, want %d at least", got, least)
	}
}

// literalOthers are lengths of codes for the end of a block and for two match lengths,
// besides literals of literalMinBits to literalMaxBits: as long as these, longer and
// shorter.
var literalOthers = [][]uint8{{9, 9, 9}, {10, 11, 11}, {10, 5, 10}}

// literalLens returns the lengths of a complete code of literals and the others.
func literalLens(rng *rand.Rand, others []uint8) []uint8 {
	const longest = literalMaxBits + 2
	lens := make([]uint8, maxDynLit)
	copy(lens[endOfBlock:], others)
	space := 1 << longest // that is left for codes, in codes of the longest
	for _, n := range others {
		space -= 1 << (longest - n)
	}
	var codes []uint8
	for space > 0 {
		n := uint8(literalMinBits + rng.IntN(3))
		size, left := 1<<(longest-n), endOfBlock-len(codes)-1
		if size <= space && space-size <= left<<(longest-literalMinBits) { // the symbols that are left can take the rest
			codes = append(codes, n)
			space -= size
		}
	}
	for i, sym := range rng.Perm(endOfBlock)[:len(codes)] {
		lens[sym] = codes[i]
	}
	return lens
}

// literalBlock writes a block of so many literals and matches, one match in every so
// many. It returns the number of literals.
func (w *bitWriter) literalBlock(rng *rand.Rand, lens []uint8, size, every int, final uint64) int {
	distLens := bytes.Repeat([]byte{5}, maxDynDist)
	distLens[0], distLens[1] = 4, 4
	w.dynamicHeader(rng, lens, distLens, final)
	lit, dist := canonical(lens), canonical(distLens)
	literals := 0
	for i := 0; i < size; {
		sym := rng.IntN(endOfBlock)
		switch {
		case literals >= 20 && i%every == 0:
			w.match(lit, dist, minMatch+rng.IntN(2), 1+rng.IntN(20))
			i++
		case lens[sym] != 0:
			w.code(lit[sym])
			literals++
			i++
		}
	}
	w.code(lit[endOfBlock])
	return literals
}

// literalStream returns a stream of two such blocks, and the number of literals in it.
func literalStream(rng *rand.Rand, size, every int) (in []byte, literals int) {
	w := &bitWriter{}
	for final := range uint64(2) {
		others := literalOthers[rng.IntN(len(literalOthers))]
		literals += w.literalBlock(rng, literalLens(rng, others), size, every, final)
	}
	return w.out, literals
}

// TestLiteralMode decodes constructed blocks, and cuts and mutates them.
func TestLiteralMode(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 300 {
		in, literals := literalStream(rng, 1+rng.IntN(2000), 20+rng.IntN(200))
		r := NewRawReader(bytes.NewReader(in))
		r.acquire()
		before := r.st.literals.count
		if _, err := readWith(r, 1<<20, 1<<20); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		wantLiterals(t, &r.st.decoder, before, literals-2*inSlack) // those at the end are left to the careful code
		_ = r.Close()
		sameRawOnce(t, in)
		if rng.IntN(3) == 0 {
			in = in[:rng.IntN(len(in))]
		}
		for range rng.IntN(3) {
			if len(in) > 0 {
				in[rng.IntN(len(in))] ^= 1 << rng.IntN(8)
			}
		}
		sameRawOnce(t, in)
		if round%10 == 0 {
			sameRaw(t, in)
		}
	}
}

func TestLiteralModeIsForItsCodes(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 8))
	eights := bytes.Repeat([]byte{8}, 256)
	nines := bytes.Repeat([]byte{9}, 256)
	fixed, _ := fixedLens()
	for name, tt := range map[string]struct {
		lens []uint8
		on   bool
	}{
		"others as long":  {literalLens(rng, literalOthers[0]), true},
		"longer":          {literalLens(rng, literalOthers[1]), true},
		"shorter":         {literalLens(rng, literalOthers[2]), true},
		"of 8 and 9 bits": {slices.Concat(eights[:254], []byte{9, 0, 9, 9, 9}), true},
		"none of 9 bits":  {slices.Concat(eights[:253], []byte{0, 0, 0, 8, 8, 8}), false},
		"too many others": {slices.Concat(nines, []byte{1}), false},
		"too many inside": {slices.Concat(eights[:239], make([]byte, 17), eights[:17]), false},
		"fixed":           {fixed, false},
	} {
		var h huffman
		if !h.init(tt.lens) {
			t.Fatalf("%s: the code is invalid", name)
		}
		l := literals{on: !tt.on}
		if l.init(&h); l.on != tt.on {
			t.Errorf("%s: on is %v, want %v", name, l.on, tt.on)
		}
	}
}

// TestLiteralModeIsCut ends the input, or the room for output, everywhere in a run of
// literals.
func TestLiteralModeIsCut(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(9, 10))
	whole, _ := literalStream(rng, 300, 60)
	for cut := range whole {
		sameRawOnce(t, whole[:cut])
	}
	in, literals := literalStream(rng, 3*outSlack, 2*outSlack)
	want, _, err := oracleRaw(in, 1<<20)
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	d := new(decoder)
	room := make([]byte, len(want)+outSlack)
	for first := 1; first < len(want); first++ {
		d.startAt(in, 0)
		clear(room)
		out := output{buf: room[:first]}
		err := d.run(&out, true)
		if err != nil || out.pos != first || !bytes.Equal(out.buf, want[:first]) || room[first] != 0 {
			t.Fatalf("room for %d bytes: %d bytes, %v", first, out.pos, err)
		}
		for err == nil {
			out.buf = room[:min(out.pos+outSlack+first%7, len(room))] // a round or two
			err = d.run(&out, true)
		}
		if !errors.Is(err, io.EOF) || !bytes.Equal(out.buf[:out.pos], want) {
			t.Fatalf("room for %d bytes, then for more: %d bytes, %v", first, out.pos, err)
		}
	}
	wantLiterals(t, d, 0, len(want)*literals/4)
}

// TestLiteralModeFails checks that what is wrong behind a run of literals is found where
// the portable code finds it, which also runs if the processor lacks what the assembly
// needs. It is not parallel, as the others' processor lacks it as well.
func TestLiteralModeFails(t *testing.T) {
	had := cpu.X86.HasSSSE3
	defer func() { cpu.X86.HasSSSE3 = had }()
	rng := rand.New(rand.NewPCG(11, 12))
	const behind = 400 // the first block's header and some literals
	verdicts := map[string]int{}
	for range 300 {
		in, _ := literalStream(rng, 1000, 20+rng.IntN(100))
		for range 1 + rng.IntN(3) {
			in[behind+rng.IntN(len(in)-behind)] ^= 1 << rng.IntN(8)
		}
		if rng.IntN(3) == 0 {
			in = in[:len(in)-rng.IntN(500)]
		}
		var outs [2][]byte
		var errs [2]error
		for i := range outs {
			cpu.X86.HasSSSE3 = had && i == 0
			d := new(decoder)
			d.startAt(in, 0)
			out := output{buf: make([]byte, 20_000)}
			for errs[i] == nil || errors.Is(errs[i], errFlush) {
				errs[i] = d.run(&out, true)
			}
			outs[i] = out.buf[:out.pos]
			wantLiterals(t, d, 0, 100)
			if i == 1 && d.literals.count != 0 {
				t.Fatal("the literal mode was entered without SSSE3")
			}
		}
		if errs[0].Error() != errs[1].Error() || !bytes.Equal(outs[0], outs[1]) {
			t.Errorf("%d bytes, %v; portable: %d bytes, %v", len(outs[0]), errs[0], len(outs[1]), errs[1])
		}
		verdicts[verdict(errs[0])]++
	}
	for _, v := range []string{"fine", "corrupt", "truncated"} {
		if verdicts[v] < 10 {
			t.Errorf("only %d streams are %s", verdicts[v], v)
		}
	}
}

// TestLiteralModeGivesUp checks that a block with more matches than its code tells goes on
// without the mode, and the next block starts with it.
func TestLiteralModeGivesUp(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(13, 14))
	w := &bitWriter{}
	var most int // literals that the credit is good for, and some before the first match
	for final := range uint64(2) {
		w.literalBlock(rng, literalLens(rng, literalOthers[1]), 8000, 4, final)
		most += literalCredit/(literalCost-3)*3 + 100
	}
	want, _, err := oracleRaw(w.out, 1<<20)
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	d := new(decoder)
	d.startAt(w.out, 0)
	out := output{buf: make([]byte, 1<<16)}
	if err := d.run(&out, true); !errors.Is(err, io.EOF) || !bytes.Equal(out.buf[:out.pos], want) {
		t.Fatalf("%d bytes, %v", out.pos, err)
	}
	wantLiterals(t, d, 0, most/2)
	if d.literals.count > uint64(most) {
		t.Errorf("%d literals were decoded in the literal mode, want %d at most", d.literals.count, most)
	}
	sameWide(t, w.out, most/2)
}

// TestLiteralModeReaders uses the mode in all that readers can do.
func TestLiteralModeReaders(t *testing.T) {
	t.Parallel()
	data := incompressible(300_000, 1)
	in := compress(t, data, 6)
	inMode := func(r *Reader) {
		t.Helper()
		r.acquire()
		before := r.st.literals.count
		at := r.OutputOffset()
		got, err := readWith(r, 5000, 1<<20)
		if !errors.Is(err, io.EOF) || !bytes.Equal(got, data[at:]) {
			t.Fatalf("from %d: %d bytes, %v", at, len(got), err)
		}
		wantLiterals(t, &r.st.decoder, before, len(got)*8/10)
	}
	r := NewReader(bytes.NewReader(in))
	inMode(r)
	// Reset in the middle of a block in the mode: its code must not be used any more.
	text := generate("text", 50_000, 2)
	for range 2 {
		r.Reset(bytes.NewReader(in))
		if _, err := r.Read(make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		r.Reset(bytes.NewReader(compress(t, text, 6)))
		if got, err := readWith(r, 5000, 1<<20); !errors.Is(err, io.EOF) || !bytes.Equal(got, text) {
			t.Fatalf("after Reset: %d bytes, %v", len(got), err)
		}
		r.Reset(bytes.NewReader(in))
		inMode(r)
	}
	_ = r.Close()
	_, points := checkpointsOf(t, NewReader(bytes.NewReader(in)), 50_000, 5000)
	if len(points) < 4 {
		t.Errorf("only %d checkpoints", len(points))
	}
	for _, c := range points {
		if len(data)-int(c.OutputOffset) < 10_000 {
			continue
		}
		r := NewReaderAt(bytes.NewReader(in[c.InputOffset:]), c)
		inMode(r)
		_ = r.Close()
	}
}

// TestLiteralModeParallel uses the mode in helpers.
func TestLiteralModeParallel(t *testing.T) {
	t.Parallel()
	data := incompressible(600_000, 1)
	in := compressBlocks(t, data, 6, 20_000)
	p := parallelOf(bytes.NewReader(in), sizes{segment: 60_000, tail: 30_000, room: 200_000}, 2, nil)
	helpers := map[*speculation]bool{}
	var got []byte
	for b := make([]byte, 20_000); ; {
		n, err := p.Read(b)
		got = append(got, b[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range slices.Concat(p.idle, p.out) {
			helpers[s] = true
		}
	}
	if !bytes.Equal(got, data) {
		t.Error("output differs")
	}
	count := 0
	for s := range helpers {
		count += int(s.d.literals.count)
	}
	if want := int(p.Stats().Bytes) / 2; hasLoops() && (count < want || want == 0) {
		t.Errorf("helpers have decoded %d literals in the literal mode, want %d at least", count, want)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	sameWide(t, deflate(t, data, 6), len(data)*8/10)
}

// BenchmarkLiterals inflates what the literal mode is for, and what it costs most: blocks
// whose codes promise literals, with as many matches as end the mode, one in every so
// many symbols.
func BenchmarkLiterals(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 10, 4 << 20} {
		b.Run(fmt.Sprintf("incompressible-%d", size), func(b *testing.B) { benchmarkAll(b, compress(b, incompressible(size, 1), 6)) })
	}
	rng := rand.New(rand.NewPCG(15, 16))
	for every := 1; every <= 8; every *= 2 {
		w := &bitWriter{out: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}}
		start, blocks := len(w.out), 200
		lens := literalLens(rng, literalOthers[1])
		for block := range blocks {
			w.literalBlock(rng, lens, literalCredit/literalCost*every, every, uint64((block+1)/blocks))
		}
		data, _, err := oracleRaw(w.out[start:], 1<<20)
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		in := binary.LittleEndian.AppendUint32(w.out, crc32.ChecksumIEEE(data))
		in = binary.LittleEndian.AppendUint32(in, uint32(len(data)))
		b.Run(fmt.Sprintf("hostile-%d", every), func(b *testing.B) { benchmarkAll(b, in) })
	}
}
