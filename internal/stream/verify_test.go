package stream

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"dray/internal/multibuf"
	"dray/internal/oci"
)

const text = "the quick brown fox jumps over the lazy dog"

var errSource = errors.New("source broke")

func sha512Of(s string) oci.Digest {
	h := sha512.New()
	_, _ = io.WriteString(h, s)
	return oci.DigestOf(oci.SHA512, h)
}

// readers are the ways in which a source may deliver its bytes.
var readers = map[string]func(io.Reader) io.Reader{
	"plain":           func(r io.Reader) io.Reader { return r },
	"byte by byte":    iotest.OneByteReader,
	"data with error": iotest.DataErrReader,
	"halves":          iotest.HalfReader,
}

// hashings are all that [NewVerifiedAhead] can do.
var hashings = map[string]Hashing{"reader": HashByReader, "consumer": HashByConsumer, "aside": HashAside}

func TestVerifier(t *testing.T) {
	t.Parallel()
	want, lanes := oci.DigestBytes([]byte(text)), multibuf.New()
	for name, c := range map[string]struct {
		content string
		want    oci.Digest
		size    int64
		err     error
	}{
		"right":              {text, want, int64(len(text)), nil},
		"right, any size":    {text, want, AnySize, nil},
		"right, sha512":      {text, sha512Of(text), int64(len(text)), nil},
		"empty":              {"", oci.DigestBytes(nil), 0, nil},
		"too short":          {text[1:], want, int64(len(text)), ErrMismatch},
		"nothing":            {"", want, int64(len(text)), ErrMismatch},
		"too long":           {text + "!", want, int64(len(text)), ErrMismatch},
		"much too long":      {strings.Repeat(text, 1000), want, int64(len(text)), ErrMismatch},
		"trailing, any size": {text + "!", want, AnySize, ErrMismatch},
		"other bytes":        {strings.ToUpper(text), want, int64(len(text)), ErrMismatch},
		"promise too small":  {text, want, int64(len(text)) - 1, ErrMismatch},
		"promise too big":    {text, want, int64(len(text)) + 1, ErrMismatch},
		"not empty":          {"x", oci.DigestBytes(nil), 0, ErrMismatch},
	} {
		for way, reader := range readers {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				v := NewVerifier(reader(strings.NewReader(c.content)), "blob", c.want, c.size)
				got, err := ReadAll(v, 1<<20)
				if !errors.Is(err, c.err) || c.err == nil && string(got) != c.content {
					t.Errorf("Read: got %q, %v, want %v", got, err, c.err)
				}
				if c.err != nil {
					if _, again := v.Read(make([]byte, 1)); !errors.Is(again, err) {
						t.Errorf("after %v Read returns %v", err, again)
					}
				}
				b := NewBlockVerifier(NewSlicer(reader(strings.NewReader(c.content)), 7), "blob", c.want, c.size)
				got, err = ReadAll(NewReader(b), 1<<20)
				if !errors.Is(err, c.err) || c.err == nil && string(got) != c.content {
					t.Errorf("Next: got %q, %v, want %v", got, err, c.err)
				}
				if c.err == nil && b.Count() != int64(len(c.content)) {
					t.Errorf("Next: counted %d bytes", b.Count())
				}
				for by, hashing := range hashings {
					ahead := NewVerifier(nil, "blob", c.want, c.size)
					a := NewVerifiedAhead(t.Context(), reader(strings.NewReader(c.content)), ahead, hashing, lanes, 2, 7)
					got, err = ReadAll(NewReader(a), 1<<20)
					if !errors.Is(err, c.err) || c.err == nil && string(got) != c.content {
						t.Errorf("hashed by %s: got %q, %v, want %v", by, got, err, c.err)
					}
					if _, again := a.Next(); c.err != nil && !errors.Is(again, err) {
						t.Errorf("hashed by %s: after %v Next returns %v", by, err, again)
					}
					_ = a.Close()
					if c.err == nil && ahead.Count() != int64(len(c.content)) {
						t.Errorf("hashed by %s: counted %d bytes", by, ahead.Count())
					}
				}
			})
		}
	}
}

