package estargz

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/stream"
)

// ErrUnsupported reports a layer that the chosen format cannot hold.
var ErrUnsupported = errors.New("layer cannot be made seekable")

// Defaults of [Options].
const (
	DefaultChunkSize   = 4 << 20
	DefaultGzipLevel   = 6
	DefaultZstdLevel   = 3
	DefaultSpillMemory = 8 << 20

	maxChunkSize = 256 << 20

	// unitBytes is the least a worker gets at once. Units end where members do, so
	// that neither depends on who compresses what.
	unitBytes = 1 << 20
)

// Options of [Write]. The zero value is the default.
type Options struct {
	Format    Format
	Level     int   // of gzip 1 to 9, of zstd 1 to 22; 0 is [DefaultGzipLevel] or [DefaultZstdLevel]
	ChunkSize int64 // bytes, 256 MiB at most; 0 is [DefaultChunkSize]

	// MinChunkSize puts chunks into one member until it holds this many
	// uncompressed bytes. Containerd's writer counts compressed ones, which would
	// make the place of a boundary wait for what is before it. 0 is one chunk per
	// member. Only eStargz has it.
	MinChunkSize int64

	// Prioritized names what to put first, in this order, each behind its parents
	// and what it is a hard link to. Names that the layer does not have are
	// skipped. With names, the layer is read more than once. [LegacyStargz] cannot
	// say what is first, and has none.
	Prioritized []string

	// Lossless keeps the tar, and so its diffID, as it is. The names in
	// Prioritized are listed in the TOC instead of moved. The TOC is not in the
	// tar, so the format must be neither [EStargz] nor [LegacyStargz].
	Lossless bool

	// TOC gets the TOC's blob of an [EStargzExternal] layer.
	TOC io.Writer

	Jobs        int            // workers; 0 is one per core. The bytes do not depend on it.
	Budget      *stream.Budget // that the units share with others; nil for none
	TempDir     string         // for prioritized files and a TOC beyond SpillMemory; "" is the system's
	SpillMemory int64          // bytes, of each of the two; 0 is [DefaultSpillMemory]
	Limits      layer.Limits
}

// Result is what [Write] has made.
type Result struct {
	Digest           oci.Digest
	Size             int64
	DiffID           oci.DiffID
	UncompressedSize int64
	TOCDigest        oci.Digest
	ExternalTOC      oci.Descriptor    // of what was written to [Options.TOC]; its annotation is set by who knows the layer
	MediaType        string            // OCI's
	Annotations      map[string]string // for the layer's descriptor
	Entries          int
	Matched          []string // of [Options.Prioritized]
	Missed           []string // likewise
}

func (o *Options) check() error {
	o.ChunkSize = cmp.Or(o.ChunkSize, DefaultChunkSize)
	o.Jobs = cmp.Or(o.Jobs, runtime.GOMAXPROCS(0))
	o.SpillMemory = cmp.Or(o.SpillMemory, DefaultSpillMemory)
	highest, level := 9, DefaultGzipLevel
	if o.Format.zstd() {
		highest, level = 22, DefaultZstdLevel
	}
	o.Level = cmp.Or(o.Level, level)
	switch {
	case o.Format > ZstdChunkedContainerd:
		return fmt.Errorf("write layer: unknown format %v", o.Format)
	case o.Level < 1 || o.Level > highest:
		return fmt.Errorf("write layer: level %d is not within 1 and %d", o.Level, highest)
	case o.ChunkSize < 1 || o.ChunkSize > maxChunkSize:
		return fmt.Errorf("write layer: chunk size %d is not within 1 and %d", o.ChunkSize, maxChunkSize)
	case o.MinChunkSize < 0 || o.MinChunkSize > maxChunkSize || o.MinChunkSize > 0 && (o.Format.zstd() || o.Format == LegacyStargz):
		return fmt.Errorf("write layer: min chunk size %d is not possible with %v", o.MinChunkSize, o.Format)
	case o.Prioritized != nil && o.Format == LegacyStargz:
		return errors.New("write layer: nothing can come first in stargz")
	case o.Lossless && o.Format.inTar():
		return errors.New("write layer: the TOC must be external to keep the diffID")
	case o.Format == EStargzExternal && o.TOC == nil:
		return errors.New("write layer: nothing to write the external TOC to")
	case o.Jobs < 1:
		return fmt.Errorf("write layer: %d jobs", o.Jobs)
	}
	return nil
}

