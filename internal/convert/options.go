package convert

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/record"
)

// ErrUnsupported reports an image that cannot become what was asked for.
var ErrUnsupported = errors.New("cannot be converted")

// ErrOptions reports options that contradict each other.
var ErrOptions = errors.New("invalid options")

// DefaultMemoryBytes is what the buffers of a conversion take by default.
const DefaultMemoryBytes = 96 << 20

// writerVersion is part of what a remembered conversion is known by. It changes
// when the bytes change that the same layer and options give.
const writerVersion = 1

// Form is what layers become. The zero value is eStargz with its defaults.
type Form struct {
	Uncompressed bool // plain tars; nothing below counts
	Format       estargz.Format
	Level        int   // of compression; 0 is the format's default
	ChunkSize    int64 // bytes; 0 is the default
	MinChunkSize int64 // bytes; 0 is one chunk per member
	KeepDiffID   bool  // leave the tar as it is; the format's TOC must not be in it
}

// Options of [Run].
type Options struct {
	Form
	OCI          bool           // Docker's media types become OCI's
	Platforms    []oci.Platform // of an index; nil: Host
	AllPlatforms bool
	Host         oci.Platform

	// Reuse passes layers through that have the form already and nothing to be
	// put first, after they were verified.
	Reuse bool

	// Order returns what to put first in an image, in that order; nil is nothing. The
	// list stays its own.
	Order func(ctx context.Context, manifest oci.Descriptor) (*record.List, error)
	// Globs are paths and patterns to put first instead, see [record.Expand].
	Globs []string

	Jobs        int     // layers and workers at once; 0: one per core
	MemoryBytes int64   // of buffers; 0 is [DefaultMemoryBytes]
	TempDir     string  // "" is the system's
	Memory      *Memory // of conversions; nil: none
	DryRun      bool    // plan only; the target may be nil
	Limits      layer.Limits
	Progress    func(Event) // nil: none. Called one at a time
	Log         *slog.Logger
}

func (o *Options) check() error {
	o.Jobs = cmp.Or(o.Jobs, runtime.GOMAXPROCS(0))
	o.MemoryBytes = cmp.Or(o.MemoryBytes, DefaultMemoryBytes)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	external := o.Format == estargz.EStargzExternal
	legacy := o.Format == estargz.LegacyStargz && !o.Uncompressed
	first := o.Order != nil || len(o.Globs) > 0
	switch {
	case o.Jobs < 0:
		return fmt.Errorf("%w: %d jobs", ErrOptions, o.Jobs)
	case o.Reuse && external && !o.Uncompressed:
		return fmt.Errorf("%w: layers with external TOCs are not reused", ErrOptions)
	case o.Reuse && legacy:
		return fmt.Errorf("%w: no manifest vouches for stargz layers, so they are not reused", ErrOptions)
	case legacy && first:
		return fmt.Errorf("%w: nothing can come first in stargz layers", ErrOptions)
	case legacy && o.MinChunkSize > 0:
		return fmt.Errorf("%w: stargz has one chunk per member", ErrOptions)
	case o.KeepDiffID && (o.Format == estargz.EStargz || legacy || o.Uncompressed):
		return fmt.Errorf("%w: to keep the diffID, the TOC must be external or the format zstd:chunked", ErrOptions)
	case o.Order != nil && len(o.Globs) > 0:
		return fmt.Errorf("%w: a record and a prefetch list", ErrOptions)
	case o.Uncompressed && first:
		return fmt.Errorf("%w: plain tars have no prioritized files", ErrOptions)
	}
	return nil
}

// write returns the options of the writer.
func (f *Form) write(prioritized []string) estargz.Options {
	return estargz.Options{
		Format: f.Format, Level: f.Level, ChunkSize: f.ChunkSize, MinChunkSize: f.MinChunkSize,
		Lossless: f.KeepDiffID, Prioritized: prioritized,
	}
}

// key is what a conversion is remembered by. What is the same by default and by
// name has one key.
func (f *Form) key(source oci.Digest, prioritized *record.Paths) (string, error) {
	var names *oci.Digest // of the list
	if prioritized.Len() > 0 {
		h := sha256.New()
		for name, err := range prioritized.All() {
			if err != nil {
				return "", err
			}
			_, _ = fmt.Fprintf(h, "%d:%s", len(name), name) // hashes never fail
		}
		digest := oci.DigestOf(oci.SHA256, h)
		names = &digest
	}
	form, level := *f, f.Level
	switch {
	case f.Uncompressed:
		form, level = Form{Uncompressed: true}, 0
	case level == 0 && f.zstd():
		level = estargz.DefaultZstdLevel
	case level == 0:
		level = estargz.DefaultGzipLevel
	}
	text, err := json.Marshal(map[string]any{
		"version": writerVersion, "source": source, "uncompressed": form.Uncompressed, "format": form.Format.String(), "level": level,
		"chunkSize": cmp.Or(form.ChunkSize, estargz.DefaultChunkSize), "minChunkSize": form.MinChunkSize,
		"keepDiffID": form.KeepDiffID, "prioritized": names,
	})
	if err != nil {
		panic("convert: internal error: " + err.Error())
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// How tells what became of a layer.
type How string

// What may become of a layer.
const (
	Converted  How = "converted"
	Remembered How = "remembered" // it was converted before, and the target has the result
	Reused     How = "reused"     // it had the form already
	Kept       How = "kept"       // it is no layer of ours: kept elsewhere, see [oci.Descriptor].URLs
)

// Result is what [Run] did.
type Result struct {
	Source      oci.Descriptor   `json:"source"`
	Target      oci.Descriptor   `json:"target"` // of a dry run: empty
	Images      []Image          `json:"images"`
	Kept        []oci.Descriptor `json:"kept,omitempty"`    // manifests that are no images, copied
	Dropped     []oci.Descriptor `json:"dropped,omitempty"` // images of other platforms
	LeftBehind  []oci.Descriptor `json:"left_behind,omitempty"`
	ExternalTOC *oci.Descriptor  `json:"external_toc,omitempty"`
	TOCTag      string           `json:"external_toc_tag,omitempty"`
	Notes       []string         `json:"notes,omitempty"`
}

// Image is one image that was converted.
type Image struct {
	Source   oci.Digest `json:"source"`
	Target   oci.Digest `json:"target,omitempty"`
	Platform string     `json:"platform,omitempty"`
	Layers   []Layer    `json:"layers"`

	Prioritized int      `json:"prioritized"`             // files that come first
	Missing     []string `json:"missing,omitempty"`       // asked for and not in the image, the first thousand
	Share       float64  `json:"prioritized_bytes_share"` // 0 to 1

	MissingCount int `json:"missing_count,omitempty"`
	Requested    int `json:"prioritized_asked,omitempty"` // distinct paths or patterns
}

// Layer is one layer of an image.
type Layer struct {
	Source      oci.Digest `json:"source"`
	SourceSize  int64      `json:"source_size_bytes"`
	Target      oci.Digest `json:"target,omitempty"`
	TargetSize  int64      `json:"target_size_bytes,omitempty"`
	DiffID      oci.DiffID `json:"diff_id,omitempty"`
	TOCDigest   oci.Digest `json:"toc_digest,omitempty"`
	How         How        `json:"how"` // of a dry run: what it would be
	Prioritized int        `json:"prioritized,omitempty"`
}

// Event tells how a layer or a blob gets on.
type Event struct {
	Index, Count int        // of those under way in all
	Digest       oci.Digest // of the source
	Bytes, Total int64      // read of the source
	Done         bool
	Failed       bool
	Present      bool // with Done: nothing had to be transferred
}
