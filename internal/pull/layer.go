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

	"golang.org/x/sys/unix"

	"dray/internal/apply"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
)

// The rings between the stages of a layer: enough blocks that a stage which
// stumbles does not stop its neighbours, few enough for the memory formula.
const (
	storedBlocks     = 4
	storedBlockBytes = 64 << 10
	plainBlocks      = 4
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
	networkBytes int64
	notes        []string
}

// fetch brings one layer from its source into the store: the chain. It returns
// the layer, or what another process has made of it meanwhile.
func (e *Engine) fetch(ctx context.Context, f *flight) (done *store.Layer, found bool, how layerNotes, err error) {
	txn, present, err := e.options.Store.Begin(ctx, f.diffID)
	if err != nil || present != nil {
		return present, present != nil, how, err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	f.enter(Fetching)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	body, err := f.source.Blob(ctx, f.blob, 0)
	if err != nil {
		return nil, false, how, err
	}
	defer func() { _ = body.Close() }()

	stored := stream.NewVerifier(&meter{src: body, flight: f}, "blob", f.blob.Digest, f.blob.Size)
	fetched := stream.NewAhead(ctx, stored, storedBlocks, storedBlockBytes)
	defer closeAfter(cancel, fetched)
	opened, err := layer.Decompress(fetched, e.options.Decompress)
	if err != nil {
		return nil, false, how, e.blame(fetched, err)
	}
	defer func() { _ = opened.Close() }()
	inflated := stream.NewAhead(ctx, opened, plainBlocks, plainBlockBytes)
	defer closeAfter(cancel, inflated)
	plain := stream.NewBlockVerifier(inflated, "layer", f.diffID.Digest(), stream.AnySize)

	result, err := e.unpack(ctx, txn, layer.NewTar(plain, e.options.Tar))
	if err == nil {
		_, err = stream.Drain(fetched) // what follows the compressed data is part of the blob
	} else {
		_ = inflated.Close() // fetched is ours again
		err = e.blame(fetched, err)
	}
	if err != nil {
		return nil, false, how, err
	}
	how = layerNotes{compression: opened.Compression().String(), networkBytes: f.fetched.Load(), notes: inexact(&result)}
	done, err = txn.Commit(ctx, store.LayerRecord{
		DiffID:    f.diffID,
		Layout:    store.LayoutDir,
		Whiteouts: whiteouts(e.options.Apply.Whiteouts),
		Blob:      oci.Descriptor{MediaType: f.blob.MediaType, Digest: f.blob.Digest, Size: f.blob.Size},
		SizeBytes: plain.Count(),
		Entries:   result.Entries,
		Notes:     how.notes,
	})
	if err != nil {
		return nil, false, how, err
	}
	e.log.LogAttrs(ctx, slog.LevelDebug, "layer applied", slog.String("diff_id", string(f.diffID)),
		slog.Int64("stored_bytes", f.blob.Size), slog.Int64("size_bytes", plain.Count()), slog.Int64("entries", result.Entries))
	return done, false, how, nil
}

// unpack is the last stage: the tar into the transaction's directory, and the
// rest of the stream to its end, where its digest is checked.
func (e *Engine) unpack(ctx context.Context, txn *store.Txn, tar *layer.Tar) (result apply.Result, err error) {
	tree := filepath.Join(txn.Path(), store.FSName)
	if err := os.Mkdir(tree, 0o755); err != nil { //nolint:gosec // the layer's root is the image's /
		return result, fmt.Errorf("unpack: %w", err)
	}
	root, err := os.Open(tree) //nolint:gosec // a path of ours
	if err != nil {
		return result, fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = root.Close() }()
	journal, err := os.OpenFile(filepath.Join(txn.Path(), store.JournalName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return result, fmt.Errorf("unpack: %w", err)
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	options := e.options.Apply
	options.Journal = journal
	if result, err = apply.Apply(ctx, root, tar, options); err != nil {
		return result, err
	}
	_, err = tar.Drain()
	return result, err
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
// where it promises none. It is only used to check for space.
func uncompressedHint(d oci.Descriptor) int64 {
	n, err := strconv.ParseInt(d.Annotations["io.containers.estargz.uncompressed-size"], 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
