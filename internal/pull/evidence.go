package pull

import (
	"time"

	"dray/internal/oci"
)

// Evidence tells what a pull did and what it proved. It is printed by --json,
// returned by the library, logged, and kept with the image.
type Evidence struct {
	Reference string          `json:"reference"`
	Index     oci.Digest      `json:"index_digest,omitempty"` // of the outermost index, "" when the reference named a manifest
	Manifest  oci.Digest      `json:"manifest_digest"`
	Config    oci.Digest      `json:"config_digest"`
	Platform  string          `json:"platform"`
	Layers    []LayerEvidence `json:"layers"` // bottom first, repeated layers repeated

	Layout       string   `json:"layout"` // of new layers; those that were there, or cannot be expressed, may have another
	LayoutReason string   `json:"layout_reason"`
	SignedBy     []string `json:"signed_by"` // empty: no policy asked for signatures
	Fallbacks    []string `json:"fallbacks,omitempty"`

	ResolvedBy string `json:"resolved_by"` // who had the manifest: "network", "local", "store" or "seed PATH"

	NetworkBytes int64 `json:"network_bytes"` // received as blobs and manifests by this pull
	StoreBytes   int64 `json:"store_bytes"`   // compressed size of layers that were there already
	SeedBytes    int64 `json:"seed_bytes"`    // compressed size of layers that seeds had
	ReusedBytes  int64 `json:"reused_bytes"`  // compressed size of what was not fetched of layers, as the store had the files
	SizeBytes    int64 `json:"size_bytes"`    // uncompressed, each distinct layer once
	DiskBytes    int64 `json:"disk_bytes"`    // blocks that each distinct layer takes

	Stages    Stages `json:"stages"`
	PeakBytes int64  `json:"peak_rss_bytes"` // of the process so far, 0 where the system does not tell
}

// LayerEvidence tells where one layer came from.
type LayerEvidence struct {
	DiffID      oci.DiffID `json:"diff_id"`
	Digest      oci.Digest `json:"digest"`
	Source      string     `json:"source"`             // "network", "local", "seed", "store" or "shared" with a pull that was under way
	Seed        string     `json:"seed,omitempty"`     // path of the seed that has it
	SeedUse     string     `json:"seed_use,omitempty"` // "copied", or used where it lies: "held", "sealed", "trusted" (docs/seeding.md)
	Compression string     `json:"compression,omitempty"`
	Inflated    string     `json:"inflated,omitempty"` // gzip by this pull: on how many cores, and why not on more
	StoredBytes int64      `json:"stored_bytes"`       // compressed
	SizeBytes   int64      `json:"size_bytes"`         // uncompressed
	Layout      string     `json:"layout,omitempty"`
	Notes       []string   `json:"notes,omitempty"`

	// Reuse says why files of the store were used instead of parts of the blob, or
	// were not, where they might have been.
	Reuse string `json:"reuse,omitempty"`

	// Reused says what was copied from files of the store. Then the diff ID was
	// verified, which names all of the layer, and the blob's digest could not be.
	Reused *Reused `json:"reused,omitempty"`
}

// Stages are wall times.
type Stages struct {
	Resolve Millis `json:"resolve_ms"` // manifests and config
	Layers  Millis `json:"layers_ms"`  // fetch, inflate, hash and unpack, all layers
	Sync    Millis `json:"sync_ms"`    // until the layers were safe from power loss
	Mount   Millis `json:"mount_ms,omitempty"`
	Total   Millis `json:"total_ms"`
}

// Millis is a duration that JSON shows in milliseconds.
type Millis time.Duration

// MarshalJSON writes whole and thousandth milliseconds.
func (m Millis) MarshalJSON() ([]byte, error) {
	return []byte(formatMillis(time.Duration(m))), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *Millis) UnmarshalJSON(b []byte) error {
	d, err := time.ParseDuration(string(b) + "ms")
	*m = Millis(d)
	return err
}
