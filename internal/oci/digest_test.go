package oci

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const emptySHA256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseDigest(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]string{
		"sha256": emptySHA256,
		"sha384": "sha384:" + strings.Repeat("0a", 48),
		"sha512": "sha512:" + strings.Repeat("f9", 64),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := ParseDigest(s)
			if err != nil {
				t.Fatal(err)
			}
			if d.String() != s || d.Algorithm() != name || d.Hex() != s[len(name)+1:] || 2*d.Hash().Size() != len(d.Hex()) {
				t.Errorf("got %s: algorithm %s, hex %s, hash of %d bytes", d, d.Algorithm(), d.Hex(), d.Hash().Size())
			}
		})
	}
	for name, s := range map[string]string{
		"empty":             "",
		"no algorithm":      strings.Repeat("0", 64),
		"no hex":            "sha256:",
		"short":             emptySHA256[:70],
		"long":              emptySHA256 + "0",
		"upper case":        strings.ToUpper(emptySHA256[7:]),
		"upper case hex":    "sha256:" + strings.ToUpper(emptySHA256[7:]),
		"not hex at end":    emptySHA256[:70] + "g",
		"not hex inside":    emptySHA256[:40] + "/" + emptySHA256[41:],
		"path":              "sha256:" + strings.Repeat("../", 21) + "x",
		"other algorithm":   "md5:d41d8cd98f00b204e9800998ecf8427e",
		"algorithm of path": "../sha256:" + emptySHA256[7:],
		"size of another":   "sha512:" + emptySHA256[7:],
		"two":               emptySHA256 + ":" + emptySHA256[7:],
		"space":             " " + emptySHA256,
		"huge":              "sha256:" + strings.Repeat("z", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if d, err := ParseDigest(s); !errors.Is(err, ErrDigest) || d != "" {
				t.Errorf("got %q, %v, want ErrDigest", d, err)
			} else if len(err.Error()) > 400 {
				t.Errorf("message repeats %d bytes of input", len(err.Error()))
			}
			if id, err := ParseDiffID(s); !errors.Is(err, ErrDigest) || id != "" {
				t.Errorf("as diff ID: got %q, %v", id, err)
			}
		})
	}
}

func TestDigestsOfBytes(t *testing.T) {
	t.Parallel()
	if got := DigestBytes(nil); got != emptySHA256 {
		t.Errorf("got %s, want %s", got, emptySHA256)
	}
	if got := DigestOf(SHA256, sha256.New()); got != emptySHA256 {
		t.Errorf("got %s, want %s", got, emptySHA256)
	}
	var zero Digest
	if zero.Algorithm() != "" || zero.Hex() != "" {
		t.Errorf("zero digest has algorithm %q, hex %q", zero.Algorithm(), zero.Hex())
	}
}

func TestDigestInJSON(t *testing.T) {
	t.Parallel()
	var got struct {
		Digest Digest
		DiffID DiffID
	}
	if err := json.Unmarshal([]byte(`{"Digest":"`+emptySHA256+`","DiffID":"`+emptySHA256+`"}`), &got); err != nil {
		t.Fatal(err)
	}
	if got.Digest != emptySHA256 || got.DiffID != emptySHA256 || got.DiffID.Digest() != got.Digest {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{`{"Digest":"x"}`, `{"DiffID":"sha256:x"}`, `{"Digest":""}`} {
		if err := json.Unmarshal([]byte(bad), &got); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: got %v, want ErrDigest", bad, err)
		}
	}
}

// The rule of image-spec, config.md: the chain of one layer is its diff ID, of
// more the digest of "chain of those below" + " " + diff ID.
func TestChainIDs(t *testing.T) {
	t.Parallel()
	a, b, c := DiffID(DigestBytes([]byte("a"))), DiffID(DigestBytes([]byte("b"))), DiffID(DigestBytes([]byte("c")))
	ab := ChainID(DigestBytes([]byte(a + " " + b)))
	abc := ChainID(DigestBytes([]byte(string(ab) + " " + string(c))))
	if diff := cmp.Diff(ChainIDs([]DiffID{a, b, c}), []ChainID{ChainID(a), ab, abc}); diff != "" {
		t.Error(diff)
	}
	if got := ChainIDs(nil); len(got) != 0 {
		t.Errorf("got %v for no layers", got)
	}
}

func FuzzParseDigest(f *testing.F) {
	for _, s := range []string{emptySHA256, "sha512:" + strings.Repeat("0", 128), "sha256:", ":", "", "sha256:" + strings.Repeat("é", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if err != nil {
			if !errors.Is(err, ErrDigest) || d != "" {
				t.Errorf("got %q, %v", d, err)
			}
			return
		}
		if d.String() != s || strings.ContainsAny(d.Hex(), "./\\\x00") || 2*d.Hash().Size() != len(d.Hex()) {
			t.Errorf("took %q", s)
		}
	})
}
