package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
)

// Options of [Image.Report].
type Options struct {
	Entries bool // list every entry and every chunk
	Verify  bool // read all layers and check everything
	TempDir string
	Jobs    int // layers at once; 0 is one per core
	Limits  layer.Limits
}

// Report tells how an image is built.
type Report struct {
	Reference     string     `json:"reference"`
	Manifest      oci.Digest `json:"manifest_digest"`
	Platform      string     `json:"platform,omitempty"`
	SizeBytes     int64      `json:"size_bytes"`     // of the layers, as stored
	Seekable      int        `json:"seekable"`       // layers
	PrefetchBytes int64      `json:"prefetch_bytes"` // of the blobs, before a lazy mount is ready
	PrefetchFiles int        `json:"prefetch_files"`
	Layers        []*Layer   `json:"layers"` // bottom first
}

// Layer is one layer of a [Report].
type Layer struct {
	Index     int        `json:"index"`
	Digest    oci.Digest `json:"digest"`
	MediaType string     `json:"media_type"`
	SizeBytes int64      `json:"size_bytes"`
	DiffID    oci.DiffID `json:"diff_id,omitempty"`

	Format   string `json:"format,omitempty"`   // "" is an ordinary layer
	Ordinary string `json:"ordinary,omitempty"` // why it is none of the seekable ones

	// Of a seekable layer:
	TOCDigest    oci.Digest `json:"toc_digest,omitempty"`
	Vouched      bool       `json:"toc_in_manifest"` // the manifest names the TOC's digest
	TOC          *Span      `json:"toc,omitempty"`   // nil: in another blob
	TarSplit     *Span      `json:"tar_split,omitempty"`
	PayloadBytes int64      `json:"payload_bytes,omitempty"` // of the tar, compressed
	Names        int        `json:"names,omitempty"`
	Files        int        `json:"files,omitempty"`
	FileBytes    int64      `json:"file_bytes,omitempty"` // uncompressed
	Chunks       int        `json:"chunks,omitempty"`

	Landmark      string   `json:"landmark,omitempty"`       // the name of the one that is there
	PrefetchBytes int64    `json:"prefetch_bytes,omitempty"` // of the blob, to be fetched first
	Prefetch      []string `json:"prefetch,omitempty"`       // files in it, in order

	Entries []Entry  `json:"entries,omitempty"`
	Checked *Checked `json:"verify,omitempty"`
	Err     error    `json:"-"` // of Checked
}

// Span is a part of a blob.
type Span struct {
	Offset  int64 `json:"offset"`
	Size    int64 `json:"size"`
	RawSize int64 `json:"raw_size,omitempty"` // uncompressed; 0 if nobody says
}

// Entry is an entry of a TOC.
type Entry struct {
	Name   string     `json:"name"`
	Type   string     `json:"type"`
	Mode   uint32     `json:"mode"`
	UID    uint32     `json:"uid"`
	GID    uint32     `json:"gid"`
	Size   int64      `json:"size,omitempty"`
	MTime  time.Time  `json:"mtime"`
	Link   string     `json:"link,omitempty"`
	Digest oci.Digest `json:"digest,omitempty"`
	Chunks []Chunk    `json:"chunks,omitempty"`
}

// Chunk is a part of a file.
type Chunk struct {
	Offset      int64      `json:"offset"`                 // in the blob, of the member
	EndOffset   int64      `json:"end_offset"`             // in the blob
	InnerOffset int64      `json:"inner_offset,omitempty"` // in what the member holds
	FileOffset  int64      `json:"file_offset,omitempty"`
	Size        int64      `json:"size"` // uncompressed
	Digest      oci.Digest `json:"digest,omitempty"`
	Zeros       bool       `json:"zeros,omitempty"`
}

// Checked is what verification found.
type Checked struct {
	OK        bool       `json:"ok"`
	Error     string     `json:"error,omitempty"`
	DiffID    oci.DiffID `json:"diff_id,omitempty"`
	SizeBytes int64      `json:"size_bytes,omitempty"` // uncompressed
	Names     int        `json:"names,omitempty"`      // that are the same in TOC and tar
	Chunks    int        `json:"chunks,omitempty"`     // that were read at their offset
}

