package pull

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"dray/internal/estargz"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
)

// Reuse makes an engine take files that the store has from there, and fetch only the
// rest of a seekable layer. It is an option by itself, so that programs that do not make
// one do not hold what it takes.
type Reuse struct {
	always bool
	pays   func(estimate) (paid bool, why string)

	kin       func(*Engine, Request, *resolved) ([]oci.DiffID, error)
	fromFiles func(*Engine, context.Context, *flight, *store.Txn, *layer.Turn) (*store.Layer, io.ReadCloser, layerNotes, error)
}

// ReuseFiles reuses files of images of the same repository, where that pays by what the
// layer's first bytes teach of the network; or always, of all layers, whatever it saves.
func ReuseFiles(always bool) *Reuse {
	r := &Reuse{always: always, pays: estimate.pays, kin: (*Engine).kin, fromFiles: (*Engine).fromFiles}
	if always {
		r.pays = func(e estimate) (bool, string) { return e.sparedBytes > 0, "" }
	}
	return r
}

const (
	leastLayerBytes = 8 << 20   // compressed: a smaller layer is fetched whole before much is known of it
	leastPartBytes  = 256 << 10 // compressed: what lies between two ranges is fetched if it is less
	tocShare        = 16        // what a TOC may take of its layer, at most: one part in so many

	// leadBytes of the layer show how fast the network is, and are kept meanwhile.
	leadBytes     = 1 << 20
	maxKin        = 4         // images of which layers are searched
	maxKinLayers  = 64        // layers that are searched, for the files that are open meanwhile
	maxKinEntries = 256 << 10 // files in them
	maxCandidates = 2         // files that are hashed for one that is wanted
	maxTOCBytes   = 64 << 20
	tailBytes     = 64 << 10
)

// Reused tells what of a layer came out of the store's files instead of its blob.
type Reused struct {
	Files       int        `json:"files"`
	SizeBytes   int64      `json:"size_bytes"`           // uncompressed, that were copied
	StoredBytes int64      `json:"stored_bytes"`         // of the blob, that were not fetched
	Requests    int64      `json:"requests"`             // for parts of the blob, its TOC among them
	TOC         oci.Digest `json:"toc_digest,omitempty"` // as the manifest has it, and was compared
}

// errParts marks what makes it impossible to put a layer together, so that it is
// fetched whole.
var errParts = errors.New("cannot be put together")

// partial is a layer that is put together of parts of its blob and of files that
// the store has. The diff ID judges what comes of it, and nothing else does.
type partial struct {
	engine     *Engine
	flight     *flight
	hints      estargz.Hints
	open       func(ctx context.Context, offset, size int64) (io.ReadCloser, error)
	decompress layer.Options

	spent, requests atomic.Int64

	// What was read to know the network, and what follows it, unless always.
	known estimate
	lead  []byte
	rest  io.ReadCloser

	footer      estargz.Footer
	compression string
	verified    oci.Digest // of the TOC, as the manifest has it
	kin         []*store.Files
	parts       []placed            // in the order of the blob
	plain       *layer.Decompressor // of the ranges, once there is one
}

// placed is a part of the layer, and where the store may have it.
type placed struct {
	estargz.Part
	candidates []candidate
}

// candidate is a file of a layer that may be a wanted one.
type candidate struct {
	files *store.Files
	at    store.FileAt
}

// fromFiles puts the layer together if that pays. done is nil if it does not, or
// could not be; how then says why, what was refused and what was received, and whole, if
// not nil, is the blob, which was opened to find out.
func (e *Engine) fromFiles(ctx context.Context, f *flight, txn *store.Txn, turn *layer.Turn) (done *store.Layer, whole io.ReadCloser, how layerNotes, err error) {
	p := e.partial(f)
	if p == nil {
		return nil, nil, how, nil
	}
	p.decompress = e.options.Decompress
	p.decompress.Turn, p.decompress.Cores = turn, nil
	defer p.close()
	if err := p.sound(ctx); err != nil {
		return nil, nil, how, err
	}
	var worth bool
	if worth, how.reuse = e.options.Reuse.pays(p.known); worth {
		done, err = p.try(ctx, txn, &how)
	}
	how.networkBytes = p.spent.Load()
	if err == nil {
		return done, p.whole(), how, nil
	}
	if ctx.Err() != nil || !errors.Is(err, errParts) && !errors.Is(err, stream.ErrMismatch) && !isContent(err) && !isLimit(err) {
		return nil, nil, how, e.options.Store.Explain(err)
	}
	err = fmt.Errorf("layer %s is fetched whole, files of the store could not be used: %w", f.diffID, err)
	e.log.LogAttrs(ctx, slog.LevelWarn, "layer is fetched whole", slog.String("diff_id", string(f.diffID)), slog.Any("error", err))
	how.reuse, how.refused = "", append(how.refused, err)
	f.fetched.Store(0)
	return nil, p.whole(), how, txn.Reset()
}

