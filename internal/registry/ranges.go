package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// leadShare is the part of [Ranges].MinBytes that is read before it is decided
// whether several connections pay: long enough for TCP to find its speed.
const leadShare = 4

// fastNetwork is what one connection must carry, in bytes per second, to be left
// alone: more than layers are unpacked at.
const fastNetwork = 400 << 20

// networkBound tells whether several connections are worth their memory: when
// reading was mostly waiting for the network, and that is not fast. Otherwise one
// is as fast as its consumer and more of them would only cost.
func networkBound(leadBytes int64, waited, elapsed time.Duration) bool {
	return waited > elapsed/2 && float64(leadBytes) < fastNetwork*elapsed.Seconds()
}

// wide reads a large blob: its lead over one connection, which also shows that
// the host serves ranges, and the rest over one or over several at once.
type wide struct {
	current io.ReadCloser
	offset  int64
	leading bool
	first   int64         // offset of the lead
	started time.Time     // of the lead
	waited  time.Duration // in reads of the lead

	rest  func() io.ReadCloser // what follows the lead
	plain func() io.ReadCloser // what follows when ranges turn out not to be served
}

func newWide(ctx context.Context, lead *span) *wide {
	b, client := lead.blob, lead.blob.repository.client
	w := &wide{current: lead, offset: lead.offset, first: lead.offset, leading: true, started: time.Now()}
	w.plain = func() io.ReadCloser { return b.span(ctx, w.offset, b.size) }
	w.rest = func() io.ReadCloser {
		if client.pays(w.offset-w.first, w.waited, time.Since(w.started)) {
			if split := b.split(ctx, w.offset); split != nil {
				return split
			}
		}
		return w.plain()
	}
	return w
}

// Read implements [io.Reader].
func (w *wide) Read(p []byte) (int, error) {
	for {
		n, err := w.read(p)
		w.offset += int64(n)
		switch {
		case n > 0:
			return n, nil // an error comes again
		case errors.Is(err, ErrNoRanges):
			w.follow(w.plain)
		case w.leading && errors.Is(err, io.EOF):
			w.follow(w.rest)
		default:
			return 0, err
		}
	}
}

// read reads and, in the lead, takes the time.
func (w *wide) read(p []byte) (int, error) {
	if !w.leading {
		return w.current.Read(p)
	}
	before := time.Now()
	n, err := w.current.Read(p)
	w.waited += time.Since(before)
	return n, err
}

func (w *wide) follow(next func() io.ReadCloser) {
	_ = w.current.Close() // read only
	w.leading = false
	w.current = next()
}

// Close implements [io.Closer].
func (w *wide) Close() error { return w.current.Close() }

// window reads a blob in parts over several connections. Each part has a buffer;
// parts are given out in the order of the blob, and a buffer that was read is
// used for the next part.
type window struct {
	partBytes int64
	size      int64
	free      chan []byte // buffers without a part; capacity = number of buffers
	queue     chan *part  // parts in order; capacity = number of buffers
	done      <-chan struct{}
	cause     func() error // why done is closed
	stop      func()       // ends the workers, waits for them, gives the memory back; once

	mu   sync.Mutex // guards next; held while a part is claimed and queued, for their order
	next int64      // offset of the next part to fetch

	// owned by the consumer
	head   *part
	offset int64
	err    error
}

// part is a range of the blob on its way.
type part struct {
	buf    []byte        // as long as the part
	filled atomic.Int64  // bytes of buf that are there
	grown  chan struct{} // capacity 1: filled or err have changed
	err    atomic.Pointer[error]
	taken  int // bytes that the consumer has read; its own
}

// split starts reading [offset, size) over several connections; nil when there is
// no memory for them.
func (b *blob) split(ctx context.Context, offset int64) io.ReadCloser {
	o := &b.repository.client.options
	buffers := o.Ranges.Streams + 1 // one more than streams: the one that is being read
	partBytes := int64(o.Ranges.PartBytes)
	for o.Budget != nil && !o.Budget.TryAcquire(int64(buffers)*partBytes) {
		if buffers--; buffers < 3 {
			o.Log.LogAttrs(ctx, slog.LevelDebug, "no memory for parallel ranges", slog.String("digest", string(b.digest)))
			return nil
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &window{
		partBytes: partBytes,
		size:      b.size,
		free:      make(chan []byte, buffers),
		queue:     make(chan *part, buffers),
		done:      ctx.Done(),
		cause:     func() error { return context.Cause(ctx) },
		next:      offset,
		offset:    offset,
	}
	var workers sync.WaitGroup
	w.stop = sync.OnceFunc(func() {
		cancel()
		workers.Wait()
		if o.Budget != nil {
			o.Budget.Release(int64(buffers) * partBytes)
		}
	})
	for range buffers {
		w.free <- make([]byte, partBytes)
	}
	for range buffers - 1 {
		workers.Go(func() { w.work(ctx, b) })
	}
	return w
}

// work fetches parts until there are none left, or one fails.
func (w *window) work(ctx context.Context, b *blob) {
	for {
		var buf []byte
		select {
		case buf = <-w.free:
		case <-ctx.Done():
			return
		}
		p, offset := w.claim(buf)
		if p == nil {
			return
		}
		s := b.span(ctx, offset, offset+int64(len(p.buf)))
		s.exact = true
		err := p.fill(s)
		_ = s.Close() // read only
		if err != nil {
			return
		}
	}
}

// claim queues the next part, whose bytes go into buf; nil when all are taken.
func (w *window) claim(buf []byte) (p *part, offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	length := min(w.partBytes, w.size-w.next)
	if length == 0 {
		return nil, 0
	}
	p = &part{buf: buf[:length], grown: make(chan struct{}, 1)}
	offset = w.next
	w.next += length
	w.queue <- p // never blocks: there are no more parts than buffers
	return p, offset
}

func (p *part) fill(r io.Reader) error {
	for n := 0; n < len(p.buf); {
		m, err := r.Read(p.buf[n:])
		n += m
		p.filled.Store(int64(n))
		if m == 0 && err != nil {
			p.err.Store(&err)
		}
		select {
		case p.grown <- struct{}{}:
		default: // the consumer has not yet seen the last change
		}
		if m == 0 && err != nil {
			return err
		}
	}
	return nil
}

// Read implements [io.Reader].
func (w *window) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, w.err
	}
	for w.err == nil && w.offset < w.size {
		if w.head == nil {
			select {
			case w.head = <-w.queue:
			case <-w.done:
				w.err = w.cause()
			}
			continue
		}
		if n := copy(p, w.head.buf[w.head.taken:w.head.filled.Load()]); n > 0 {
			w.advance(n)
			return n, nil
		}
		if err := w.head.err.Load(); err != nil {
			w.err = *err
			continue
		}
		<-w.head.grown // always comes: a span's reads end with its context
	}
	w.stop()
	if w.err == nil {
		w.err = io.EOF
	}
	return 0, w.err
}

// advance takes n bytes off the head; its buffer is free when all are read.
func (w *window) advance(n int) {
	w.offset += int64(n)
	w.head.taken += n
	if w.head.taken == len(w.head.buf) {
		w.free <- w.head.buf[:w.partBytes] // never blocks: there are no more buffers
		w.head = nil
	}
}

// Close implements [io.Closer].
func (w *window) Close() error {
	w.stop()
	if w.err == nil {
		w.err = io.ErrClosedPipe
	}
	return nil
}