// Report looks into every layer. What [Options.Verify] finds wrong is in the
// layers, and [Report.Err] has all of it; other errors end it.
func (i *Image) Report(ctx context.Context, o Options) (*Report, error) {
	if o.Jobs <= 0 {
		o.Jobs = runtime.GOMAXPROCS(0)
	}
	report := &Report{
		Reference: i.Repository.Reference().String(), Manifest: i.Descriptor.Digest, Platform: i.Platform(),
		Layers: make([]*Layer, len(i.Manifest.Layers)),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(o.Jobs)
	for n := range i.Manifest.Layers {
		group.Go(func() error {
			var err error
			report.Layers[n], err = i.layer(ctx, n, &o)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, l := range report.Layers {
		report.SizeBytes += l.SizeBytes
		report.PrefetchBytes += l.PrefetchBytes
		report.PrefetchFiles += len(l.Prefetch)
		if l.Format != "" {
			report.Seekable++
		}
	}
	return report, nil
}

// Err returns what verification found wrong, or nil.
func (r *Report) Err() error {
	var errs []error
	for _, l := range r.Layers {
		if l.Err != nil {
			errs = append(errs, fmt.Errorf("layer %d (%s): %w", l.Index, l.Digest, l.Err))
		}
	}
	return errors.Join(errs...)
}

// layer looks into one layer.
func (i *Image) layer(ctx context.Context, n int, o *Options) (*Layer, error) {
	d := i.Manifest.Layers[n]
	l := &Layer{Index: n, Digest: d.Digest, MediaType: d.MediaType, SizeBytes: d.Size, DiffID: i.DiffID(n)}
	switch {
	case len(d.URLs) > 0:
		l.Ordinary = "it is kept elsewhere"
		return l, nil
	case oci.IsEncrypted(d.MediaType):
		l.Ordinary = "it is encrypted"
		return l, nil
	case !oci.IsLayer(d.MediaType):
		l.Ordinary = "it is no layer"
		return l, nil
	}
	src := i.Repository.BlobAt(ctx, d)
	if o.Verify {
		local, err := i.fetch(ctx, d, o.TempDir)
		if err != nil && !unverified(err) {
			return nil, err
		}
		if err != nil {
			l.fail(err)
			return l, nil
		}
		defer func() { _ = local.Close() }()
		src = local
	}
	toc, err := i.open(ctx, d, src, o.Limits)
	switch {
	case errors.Is(err, estargz.ErrNoTOC):
		l.Ordinary = "it has no TOC"
	case err != nil && !unverified(err):
		return nil, err
	case err != nil:
		l.Ordinary = err.Error()
	default:
		defer func() { _ = toc.Close() }()
		l.describe(toc, d, o.Entries)
	}
	if o.Verify {
		l.check(ctx, toc, src, err, o)
	}
	return l, context.Cause(ctx)
}

// open reads a layer's TOC, which may be another blob's.
func (i *Image) open(ctx context.Context, d oci.Descriptor, src io.ReaderAt, limits layer.Limits) (*estargz.Reader, error) {
	hints, err := estargz.ParseHints(d.Annotations)
	if err != nil {
		return nil, err
	}
	o := estargz.OpenOptions{Hints: hints, Limits: estargz.Limits{Layer: limits}}
	toc, err := estargz.Open(src, d.Size, o)
	if !errors.Is(err, estargz.ErrNoTOC) {
		return toc, err
	}
	external, tocErr := i.externalTOC(ctx, d.Digest)
	if tocErr != nil || external == nil {
		return nil, errors.Join(err, tocErr)
	}
	defer func() { _ = external.Close() }()
	o.ExternalTOC = external
	return estargz.Open(src, d.Size, o)
}

// describe tells what a TOC says.
func (l *Layer) describe(r *estargz.Reader, d oci.Descriptor, all bool) {
	footer := r.Footer()
	hints, _ := estargz.ParseHints(d.Annotations) // it was read with them
	l.Format, l.TOCDigest, l.PayloadBytes = footer.Format.String(), r.TOCDigest(), footer.PayloadSize
	l.Vouched = hints.TOCDigest != "" || hints.ManifestChecksum != ""
	l.TOC, l.TarSplit = span(footer.TOC), span(footer.TarSplit)
	for e := range r.Entries() {
		if e.Name == estargz.PrefetchLandmark || e.Name == estargz.NoPrefetchLandmark {
			l.Landmark = e.Name
		}
		l.Names++
		l.Chunks += e.ChunkCount
		if e.Type == layer.Reg {
			l.Files++
			l.FileBytes += e.Size
		}
		if all {
			l.Entries = append(l.Entries, entryOf(r, e))
		}
	}
	l.Prefetch = r.Prioritized()
	size, said := r.PrefetchSize()
	if said {
		l.PrefetchBytes = size
		return
	}
	members := map[int64]int64{} // of a TOC that lists the files: by offset, where they end
	for _, name := range l.Prefetch {
		if e, ok := r.Lookup(name); ok {
			for c := range r.Chunks(r.Resolve(e)) {
				members[c.Offset] = c.EndOffset
			}
		}
	}
	for from, to := range members {
		l.PrefetchBytes += to - from
	}
}

func span(s estargz.Span) *Span {
	if s.Size == 0 {
		return nil
	}
	return &Span{Offset: s.Offset, Size: s.Size, RawSize: s.RawSize}
}

func entryOf(r *estargz.Reader, e estargz.Entry) Entry {
	out := Entry{
		Name: e.Name, Type: e.Type.String(), Mode: e.Mode, UID: e.UID, GID: e.GID, Size: e.Size,
		MTime: time.Unix(e.MTimeSec, int64(e.MTimeNsec)).UTC(), Link: e.Linkname, Digest: e.Digest,
	}
	for c := range r.Chunks(e) {
		out.Chunks = append(out.Chunks, Chunk{
			Offset: c.Offset, EndOffset: c.EndOffset, InnerOffset: c.InnerOffset,
			FileOffset: c.FileOffset, Size: c.Size, Digest: c.Digest, Zeros: c.Zeros,
		})
	}
	return out
}