// A source that never ends is left as soon as it has said too much.
func TestVerifierStopsEndlessSource(t *testing.T) {
	t.Parallel()
	v := NewVerifier(endless{}, "blob", oci.DigestBytes(nil), 10)
	n, err := io.Copy(io.Discard, v)
	mismatch, ok := errors.AsType[*MismatchError](err)
	if !ok || mismatch.Got != "" || mismatch.GotSize <= 10 || n > 1<<20 {
		t.Errorf("read %d bytes, %v", n, err)
	}
	for by, hashing := range hashings {
		a := NewVerifiedAhead(t.Context(), endless{}, NewVerifier(nil, "blob", oci.DigestBytes(nil), 10), hashing, multibuf.New(), 2, 100)
		if n, err := Drain(a); !errors.Is(err, ErrMismatch) || n > 10 {
			t.Errorf("hashed by %s: read %d bytes, %v", by, n, err)
		}
		if err := a.Close(); err != nil { // waits for nothing that never ends
			t.Error(err)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestVerifierPassesErrorsOn(t *testing.T) {
	t.Parallel()
	broken := func() io.Reader {
		return io.MultiReader(strings.NewReader(text), iotest.ErrReader(errSource))
	}
	want := oci.DigestBytes([]byte(text))
	ways := map[string]func() error{
		"reader": func() error {
			v := NewVerifier(broken(), "blob", want, int64(len(text)))
			_, err := ReadAll(v, 1<<20)
			_, again := v.Read(make([]byte, 9))
			return errors.Join(err, again)
		},
		"blocks": func() error {
			v := NewBlockVerifier(NewSlicer(broken(), 8), "blob", want, int64(len(text)))
			_, err := Drain(v)
			_, again := v.Next()
			return errors.Join(err, again)
		},
	}
	for by, hashing := range hashings {
		ways["hashed by "+by] = func() error {
			a := NewVerifiedAhead(t.Context(), broken(), NewVerifier(nil, "blob", want, int64(len(text))), hashing, multibuf.New(), 2, 8)
			_, err := Drain(a)
			_, again := a.Next()
			return errors.Join(err, again, a.Close())
		}
	}
	for name, read := range ways {
		if err := read(); !errors.Is(err, errSource) || errors.Is(err, ErrMismatch) || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v, want %v twice", name, err, errSource)
		}
	}
}

func TestMismatchSaysWhat(t *testing.T) {
	t.Parallel()
	a, b := oci.DigestBytes([]byte("a")), oci.DigestBytes([]byte("b"))
	for name, c := range map[string]struct {
		err  MismatchError
		want []string
	}{
		"digest": {MismatchError{What: "layer", Want: a, Got: b, WantSize: AnySize, GotSize: 1}, []string{"layer", string(a), string(b)}},
		"short":  {MismatchError{What: "blob", Want: a, Got: b, WantSize: 9, GotSize: 7}, []string{"7 bytes instead of 9"}},
		"long":   {MismatchError{What: "blob", Want: a, WantSize: 9, GotSize: 12}, []string{"more than 9 bytes"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, c.err.Error(), want)
			}
		}
	}
}

func TestReadAll(t *testing.T) {
	t.Parallel()
	for _, sizeBytes := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		content := bytes.Repeat([]byte{'x'}, sizeBytes)
		for way, reader := range readers {
			got, err := ReadAll(reader(bytes.NewReader(content)), int64(sizeBytes))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %s: got %d, %v", sizeBytes, way, len(got), err)
			}
			if sizeBytes > 0 {
				if _, err := ReadAll(reader(bytes.NewReader(content)), int64(sizeBytes-1)); !errors.Is(err, ErrTooLarge) {
					t.Errorf("%d bytes, %s, one too many: %v", sizeBytes, way, err)
				}
			}
		}
	}
	if _, err := ReadAll(endless{}, 100); !errors.Is(err, ErrTooLarge) {
		t.Errorf("endless: %v", err)
	}
	if got, err := ReadAll(io.MultiReader(strings.NewReader("ab"), iotest.ErrReader(errSource)), 100); !errors.Is(err, errSource) || string(got) != "ab" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSlicer(t *testing.T) {
	t.Parallel()
	for way, reader := range readers {
		s := NewSlicer(reader(strings.NewReader(text)), 10)
		var blocks []string
		for {
			block, err := s.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", way, err)
				}
				break
			}
			blocks = append(blocks, string(block))
		}
		if len(blocks) != (len(text)+9)/10 || strings.Join(blocks, "") != text {
			t.Errorf("%s: got %q", way, blocks)
		}
		if _, err := s.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the end: %v", way, err)
		}
	}
	if _, err := NewSlicer(stuck{}, 10).Next(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a source that gives nothing: %v", err)
	}
}

// stuck returns neither bytes nor an error.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestReader(t *testing.T) {
	t.Parallel()
	if err := iotest.TestReader(NewReader(NewSlicer(strings.NewReader(text), 5)), []byte(text)); err != nil {
		t.Error(err)
	}
	n, err := Drain(NewSlicer(strings.NewReader(text), 5))
	if err != nil || n != int64(len(text)) {
		t.Errorf("drained %d, %v", n, err)
	}
}
