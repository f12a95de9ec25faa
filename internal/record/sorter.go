package record

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
)

// sorter puts byte strings in order: as many as fit in memory at once, and merges
// those pieces from a file without a name. It belongs to one goroutine.
type sorter struct {
	held  []byte
	items []span // of held
	file  *os.File
	runs  []int64 // where each sorted piece of the file ends
}

// span is where a string is in what a sorter holds.
type span struct{ from, to uint32 }

// spanBytes is what a span takes.
const spanBytes = 8

// minRunBytes is read of each piece at a time where there are many.
const minRunBytes = 4 << 10

// add takes a copy of b.
func (s *sorter) add(b []byte) error {
	if len(s.items) > 0 && len(s.held)+len(b)+spanBytes*len(s.items) > memoryBytes {
		if err := s.spill(); err != nil {
			return err
		}
	}
	from := len(s.held)
	s.held = append(s.held, b...)
	s.items = append(s.items, span{uint32(from), uint32(len(s.held))})
	return nil
}

func (s *sorter) at(i span) []byte { return s.held[i.from:i.to] }

func (s *sorter) sort() {
	slices.SortFunc(s.items, func(a, b span) int { return bytes.Compare(s.at(a), s.at(b)) })
}

// spill writes what is held to the file, in order.
func (s *sorter) spill() (err error) {
	end := int64(0)
	if s.file == nil {
		if s.file, err = unnamed(); err != nil {
			return err
		}
	} else {
		end = s.runs[len(s.runs)-1]
	}
	s.sort()
	out := bufio.NewWriterSize(s.file, blockBytes)
	var length [binary.MaxVarintLen64]byte
	for _, i := range s.items {
		n := binary.PutUvarint(length[:], uint64(i.to-i.from))
		_, _ = out.Write(length[:n]) // Flush returns its error
		_, _ = out.Write(s.at(i))
		end += int64(n) + int64(i.to-i.from)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write temporary file: %w", err)
	}
	s.runs = append(s.runs, end)
	s.held, s.items = s.held[:0], s.items[:0]
	return nil
}

// sorted returns what was added, in order, until ctx ends. Each string is valid until
// the next. Nothing may be added afterwards.
func (s *sorter) sorted(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if s.file == nil {
			s.sort()
			for _, i := range s.items {
				if !yield(s.at(i), ctx.Err()) {
					return
				}
			}
			return
		}
		if len(s.items) > 0 {
			if err := s.spill(); err != nil {
				yield(nil, err)
				return
			}
			s.held, s.items = nil, nil
		}
		s.merge(ctx, yield)
	}
}

// merge yields the pieces of the file as one.
func (s *sorter) merge(ctx context.Context, yield func([]byte, error) bool) {
	var h runs
	from := int64(0)
	for _, end := range s.runs {
		size := max(minRunBytes, min(blockBytes, memoryBytes/len(s.runs)))
		r := &run{in: bufio.NewReaderSize(io.NewSectionReader(s.file, from, end-from), size)}
		from = end
		if err := r.next(); err != nil {
			yield(nil, err)
			return
		}
		h = append(h, r) // none is empty
	}
	heap.Init(&h)
	for len(h) > 0 {
		if !yield(h[0].head, ctx.Err()) {
			return
		}
		err := h[0].next()
		switch {
		case errors.Is(err, io.EOF):
			heap.Pop(&h)
		case err != nil:
			yield(nil, err)
			return
		default:
			heap.Fix(&h, 0)
		}
	}
}

func (s *sorter) close() {
	if s.file != nil {
		_ = s.file.Close() // nothing of it is wanted
	}
	*s = sorter{}
}

// run is a sorted piece of the file.
type run struct {
	in   *bufio.Reader
	head []byte
}

// next reads the next string. [io.EOF] is the end.
func (r *run) next() error {
	size, err := binary.ReadUvarint(r.in)
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err == nil {
		r.head = slices.Grow(r.head[:0], int(size))[:size]
		_, err = io.ReadFull(r.in, r.head)
	}
	if err != nil {
		return fmt.Errorf("read temporary file: %w", err)
	}
	return nil
}

// runs is a heap by head.
type runs []*run

var _ heap.Interface = (*runs)(nil)

func (h *runs) Len() int           { return len(*h) }
func (h *runs) Less(i, j int) bool { return bytes.Compare((*h)[i].head, (*h)[j].head) < 0 }
func (h *runs) Swap(i, j int)      { (*h)[i], (*h)[j] = (*h)[j], (*h)[i] }
func (h *runs) Push(x any)         { *h = append(*h, x.(*run)) } //nolint:errcheck,forcetypeassert // it is a heap of these

// Pop removes the last.
func (h *runs) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
