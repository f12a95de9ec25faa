package layer

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// cores counts what is lent.
type cores struct{ lent, taken int }

func (c *cores) Take() bool   { c.lent++; c.taken++; return true }
func (c *cores) Wanted() bool { return false }
func (c *cores) Give()        { c.lent-- }

// On several cores a layer and what follows it are read as on one, to the byte.
func TestDecompressOnSeveralCores(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	body := make([]byte, 4<<20)
	for i := range body {
		body[i] = "etaoin shrdlu"[min(12, int(random.ExpFloat64()*4))]
	}
	plain := buildTar(t, tarEntry{name: "file", body: body})
	in := gz(t, plain)
	nul := func(n int) []byte { return make([]byte, n) }
	for name, tt := range map[string]struct {
		in   []byte
		want error
	}{
		"alone":                {in, io.EOF},
		"padded":               {cat(in, nul(10)), io.EOF},
		"padded with a lot":    {cat(in, nul(400_000)), io.EOF},
		"garbage":              {cat(in, []byte("x")), ErrFormat},
		"garbage behind nuls":  {cat(in, nul(300_000), []byte("x")), ErrFormat},
		"nuls behind garbage":  {cat(in, []byte("x"), nul(300_000)), ErrFormat},
		"the start of another": {cat(in, in[:5]), io.ErrUnexpectedEOF},
		"two members":          {cat(in, in), io.EOF},
		"cut":                  {in[:len(in)-3], io.ErrUnexpectedEOF},
		"damaged":              {cat(in[:len(in)-500_000], bytes.Repeat([]byte{0xff}, 1000), in[len(in)-499_000:]), ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lent := &cores{}
			got, err := readAllOf(t, tt.in, Options{Cores: lent, MaxHelpers: 2})
			want, wantErr := readAllOf(t, tt.in, Options{})
			if !bytes.Equal(got, want) || !errors.Is(err, tt.want) || !errors.Is(wantErr, tt.want) {
				t.Errorf("%d bytes, %v; on one core %d, %v; want %v", len(got), err, len(want), wantErr, tt.want)
			}
			if lent.taken == 0 || lent.lent != 0 {
				t.Errorf("%d cores taken, %d kept", lent.taken, lent.lent)
			}
		})
	}
}

// readAllOf reads a layer to its end or its error.
func readAllOf(t *testing.T, in []byte, o Options) ([]byte, error) {
	t.Helper()
	d, err := Decompress(bytes.NewReader(in), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	var out []byte
	b := make([]byte, 128<<10)
	for {
		n, err := d.Read(b)
		out = append(out, b[:n]...)
		if err != nil {
			return out, err
		}
	}
}
