package pull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/seed"
	"dray/internal/store"
	"dray/internal/stream"
)

// seeded is a source with the store's records and seeds before it: a document that
// has a digest comes from where it is, whole and verified, and only otherwise from
// the source. It serves one pull.
type seeded struct {
	Source
	engine  *Engine
	local   bool
	offline bool

	bytes    int64  // of documents that did not come from the source
	manifest string // who had the first document: "store", "seed PATH"; "" for the source
	asked    bool
}

func (e *Engine) overSource(r Request) *seeded {
	return &seeded{Source: r.Source, engine: e, local: r.Local, offline: r.Offline}
}

// resolve finds the image that r asks for.
func (s *seeded) resolve(ctx context.Context, r Request) (*resolved, error) {
	var err error
	if r.Reference, err = s.pin(r.Reference); err != nil {
		return nil, err
	}
	r.Source = s
	return s.engine.resolve(ctx, r)
}

// pin puts the digest into a reference that has none, where nobody else may be
// asked what it means.
func (s *seeded) pin(ref oci.Reference) (oci.Reference, error) {
	if !s.offline || ref.Digest != "" {
		return ref, nil
	}
	name := ref.String()
	digest, err := s.engine.options.Store.Ref(name)
	if errors.Is(err, store.ErrNotFound) {
		var ok bool
		if digest, _, ok = s.engine.options.Seeds.Name(name); ok {
			err = nil
		} else {
			err = fmt.Errorf("offline: neither the store nor a seed whose names are believed knows it; pin it to a digest: %w", err)
		}
	}
	ref.Digest = digest
	return ref, err
}

// by says who had the manifest.
func (s *seeded) by() string {
	switch {
	case s.manifest != "":
		return s.manifest
	case s.local:
		return "local"
	}
	return "network"
}

// Resolve implements [Source].
func (s *seeded) Resolve(ctx context.Context, tag string, digest oci.Digest) (oci.Descriptor, []byte, error) {
	if digest != "" {
		if raw, mediaType, ok := s.document(digest); ok {
			return oci.Descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(raw))}, raw, nil
		}
	}
	s.asked = true
	if s.offline {
		hint := ""
		if s.engine.options.Seeds.WorkDirs() {
			hint = "; work directories of image-rs have none, \"dray store import\" takes their images over"
		}
		return oci.Descriptor{}, nil, fmt.Errorf("offline: neither the store nor a seed has manifest %s%s: %w", digest, hint, store.ErrNotFound)
	}
	return s.Source.Resolve(ctx, tag, digest)
}

// document returns a manifest or index that is here.
func (s *seeded) document(digest oci.Digest) (raw []byte, mediaType string, ok bool) {
	if s.engine.options.Seeds.Empty() {
		return nil, "", false
	}
	if image, err := s.engine.options.Store.Image(digest); err == nil {
		s.took("store", len(image.RawManifest))
		return image.RawManifest, image.Manifest.MediaType, true
	}
	for _, one := range s.engine.options.Seeds.Seeds() {
		if raw, ok := one.Document(digest); ok {
			s.took("seed "+one.Path(), len(raw))
			return raw, "", true // its own field says what it is
		}
	}
	return nil, "", false
}

// Blob implements [Source]: of a config.
func (s *seeded) Blob(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	for _, one := range s.engine.options.Seeds.Seeds() {
		if raw, ok := one.Config(d.Digest); ok && offset == 0 {
			s.took("", len(raw))
			return io.NopCloser(bytes.NewReader(raw)), nil
		}
	}
	if s.offline {
		return nil, fmt.Errorf("offline: no seed has it: %w", store.ErrNotFound)
	}
	return s.Source.Blob(ctx, d, offset)
}

// took notes what did not come from the source.
func (s *seeded) took(from string, sizeBytes int) {
	s.bytes += int64(sizeBytes)
	if !s.asked && s.manifest == "" {
		s.manifest = from
	}
}

// offered tells whether a seed has a layer, as it says, or its blob.
func (e *Engine) offered(j job) (offered bool, refused []error) {
	found, refused := e.options.Seeds.Layers(j.diffID)
	if len(found) > 0 {
		return true, refused
	}
	blobs := e.options.Seeds.Blobs(j.blob)
	for _, b := range blobs {
		_ = b.Close()
	}
	return len(blobs) > 0, refused
}

