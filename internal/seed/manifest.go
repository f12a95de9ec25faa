package seed

import (
	"encoding/json"
	"fmt"

	"dray/internal/oci"
	"dray/internal/store"
)

// manifestVersion is the version of a seed that this package reads and writes.
const manifestVersion = 1

// Manifest is seed.json: a list for people and tools of what is inside. Nothing of
// it is believed when a seed is used.
type Manifest struct {
	Version int     `json:"dray_seed"`
	Needs   string  `json:"needs"`            // the oldest dray that reads it
	Created string  `json:"created"`          // RFC 3339: SOURCE_DATE_EPOCH, or 1970
	Prefix  string  `json:"prefix,omitempty"` // the path at which it is meant to live
	Layout  string  `json:"layout"`
	Images  []Image `json:"images"` // by reference and platform
	Layers  []Entry `json:"layers"` // by diff ID, each once
	Bytes   int64   `json:"size_bytes"`
}

// Image is an image of a seed.
type Image struct {
	Reference string       `json:"reference"`
	Index     oci.Digest   `json:"index_digest,omitempty"`
	Manifest  oci.Digest   `json:"manifest_digest"`
	Config    oci.Digest   `json:"config_digest"`
	Platform  string       `json:"platform"`
	DiffIDs   []oci.DiffID `json:"diff_ids"`
}

// Entry is a layer of a seed.
type Entry struct {
	DiffID    oci.DiffID `json:"diff_id"`
	Blob      oci.Digest `json:"blob,omitempty"` // the compressed blob that it was made of
	SizeBytes int64      `json:"size_bytes"`     // uncompressed
	Entries   int64      `json:"entries"`
	Layout    string     `json:"layout"` // or "tar", for what has no other
	Notes     []string   `json:"notes,omitempty"`
}

// DecodeManifest reads a seed.json. The error is [store.ErrVersion] for one that is
// newer than this dray, [ErrRefused] for one that makes no sense.
func DecodeManifest(raw []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, problem("decode %s: %w", ManifestName, err)
	}
	switch {
	case m.Version > manifestVersion:
		return nil, fmt.Errorf("seed has version %d, this dray knows up to %d; use dray %.40q or newer: %w", m.Version, manifestVersion, m.Needs, store.ErrVersion)
	case m.Version < 1:
		return nil, problem("seed has version %d", m.Version)
	}
	return m, nil
}
