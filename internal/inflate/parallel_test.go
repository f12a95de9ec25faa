package inflate

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// parallelInputs are streams with what a round may meet.
func parallelInputs(tb testing.TB) map[string][]byte {
	tb.Helper()
	mix := append(generate("binary", 1<<20, 1), generate("random", 1<<20, 2)...)
	mix = append(mix, generate("zeros", 4<<20, 3)...)
	mix = append(mix, generate("text", 2<<20, 4)...)
	text := compress(tb, generate("text", 4<<20, 5), 6)
	bad := bytes.Clone(text)
	bad[len(bad)*3/4] ^= 0x10
	return map[string][]byte{
		"text":    text,
		"binary":  compress(tb, generate("binary", 4<<20, 6), 6),
		"mix":     compress(tb, mix, 1),
		"members": bytes.Repeat(compress(tb, generate("text", 1<<20, 7), 6), 4),
		"huffman": compress(tb, generate("binary", 2<<20, 8), -2),
		"bad":     bad,
		"cut":     text[:len(text)*2/3],
		"garbage": append(bytes.Clone(text), "garbage"...),
		"small":   compress(tb, generate("text", 100_000, 9), 6),
	}
}

// tinySizes make a few hundred kilobytes enough for all that can happen.
var tinySizes = sizes{segment: 3000, tail: 2000, room: 200 << 10}

func TestParallelMatchesReader(t *testing.T) {
	t.Parallel()
	for name, in := range parallelInputs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := serially(in)
			sameParallel(t, in, want, sizesOf(false), 1, 128<<10)
			if testing.Short() {
				return
			}
			sameParallel(t, in, want, sizesOf(true), 3, 300<<10)
			sameParallel(t, in, want, sizes{segment: 20_000, tail: 50_000, room: 300_000}, 2, 3000)
		})
	}
}

// parallelOf returns a Parallel that hands out all it can from the start on.
func parallelOf(src io.Reader, parts sizes, helpers int, cores Cores) *Parallel {
	p := NewParallel(src, ParallelOptions{Helpers: helpers, Cores: cores})
	p.resume, p.patient, p.sizes = 0, true, parts
	return p
}

// serial is what a Reader makes of a stream.
type serial struct {
	out      []byte
	err      error
	consumed int64
}

func serially(in []byte) serial {
	r := NewReader(bufio.NewReader(bytes.NewReader(in)))
	defer func() { _ = r.Close() }()
	out, err := readWith(r, 1<<20, 1<<30)
	return serial{out, err, r.InputOffset()}
}

// sameParallel compares a Parallel with a Reader.
func sameParallel(t *testing.T, in []byte, want serial, parts sizes, helpers, readBytes int) ParallelStats {
	t.Helper()
	var stats ParallelStats
	for name, src := range map[string]io.Reader{
		"bufio":  bufio.NewReaderSize(bytes.NewReader(in), 32<<10),
		"pieces": &pieces{in: in, size: 10_000, eof: true},
	} {
		p := parallelOf(src, parts, helpers, nil)
		got, err := readWith(p, readBytes, 1<<30)
		about := fmt.Sprintf("%s, %+v, %d helpers, reads of %d", name, parts, helpers, readBytes)
		if !bytes.Equal(got, want.out) {
			t.Errorf("%s: output differs: %d bytes, want %d", about, len(got), len(want.out))
		}
		if verdict(err) != verdict(want.err) || errors.Is(err, ErrTrailing) != errors.Is(want.err, ErrTrailing) {
			t.Errorf("%s: %v, want %v", about, err, want.err)
		}
		if _, again := p.Read(make([]byte, 10)); !errors.Is(again, err) {
			t.Errorf("%s: %v, then %v", about, err, again)
		}
		if got := p.InputOffset(); got != want.consumed && (errors.Is(err, io.EOF) || errors.Is(err, ErrTrailing)) {
			t.Errorf("%s: consumed %d bytes, want %d", about, got, want.consumed)
		}
		if errors.Is(err, ErrTrailing) {
			behind, err := io.ReadAll(p.Behind())
			if err != nil || !bytes.Equal(behind, in[want.consumed:]) {
				t.Errorf("%s: %d bytes behind, want %d, %v", about, len(behind), len(in)-int(want.consumed), err)
			}
		}
		stats = p.Stats()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Read(make([]byte, 10)); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: after Close: %v", about, err)
		}
	}
	return stats
}

