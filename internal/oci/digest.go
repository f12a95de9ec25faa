package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// ErrDigest reports text that is not a digest, or one of an algorithm that dray
// does not have.
var ErrDigest = errors.New("invalid digest")

// Algorithms that a digest may name (image-spec, descriptor.md, "Registered
// Algorithms").
const (
	SHA256 = "sha256"
	SHA384 = "sha384"
	SHA512 = "sha512"
)

// Digest names bytes as they are stored: "sha256:" and 64 lower-case hex digits,
// or the same with sha384 or sha512. The zero value names nothing.
type Digest string

// ParseDigest returns s as a Digest, or an error that wraps [ErrDigest].
func ParseDigest(s string) (Digest, error) {
	algorithm, hexa, ok := strings.Cut(s, ":")
	if !ok {
		return "", fmt.Errorf("parse digest %q: no algorithm: %w", clip(s), ErrDigest)
	}
	var size int
	switch algorithm {
	case SHA256:
		size = sha256.Size
	case SHA384:
		size = sha512.Size384
	case SHA512:
		size = sha512.Size
	default:
		return "", fmt.Errorf("parse digest %q: algorithm must be sha256, sha384 or sha512: %w", clip(s), ErrDigest)
	}
	if len(hexa) != 2*size || strings.Trim(hexa, "0123456789abcdef") != "" {
		return "", fmt.Errorf("parse digest %q: want %d lower-case hex digits: %w", clip(s), 2*size, ErrDigest)
	}
	return Digest(s), nil
}

// DigestBytes returns the sha256 digest of b.
func DigestBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(SHA256 + ":" + hex.EncodeToString(sum[:]))
}

// DigestOf returns the digest that h has computed with the named algorithm.
func DigestOf(algorithm string, h hash.Hash) Digest {
	return Digest(algorithm + ":" + hex.EncodeToString(h.Sum(nil)))
}

// Algorithm returns the part before the colon, or "" for the zero value.
func (d Digest) Algorithm() string {
	algorithm, _, _ := strings.Cut(string(d), ":")
	return algorithm
}

// Hex returns the part after the colon.
func (d Digest) Hex() string {
	_, hexa, _ := strings.Cut(string(d), ":")
	return hexa
}

// String returns the digest as it is written.
func (d Digest) String() string { return string(d) }

// Hash returns a new hash of the digest's algorithm. It panics for a Digest
// that did not come out of [ParseDigest] or a decoder of this package.
func (d Digest) Hash() hash.Hash {
	switch d.Algorithm() {
	case SHA256:
		return sha256.New()
	case SHA384:
		return sha512.New384()
	case SHA512:
		return sha512.New()
	}
	panic("oci: internal error: hash of an unparsed digest " + string(d))
}

// UnmarshalText parses a digest; every decoder of this package goes through it.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// DiffID names the uncompressed tar of one layer (image-spec, config.md).
type DiffID string

// ParseDiffID returns s as a DiffID, or an error that wraps [ErrDigest].
func ParseDiffID(s string) (DiffID, error) {
	d, err := ParseDigest(s)
	return DiffID(d), err
}

// Digest returns the diff ID as the digest of the uncompressed bytes.
func (d DiffID) Digest() Digest { return Digest(d) }

// Hex returns the part after the colon.
func (d DiffID) Hex() string { return Digest(d).Hex() }

// String returns the diff ID as it is written.
func (d DiffID) String() string { return string(d) }

// UnmarshalText parses a diff ID.
func (d *DiffID) UnmarshalText(text []byte) error { return (*Digest)(d).UnmarshalText(text) }

// ChainID names a stack of layers, bottom to top (image-spec, config.md,
// "Layer ChainID").
type ChainID string

// ChainIDs returns, for each position, the chain ID of the layers up to there.
func ChainIDs(layers []DiffID) []ChainID {
	chain := make([]ChainID, len(layers))
	for i, id := range layers {
		if i == 0 {
			chain[i] = ChainID(id)
			continue
		}
		chain[i] = ChainID(DigestBytes([]byte(string(chain[i-1]) + " " + string(id))))
	}
	return chain
}

// clip shortens hostile input for an error message.
func clip(s string) string {
	const longest = 120
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}
