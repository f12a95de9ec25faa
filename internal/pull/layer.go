package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/apply"
	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
)

// The rings between the stages of a layer: enough blocks that a stage which
// stumbles does not stop its neighbours, while up to two wait to be hashed; few enough
// that 24 MB hold a zstd window beside them.
const (
	storedBlocks     = 5
	storedBlockBytes = 64 << 10
	plainBlocks      = 5
	plainBlockBytes  = 128 << 10
)

// What one layer in flight holds, for the memory formula.
const (
	RingBytes  = storedBlocks*storedBlockBytes + plainBlocks*plainBlockBytes
	CodecBytes = 160 << 10
)

// layerNotes is what only the pipeline knows about a layer.
type layerNotes struct {
	compression  string
	inflated     string
	networkBytes int64
	notes        []string

	seed    string  // that it came from; "" if none
	seedUse string  // what became of it there, see [seed.Hold]
	refused []error // what seeds had of it and was not as it should be, or files of the store

	reuse  string  // why files of the store were used, or were not
	reused *Reused // nil if all of the blob was read
}

// fetch brings one layer from its source into the store: the chain. It returns
// the layer, or what another process has made of it meanwhile.
func (e *Engine) fetch(ctx context.Context, f *flight) (done *store.Layer, found bool, how layerNotes, err error) {
	txn, present, err := e.begin(ctx, f)
	if err != nil || present != nil {
		return present, present != nil, how, err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	f.began = time.Now()
	f.enter(Fetching)
	if done, how, err = e.fromSeeds(ctx, f, txn); done != nil || err != nil {
		return done, false, how, err
	}
	if f.offline {
		return nil, false, how, fmt.Errorf("offline: %w", errors.Join(append(how.refused, store.ErrNotFound)...))
	}
	turn := e.zstd.Turn(ctx)
	defer turn.End()
	if f.blob.MediaType == oci.MediaTypeLayerZst || f.blob.MediaType == oci.MediaTypeDockerLayerZst {
		if err := turn.Wait(); err != nil {
			return nil, false, how, err
		}
	}
	var body io.ReadCloser
	before := how
	if len(f.kin) > 0 {
		done, body, how, err = e.options.Reuse.fromFiles(e, ctx, f, txn, turn)
		how.refused = append(before.refused, how.refused...)
		if done != nil || err != nil {
			return done, false, how, err
		}
		before = how
	}
	if body == nil {
		if body, err = f.source.Blob(ctx, f.blob, 0); err != nil {
			return nil, false, how, err
		}
	}
	defer func() { _ = body.Close() }()
	record, how, err := e.chain(ctx, f, txn, body, turn)
	how.refused, how.reuse = before.refused, before.reuse
	if err != nil {
		return nil, false, how, err
	}
	how.networkBytes = before.networkBytes + f.fetched.Load()
	done, err = e.commit(ctx, f, txn, record)
	return done, false, how, err
}

// chain unpacks a blob into the transaction's directory: one line per stage.
// Whatever is wrong with the blob, it is in the error, and nothing is committed.
func (e *Engine) chain(ctx context.Context, f *flight, txn *store.Txn, body io.Reader, turn *layer.Turn) (record store.LayerRecord, how layerNotes, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stored := stream.NewVerifier(nil, "blob", f.blob.Digest, f.blob.Size)
	fetched := stream.NewVerifiedAhead(ctx, &meter{src: body, flight: f}, stored, stream.HashByReader, e.lanes, storedBlocks, storedBlockBytes)
	defer closeAfter(cancel, fetched)
	o := e.options.Decompress
	o.Turn = turn
	opened, err := layer.Decompress(fetched, o)
	if err != nil {
		return record, how, e.blame(fetched, err)
	}
	defer func() { _ = opened.Close() }()
	plain, verdict := e.verified(ctx, opened, f)
	defer closeAfter(cancel, plain)

	record, err = e.keep(ctx, txn, f, plain)
	if err == nil {
		_, err = stream.Drain(fetched) // what follows the compressed data is part of the blob
	} else {
		_ = plain.Close() // fetched is ours again
		err = e.blame(fetched, err)
	}
	record.SizeBytes = verdict.Count()
	return record, layerNotes{compression: opened.Compression().String(), inflated: opened.Inflated(), notes: record.Notes}, err
}

// verified reads the tar of a flight's layer ahead and verifies it. Where it is unpacked, hashing
// has a goroutine of its own, since making files takes as long as all else; an index is
// made in no time, and another goroutine would cost more (docs/bench.md). The verdict's
// count stands when plain has ended or is closed.
func (e *Engine) verified(ctx context.Context, tar io.Reader, f *flight) (plain *stream.Ahead, verdict *stream.Verifier) {
	by := stream.HashAside
	if f.layout == store.LayoutEROFS {
		by = stream.HashByConsumer
	}
	verdict = stream.NewVerifier(nil, "layer", f.diffID.Digest(), stream.AnySize)
	return stream.NewVerifiedAhead(ctx, tar, verdict, by, e.lanes, plainBlocks, plainBlockBytes), verdict
}

// commit puts a layer that was verified in its place.
func (e *Engine) commit(ctx context.Context, f *flight, txn *store.Txn, record store.LayerRecord) (*store.Layer, error) {
	record.DiffID = f.diffID
	record.Blob = oci.Descriptor{MediaType: f.blob.MediaType, Digest: f.blob.Digest, Size: f.blob.Size}
	if record.Seed != nil {
		record.Seed.Boot = e.options.Store.Boot()
	}
	done, err := txn.Commit(ctx, record)
	if err == nil {
		e.log.LogAttrs(ctx, slog.LevelDebug, "layer stored", slog.String("diff_id", string(f.diffID)), slog.String("layout", record.Layout),
			slog.Int64("stored_bytes", f.blob.Size), slog.Int64("size_bytes", record.SizeBytes), slog.Int64("entries", record.Entries), slog.Duration("elapsed", time.Since(f.began)))
	}
	return done, err
}

// begin starts to write the layer, or returns it if the store has it as the flight
// wants it.
func (e *Engine) begin(ctx context.Context, f *flight) (*store.Txn, *store.Layer, error) {
	if !f.rewrite {
		return e.options.Store.Begin(ctx, f.diffID)
	}
	txn, old, err := e.options.Store.Rewrite(ctx, f.diffID)
	if err != nil || old.Layout != f.layout {
		return txn, nil, err
	}
	return nil, old, txn.Abort() // another process was faster
}

// keep is the last stage: the tar into the transaction's directory, in the layout
// of the flight or, if that cannot express it, unpacked.
func (e *Engine) keep(ctx context.Context, txn *store.Txn, f *flight, plain stream.Blocks) (store.LayerRecord, error) {
	if f.layout != store.LayoutEROFS {
		o := e.options.Apply
		o.Cache = f.cache
		return Unpack(ctx, txn.Path(), plain, e.options.Tar, o)
	}
	record, err := Index(ctx, txn.Path(), f.diffID, plain, e.options.Tar, f.cache)
	if !errors.Is(err, erofs.ErrInexpressible) {
		return record, err
	}
	if e.options.Whole {
		note := fmt.Sprintf("layer %s is stored as %s: %v", f.diffID, store.LayoutTar, err)
		return store.LayerRecord{Layout: store.LayoutTar, Notes: []string{note}}, nil
	}
	e.log.LogAttrs(ctx, slog.LevelWarn, "layer is unpacked: its layout cannot express it", slog.String("diff_id", string(f.diffID)), slog.Any("reason", err))
	record, unpackErr := e.unpackStored(ctx, txn.Path())
	record.Notes = append(record.Notes, fmt.Sprintf("layer %s is stored as %s: %v", f.diffID, store.LayoutDir, err))
	return record, unpackErr
}

// unpackStored unpacks a tar that is in dir, where it is verified, and removes it.
func (e *Engine) unpackStored(ctx context.Context, dir string) (record store.LayerRecord, err error) {
	tar, err := os.Open(filepath.Join(dir, store.TarName)) //nolint:gosec // a path of ours
	if err != nil {
		return record, fmt.Errorf("unpack: %w", err)
	}
	record, err = Unpack(ctx, dir, stream.NewSlicer(tar, plainBlockBytes), e.options.Tar, e.options.Apply)
	return record, errors.Join(err, tar.Close(), os.Remove(tar.Name()))
}

// Unpack stores a layer as a tree below dir, and reads plain to its end. The
// record has what is known of it then.
func Unpack(ctx context.Context, dir string, plain stream.Blocks, limits layer.Limits, options apply.Options) (record store.LayerRecord, err error) {
	root, err := apply.MakeRoot(dir, store.FSName)
	if err != nil {
		return record, fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = root.Close() }()
	journal, err := os.OpenFile(filepath.Join(dir, store.JournalName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return record, fmt.Errorf("unpack: %w", err)
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	options.Journal = journal
	tar := layer.NewTar(plain, limits)
	result, err := apply.Apply(ctx, root, tar, options)
	if err != nil {
		return record, err
	}
	_, err = tar.Drain()
	return store.LayerRecord{Layout: store.LayoutDir, Whiteouts: whiteouts(options.Whiteouts), Entries: result.Entries, DiskBytes: result.DiskBytes, Notes: inexact(&result)}, err
}

// Index stores a layer below dir as it comes, with an index, and reads plain to
// its end. Where the file system has fs-verity it holds both to what they are now. After
// an [erofs.ErrInexpressible] the whole tar is in dir, and no index.
func Index(ctx context.Context, dir string, id oci.DiffID, plain stream.Blocks, limits layer.Limits, cache *apply.PageCache) (record store.LayerRecord, err error) {
	if record, err = storeTar(ctx, dir, id, plain, limits, cache); err != nil {
		return record, err
	}
	for name, measured := range map[string]*string{store.TarName: &record.TarVerity, store.IndexName: &record.IndexVerity} {
		*measured, err = erofs.Seal(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, erofs.ErrNoVerity) {
			return record, err
		}
	}
	return record, nil
}

// storeTar is Index but for what the file system measures.
func storeTar(ctx context.Context, dir string, id oci.DiffID, plain stream.Blocks, limits layer.Limits, cache *apply.PageCache) (record store.LayerRecord, err error) {
	tar, err := os.OpenFile(filepath.Join(dir, store.TarName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return record, fmt.Errorf("store tar: %w", err)
	}
	if _, err := erofs.Measure(int(tar.Fd())); errors.Is(err, unix.ENODATA) {
		cache = nil // to seal a file is to read it
	}
	out := apply.NewBulk(int(tar.Fd()), 0, cache)
	record, err = index(ctx, dir, id, plain, out, limits, 0)
	return record, errors.Join(err, out.Close(), tar.Close())
}

// index makes the index of a tar below dir, reads plain to its end, and writes it to
// tar unless that is nil: then the tar is in a file already, from offset on.
func index(ctx context.Context, dir string, id oci.DiffID, plain stream.Blocks, tar io.Writer, limits layer.Limits, offset int64) (record store.LayerRecord, err error) {
	x, err := erofs.Copy(ctx, id, plain, tar, limits, erofs.Options{Dir: dir, DeviceOffset: offset})
	if err != nil {
		return record, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	f, err := os.OpenFile(filepath.Join(dir, store.IndexName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return record, fmt.Errorf("write index: %w", err)
	}
	indexBytes, err := x.WriteTo(f)
	if err != nil {
		return record, errors.Join(err, f.Close())
	}
	result := x.Result()
	record = store.LayerRecord{
		Layout: store.LayoutEROFS, Whiteouts: store.WhiteoutsTrusted, Entries: result.Entries, DiskBytes: inBlocks(indexBytes),
		Notes: inexact(&apply.Result{OverlayXattrsDropped: result.OverlayXattrsDropped, XattrsImpossible: result.XattrsImpossible}),
	}
	if tar != nil {
		record.DiskBytes += inBlocks(x.TarBytes())
	}
	return record, f.Close()
}

// inBlocks returns what a file takes on the disk.
func inBlocks(sizeBytes int64) int64 {
	return (sizeBytes + apply.BlockBytes - 1) / apply.BlockBytes * apply.BlockBytes
}

// whiteouts returns how the store calls the form.
func whiteouts(f apply.Form) string {
	if f == apply.User {
		return store.WhiteoutsUser
	}
	return store.WhiteoutsTrusted
}

// inexact says what is not as the image has it, for the evidence.
func inexact(r *apply.Result) []string {
	var notes []string
	for _, n := range []struct {
		count int64
		what  string
	}{
		{r.OverlayXattrsDropped, "overlayfs attributes left out: they are never taken from an image"},
		{r.XattrsImpossible, "extended attributes left out: Linux has no place for them"},
		{r.XattrsDenied, "extended attributes left out: not allowed in the user namespace"},
		{r.DevicesOmitted, "devices left out: not allowed in the user namespace"},
		{r.OwnersIgnored, "files with another owner: theirs is not mapped in the user namespace"},
		{r.TimesClamped, "times changed: the file system cannot store them"},
	} {
		if n.count > 0 {
			notes = append(notes, fmt.Sprintf("%d %s", n.count, n.what))
		}
	}
	return notes
}

// blame finds out whose fault it is that a layer could not be unpacked. If its
// blob does not have its digest, the registry's: the rest of the blob is read, no
// further than its own end, to see. Otherwise content that is no layer wraps
// [layer.ErrFormat], and a disk that is full the store's error.
func (e *Engine) blame(fetched *stream.Ahead, err error) error {
	if !isContent(err) {
		return e.options.Store.Explain(err)
	}
	if _, verdict := stream.Drain(fetched); verdict != nil {
		return fmt.Errorf("%w (seen first: %w)", verdict, err)
	}
	if errors.Is(err, layer.ErrFormat) {
		return err
	}
	return fmt.Errorf("%w: %w", layer.ErrFormat, err)
}

// isContent tells whether err can only come from what is in the layer: a damaged
// stream, or names that no file system takes together.
func isContent(err error) bool {
	for _, cause := range []error{
		layer.ErrFormat, io.ErrUnexpectedEOF,
		unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EMLINK, unix.ENOTEMPTY,
	} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// closeAfter ends what a stage waits for before it waits for the stage.
func closeAfter(cancel context.CancelFunc, stage io.Closer) {
	cancel()
	_ = stage.Close()
}

// uncompressedHint returns the uncompressed size that the descriptor promises, 0
// where it promises none. It is not verified, and only for making room.
func uncompressedHint(d oci.Descriptor) int64 {
	n, err := strconv.ParseInt(d.Annotations["io.containers.estargz.uncompressed-size"], 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