// fromSeeds brings the layer out of a seed, if one has it: used where it lies if it
// stays there what it was when it was hashed, copied otherwise. done is nil when no
// seed has it as it should be; how then says what was refused. An error is the
// store's.
func (e *Engine) fromSeeds(ctx context.Context, f *flight, txn *store.Txn) (done *store.Layer, how layerNotes, err error) {
	found, refused := e.options.Seeds.Layers(f.diffID)
	how.refused = refused
	for _, l := range found {
		record, use, err := e.take(ctx, f, txn, l)
		if err == nil {
			how.seed, how.seedUse, how.notes = l.Seed.Path(), use, record.Notes
			done, err = e.commit(ctx, f, txn, record)
			return done, how, err
		}
		if ctx.Err() != nil || !isSeeds(err) {
			return nil, how, e.options.Store.Explain(err)
		}
		e.refuse(ctx, f, &how, &seed.RefusedError{Seed: l.Seed.Path(), DiffID: f.diffID, Cause: err})
		if err := txn.Reset(); err != nil {
			return nil, how, err
		}
	}
	blobs := e.options.Seeds.Blobs(f.blob)
	defer func() {
		for _, blob := range blobs {
			_ = blob.Close()
		}
	}()
	for _, blob := range blobs {
		record, notes, err := e.chain(ctx, f, txn, blob, e.zstd.Turn(ctx))
		if err == nil {
			notes.refused, how = how.refused, notes
			how.seed, how.seedUse = blob.Seed.Path(), seed.Loose.String()
			done, err = e.commit(ctx, f, txn, record)
			return done, how, err
		}
		if ctx.Err() != nil || !isSeeds(err) {
			return nil, how, err
		}
		e.refuse(ctx, f, &how, &seed.RefusedError{Seed: blob.Seed.Path(), DiffID: f.diffID, Cause: err})
		if err := txn.Reset(); err != nil {
			return nil, how, err
		}
	}
	return nil, how, nil
}

func (e *Engine) refuse(ctx context.Context, f *flight, how *layerNotes, err error) {
	f.fetched.Store(0)
	how.refused = append(how.refused, err)
	e.log.LogAttrs(ctx, slog.LevelWarn, "layer of a seed refused", slog.Any("error", err))
}

// isSeeds tells whether an error can only be the seed's: what it holds, or that it
// cannot be read.
func isSeeds(err error) bool {
	return errors.Is(err, seed.ErrRefused) || errors.Is(err, errSeedRead) || errors.Is(err, stream.ErrMismatch) ||
		errors.Is(err, stream.ErrTooLarge) || errors.Is(err, store.ErrVersion) || isContent(err) || isLimit(err)
}

func isLimit(err error) bool {
	var limit *layer.LimitError
	return errors.As(err, &limit)
}

// errSeedRead marks errors of reading a seed, whatever they are: EIO, ESTALE.
var errSeedRead = errors.New("cannot be read")

// marked marks the errors of a reader.
type marked struct{ io.Reader }

// Read implements [io.Reader].
func (m marked) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", errSeedRead, err)
	}
	return n, err
}

// take makes a layer out of what a seed has of it, and says how.
func (e *Engine) take(ctx context.Context, f *flight, txn *store.Txn, l *seed.Layer) (record store.LayerRecord, use string, err error) {
	whole := f.rewrite || e.options.Whole
	if l.Seed.Trusted() && !whole {
		if record, ok := e.takeAsIs(ctx, txn, l); ok {
			return record, seed.Trusted.String(), nil
		}
	}
	tar, err := l.OpenTar(ctx)
	if err != nil {
		return record, "", err
	}
	defer func() { _ = tar.Close() }()
	if limit := e.options.Decompress.MaxBytes; limit > 0 && tar.Size > limit {
		return record, "", fmt.Errorf("%d bytes, the limit is %d: %w", tar.Size, limit, stream.ErrTooLarge)
	}
	f.enter(Fetching)
	if f.layout == store.LayoutEROFS && !whole {
		record, use, err = e.takeInPlace(ctx, f, txn, l, tar)
		if err != nil || use != "" {
			return record, use, err
		}
	}
	plain := stream.NewBlockVerifier(stream.NewSlicer(marked{tar}, plainBlockBytes), "layer", f.diffID.Digest(), stream.AnySize)
	record, err = e.keep(ctx, txn, f, plain)
	record.SizeBytes = plain.Count()
	return record, seed.Loose.String(), err
}

// takeAsIs uses a trusted seed's own index or tree, and reads nothing of the tar. Indexes
// have whiteouts in the trusted form, trees in that of their record.
func (e *Engine) takeAsIs(ctx context.Context, txn *store.Txn, l *seed.Layer) (record store.LayerRecord, ok bool) {
	record = l.Record
	record.UnsyncedBoot, record.DiskBytes = "", 0
	if !e.options.Apply.UserNS {
		if record.Seed, record.DiskBytes = e.indexOf(ctx, txn, l); record.Seed != nil {
			record.Layout, record.Whiteouts = store.LayoutSeed, store.WhiteoutsTrusted
			return record, true
		}
	}
	if l.Record.Whiteouts != whiteouts(e.options.Apply.Whiteouts) {
		return record, false
	}
	record.Layout = store.LayoutDir
	record.Seed, _ = l.Tree() // without one, the tar has to be read
	return record, record.Seed != nil
}