// TestParallelDamaged compares on streams that were mutated, cut, put one behind the
// other, and followed by what is no stream.
func TestParallelDamaged(t *testing.T) {
	t.Parallel()
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(21, 22))
			data := generate(kind, 600_000, 23)
			used := int64(0)
			for range rounds {
				var in []byte
				for range 1 + rng.IntN(3) {
					in = append(in, compressBlocks(t, data[rng.IntN(200_000):][:1+rng.IntN(300_000)], []int{-2, 0, 1, 6}[rng.IntN(4)], 500+rng.IntN(20_000))...)
				}
				if rng.IntN(2) == 0 {
					for range 1 + rng.IntN(3) {
						in[rng.IntN(len(in))] ^= 1 << rng.IntN(8)
					}
				}
				switch rng.IntN(5) {
				case 0:
					in = in[:rng.IntN(len(in))]
				case 1:
					in = append(in, make([]byte, rng.IntN(9000))...)
				case 2:
					in = append(in, "\x1f\x8bgarbage"[rng.IntN(3):]...)
				}
				parts := tinySizes
				if rng.IntN(3) == 0 {
					parts = sizes{segment: 1 + rng.IntN(20_000), tail: 1 + rng.IntN(9000), room: 100_000 + rng.IntN(100_000)}
				}
				used += sameParallel(t, in, serially(in), parts, 1+rng.IntN(3), 1+rng.IntN(200_000)).Used
			}
			if used == 0 && kind != "random" && kind != "zeros" { // of which there are no blocks to be found
				t.Error("nothing was decoded apart")
			}
		})
	}
}

