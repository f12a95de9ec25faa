package inflate

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
)

// readSizes are sizes of reads on both sides of every edge.
var readSizes = []int{1, 13, 1000, 32 << 10, DirectBytes, DirectBytes + 1, 300 << 10}

func TestReaderMatchesInput(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		for _, level := range []int{-2, 0, 1, 6, 9} {
			t.Run(fmt.Sprintf("%s/level%d", kind, level), func(t *testing.T) {
				t.Parallel()
				data := generate(kind, 400_000, 7)
				in := compress(t, data, level)
				// Pieces of the input so small are decoded without assembly, and the race
				// detector looks at each byte: enough for the history to come round.
				short := data[:150_000]
				shortIn := compress(t, short, level)
				small := sources(shortIn)
				for name, src := range sources(in) {
					want, in := data, in
					if name == "bytes" || name == "sevens" {
						want, in, src = short, shortIn, small[name]
					}
					for i, size := range readSizes {
						if size == 1 && name != "whole" {
							continue
						}
						// Any source and size meet at two levels or three: at all five takes
						// the race detector too long.
						if name != "whole" && (len(name)+i+level)%2 != 0 {
							continue
						}
						r := NewReader(src())
						got, err := readWith(r, size, len(want)+1)
						if !errors.Is(err, io.EOF) {
							t.Fatalf("%s, reads of %d: %v after %d bytes", name, size, err, len(got))
						}
						if !bytes.Equal(got, want) {
							t.Fatalf("%s, reads of %d: wrong output", name, size)
						}
						if r.InputOffset() != int64(len(in)) || r.OutputOffset() != int64(len(want)) {
							t.Errorf("%s, reads of %d: offsets %d, %d; want %d, %d", name, size,
								r.InputOffset(), r.OutputOffset(), len(in), len(want))
						}
						if err := r.Close(); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func TestReaderMixedReads(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		want := generate(kind, 3_000_000, 3)
		r := NewReader(bytes.NewReader(compress(t, want, 6)))
		var got []byte
		for i := 0; ; i++ {
			p := make([]byte, []int{1, 70_000, 300, 200_000, 65_536, 40_000, 65_535}[i%7])
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrong output", kind)
		}
		_ = r.Close()
	}
}

// TestBufioIsLeftBehindStream checks that not one byte too many is taken.
func TestBufioIsLeftBehindStream(t *testing.T) {
	t.Parallel()
	data := generate("text", 100_000, 1)
	for _, readerBytes := range []int{16, 100, 4096, 1 << 20} {
		in := deflate(t, data, 6)
		src := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(in), strings.NewReader("behind")), readerBytes)
		r := NewRawReader(src)
		got, err := readWith(r, 1000, 1<<30)
		if !errors.Is(err, io.EOF) || !bytes.Equal(got, data) {
			t.Fatalf("buffer of %d: %v", readerBytes, err)
		}
		if r.InputOffset() != int64(len(in)) {
			t.Errorf("buffer of %d: input offset %d, want %d", readerBytes, r.InputOffset(), len(in))
		}
		rest, err := io.ReadAll(src)
		if err != nil || string(rest) != "behind" {
			t.Errorf("buffer of %d: rest %q, %v", readerBytes, rest, err)
		}
	}
}

func TestBufioIsLeftBehindMembers(t *testing.T) {
	t.Parallel()
	in := compress(t, generate("text", 1000, 1), 6)
	for _, behind := range []string{"x", "\x00\x00", "\x1fx", "\x1f\x8bx and more", "much more of it"} {
		src := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(in), strings.NewReader(behind)), 16)
		r := NewReader(src)
		if _, err := readWith(r, 5000, 1<<30); !errors.Is(err, ErrTrailing) {
			t.Errorf("%q behind: %v", behind, err)
		}
		rest, err := io.ReadAll(src)
		if err != nil || string(rest) != behind {
			t.Errorf("%q behind: rest %q, %v", behind, rest, err)
		}
		_ = r.Close()
	}
}

func TestMembersAndTrailers(t *testing.T) {
	t.Parallel()
	a, b := generate("text", 90_000, 1), generate("binary", 150_000, 2)
	za, zb := compress(t, a, 6), compress(t, b, 1)
	two := append(bytes.Clone(za), zb...)
	named := append([]byte{0x1f, 0x8b, 8, flagName | flagComment | flagExtra, 0, 0, 0, 0, 0, 3, 2, 0, 'x', 'y'}, "name\x00comment\x00"...)
	named = append(named, za[10:]...)
	summed := []byte{0x1f, 0x8b, 8, flagHeaderCRC | flagName, 1, 2, 3, 4, 0, 3, 'n', 0}
	summed = binary.LittleEndian.AppendUint16(summed, uint16(crc32.ChecksumIEEE(summed)))
	summed = append(summed, za[10:]...)
	badHeaderSum := bytes.Clone(summed)
	badHeaderSum[4]++
	longName := append([]byte{0x1f, 0x8b, 8, flagName, 0, 0, 0, 0, 0, 3}, strings.Repeat("n", 512)+"\x00"...)
	longName = append(longName, za[10:]...)
	sum, size := bytes.Clone(za), bytes.Clone(za)
	sum[len(sum)-8]++
	size[len(size)-4]++
	empty := compress(t, nil, 6)
	tests := []struct {
		name string
		in   []byte
		want []byte
		err  error
	}{
		{"one member", za, a, io.EOF},
		{"two members", two, append(bytes.Clone(a), b...), io.EOF},
		{"empty member between", append(append(bytes.Clone(za), empty...), za...), append(bytes.Clone(a), a...), io.EOF},
		{"all header fields", named, a, io.EOF},
		{"header checksum", summed, a, io.EOF},
		{"wrong header checksum", badHeaderSum, nil, ErrHeader},
		{"name too long", longName, nil, ErrHeader},
		{"garbage behind", append(bytes.Clone(two), "garbage, and more"...), append(bytes.Clone(a), b...), ErrTrailing},
		{"zeros behind", append(bytes.Clone(za), make([]byte, 512)...), a, ErrTrailing},
		{"half a magic behind", append(bytes.Clone(za), 0x1f), a, io.ErrUnexpectedEOF},
		{"not gzip", []byte("not gzip at all"), nil, ErrHeader},
		{"nothing", nil, nil, io.ErrUnexpectedEOF},
		{"wrong sum", sum, a, ErrChecksum},
		{"wrong size", size, a, ErrChecksum},
		{"no trailer", za[:len(za)-8], a, io.ErrUnexpectedEOF},
		{"half a trailer", za[:len(za)-3], a, io.ErrUnexpectedEOF},
		{"half a header", za[:5], nil, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, readBytes := range readSizes {
				r := NewReader(bytes.NewReader(tt.in))
				got, err := readWith(r, readBytes, 1<<30)
				if !errors.Is(err, tt.err) {
					t.Fatalf("reads of %d: %v, want %v", readBytes, err, tt.err)
				}
				if !bytes.Equal(got, tt.want) {
					t.Errorf("reads of %d: %d bytes of output, want %d", readBytes, len(got), len(tt.want))
				}
				if _, again := r.Read(make([]byte, 10)); !errors.Is(again, tt.err) {
					t.Errorf("the error is not final: %v", again)
				}
				if tt.err == ErrTrailing && !errors.Is(err, ErrHeader) { //nolint:errorlint // the table's own value
					t.Error("ErrTrailing does not wrap ErrHeader")
				}
				if errors.Is(err, ErrTrailing) {
					if n := r.InputOffset(); n != int64(len(za)) && n != int64(len(two)) {
						t.Errorf("input offset %d is not the end of the members", n)
					}
				}
				_ = r.Close()
			}
			wantOut, wantErr := oracleGzip(tt.in, 1<<30)
			if verdict(tt.err) != verdict(wantErr) || !bytes.Equal(tt.want, wantOut) {
				t.Errorf("compress/gzip: %v after %d bytes", wantErr, len(wantOut))
			}
		})
	}
}

