package dray

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"

	"dray/internal/inspect"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/record"
	"dray/internal/records"
	"dray/internal/repo"
)

// RecordEntry is a file that a workload read.
type RecordEntry = record.Entry

// RecordList is entries in an order: in memory while they are few, then in a temporary
// file without a name.
type RecordList = record.List

// RecordPaths are names, kept as a [RecordList] is.
type RecordPaths = record.Paths

// WeightedRecord is a record and how much it counts among others.
type WeightedRecord = record.Weighted

// RecordSource says where [Images.Record] looks for a record.
type RecordSource = records.Source

// Sources of records.
const (
	RecordAny      = records.Any      // the first of the following that there is
	RecordImage    = records.Records  // a record image: the reference names it
	RecordAttached = records.Referrer // records attached to the image that the reference names
	RecordLayers   = records.Layers   // the order of files in the image's seekable layers
)

// ErrNoRecord reports an image that has no record of the kind asked for.
var ErrNoRecord = records.ErrNone

// Record is what workloads read of an image, first access first. Who has it closes
// it.
type Record struct {
	Entries *RecordList `json:"-"`

	Source     RecordSource `json:"source,omitempty"`     // empty for a file
	Image      Digest       `json:"image,omitempty"`      // the manifest it came with
	Records    int          `json:"records"`              // that were put together
	Lines      int          `json:"lines"`                // with repeated and skipped ones
	Skipped    int          `json:"skipped_lines"`        // that no image can have
	Unreadable []string     `json:"unreadable,omitempty"` // attached records, or layers, that were skipped, and why
}

// Close lets go of the entries.
func (r *Record) Close() { r.Entries.Close() }

// ReadRecord reads a record: JSON lines, as containerd's tools write them.
func ReadRecord(r io.Reader) (*Record, error) {
	rec, err := record.Read(r, record.Limits{})
	if err != nil {
		return nil, err
	}
	return &Record{Entries: rec.Entries, Records: 1, Lines: rec.Lines, Skipped: rec.Skipped}, nil
}

// NewRecordList returns a list of some entries. [RecordList.WriteTo] writes it as
// [ReadRecord] reads it.
func NewRecordList(entries ...RecordEntry) (*RecordList, error) { return record.ListOf(entries...) }

// MergeRecords makes one order of many records. Each gives a path its weight, in
// whole for the first place and next to nothing for the last.
func MergeRecords(ctx context.Context, parts []WeightedRecord) (*RecordList, error) {
	return record.Merge(ctx, parts)
}

// Record returns the record that a reference has. It wraps [ErrNoRecord] where
// there is none.
func (i *Images) Record(ctx context.Context, reference string, from RecordSource) (found *Record, err error) {
	r, err := i.open(ctx, reference)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	result, err := records.Read(ctx, r, records.Options{From: from, Platform: i.platform, Layer: i.layerLimits()})
	if err != nil {
		return nil, err
	}
	return &Record{
		Entries: result.Entries, Source: result.From, Image: result.Image.Descriptor.Digest,
		Records: result.Count, Lines: result.Lines, Skipped: result.Skipped, Unreadable: result.Unreadable,
	}, nil
}

func (i *Images) layerLimits() layer.Limits {
	return layer.Limits{MaxBytes: i.options.MaxLayerBytes, MaxEntries: i.options.MaxEntries}
}

// PushedRecord is a record in a repository.
type PushedRecord struct {
	Reference string `json:"reference"`
	Digest    Digest `json:"digest"`
	Subject   Digest `json:"subject,omitempty"` // the image that it is attached to
	Entries   int    `json:"entries"`
}