// Write makes a seekable layer of a tar, which open opens from its start, not
// compressed, each time it is called: once, or twice and in rare cases more with
// prioritized names. A digest that open verifies must be verified at the end of
// each. The same tar and options give the same bytes, however many jobs there are.
//
// Dropped are landmarks and TOCs that are there, and of a prioritized name all but
// the last entry. Sparse files become full ones. What dst has got when Write
// fails is of no use.
func Write(ctx context.Context, dst io.Writer, open func(context.Context) (io.ReadCloser, error), o Options) (*Result, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &plan{}
	if len(o.Prioritized) > 0 {
		var err error
		if p, err = newPlan(ctx, open, &o); err != nil {
			return nil, err
		}
		defer p.close()
	}
	unit := 2 * (unitBytes + o.ChunkSize + o.MinChunkSize)
	units := 2*o.Jobs + 1
	if o.Budget != nil {
		units = int(min(int64(units), max(1, o.Budget.Total()/unit)))
		reserved := min(unit, o.Budget.Total())
		if err := o.Budget.Acquire(ctx, reserved); err != nil {
			return nil, err
		}
		n := 1
		for n < units && o.Budget.TryAcquire(unit) {
			reserved += unit
			n++
		}
		units = n
		defer func() { o.Budget.Release(reserved) }()
	}
	group, ctx := errgroup.WithContext(ctx)
	w := &writer{
		ctx: ctx, o: &o, plan: p,
		free:    make(chan *unitOf, units), // all units fit
		work:    make(chan *unitOf, units), // likewise
		ordered: make(chan *unitOf, units), // likewise
	}
	for range units {
		w.free <- &unitOf{done: make(chan struct{}, 1)} // a unit is compressed once before it is awaited
	}
	c, err := newCollector(dst, &o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	group.Go(func() error {
		defer close(w.work)
		defer close(w.ordered)
		return w.produce(open)
	})
	for range o.Jobs {
		group.Go(func() error { return compressUnits(w.work, &o) })
	}
	group.Go(func() error { return c.run(ctx, w.ordered, w.free) })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return c.finish(p)
}

// unitOf is what a worker gets at once: whole members.
type unitOf struct {
	data  []byte
	ends  []int // of members in data
	items []item

	out     []byte
	outEnds []int
	done    chan struct{}
}

// item is a TOC entry, or a chunk of the last one.
type item struct {
	entry      *tocEntry // nil for chunks behind the first
	member     int
	inner      int64
	from, to   int   // the chunk in data; both where the header ends if there is none
	fileOffset int64 // of the chunk
	last       bool  // nothing of the file follows
	digest     sum   // set by the worker
}

// writer cuts the tar into units. It belongs to one goroutine.
type writer struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call of Write
	o       *Options
	plan    *plan
	free    chan *unitOf
	work    chan *unitOf
	ordered chan *unitOf

	unit   *unitOf
	member int // where the current member starts in unit.data
}

// produce writes all of the tar but the TOC and the end.
func (w *writer) produce(open func(context.Context) (io.ReadCloser, error)) error {
	if err := w.begin(); err != nil {
		return err
	}
	if !w.o.Lossless && w.o.Format != LegacyStargz {
		if err := w.writePlan(); err != nil {
			return err
		}
	}
	src, err := open(w.ctx)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	t := newRawTar(src, w.o.Limits, w.o.Lossless)
	for {
		e, header, err := t.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		keep, err := w.wanted(e)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		if err := w.entry(newTOCEntry(e), header, func(take func([]byte) error) error { return t.body(e, take) }); err != nil {
			return err
		}
	}
	if w.o.Lossless {
		err = t.rest(w.raw)
	} else if _, err = t.tar.Drain(); err == nil && !w.o.Format.inTar() {
		err = w.raw(make([]byte, 2*tarBlockBytes))
	}
	if err != nil {
		return err
	}
	return w.flush()
}

// wanted tells whether an entry is to be written where it comes.
func (w *writer) wanted(e *layer.Entry) (bool, error) {
	name, err := cleanName(e.Name)
	if err != nil {
		return false, err
	}
	if !utf8.ValidString(e.Name) || !utf8.ValidString(e.Linkname) {
		return false, fmt.Errorf("write layer: the name %q is not UTF-8, and a TOC is: %w", clip(e.Name), ErrUnsupported)
	}
	if w.o.Lossless {
		if IsMeta(name) || e.Sparse != nil {
			return false, fmt.Errorf("write layer: %q cannot be kept as it is: %w", clip(e.Name), ErrUnsupported)
		}
		return true, nil
	}
	return !IsMeta(name) && !w.plan.moved(name), nil
}

// writePlan writes the prioritized files and the landmark.
func (w *writer) writePlan() error {
	landmark := NoPrefetchLandmark
	var buf []byte
	for _, f := range w.plan.files {
		landmark = PrefetchLandmark
		e, kept, err := w.plan.kept(f, buf)
		if err == nil {
			buf = kept
			header := kept[f.header-f.at:]
			err = w.entry(e, header, func(take func([]byte) error) error { return w.plan.spool.read(f.body, e.Size, take) })
		}
		if err != nil {
			return err
		}
	}
	e := &layer.Entry{Name: landmark, Mode: 0o644, Size: 1}
	header, err := synthesize(e)
	if err != nil {
		return err
	}
	return w.entry(newTOCEntry(e), header, func(take func([]byte) error) error { return take([]byte{0xf}) })
}