// partial returns nil where nothing can be saved, as far as that is known for nothing.
func (e *Engine) partial(f *flight) *partial {
	source, ok := f.source.Source.(Ranged)
	if !ok || len(f.kin) == 0 || !e.seekable(f.blob) {
		return nil
	}
	hints, err := estargz.ParseHints(f.blob.Annotations)
	if err != nil {
		return nil // it is a layer like any other
	}
	open, err := source.BlobParts(f.blob)
	if err != nil {
		return nil
	}
	p := &partial{engine: e, flight: f, hints: hints}
	p.open = func(ctx context.Context, offset, size int64) (io.ReadCloser, error) {
		lead := int64(len(p.lead))
		have := p.lead[min(offset, lead):min(offset+size, lead)]
		if size -= int64(len(have)); size == 0 {
			return io.NopCloser(bytes.NewReader(have)), nil
		}
		p.requests.Add(1)
		body, err := open(ctx, offset+int64(len(have)), size)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errParts, err)
		}
		return joined(have, &metered{body, &p.spent}), nil
	}
	return p
}

// joined reads have, then rest, which it closes.
func joined(have []byte, rest io.ReadCloser) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(have), rest), rest}
}

// sound opens the blob and reads its lead, to know the way to it: the faster half
// counts, since a connection begins slowly and a crowded machine looks late. What is
// known of the layer is that no more can be spared than all of it.
func (p *partial) sound(ctx context.Context) (err error) {
	size := p.flight.blob.Size
	p.known = estimate{blobBytes: size, sparedBytes: size, copiedBytes: size, requests: 1}
	if p.engine.options.Reuse.always {
		return nil
	}
	began := time.Now()
	if p.rest, err = p.flight.source.Blob(ctx, p.flight.blob, 0); err != nil {
		return err
	}
	p.known.latency = time.Since(began)
	p.lead = make([]byte, leadBytes)
	for _, half := range [][]byte{p.lead[:leadBytes/2], p.lead[leadBytes/2:]} {
		began = time.Now()
		if _, err := io.ReadFull(p.rest, half); err != nil {
			return err
		}
		p.known.bytesPerSecond = max(p.known.bytesPerSecond, float64(len(half))/time.Since(began).Seconds())
	}
	return nil
}

// whole returns the blob from its beginning if it is open. The caller closes it.
func (p *partial) whole() io.ReadCloser {
	rest := p.rest
	if p.rest = nil; rest == nil {
		return nil
	}
	return joined(p.lead, rest)
}

// try puts the layer together, if that still pays when its TOC is known.
func (p *partial) try(ctx context.Context, txn *store.Txn, how *layerNotes) (done *store.Layer, err error) {
	lease, err := p.engine.options.Store.Lease(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lease.Release()) }()
	if err := lease.Add(ctx, p.flight.kin...); err != nil {
		return nil, err
	}
	var worth bool
	if worth, how.reuse, err = p.worth(ctx); err != nil || !worth {
		return nil, err
	}
	if p.rest != nil { // more than its lead is not wanted any more
		_ = p.rest.Close()
		p.rest = nil
		p.spent.Add(int64(len(p.lead)))
		p.requests.Add(1)
	}
	record, reused, err := p.make(ctx, txn)
	if err != nil {
		return nil, err
	}
	how.reused, how.compression, how.notes = &reused, p.compression, record.Notes
	return p.engine.commit(ctx, p.flight, txn, record)
}