// PushRecord makes a record image and stores it as target.
func (i *Images) PushRecord(ctx context.Context, entries *RecordList, target string) (pushed *PushedRecord, err error) {
	r, err := i.create(ctx, target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d, err := records.Push(ctx, r, entries, i.platform)
	if err != nil {
		return nil, err
	}
	return &PushedRecord{Reference: target, Digest: d.Digest, Entries: entries.Len()}, r.Commit(ctx)
}

// AttachRecord stores a record beside an image, as its referrer (distribution-spec,
// "Listing Referrers"). Of an index it is the image for the platform that gets it.
func (i *Images) AttachRecord(ctx context.Context, entries *RecordList, reference string) (pushed *PushedRecord, err error) {
	image, err := i.subject(ctx, reference)
	if err != nil {
		return nil, err
	}
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	if ref.Transport == oci.OCIArchive {
		return nil, fmt.Errorf("attach record to %s: an archive is written as a whole; attach it to a layout (local://) and copy that: %w", ref, repo.ErrTarget)
	}
	ref.Digest = "" // beside the image, under no name
	r, err := repo.Create(ctx, ref, repo.Options{Registry: i.registry})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d, err := records.Attach(ctx, r, entries, i.platform, image)
	if err != nil {
		return nil, err
	}
	return &PushedRecord{Reference: reference, Digest: d.Digest, Subject: image.Digest, Entries: entries.Len()}, r.Commit(ctx)
}

// subject returns the manifest that a record would be attached to.
func (i *Images) subject(ctx context.Context, reference string) (d oci.Descriptor, err error) {
	err = i.look(ctx, reference, func(image *inspect.Image) error {
		if image.Config == nil {
			return fmt.Errorf("attach record to %s: it is no image but %q: %w", reference, image.Manifest.Config.MediaType, ocidir.ErrNotFound)
		}
		d = image.Descriptor
		return nil
	})
	return d, err
}

// look opens the image that a reference names while do runs.
func (i *Images) look(ctx context.Context, reference string, do func(*inspect.Image) error) (err error) {
	r, err := i.open(ctx, reference)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	image, err := inspect.Open(ctx, r, i.platform)
	if err != nil {
		return err
	}
	return do(image)
}

// RecordUse tells what a record means for an image. Who has it closes it.
type RecordUse struct {
	Reference string
	Manifest  Digest
	Platform  string
	Matched   int         // of them MovedCount under another name
	Missing   RecordPaths // that the image does not show
	Foreign   int         // entries that name another manifest
	Bytes     int64       // of what matched
	Share     float64     // of the image's bytes, 0 to 1
	Layers    []RecordLayerUse
	Notes     []string // what was fallen back to, and why

	plan *record.Plan
}

// RecordLayerUse is a layer's part of a [RecordUse].
type RecordLayerUse struct {
	Digest     Digest
	Paths      RecordPaths // in the record's order
	Bytes      int64       // of them
	TotalFiles int
	TotalBytes int64
}

// MovedCount returns how many of those matched were found by content under another
// name.
func (u *RecordUse) MovedCount() int { return u.plan.MovedCount() }

// Moved returns those, in the record's order.
func (u *RecordUse) Moved() iter.Seq2[record.Move, error] { return u.plan.Moved() }

// Rewrite returns the entries that are in the image, under the names they have
// there, as entries of it. entries are those that were applied.
func (u *RecordUse) Rewrite(entries *RecordList) (*RecordList, error) {
	return u.plan.Rewrite(entries, u.Manifest)
}

// Close lets go of the paths.
func (u *RecordUse) Close() { u.plan.Close() }

// ApplyRecord tells which files of an image a record would put first, layer by
// layer. It reads the TOCs of seekable layers, and all of the others.
func (i *Images) ApplyRecord(ctx context.Context, entries *RecordList, reference string) (use *RecordUse, err error) {
	hash, err := record.ContentSizes(entries)
	if err != nil {
		return nil, err
	}
	u := &RecordUse{Reference: reference}
	err = i.look(ctx, reference, func(image *inspect.Image) error {
		names := image.Names(ctx, inspect.NamesOptions{
			Limits: i.layerLimits(), Hash: hash,
			Note: func(text string) { u.Notes = append(u.Notes, text) }, // one layer after another
		})
		var err error
		if u.plan, err = record.Apply(ctx, entries, names); err != nil {
			return fmt.Errorf("apply record to %s: %w", reference, err)
		}
		u.describe(image)
		for e, err := range entries.All() {
			if err != nil {
				return err
			}
			if m := e.ManifestDigest; m != "" && m != image.Descriptor.Digest {
				u.Foreign++
			}
		}
		return nil
	})
	if err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

func (u *RecordUse) describe(image *inspect.Image) {
	u.Manifest, u.Platform = image.Descriptor.Digest, image.Platform()
	u.Matched, u.Missing, u.Share = u.plan.Matched, u.plan.Missing, u.plan.Share()
	for n, l := range u.plan.Layers {
		u.Bytes += l.Bytes
		u.Layers = append(u.Layers, RecordLayerUse{
			Digest: image.Manifest.Layers[n].Digest, Paths: l.Paths, Bytes: l.Bytes, TotalFiles: l.TotalFiles, TotalBytes: l.TotalBytes,
		})
	}
}

// ReadRecordList makes a record of a list: paths and globs, one a line, in this
// order. The image's files decide what globs mean; missed are the lines that match
// none of them.
func (i *Images) ReadRecordList(ctx context.Context, list io.Reader, reference string) (entries *RecordList, missed []string, err error) {
	lines, err := record.ReadList(list, record.Limits{})
	if err != nil {
		return nil, nil, err
	}
	err = i.look(ctx, reference, func(image *inspect.Image) error {
		entries, missed, err = records.Expand(ctx, image, lines, inspect.NamesOptions{
			Limits: i.layerLimits(),
			Note:   func(text string) { i.log.LogAttrs(ctx, slog.LevelWarn, "record list", slog.String("note", text)) },
		})
		return err
	})
	return entries, missed, err
}