// indexOf returns where the tar of a trusted layer lies, with the seed's index over it,
// or nil if the kernel does not mount the two. In an archive the tar begins elsewhere
// than the index says: then one that is right is made of it, of so many bytes.
func (e *Engine) indexOf(ctx context.Context, txn *store.Txn, l *seed.Layer) (ref *store.SeedRef, diskBytes int64) {
	if l.Record.Layout != store.LayoutEROFS {
		return nil, 0
	}
	index, err := l.OpenIndex()
	if err != nil {
		return nil, 0
	}
	defer func() { _ = index.Close() }()
	tar, err := l.OpenTar(ctx)
	if err != nil {
		return nil, 0
	}
	defer func() { _ = tar.Close() }()
	place, _, err := tar.Place(l.Seed)
	if err != nil || place == nil || (place.Ref.Offset == 0) != (index.Path != "") {
		return nil, 0
	}
	path := index.Path
	if path == "" {
		path = filepath.Join(txn.Path(), store.IndexName)
		if diskBytes, err = shiftIndex(path, index, place.Ref.Offset); err != nil {
			e.log.LogAttrs(ctx, slog.LevelInfo, "index of a trusted seed is made anew", slog.Any("error", err))
		}
	}
	if err == nil {
		err = tryMount(path, place.File)
	}
	if err != nil && index.Path == "" {
		_ = os.Remove(path) // or the next to make one finds it
	}
	if err != nil {
		return nil, 0
	}
	place.Ref.Index = index.Path
	return &place.Ref, diskBytes
}

// shiftIndex writes an index for a tar at an offset.
func shiftIndex(path string, index *seed.Index, offset int64) (diskBytes int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return 0, err
	}
	err = erofs.Shift(f, index, index.Size(), offset)
	return inBlocks(index.Size()), errors.Join(err, f.Close())
}

// takeInPlace hashes a tar where it lies, unless it is trusted, and makes an index
// over it. use is "" when the tar cannot be used there: then it is still to be read.
func (e *Engine) takeInPlace(ctx context.Context, f *flight, txn *store.Txn, l *seed.Layer, tar *seed.Tar) (record store.LayerRecord, use string, err error) {
	place, why, err := tar.Place(l.Seed)
	if err != nil || place == nil || place.Hold == seed.Loose || place.Ref.Offset%erofs.BlockBytes != 0 {
		e.log.LogAttrs(ctx, slog.LevelDebug, "layer of a seed is copied", slog.String("diff_id", string(f.diffID)), slog.String("reason", why), slog.Any("error", err))
		return record, "", err
	}
	var plain stream.Blocks = stream.NewSlicer(marked{io.NewSectionReader(place.File, place.Ref.Offset, tar.Size)}, plainBlockBytes)
	if place.Hold != seed.Trusted {
		plain = stream.NewBlockVerifier(plain, "layer", f.diffID.Digest(), tar.Size)
	}
	record, err = index(ctx, txn.Path(), f.diffID, plain, nil, e.options.Tar, place.Ref.Offset)
	if errors.Is(err, erofs.ErrInexpressible) {
		return record, "", nil
	}
	if err != nil {
		return record, "", err
	}
	path := filepath.Join(txn.Path(), store.IndexName)
	if err := e.tryThere(path, place); err != nil {
		e.log.LogAttrs(ctx, slog.LevelInfo, "layer of a seed is copied: it cannot be mounted where it lies", slog.String("diff_id", string(f.diffID)), slog.Any("error", err))
		return record, "", os.Remove(path)
	}
	now, err := store.IdentifyFile(place.File)
	if err == nil && now != place.Ref.File {
		err = fmt.Errorf("%w: changed while it was read", errSeedRead)
	}
	record.Layout, record.Seed, record.SizeBytes = store.LayoutSeed, &place.Ref, tar.Size
	return record, place.Hold.String(), err
}

// places is where an index and its tar are: two file systems.
type places struct{ index, tar uint64 }

// tryThere is [tryMount] with an index of ours. What the kernel has mounted once it mounts
// for all layers that lie in the same places, and a mount that goes away makes its process
// wait for all others. That it does not may pass.
func (e *Engine) tryThere(index string, place *seed.Place) error {
	var st unix.Stat_t
	if err := unix.Lstat(index, &st); err != nil {
		return &os.PathError{Op: "stat", Path: index, Err: err}
	}
	there := places{index: st.Dev, tar: place.Ref.File.Dev}
	e.mu.Lock()
	tried := e.mountable[there]
	e.mu.Unlock()
	if tried {
		return nil
	}
	if err := tryMount(index, place.File); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mountable[there] = true
	return nil
}

// tryMount finds out whether the kernel mounts an index with the tar where it lies.
func tryMount(index string, tar *os.File) error {
	f, err := os.Open(index) //nolint:gosec // ours, or trusted
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	fd, err := erofs.Mount(erofs.Files, int(f.Fd()), int(tar.Fd()))
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
