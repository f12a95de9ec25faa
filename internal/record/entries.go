package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// List is entries in an order: the text of a record, in memory while it is small and
// then in a temporary file without a name. The zero value is empty, and so is nil. It
// belongs to one goroutine at a time.
type List struct {
	text  spool
	count int
	line  bytes.Buffer
	enc   *json.Encoder // to line
}

// ListOf returns a list of some entries.
func ListOf(entries ...Entry) (*List, error) {
	l := &List{}
	for i := range entries {
		if err := l.Add(&entries[i]); err != nil {
			l.Close()
			return nil, err
		}
	}
	return l, nil
}

// Add appends an entry, of which the list takes a copy. A path with a zero byte, which
// none can have, is an [ErrFormat].
func (l *List) Add(e *Entry) error {
	if strings.IndexByte(e.Path, 0) >= 0 {
		return fmt.Errorf("path %q: %w", e.Path, ErrFormat)
	}
	line, err := l.encode(e)
	if err == nil {
		_, err = l.text.Write(line)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	l.count++
	return nil
}

// encode returns the entry's line, which is valid until the next call.
func (l *List) encode(e *Entry) ([]byte, error) {
	if l.enc == nil {
		l.enc = json.NewEncoder(&l.line)
		l.enc.SetEscapeHTML(false)
	}
	l.line.Reset()
	err := l.enc.Encode(e)
	return l.line.Bytes(), err
}

// Len returns how many entries there are.
func (l *List) Len() int {
	if l == nil {
		return 0
	}
	return l.count
}

// Size returns how many bytes [List.WriteTo] writes.
func (l *List) Size() int64 {
	if l == nil {
		return 0
	}
	return l.text.size
}

// WriteTo writes the entries, a line each.
func (l *List) WriteTo(w io.Writer) (int64, error) {
	if l.Len() == 0 {
		return 0, nil
	}
	if err := l.text.flush(); err != nil {
		return 0, err
	}
	return io.Copy(w, io.NewSectionReader(&l.text, 0, l.text.size))
}

// WriteJSON writes the entries as an array.
func (l *List) WriteJSON(w *bufio.Writer) error {
	sep := byte('[')
	for line, err := range l.lines() {
		if err != nil {
			return err
		}
		_ = w.WriteByte(sep) // errors come back from the last
		_, _ = w.Write(bytes.TrimSuffix(line, []byte("\n")))
		sep = ','
	}
	if sep == '[' {
		_ = w.WriteByte(sep)
	}
	return w.WriteByte(']')
}

// lines returns the lines of the entries, each valid until the next.
func (l *List) lines() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if l.Len() == 0 {
			return
		}
		if err := l.text.flush(); err != nil {
			yield(nil, err)
			return
		}
		in := l.text.reader(0, l.text.size)
		var long []byte
		for {
			line, err := in.ReadSlice('\n')
			if errors.Is(err, bufio.ErrBufferFull) {
				long = append(long, line...)
				continue
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("read temporary file: %w", err))
				return
			}
			if len(long) > 0 {
				long = append(long, line...)
				line = long
			}
			if !yield(line, nil) {
				return
			}
			long = long[:0]
		}
	}
}

// All returns the entries in their order.
func (l *List) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for line, err := range l.lines() {
			var e Entry
			if err == nil {
				err = json.Unmarshal(line, &e)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Close lets go of the entries.
func (l *List) Close() {
	if l != nil {
		l.text.close()
		l.count = 0
	}
}