func TestResetAndClose(t *testing.T) {
	t.Parallel()
	a, b := generate("text", 200_000, 1), generate("binary", 100_000, 2)
	za, zb := compress(t, a, 6), compress(t, b, 6)
	r := NewReader(bytes.NewReader(za))
	if _, err := r.Read(make([]byte, 70_001)); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{b, a, b} {
		r.Reset(bytes.NewReader([][]byte{zb, za, zb}[i]))
		got, err := readWith(r, 10_000, 1<<30)
		if !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
			t.Fatalf("after reset %d: %v", i, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	r.Reset(bytes.NewReader(za))
	if got, err := readWith(r, 100_000, 1<<30); !errors.Is(err, io.EOF) || !bytes.Equal(got, a) {
		t.Errorf("reset after close: %v", err)
	}
	_ = r.Close()
}

// TestFlushIsSeen checks that output in front of a flush is returned although
// the source has no more to give.
func TestFlushIsSeen(t *testing.T) {
	t.Parallel()
	data := generate("text", 50_000, 4)
	for _, size := range []int{100, 32 << 10, 1 << 20} {
		pr, pw := io.Pipe()
		r := NewReader(pr)
		done := make(chan error, 1)
		proceed := make(chan struct{})
		go func() { done <- writeFlushed(pw, data, proceed) }()
		var got []byte
		p := make([]byte, size)
		for len(got) < len(data) {
			n, err := r.Read(p)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p[:n]...)
		}
		close(proceed)
		if _, err := r.Read(p); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
	}
}

func TestPoolCountsStates(t *testing.T) {
	before := states.out.Load()
	r := NewReader(bytes.NewReader(compress(t, []byte("x"), 6)))
	if got := states.out.Load(); got != before {
		t.Errorf("%d states out before the first read", got-before)
	}
	if _, err := readWith(r, 10, 100); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if got := states.out.Load(); got != before+1 {
		t.Errorf("%d states out while reading", got-before)
	}
	_ = r.Close()
	if got := states.out.Load(); got != before {
		t.Errorf("%d states out after close", got-before)
	}
	if StateBytes > 160<<10 {
		t.Errorf("a state takes %d bytes", StateBytes)
	}
}