// begin takes a free unit.
func (w *writer) begin() error {
	select {
	case w.unit = <-w.free:
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
	u := w.unit
	u.data, u.ends, u.items, u.out, u.outEnds = u.data[:0], u.ends[:0], u.items[:0], u.out[:0], u.outEnds[:0]
	w.member = 0
	return nil
}

// flush hands the unit on.
func (w *writer) flush() error {
	u := w.unit
	if len(u.data) > w.member {
		u.ends = append(u.ends, len(u.data))
	}
	w.unit = nil
	w.ordered <- u // never blocks: all units fit
	w.work <- u    // likewise
	return nil
}

// cut ends the member, if there is something in it, and the unit if it is full.
func (w *writer) cut() error {
	u := w.unit
	if len(u.data) == w.member {
		return nil
	}
	u.ends = append(u.ends, len(u.data))
	w.member = len(u.data)
	if len(u.data) < unitBytes {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.begin()
}

// raw writes what is no file's content.
func (w *writer) raw(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), max(0, unitBytes-(len(w.unit.data)-w.member)))
		if n == 0 {
			if err := w.cut(); err != nil {
				return err
			}
			continue
		}
		w.unit.data = append(w.unit.data, p[:n]...)
		p = p[n:]
	}
	return nil
}

// entry writes one entry of the tar.
func (w *writer) entry(e *tocEntry, header []byte, body func(take func([]byte) error) error) error {
	landmark := IsMeta(e.clean)
	if err := w.raw(header); err != nil {
		return err
	}
	if e.Size == 0 {
		at := len(w.unit.data)
		w.unit.items = append(w.unit.items, item{entry: e, from: at, to: at, last: true})
		return nil
	}
	var done int64
	err := body(func(p []byte) error {
		for len(p) > 0 {
			if done%w.o.ChunkSize == 0 {
				if err := w.beginChunk(e, done, landmark); err != nil {
					return err
				}
			}
			n := min(int64(len(p)), w.o.ChunkSize-done%w.o.ChunkSize)
			w.unit.data = append(w.unit.data, p[:n]...)
			p, done = p[n:], done+n
			w.unit.items[len(w.unit.items)-1].to = len(w.unit.data)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if done != e.Size {
		return malformed("%q has %d bytes instead of %d", clip(e.Name), done, e.Size)
	}
	w.unit.items[len(w.unit.items)-1].last = true
	if w.o.Format == ZstdChunked {
		// Its readers fetch a file and nothing behind it.
		if err := w.cut(); err != nil {
			return err
		}
	}
	if w.o.Lossless {
		return nil // the padding comes with the next header
	}
	return w.raw(make([]byte, -e.Size&(tarBlockBytes-1)))
}

func (w *writer) beginChunk(e *tocEntry, offset int64, landmark bool) error {
	if landmark || int64(len(w.unit.data)-w.member) >= w.o.MinChunkSize {
		if err := w.cut(); err != nil {
			return err
		}
	}
	u := w.unit
	it := item{member: len(u.ends), inner: int64(len(u.data) - w.member), from: len(u.data), to: len(u.data), fileOffset: offset}
	if offset == 0 {
		it.entry = e
	}
	u.items = append(u.items, it)
	return nil
}

// annotate sets what the layer's descriptor says.
func (r *Result) annotate(f Footer, checksum oci.Digest) {
	r.MediaType = oci.MediaTypeLayerGz
	if f.Format == LegacyStargz {
		// With its TOC's digest, containerd's snapshotter would mount the layer, and
		// then find no digest of any chunk that is read.
		return
	}
	r.Annotations = map[string]string{
		AnnotationTOCDigest:        r.TOCDigest.String(),
		AnnotationUncompressedSize: strconv.FormatInt(r.UncompressedSize, 10),
	}
	if !f.Format.zstd() {
		return
	}
	r.MediaType = oci.MediaTypeLayerZst
	position := func(s Span, more ...int64) string {
		parts := []string{}
		for _, n := range append([]int64{s.Offset, s.Size, s.RawSize}, more...) {
			parts = append(parts, strconv.FormatInt(n, 10))
		}
		return strings.Join(parts, ":")
	}
	if f.Format == ZstdChunkedContainerd {
		r.Annotations[annotationOldChecksum] = checksum.String()
		r.Annotations[annotationOldPosition] = position(f.TOC, tocType)
		return
	}
	// A layer with both TOC digests is refused by containers/storage, which could
	// not tell which of the two formats it has.
	delete(r.Annotations, AnnotationTOCDigest)
	r.Annotations[AnnotationChecksum] = checksum.String()
	r.Annotations[AnnotationPosition] = position(f.TOC, tocType)
	r.Annotations[AnnotationTarSplitPosition] = position(f.TarSplit)
}
