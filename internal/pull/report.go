package pull

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"dray/internal/oci"
	"dray/internal/store"
)

func newEvidence(r Request, found *resolved) *Evidence {
	evidence := &Evidence{
		Reference: r.Reference.String(),
		Manifest:  found.manifest.Digest,
		Config:    found.document.Config.Digest,
		Platform:  oci.Platform{OS: found.image.OS, Architecture: found.image.Architecture, Variant: found.image.Variant}.String(),
		Layers:    make([]LayerEvidence, len(found.document.Layers)),
		SignedBy:  []string{},
	}
	if found.index != nil {
		evidence.Index = found.index.Digest
	}
	for i, l := range found.document.Layers {
		evidence.Layers[i] = LayerEvidence{DiffID: found.image.RootFS.DiffIDs[i], Digest: l.Digest, StoredBytes: l.Size}
	}
	return evidence
}

// have enters a layer of the store at its first position.
func (e *Evidence) have(position int, l *store.Layer, source string, how layerNotes) {
	at := &e.Layers[position]
	at.Source, at.SizeBytes, at.Notes, at.Compression, at.Inflated, at.Layout = source, l.SizeBytes, l.Notes, how.compression, how.inflated, l.Layout
	at.Seed, at.SeedUse, at.Reuse, at.Reused = how.seed, how.seedUse, how.reuse, how.reused
	e.SizeBytes += l.SizeBytes
	e.DiskBytes += l.DiskBytes
	e.Fallbacks = append(e.Fallbacks, l.Notes...)
}

// flown enters what a flight has brought.
func (e *Evidence) flown(position int, f *flight, shared bool) {
	source := "network"
	switch {
	case f.found:
		source = "store"
		e.StoreBytes += f.blob.Size
	case shared:
		source = "shared"
	case f.how.seed != "":
		source = "seed"
		e.SeedBytes += f.blob.Size
	case f.source.local:
		source = "local"
	default:
		e.NetworkBytes += f.how.networkBytes
		if f.how.reused != nil {
			e.ReusedBytes += f.how.reused.StoredBytes
		}
	}
	e.have(position, f.layer, source, f.how)
	for _, refused := range f.how.refused {
		e.Fallbacks = append(e.Fallbacks, refused.Error())
	}
}

// repeat fills in the layers that stand in the stack more than once.
func (e *Evidence) repeat(positions map[oci.DiffID][]int) {
	for _, all := range positions {
		for _, p := range all[1:] {
			digest, stored := e.Layers[p].Digest, e.Layers[p].StoredBytes
			e.Layers[p] = e.Layers[all[0]]
			e.Layers[p].Digest, e.Layers[p].StoredBytes, e.Layers[p].Source = digest, stored, "store"
		}
	}
}

// knownEvidence is that of a pull which found everything in the store. Evidence
// that cannot be read is a damaged record, [store.ErrCorrupt]: a made-up one would
// claim what nobody has seen.
func (e *Engine) knownEvidence(r Request, image *store.Image, begin time.Time) (*Evidence, error) {
	evidence := &Evidence{}
	if err := json.Unmarshal(image.Evidence, evidence); err != nil {
		digest := image.Manifest.Digest
		return nil, fmt.Errorf("read evidence of image %s: %w: %w; \"dray store rm %s\" removes it, so that it can be pulled again", digest, store.ErrCorrupt, err, digest)
	}
	evidence.Reference = r.Reference.String()
	evidence.NetworkBytes, evidence.StoreBytes, evidence.ReusedBytes = 0, 0, 0
	for i := range evidence.Layers {
		evidence.Layers[i].Source = "store"
		evidence.StoreBytes += evidence.Layers[i].StoredBytes
	}
	evidence.Stages = Stages{Total: Millis(time.Since(begin))}
	evidence.PeakBytes = peakRSS()
	return evidence, nil
}

// peakRSS returns the most memory this process ever held, in bytes.
func peakRSS() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}
