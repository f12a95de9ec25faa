package inflate

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// parallelInputs are streams with what a round may meet.
func parallelInputs(tb testing.TB) map[string][]byte {
	tb.Helper()
	mix := append(generate("binary", 4<<20, 1), generate("random", 2<<20, 2)...)
	mix = append(mix, generate("zeros", 8<<20, 3)...)
	mix = append(mix, generate("text", 6<<20, 4)...)
	text := compress(tb, generate("text", 12<<20, 5), 6)
	bad := bytes.Clone(text)
	bad[len(bad)*3/4] ^= 0x10
	return map[string][]byte{
		"text":    text,
		"binary":  compress(tb, generate("binary", 12<<20, 6), 6),
		"mix":     compress(tb, mix, 1),
		"members": bytes.Repeat(compress(tb, generate("text", 3<<20, 7), 6), 4),
		"huffman": compress(tb, generate("binary", 6<<20, 8), -2),
		"bad":     bad,
		"cut":     text[:len(text)*2/3],
		"garbage": append(bytes.Clone(text), "garbage"...),
		"small":   compress(tb, generate("text", 100_000, 9), 6),
	}
}

func TestParallelMatchesReader(t *testing.T) {
	t.Parallel()
	for name, in := range parallelInputs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			serial := NewReader(bytes.NewReader(in))
			want, wantErr := readWith(serial, 1<<20, 1<<30)
			allWorkers := []int{1, 2, 5}
			if testing.Short() {
				allWorkers = []int{3}
			}
			for _, workers := range allWorkers {
				p := NewParallel(bytes.NewReader(in), ParallelOptions{Workers: workers, MemoryBytes: 32 << 20})
				got, err := readWith(p, 1<<20, 1<<30)
				if !bytes.Equal(got, want) {
					t.Errorf("%d workers: output differs: %d bytes, want %d", workers, len(got), len(want))
				}
				if verdict(err) != verdict(wantErr) || errors.Is(err, ErrTrailing) != errors.Is(wantErr, ErrTrailing) {
					t.Errorf("%d workers: %v, want %v", workers, err, wantErr)
				}
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				p = NewParallel(bytes.NewReader(in), ParallelOptions{Workers: workers, MemoryBytes: 32 << 20})
				var b bytes.Buffer
				n, err := p.WriteTo(&b)
				if !bytes.Equal(b.Bytes(), want) || n != int64(len(want)) {
					t.Errorf("%d workers, WriteTo: output differs", workers)
				}
				if verdict(err) != verdict(wantErr) {
					t.Errorf("%d workers, WriteTo: %v, want %v", workers, err, wantErr)
				}
				_ = p.Close()
			}
			_ = serial.Close()
		})
	}
}

// TestRoundsUseSpeculation checks that speculation meets the serial decoder.
func TestRoundsUseSpeculation(t *testing.T) {
	t.Parallel()
	in := compress(t, generate("binary", 24<<20, 6), 6)
	p := NewParallel(bytes.NewReader(in), ParallelOptions{Workers: 2, MemoryBytes: 64 << 20})
	rounds, used := 0, 0
	buf := make([]byte, 1<<20)
	for {
		before := p.base
		_, err := p.Read(buf)
		if p.base != before {
			rounds++
			if s := p.specs[0]; s.start >= 0 && p.pause <= p.base {
				used++
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if used == 0 {
		t.Errorf("no speculation was used in %d rounds", rounds)
	}
	_ = p.Close()
}

func TestWideLoopsAgree(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		if kind == "random" {
			continue // stored
		}
		in := deflate(t, generate(kind, 500_000, 3), 6)
		results := make([][]uint16, 2)
		for i := range results {
			out := make([]uint16, windowBytes+600_000)
			for j := range windowBytes {
				out[j] = uint16(unresolved + j)
			}
			pos := windowBytes
			d := new(decoder)
			d.startAt(in, 0)
			for {
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
			results[i] = out[:pos]
		}
		if len(results[0]) < windowBytes+200_000 {
			t.Errorf("%s: only %d elements", kind, len(results[0]))
		}
		for i, v := range results[0] {
			if i >= len(results[1]) || results[1][i] != v {
				t.Fatalf("%s: loops differ at %d", kind, i)
			}
		}
	}
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

// BenchmarkParallel inflates layers, each four times over, serially and on two
// cores.
func BenchmarkParallel(b *testing.B) {
	inputs := layers(b)
	for name, in := range inputs {
		in = bytes.Repeat(in, 4)
		for _, workers := range []int{1, 2} {
			b.Run(name+"/"+[]string{"", "serial", "two"}[workers], func(b *testing.B) {
				for b.Loop() {
					p := NewParallel(bytes.NewReader(in), ParallelOptions{Workers: workers})
					n, err := p.WriteTo(io.Discard)
					if err != nil {
						b.Fatal(err)
					}
					b.SetBytes(n)
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
	const stretch = 2 << 20
	inputs := layers(b)
	for name, in := range inputs {
		in = in[:min(len(in), 16<<20)]
		b.Run(name, func(b *testing.B) {
			s := newSpeculation(roundRatio * stretch)
			res := new(resolver)
			out := make([]byte, roundRatio*stretch)
			var decode, resolve time.Duration
			wide, total := 0, 0
			for b.Loop() {
				for from := 1 << 20; from+stretch+roundBehindBytes < len(in); from += stretch {
					s.in, s.from, s.to = in, from, from+stretch
					before := cpuTime(b)
					s.run()
					between := cpuTime(b)
					v := s.wide[windowBytes : windowBytes+s.nWide]
					res.resolve(out[:len(v)], v)
					crc32.ChecksumIEEE(out[:len(v)])
					copy(out[len(v):], s.plain[windowBytes:windowBytes+s.nPlain])
					decode += between - before
					resolve += cpuTime(b) - between
					wide += s.nWide
					total += s.nWide + s.nPlain
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
	for bit := findBlock(in, 0, 8*len(in)); bit >= 0; bit = findBlock(in, bit+1, 8*len(in)) {
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
