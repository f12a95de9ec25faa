//go:build linux

package dray

import (
	"fmt"
	"runtime"

	"dray/internal/erofs"
	"dray/internal/inflate"
	"dray/internal/pull"
)

// Formula is how much memory a pull takes, whatever the image: bytes by part.
// docs/design.md, "Memory", derives it; a test holds the process to it.
type Formula struct {
	Workers     int   `json:"workers"`      // layers in flight
	BaseBytes   int64 `json:"base_bytes"`   // program text, runtime, connections
	RingBytes   int64 `json:"ring_bytes"`   // per layer: buffers between the stages
	CodecBytes  int64 `json:"codec_bytes"`  // per layer: the inflater's tables and window (gzip; zstd takes its frame's window instead)
	NamesBytes  int64 `json:"names_bytes"`  // per layer: headers of the tar, and the index or directories whose times and small files whose contents are still to be set
	RangesBytes int64 `json:"ranges_bytes"` // all layers: window of blobs that are fetched in parts at once
	TotalBytes  int64 `json:"total_bytes"`
	ZstdBytes   int64 `json:"zstd_bytes"`  // beside the total, while a zstd layer is read: a window of 8 MiB; larger ones take what they are
	ZstdLayers  int   `json:"zstd_layers"` // that are read at once: one, and as many as a larger window of ranges has room for
}

// Parts of the formula that are no package's constants.
const (
	baseBytes   = 11 << 20
	namesBytes  = 5<<19 + erofs.DefaultMaxBytes // with the mapped pages of an index beyond its limit that are in use at once
	rangesBytes = 4 << 20

	// zstdBytes is a zstd layer's window.
	zstdBytes = 9 << 20
)

// A core that helps to inflate a layer takes the place of a layer that is not in
// flight: its memory is not more than that one's.
const _ = uint(pull.RingBytes + pull.CodecBytes + namesBytes - inflate.HelperBytes)

// Explain returns the formula with this client's numbers.
func (c *Client) Explain() Formula {
	f := Formula{
		Workers:     c.options.Workers,
		BaseBytes:   baseBytes,
		RingBytes:   pull.RingBytes,
		CodecBytes:  pull.CodecBytes,
		NamesBytes:  namesBytes,
		RangesBytes: rangesBytes,
	}
	if f.Workers <= 0 {
		f.Workers = runtime.GOMAXPROCS(0)
	}
	if c.options.Memory > 0 {
		f.RangesBytes = max(0, c.options.Memory-int64(f.Workers)*(f.RingBytes+f.CodecBytes+f.NamesBytes))
	}
	f.TotalBytes = f.BaseBytes + f.Buffers()
	f.ZstdBytes = zstdBytes
	f.ZstdLayers = 1 + int(min(int64(f.Workers-1), max(0, f.RangesBytes-rangesBytes)/zstdBytes))
	return f
}

// Of a window of ranges that is larger than usual, zstd layers that are read at once
// take what they need, and then cores that help to inflate.
func (f Formula) surplusTaken() int64 {
	taken := int64(f.ZstdLayers-1) * f.ZstdBytes
	if f.largeStretches() {
		taken += f.helpersSurplus()
	}
	return taken
}

// largeStretches tells whether helpers have room for more than in the place of a layer.
func (f Formula) largeStretches() bool {
	left := f.RangesBytes - rangesBytes - int64(f.ZstdLayers-1)*f.ZstdBytes
	return f.helpersSurplus() > 0 && left >= f.helpersSurplus()
}

// helpersSurplus is what they take more then: one layer keeps two workers busy.
func (f Formula) helpersSurplus() int64 {
	return int64(min(f.Workers-2, inflate.MaxHelpers)) * int64(inflate.LargeHelperBytes-inflate.HelperBytes)
}

// Buffers returns what the formula gives to buffers: all but the base.
func (f Formula) Buffers() int64 {
	return int64(f.Workers)*(f.RingBytes+f.CodecBytes+f.NamesBytes) + f.RangesBytes
}

// String writes the formula out.
func (f Formula) String() string {
	return fmt.Sprintf("%d base + %d layers × (%d ring + %d codec + %d names) + %d ranges = %d bytes (%.1f MB); with zstd, %d at once, a window of %d more",
		f.BaseBytes, f.Workers, f.RingBytes, f.CodecBytes, f.NamesBytes, f.RangesBytes, f.TotalBytes, float64(f.TotalBytes)/1e6, f.ZstdLayers, f.ZstdBytes)
}