// compressBlocks is compress with a block for each so many bytes of data.
func compressBlocks(tb testing.TB, data []byte, level, blockBytes int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	for part := range slices.Chunk(data, blockBytes) {
		if _, err := w.Write(part); err != nil {
			tb.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func FuzzParallel(f *testing.F) {
	for _, kind := range kinds {
		in := compressBlocks(f, generate(kind, 150_000, 5), 6, 5000)
		f.Add(in, uint16(3000), uint16(0))
		f.Add(append(bytes.Clone(in), in...), uint16(1000), uint16(500))
	}
	f.Fuzz(func(t *testing.T, in []byte, segment, cut uint16) {
		in = in[:max(0, len(in)-int(cut))]
		parts := tinySizes
		parts.segment = max(200, int(segment))
		sameParallel(t, in, serially(in), parts, 2, 50_000)
	})
}

// lender is Cores that are wanted back after so many questions.
type lender struct {
	out, most, asked, wantedAfter int
}

func (l *lender) Take() bool {
	if l.out == l.most {
		return false
	}
	l.out++
	l.asked = 0
	return true
}

func (l *lender) Wanted() bool {
	l.asked++
	return l.asked > l.wantedAfter
}

func (l *lender) Give() { l.out-- }

// Output whose sum is 0 is joined to the member's like any other, once.
func TestTakeJoinsSums(t *testing.T) {
	t.Parallel()
	plain := []byte("\x9d\x0a\xd9\x6d")
	if sum := crc32.ChecksumIEEE(plain); sum != 0 {
		t.Fatalf("the sum is %#x", sum)
	}
	p := NewParallel(nil, ParallelOptions{})
	p.r.sum = crc32.ChecksumIEEE([]byte("a"))
	p.current = &speculation{plain: plain}
	for range plain {
		p.take(make([]byte, 1))
	}
	if want := crc32.ChecksumIEEE(append([]byte("a"), plain...)); p.r.sum != want {
		t.Errorf("got %#x, want %#x", p.r.sum, want)
	}
}

// A core that is wanted elsewhere is given back, and taken again later; none are kept
// at the end, in the middle, or after an error.
func TestParallelGivesCoresBack(t *testing.T) {
	t.Parallel()
	want := generate("binary", 1<<20, 6)
	in := compressBlocks(t, want, 6, 5000)
	for _, cores := range []*lender{{most: 1, wantedAfter: 1 << 30}, {most: 2, wantedAfter: 3}, {most: 0}} {
		p := parallelOf(bytes.NewReader(in), tinySizes, 3, cores)
		var got []byte
		b := make([]byte, 20_000)
		for {
			n, err := p.Read(b)
			got = append(got, b[:n]...)
			if p.helpers == 0 {
				p.resume = 0
			}
			if p.helpers != cores.out || cores.out > cores.most {
				t.Fatalf("%d helpers, %d cores of %d", p.helpers, cores.out, cores.most)
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Error("output differs")
		}
		if cores.out != 0 {
			t.Errorf("%d cores were kept", cores.out)
		}
		if used := p.Stats().Used; used > 0 != (cores.most > 0) {
			t.Errorf("with %d cores %d stretches were used", cores.most, used)
		}
		_ = p.Close()
	}
}

// Close ends helpers wherever the reader is, and gives all memory back.
func TestParallelCloses(t *testing.T) {
	t.Parallel()
	in := compressBlocks(t, generate("text", 1<<20, 6), 6, 5000)
	for reads := range 8 {
		cores := &lender{most: 2, wantedAfter: 1 << 30}
		p := parallelOf(bytes.NewReader(in), tinySizes, 2, cores)
		for range reads {
			if _, err := p.Read(make([]byte, 100_000)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(p.Close(), p.Close()); err != nil {
			t.Error(err)
		}
		if cores.out != 0 || p.feed != nil || p.idle != nil || p.out != nil || p.res != nil || p.current != nil {
			t.Errorf("after %d reads: %d cores, %+v", reads, cores.out, p)
		}
	}
}

// A source or a caller that is slower than one core gets no help.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, step := range map[string]struct {
			spend func(p *pace)
			want  bool
		}{
			"decoding": {func(*pace) { time.Sleep(paceWindow) }, true},
			"caller":   {func(p *pace) { p.leave(); time.Sleep(paceWindow); p.enter() }, false},
			"source": {func(p *pace) {
				_, _ = (&pacedSource{r: slow{}, pace: p}).Read(nil)
			}, false},
			"helpers": {func(p *pace) { time.Sleep(paceWindow); p.helperLate(paceWindow) }, false},
		} {
			var p pace
			p.reset()
			step.spend(&p)
			if got := p.wantsHelp(); got != step.want {
				t.Errorf("%s: %v, want %v", name, got, step.want)
			}
			if got := p.wantsHelp(); got != step.want {
				t.Errorf("%s, again at once: %v, want %v", name, got, step.want)
			}
			time.Sleep(paceWindow)
			if !p.wantsHelp() {
				t.Errorf("%s: never again", name)
			}
		}
	})
}

type slow struct{}

func (slow) Read([]byte) (int, error) {
	time.Sleep(paceWindow)
	return 0, nil
}

// TestSpeculationIsUsed checks that speculation meets the serial decoder.
func TestSpeculationIsUsed(t *testing.T) {
	t.Parallel()
	in := compress(t, generate("binary", 3<<20, 6), 6)
	stats := sameParallel(t, in, serially(in), sizesOf(false), 1, 128<<10)
	if stats.Used < stats.Stretches/2 {
		t.Errorf("of %d stretches %d were used", stats.Stretches, stats.Used)
	}
}

func TestWideLoopsAgree(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		if kind == "random" {
			continue // stored
		}
		if got := sameWide(t, deflate(t, generate(kind, 500_000, 3), 6), 0); got < 200_000 {
			t.Errorf("%s: only %d elements", kind, got)
		}
	}
}

// sameWide decodes the compressed blocks that in starts with by the assembly, at least so
// many literals of them in the literal mode, and by its reference. It returns the number
// of elements.
func sameWide(t *testing.T, in []byte, literals int) int {
	t.Helper()
	in = append(bytes.Clone(in), make([]byte, inSlack)...) // so that both come to the end of the last block
	results := make([][]uint16, 2)
	for i := range results {
		out := make([]uint16, windowBytes+700_000)
		for j := range windowBytes {
			out[j] = uint16(unresolved + j)
		}
		pos := windowBytes
		d := new(decoder)
		d.startAt(in, 0)
		for !d.final {
			if err := d.blockHeader(); err != nil {
				t.Fatal(err)
			}
			if d.stage != stageCodes {
				break
			}
			var result fastResult
			if i == 0 {
				pos, result = d.wideGo(out, pos)
			} else {
				pos, result = d.wide(out, pos)
			}
			if result != fastEnd {
				break
			}
		}
		if i == 1 {
			wantLiterals(t, d, 0, literals)
		}
		results[i] = out[windowBytes:pos]
	}
	if !slices.Equal(results[0], results[1]) {
		t.Fatalf("the loops differ: %d elements, want %d", len(results[1]), len(results[0]))
	}
	return len(results[1])
}

func TestCombineCRC(t *testing.T) {
	t.Parallel()
	data := generate("random", 100_000, 1)
	for _, n := range []int{0, 1, 7, 50_000, 100_000} {
		a, b := crc32.ChecksumIEEE(data[:n]), crc32.ChecksumIEEE(data[n:])
		if got, want := combineCRC(a, b, len(data)-n), crc32.ChecksumIEEE(data); got != want {
			t.Errorf("split at %d: %#x, want %#x", n, got, want)
		}
	}
}

// layers returns each *.gz of the directory DRAY_INFLATE_CORPUS, or generated data.
func layers(b *testing.B) map[string][]byte {
	b.Helper()
	dir := os.Getenv("DRAY_INFLATE_CORPUS")
	if dir == "" {
		return map[string][]byte{"generated": compress(b, generate("binary", 96<<20, 1), 6)}
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.gz"))
	if err != nil {
		b.Fatal(err)
	}
	inputs := map[string][]byte{}
	for _, name := range names {
		if inputs[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			b.Fatal(err)
		}
	}
	return inputs
}

// BenchmarkParallel inflates layers, each four times over, serially and with
// helpers, as many as there are cores besides.
func BenchmarkParallel(b *testing.B) {
	inputs := layers(b)
	for name, in := range inputs {
		in = bytes.Repeat(in, 4)
		b.Run(name+"/serial", func(b *testing.B) {
			for b.Loop() {
				r := NewReader(bufio.NewReaderSize(bytes.NewReader(in), 32<<10))
				n, err := discard(r, make([]byte, 128<<10))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(n))
				_ = r.Close()
			}
		})
		for form, large := range map[string]bool{"parallel": false, "large": true} {
			b.Run(name+"/"+form, func(b *testing.B) {
				for b.Loop() {
					p := NewParallel(bufio.NewReaderSize(bytes.NewReader(in), 32<<10), ParallelOptions{Large: large})
					n, err := discard(p, make([]byte, 128<<10))
					if err != nil {
						b.Fatal(err)
					}
					b.SetBytes(int64(n))
					b.ReportMetric(100*float64(p.stats.Bytes)/float64(n), "%helped")
					b.ReportMetric(float64(p.stats.Stretches-p.stats.Used), "unused")
					_ = p.Close()
				}
			})
		}
	}
}

// BenchmarkSpeculation gives the terms of the model in docs/bench-inflate.md:
// the core time per byte of output of decoding a stretch without its window, and
// of resolving it.
func BenchmarkSpeculation(b *testing.B) {
	inputs := layers(b)
	for name, in := range inputs {
		in = in[:min(len(in), 16<<20)]
		b.Run(name, func(b *testing.B) {
			s := newSpeculation(roomBytes)
			res := new(resolver)
			out := make([]byte, roomBytes)
			var decode, resolve time.Duration
			wide, total := 0, 0
			for b.Loop() {
				for from := 1 << 20; from+segmentBytes+tailBytes < len(in); from += segmentBytes {
					s.prepare(in[from:from+segmentBytes+tailBytes], int64(from), 0, segmentBytes)
					before := cpuTime(b)
					s.run()
					between := cpuTime(b)
					res.resolve(out[:len(s.wide)], s.wide)
					crc32.ChecksumIEEE(out[:len(s.wide)])
					copy(out[len(s.wide):], s.plain)
					decode += between - before
					resolve += cpuTime(b) - between
					wide += len(s.wide)
					total += s.size()
				}
			}
			if total == 0 {
				b.Skip("no blocks found")
			}
			b.ReportMetric(float64(total)/1e6/decode.Seconds(), "decode-cpu-MB/s")
			b.ReportMetric(float64(total)/1e6/resolve.Seconds(), "resolve-cpu-MB/s")
			b.ReportMetric(100*float64(wide)/float64(total), "%wide")
		})
	}
}

// TestFindBlock checks that no block is missed.
func TestFindBlock(t *testing.T) {
	t.Parallel()
	in := deflate(t, generate("text", 2_000_000, 3), 6)
	candidates := map[int]bool{}
	d := new(decoder)
	d.startAt(in, 0)
	out := output{buf: make([]byte, 3_000_000)}
	starts := []int{}
	d.atBlock = func(*output) bool {
		starts = append(starts, d.bit())
		return false
	}
	if err := d.run(&out, true); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	found := 0
	f := new(finder)
	f.init()
	for bit := f.find(in, 0, 8*len(in)); bit >= 0; bit = f.find(in, bit+1, 8*len(in)) {
		candidates[bit] = true
		found++
	}
	for _, start := range starts[:len(starts)-2] {
		if !candidates[start] {
			t.Errorf("the block at bit %d was not found", start)
		}
	}
	if found > len(in)*8/500 {
		t.Errorf("%d candidates in %d bits", found, 8*len(in))
	}
}
