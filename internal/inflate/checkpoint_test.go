package inflate

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// checkpointsOf reads in to its end and returns its output and checkpoints.
func checkpointsOf(tb testing.TB, r *Reader, every int64, readBytes int) ([]byte, []*Checkpoint) {
	tb.Helper()
	var points []*Checkpoint
	r.Checkpoints(every, func(c *Checkpoint) error {
		points = append(points, c)
		return nil
	})
	out, err := readWith(r, readBytes, 1<<30)
	if !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	_ = r.Close()
	return out, points
}

func TestResumeFromCheckpoints(t *testing.T) {
	t.Parallel()
	const every = 100_000
	for _, kind := range []string{"text", "binary", "random", "zeros"} {
		want := append(generate(kind, 1_500_000, 1), generate(kind, 700_000, 2)...)
		in := append(compress(t, want[:1_500_000], 6), compress(t, want[1_500_000:], 1)...)
		for _, readBytes := range []int{5000, DirectBytes, 1 << 20} {
			got, points := checkpointsOf(t, NewReader(bytes.NewReader(in)), every, readBytes)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: wrong output", kind)
			}
			if kind != "zeros" && len(points) < 5 {
				t.Errorf("%s: only %d checkpoints", kind, len(points))
			}
			for _, c := range points {
				b, err := c.AppendBinary(nil)
				if err != nil {
					t.Fatal(err)
				}
				var back Checkpoint
				if err := back.UnmarshalBinary(b); err != nil {
					t.Fatal(err)
				}
				r := NewReaderAt(bytes.NewReader(in[back.InputOffset:]), &back)
				rest, err := readWith(r, readBytes, 1<<30)
				if !errors.Is(err, io.EOF) {
					t.Fatalf("%s from %d: %v", kind, c.OutputOffset, err)
				}
				if !bytes.Equal(rest, want[c.OutputOffset:]) {
					t.Fatalf("%s from %d: wrong output", kind, c.OutputOffset)
				}
				if r.InputOffset() != int64(len(in)) || r.OutputOffset() != int64(len(want)) {
					t.Errorf("%s from %d: offsets %d, %d", kind, c.OutputOffset, r.InputOffset(), r.OutputOffset())
				}
				_ = r.Close()
			}
		}
	}
}

func TestResumedReaderVerifiesMember(t *testing.T) {
	t.Parallel()
	in := compress(t, generate("text", 1_000_000, 1), 6)
	_, points := checkpointsOf(t, NewReader(bytes.NewReader(in)), 300_000, 5000)
	c := points[1]
	in[len(in)-5]++
	r := NewReaderAt(bytes.NewReader(in[c.InputOffset:]), c)
	if _, err := readWith(r, 5000, 1<<30); !errors.Is(err, ErrChecksum) {
		t.Errorf("wrong checksum behind a checkpoint: %v", err)
	}
	_ = r.Close()
}

func TestCheckpointErrorIsFinal(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	r := NewReader(bytes.NewReader(compress(t, generate("text", 1_000_000, 1), 6)))
	r.Checkpoints(100_000, func(*Checkpoint) error { return full })
	if _, err := readWith(r, 5000, 1<<30); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	_ = r.Close()
}

func FuzzCheckpoint(f *testing.F) {
	_, points := checkpointsOf(f, NewReader(bytes.NewReader(compress(f, generate("text", 300_000, 1), 6))), 100_000, 5000)
	b, err := points[0].AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(_ *testing.T, b []byte) {
		var c Checkpoint
		if err := c.UnmarshalBinary(b); err != nil {
			return
		}
		r := NewReaderAt(bytes.NewReader(b), &c)
		_, _ = readWith(r, 5000, 1<<16)
		_ = r.Close()
	})
}

func BenchmarkCheckpoints(b *testing.B) {
	in := compress(b, generate("binary", 64<<20, 1), 6)
	p := make([]byte, benchReadBytes)
	for _, every := range []int64{0, 4 << 20, 16 << 20} {
		name := map[int64]string{0: "none", 4 << 20: "4MiB", 16 << 20: "16MiB"}[every]
		b.Run(name, func(b *testing.B) {
			r := NewReader(nil)
			b.SetBytes(64 << 20)
			encoded, count, total := 0, 0, 0
			before := cpuTime(b)
			for b.Loop() {
				r.Reset(bytes.NewReader(in))
				if every > 0 {
					r.Checkpoints(every, func(c *Checkpoint) error {
						e, err := c.AppendBinary(nil)
						encoded, count = encoded+len(e), count+1
						return err
					})
				}
				n, err := discard(r, p)
				if err != nil {
					b.Fatal(err)
				}
				total += n
			}
			b.ReportMetric(float64(total)/1e6/(cpuTime(b)-before).Seconds(), "cpu-MB/s")
			if count > 0 {
				b.ReportMetric(float64(encoded)/float64(count), "B/checkpoint")
			}
		})
	}
}
