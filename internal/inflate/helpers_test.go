package inflate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// verdict is how a stream ended, in words common to both decoders.
func verdict(err error) string {
	var corrupt *CorruptError
	var oracle flate.CorruptInputError
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return "fine"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "truncated"
	case errors.Is(err, ErrHeader), errors.Is(err, gzip.ErrHeader):
		return "header"
	case errors.Is(err, ErrChecksum), errors.Is(err, gzip.ErrChecksum):
		return "checksum"
	case errors.As(err, &corrupt), errors.As(err, &oracle):
		return "corrupt"
	}
	return err.Error()
}

// readWith reads r in pieces of the given size, growing nothing beyond limit.
func readWith(r io.Reader, size, limit int) ([]byte, error) {
	var out []byte
	p := make([]byte, size)
	for len(out) < limit {
		n, err := r.Read(p)
		out = append(out, p[:n]...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// oracleGzip decodes with compress/gzip.
func oracleGzip(in []byte, limit int) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(in))
	if err != nil {
		return nil, noEOF(err)
	}
	return readWith(zr, 4096, limit)
}

// oracleRaw decodes with compress/flate, and counts what it consumed.
func oracleRaw(in []byte, limit int) (out []byte, consumed int, err error) {
	src := bytes.NewReader(in)
	out, err = readWith(flate.NewReader(src), 4096, limit)
	return out, len(in) - src.Len(), err
}

// compress returns data as gzip of the given level.
func compress(tb testing.TB, data []byte, level int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// deflate returns data as raw DEFLATE of the given level.
func deflate(tb testing.TB, data []byte, level int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// kinds of generated data.
var kinds = []string{"zeros", "random", "text", "binary", "periods"}

// generate returns size bytes of the kind, the same for each seed.
func generate(kind string, size int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, 0, size+600)
	words := make([][]byte, 2000)
	for i := range words {
		w := make([]byte, 2+rng.IntN(9))
		for j := range w {
			w[j] = 'a' + byte(rng.ExpFloat64()*4)%26
		}
		w[len(w)-1] = ' '
		words[i] = w
	}
	for len(out) < size {
		switch kind {
		case "zeros":
			out = append(out, 0)
		case "random":
			out = append(out, byte(rng.Uint32()))
		case "text":
			out = append(out, words[int(rng.ExpFloat64()*150)%len(words)]...)
			if rng.IntN(12) == 0 {
				out = append(out, '\n')
			}
		case "binary":
			switch rng.IntN(6) {
			case 0, 1, 2:
				out = append(out, 0x48, byte(0x80+rng.IntN(16)), byte(rng.ExpFloat64()*30), byte(rng.Uint32()&rng.Uint32()))
			case 3:
				out = append(out, make([]byte, rng.IntN(12))...)
			case 4:
				out = append(out, byte(rng.Uint32()), byte(rng.Uint32()))
			default:
				if n := len(out); n > 0 {
					d := 1 + rng.IntN(min(n, windowBytes))
					out = append(out, out[n-d:min(n, n-d+rng.IntN(40))]...)
				}
			}
		case "periods":
			d := 1 + rng.IntN(40)
			p := make([]byte, d)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			for range 1 + rng.IntN(300)/d {
				out = append(out, p...)
			}
		}
	}
	return out[:size]
}

// sources are the ways in which input can be split.
func sources(in []byte) map[string]func() io.Reader {
	return map[string]func() io.Reader{
		"whole":      func() io.Reader { return bytes.NewReader(in) },
		"bytes":      func() io.Reader { return &pieces{in: in, size: 1} },
		"sevens":     func() io.Reader { return &pieces{in: in, size: 7} },
		"hundreds":   func() io.Reader { return &pieces{in: in, size: 100, eof: true} },
		"bufio":      func() io.Reader { return bufio.NewReader(bytes.NewReader(in)) },
		"bufio-16":   func() io.Reader { return bufio.NewReaderSize(bytes.NewReader(in), 16) },
		"bufio-64Ki": func() io.Reader { return bufio.NewReaderSize(bytes.NewReader(in), 64<<10) },
	}
}

// pieces is a reader that returns at most size bytes at a time, and the last
// ones with [io.EOF] if eof is set.
type pieces struct {
	in   []byte
	size int
	eof  bool
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.in[:min(p.size, len(p.in))])
	p.in = p.in[n:]
	if len(p.in) == 0 && p.eof {
		return n, io.EOF
	}
	return n, nil
}

// writeFlushed writes data as gzip to w, flushes, and ends the stream only when
// told to.
func writeFlushed(w *io.PipeWriter, data []byte, proceed <-chan struct{}) error {
	zw := gzip.NewWriter(w)
	if _, err := zw.Write(data); err != nil {
		return err
	}
	if err := zw.Flush(); err != nil {
		return err
	}
	<-proceed
	if err := zw.Close(); err != nil {
		return err
	}
	return w.Close()
}
