package dray

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"dray/internal/convert"
	"dray/internal/estargz"
	"dray/internal/inspect"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/progress"
	"dray/internal/record"
	"dray/internal/records"
	"dray/internal/repo"
)

// LayerForm says what [Images.Convert] makes of layers.
type LayerForm string

// Forms of layers.
const (
	FormEStargz         LayerForm = "estargz"          // gzip, with the TOC in the layer
	FormEStargzExternal LayerForm = "estargz-external" // gzip, with the TOC in an image beside
	FormStargz          LayerForm = "stargz"           // eStargz's predecessor: no chunk has a digest, nothing comes first
	FormZstdChunked     LayerForm = "zstdchunked"      // as podman's tools write and read it
	FormZstdContainerd  LayerForm = "zstdchunked-containerd"
	FormUncompressed    LayerForm = "uncompressed"
)

// ErrForm reports a form, or options of one, that there are not.
var ErrForm = errors.New("invalid form of layers")

// ConvertOptions of [Images.Convert].
type ConvertOptions struct {
	Form         LayerForm // must be given
	Level        int       // of compression: gzip 1 to 9, zstd 1 to 22; 0 is the form's default
	ChunkSize    int64     // bytes; 0 is 4 MiB
	MinChunkSize int64     // bytes that a member has at least; 0 is one chunk per member
	KeepDiffID   bool      // leave the tar in the layer as it is
	OCI          bool      // turn Docker's media types into OCI's

	Platforms    []string // of an index, "os", "arch", "os/arch[/variant]"; nil is the client's
	AllPlatforms bool
	Reuse        bool // pass through layers that have the form already
	DryRun       bool // say what would be done

	// What is put first in the layers; at most one.
	Record    io.Reader // a record, JSON lines; it is read to its end
	RecordRef string    // a record image
	Referrers bool      // the records that refer to the source
	CopyFrom  string    // an image that is seekable: what comes first there
	Prefetch  io.Reader // paths and patterns, one a line

	Jobs     int    // layers and workers at once; 0 is one per core
	TempDir  string // for prioritized files that do not fit in memory; "" is the system's
	Memory   string // directory that remembers conversions; "" is [DefaultConversions], "none" is none
	Progress func(Event)
}

// ConvertResult is what a conversion did.
type ConvertResult = convert.Result

// CopyResult is what a copy did.
type CopyResult = convert.CopyResult

// DefaultConversions returns where conversions are remembered: below the user's
// cache directory. It is "" where there is none.
func DefaultConversions() string {
	dir, err := os.UserCacheDir()
	if err != nil || !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Join(dir, "dray", "conversions")
}

// Convert makes the image that source names readable in parts, or plain, and
// stores it as target, which is tagged last. The source stays as it is.
func (i *Images) Convert(ctx context.Context, source, target string, o ConvertOptions) (result *ConvertResult, err error) {
	options, err := i.convertOptions(&o)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", source, err)
	}
	from, err := i.open(ctx, source)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }()
	var skipped []string // of records
	var lists openLists
	defer lists.Close()
	if err := i.order(ctx, from, &o, options, &lists, &skipped); err != nil {
		return nil, fmt.Errorf("convert %s: %w", source, err)
	}
	defer func() {
		if result != nil {
			result.Notes = append(result.Notes, skipped...)
		}
	}()
	if o.DryRun {
		if _, err := oci.ParseReference(target); err != nil {
			return nil, err
		}
		return convert.Run(ctx, from, nil, *options)
	}
	to, err := i.create(ctx, target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if result, err = convert.Run(ctx, from, to, *options); err != nil {
		return nil, err
	}
	return result, to.Commit(ctx)
}

// convertOptions returns the options of the converter, but for what comes first.
func (i *Images) convertOptions(o *ConvertOptions) (*convert.Options, error) {
	options := &convert.Options{
		Form: convert.Form{Level: o.Level, ChunkSize: o.ChunkSize, MinChunkSize: o.MinChunkSize, KeepDiffID: o.KeepDiffID},
		OCI:  o.OCI, AllPlatforms: o.AllPlatforms, Host: i.platform, Reuse: o.Reuse, DryRun: o.DryRun,
		Jobs: o.Jobs, MemoryBytes: i.options.Memory, TempDir: o.TempDir, Log: i.log,
		Limits:   layer.Limits{MaxBytes: i.options.MaxLayerBytes, MaxEntries: i.options.MaxEntries},
		Progress: convertEvents(o.Progress),
	}
	switch o.Form {
	case FormEStargz:
	case FormEStargzExternal:
		options.Format = estargz.EStargzExternal
	case FormStargz:
		options.Format = estargz.LegacyStargz
	case FormZstdChunked:
		options.Format = estargz.ZstdChunked
	case FormZstdContainerd:
		options.Format = estargz.ZstdChunkedContainerd
	case FormUncompressed:
		options.Uncompressed = true
	default:
		return nil, fmt.Errorf("%w: %q", ErrForm, string(o.Form))
	}
	for _, text := range o.Platforms {
		platform, err := oci.ParsePlatform(text)
		if err != nil {
			return nil, err
		}
		options.Platforms = append(options.Platforms, platform)
	}
	dir := o.Memory
	if dir == "" {
		dir = DefaultConversions()
	}
	if dir == "" || dir == "none" {
		return options, nil
	}
	var err error
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	options.Memory, err = convert.OpenMemory(dir)
	return options, err
}