// seekable tells whether a layer says where its files are, and is worth asking.
func (e *Engine) seekable(d oci.Descriptor) bool {
	if oci.IsEncrypted(d.MediaType) || !e.options.Reuse.always && d.Size < leastLayerBytes {
		return false
	}
	hints, err := estargz.ParseHints(d.Annotations)
	return err == nil && (hints.TOCDigest != "" || hints.ManifestChecksum != "")
}

// kin lists layers that may have files of the image: those of images that the store
// has by names in the same repository, the latest first.
func (e *Engine) kin(r Request, found *resolved) ([]oci.DiffID, error) {
	_, ranged := r.Source.(Ranged)
	if r.Local || r.Offline || !ranged || !slices.ContainsFunc(found.document.Layers, e.seekable) {
		return nil, nil
	}
	if e.options.Reuse.always {
		layers, err := e.options.Store.Layers()
		if errors.Is(err, store.ErrCorrupt) {
			err = nil // the others will do
		}
		ids := make([]oci.DiffID, 0, len(layers))
		for _, l := range layers {
			ids = append(ids, l.DiffID)
		}
		return ids[:min(len(ids), maxKinLayers)], err
	}
	refs, err := e.options.Store.Refs()
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return nil, err
	}
	var images []*store.Image
	for _, ref := range refs {
		named, err := oci.ParseReference(ref.Name)
		if err != nil || named.Transport != r.Reference.Transport || named.Name() != r.Reference.Name() {
			continue
		}
		if image, err := e.options.Store.Image(ref.Digest); err == nil {
			images = append(images, image)
		}
	}
	slices.SortFunc(images, func(a, b *store.Image) int { return b.Pulled.Compare(a.Pulled) })
	var ids []oci.DiffID
	for _, image := range images[:min(len(images), maxKin)] {
		for _, id := range slices.Backward(image.DiffIDs) {
			if !slices.Contains(ids, id) && len(ids) < maxKinLayers {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

func (p *partial) close() {
	if p.rest != nil {
		_ = p.rest.Close()
	}
	if p.plain != nil {
		_ = p.plain.Close()
	}
	for _, files := range p.kin {
		files.Close()
	}
}

// worth finds out whether files of the store may spare enough. They are looked for, and
// not read.
func (p *partial) worth(ctx context.Context) (paid bool, why string, err error) {
	if err := p.readTOC(ctx); err != nil {
		return false, "", err
	}
	if err := p.search(ctx); err != nil {
		return false, "", err
	}
	p.known.sparedBytes, p.known.copiedBytes = 0, 0
	for i, at := 0, int64(0); i < len(p.parts); i++ {
		part := &p.parts[i]
		if part.Offset > at {
			p.known.requests++
		}
		at = part.EndOffset
		p.known.sparedBytes += part.Stored()
		p.known.copiedBytes += part.Size
	}
	paid, why = p.engine.options.Reuse.pays(p.known)
	return paid, why, nil
}

// readTOC sets the parts, of which nothing else is known yet.
func (p *partial) readTOC(ctx context.Context) error {
	tail, err := p.locate(ctx)
	if errors.Is(err, estargz.ErrNoTOC) {
		return nil
	}
	at := p.footer.TOC
	if err != nil || p.footer.Format == estargz.EStargzExternal || at.Size > p.flight.blob.Size/tocShare {
		return err // a TOC elsewhere would have to be looked for, one that large has small files
	}
	var stored io.Reader
	if from := at.Offset - (p.flight.blob.Size - int64(len(tail))); from >= 0 {
		stored = bytes.NewReader(tail[from:][:at.Size])
	} else {
		body, err := p.open(ctx, at.Offset, at.Size)
		if err != nil {
			return err
		}
		defer func() { _ = body.Close() }()
		stored = body
	}
	if p.hints.ManifestChecksum != "" {
		stored = stream.NewVerifier(stored, "compressed TOC", p.hints.ManifestChecksum, at.Size)
	}
	// Its window may be larger than those of all members: it goes when it was read.
	text, err := layer.Decompress(stored, p.decompress)
	if err != nil {
		return fmt.Errorf("%w: read TOC: %w", errParts, err)
	}
	defer func() { _ = text.Close() }()
	p.compression = text.Compression().String()
	least := int64(leastPartBytes)
	if p.engine.options.Reuse.always {
		least = 1
	}
	parts, digest, err := estargz.ReadParts(text, p.footer, least, estargz.Limits{MaxTOCBytes: maxTOCBytes})
	if err == nil {
		_, err = io.Copy(io.Discard, text)
	}
	if err == nil && p.hints.TOCDigest != "" && digest != p.hints.TOCDigest {
		err = &stream.MismatchError{What: "TOC", Want: p.hints.TOCDigest, Got: digest, WantSize: stream.AnySize}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errParts, err)
	}
	p.parts = make([]placed, 0, len(parts))
	for _, part := range parts {
		p.parts = append(p.parts, placed{Part: part})
	}
	p.verified = cmp.Or(p.hints.TOCDigest, p.hints.ManifestChecksum)
	return nil
}

// locate finds the TOC, and returns the end of the blob if that was read for it.
func (p *partial) locate(ctx context.Context) ([]byte, error) {
	size := p.flight.blob.Size
	if at := p.hints.TOC; at.Size > 0 {
		var err error
		p.footer, err = estargz.HintedFooter(p.hints, size)
		return nil, marks(err)
	}
	tail := make([]byte, min(size, tailBytes))
	body, err := p.open(ctx, size-int64(len(tail)), int64(len(tail)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	if _, err := io.ReadFull(body, tail); err != nil {
		return nil, marks(err)
	}
	p.footer, err = estargz.ParseFooter(tail, size)
	return tail, marks(err)
}

// search finds files of the right sizes, those of the right names first, and leaves
// only parts that have some.
func (p *partial) search(ctx context.Context) error {
	sizes, names := map[int64]bool{}, make([]string, 0, len(p.parts))
	wanted := map[int64][]*placed{}
	for i := range p.parts {
		one := &p.parts[i]
		sizes[one.FileSize] = true
		names = append(names, one.Name)
		wanted[one.FileSize] = append(wanted[one.FileSize], one)
	}
	var entries int64
	for _, id := range p.flight.kin {
		l, err := p.engine.options.Store.Layer(id)
		if err != nil {
			continue // it has gone
		}
		if entries += l.Entries; entries > maxKinEntries {
			break
		}
		files, err := l.Files()
		if err != nil {
			continue
		}
		p.kin = append(p.kin, files)
		err = files.Find(ctx, sizes, names, func(at store.FileAt) error {
			for _, one := range wanted[at.Size] {
				one.offer(candidate{files, at})
			}
			return nil
		})
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			p.engine.log.LogAttrs(ctx, slog.LevelWarn, "layer of the store cannot be searched for files", slog.String("diff_id", string(id)), slog.Any("error", err))
		}
	}
	p.parts = slices.DeleteFunc(p.parts, func(one placed) bool { return len(one.candidates) == 0 })
	return nil
}

// offer takes a file that may be the one: that of the same name or, in its absence, a
// few others. Names of others are not kept.
func (one *placed) offer(c candidate) {
	named := c.at.Name == one.Name
	if c.at.Name = ""; named {
		c.at.Name = one.Name
	}
	switch had := len(one.candidates) > 0 && one.candidates[0].at.Name == one.Name; {
	case named && !had:
		one.candidates = []candidate{c}
	case named == had && len(one.candidates) < maxCandidates:
		one.candidates = append(one.candidates, c)
	}
}

// make puts the layer together in the transaction's directory.
func (p *partial) make(ctx context.Context, txn *store.Txn) (record store.LayerRecord, reused Reused, err error) {
	ctx, cancel := context.WithCancel(ctx)
	row := newRow(ctx, p)
	plain, verdict := p.engine.verified(ctx, row, p.flight)
	record, err = p.engine.keep(ctx, txn, p.flight, plain)
	closeAfter(cancel, plain)
	record.SizeBytes = verdict.Count()
	closeAfter(cancel, row) // now all that is known of it is
	reused = row.reused
	reused.Requests, reused.TOC = p.requests.Load(), p.verified
	return record, reused, err
}