// openLists are lists of entries that a conversion uses.
type openLists []*record.List

func (l *openLists) keep(list *record.List) { *l = append(*l, list) }

// Close closes all of them.
func (l *openLists) Close() {
	for _, list := range *l {
		list.Close()
	}
}

// order sets what comes first. What of several records cannot be read is appended to
// skipped, at the latest when the order has been asked for.
func (i *Images) order(ctx context.Context, from *repo.Repository, o *ConvertOptions, options *convert.Options, lists *openLists, skipped *[]string) error {
	given := 0
	for _, is := range []bool{o.Record != nil, o.RecordRef != "", o.Referrers, o.CopyFrom != "", o.Prefetch != nil} {
		if is {
			given++
		}
	}
	if given > 1 {
		return fmt.Errorf("%w: give one record, or one prefetch list, and not several", convert.ErrOptions)
	}
	limits := record.Limits{}
	read := records.Options{Limits: limits, Layer: options.Limits}
	switch {
	case o.Record != nil:
		rec, err := record.Read(o.Record, limits)
		if err != nil {
			return err
		}
		lists.keep(rec.Entries)
		options.Order = func(context.Context, oci.Descriptor) (*record.List, error) { return rec.Entries, nil }
	case o.RecordRef != "":
		read.From = records.Records
		return i.orderOf(ctx, o.RecordRef, read, options, lists, skipped)
	case o.CopyFrom != "":
		read.From = records.Layers
		return i.orderOf(ctx, o.CopyFrom, read, options, lists, skipped)
	case o.Referrers:
		several := o.AllPlatforms || len(o.Platforms) > 1
		options.Order = func(ctx context.Context, manifest oci.Descriptor) (*record.List, error) {
			found, err := records.Attached(ctx, &inspect.Image{Repository: from, Descriptor: manifest}, read)
			if several && errors.Is(err, records.ErrNone) {
				return nil, nil // of some platforms there are workloads, of others not
			}
			if err != nil {
				return nil, err
			}
			lists.keep(found.Entries)
			noteSkipped(skipped, found)
			return found.Entries, nil
		}
	case o.Prefetch != nil:
		var err error
		options.Globs, err = record.ReadList(o.Prefetch, limits)
		return err
	}
	return nil
}

// orderOf takes the order from another reference: one for all images if it is a
// record image, else that of the image for the same platform.
func (i *Images) orderOf(ctx context.Context, reference string, read records.Options, options *convert.Options, lists *openLists, skipped *[]string) error {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return err
	}
	byPlatform := map[string]*records.Result{}
	options.Order = func(ctx context.Context, manifest oci.Descriptor) (*record.List, error) {
		read.Platform = i.platform
		if manifest.Platform != nil {
			read.Platform = *manifest.Platform
		}
		name := read.Platform.String()
		if byPlatform[name] == nil {
			r, err := repo.Open(ctx, ref, repo.Options{Registry: i.registry})
			if err != nil {
				return nil, err
			}
			defer func() { _ = r.Close() }()
			if byPlatform[name], err = records.Read(ctx, r, read); err != nil {
				return nil, err
			}
			lists.keep(byPlatform[name].Entries)
			noteSkipped(skipped, byPlatform[name])
		}
		return byPlatform[name].Entries, nil
	}
	_, err = options.Order(ctx, oci.Descriptor{}) // what is not there is told before anything is read
	if errors.Is(err, oci.ErrPlatform) {
		return nil // of other platforms it may be
	}
	return err
}

// noteSkipped notes what of a record could not be read.
func noteSkipped(notes *[]string, found *records.Result) {
	for _, why := range found.Unreadable {
		*notes = append(*notes, "skipped of the record: "+why)
	}
}

// convertEvents makes a pull's events of a conversion's, for the same displays.
func convertEvents(deliver func(Event)) func(convert.Event) {
	if deliver == nil {
		return nil
	}
	return func(e convert.Event) {
		deliver(Event{
			Layer: e.Index, Layers: e.Count, Digest: e.Digest, State: stateOf(e), FetchedBytes: e.Bytes, TotalBytes: e.Total,
		})
	}
}

// CopyOptions of [Images.Copy].
type CopyOptions struct {
	Platform    string // of an index, only this image; "" is all of it
	NoReferrers bool   // leave signatures, records and the like behind
	Jobs        int    // blobs at once; 0 is a few
	Progress    func(Event)
}

// Copy copies what source names to target, byte for byte: an image, or an index
// with all of its images, and what refers to them. What the target has is not
// transferred again.
func (i *Images) Copy(ctx context.Context, source, target string, o CopyOptions) (result *CopyResult, err error) {
	options := convert.CopyOptions{NoReferrers: o.NoReferrers, Jobs: o.Jobs, Progress: convertEvents(o.Progress), Log: i.log}
	if o.Platform != "" {
		platform, err := oci.ParsePlatform(o.Platform)
		if err != nil {
			return nil, err
		}
		options.Platform = &platform
	}
	from, err := i.open(ctx, source)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }()
	to, err := i.create(ctx, target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if result, err = convert.Copy(ctx, from, to, options); err != nil {
		return nil, err
	}
	return result, to.Commit(ctx)
}

func stateOf(e convert.Event) progress.State {
	switch {
	case e.Failed:
		return progress.Failed
	case e.Done && e.Present:
		return progress.Present
	case e.Done:
		return progress.Done
	}
	return progress.Fetching
}
