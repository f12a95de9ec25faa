package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"iter"

	"dray"
)

// listMark stands in a document for a list that is written where it is: there may be
// millions of items. No path, digest or reference has a zero byte.
const listMark = "\x00"

// lists are what a document has instead of its marks, in their order.
type lists []func(*bufio.Writer) error

// add returns the mark of a list of count items, "" for none.
func (l *lists) add(count int, write func(*bufio.Writer) error) string {
	if count == 0 {
		return ""
	}
	*l = append(*l, write)
	return listMark
}

// print writes v, a line, with the lists where their marks are.
func (l lists) print(out *bufio.Writer, v any) error {
	document, err := jsonOf(v)
	if err != nil {
		return err
	}
	mark, err := jsonOf(listMark)
	if err != nil {
		return err
	}
	for _, write := range l {
		before, after, _ := bytes.Cut(document, mark)
		_, _ = out.Write(before) // errors come back from the last
		if err := write(out); err != nil {
			return err
		}
		document = after
	}
	_, _ = out.Write(document)
	return out.WriteByte('\n')
}

// jsonOf returns v as it is printed elsewhere, without the end of the line.
func jsonOf(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// array returns what writes items as an array. There is one at least.
func array[T any](items iter.Seq2[T, error]) func(*bufio.Writer) error {
	return func(out *bufio.Writer) error {
		sep := byte('[')
		for item, err := range items {
			if err != nil {
				return err
			}
			raw, err := jsonOf(item)
			if err != nil {
				return err
			}
			_ = out.WriteByte(sep) // errors come back from the last
			_, _ = out.Write(raw)
			sep = ','
		}
		return out.WriteByte(']')
	}
}

// shownUse and shownLayer are a [dray.RecordUse] in JSON. Lists are marks.
type shownUse struct {
	Reference string       `json:"reference"`
	Manifest  dray.Digest  `json:"manifest_digest"`
	Platform  string       `json:"platform,omitempty"`
	Matched   int          `json:"matched"`
	Moved     string       `json:"moved,omitempty"`
	Missing   string       `json:"missing,omitempty"`
	Foreign   int          `json:"foreign"`
	Bytes     int64        `json:"bytes"`
	Share     float64      `json:"share"`
	Layers    []shownLayer `json:"layers"`
	Notes     []string     `json:"notes,omitempty"`
}

type shownLayer struct {
	Digest     dray.Digest `json:"digest"`
	Paths      string      `json:"paths,omitempty"`
	Bytes      int64       `json:"bytes"`
	TotalFiles int         `json:"total_files"`
	TotalBytes int64       `json:"total_bytes"`
}

// printJSON prints for programs.
func (s *shown) printJSON(out *bufio.Writer) error {
	var all lists
	document := struct {
		Entries *string `json:"entries"`
		*dray.Record
		Use *shownUse `json:"use,omitempty"`
	}{Record: s.Record}
	if mark := all.add(s.Entries.Len(), s.Entries.WriteJSON); mark != "" {
		document.Entries = &mark
	}
	if u := s.use; u != nil {
		use := &shownUse{
			Reference: u.Reference, Manifest: u.Manifest, Platform: u.Platform, Matched: u.Matched, Foreign: u.Foreign,
			Bytes: u.Bytes, Share: u.Share, Notes: u.Notes,
			Moved: all.add(u.MovedCount(), array(u.Moved())), Missing: all.add(u.Missing.Len(), array(u.Missing.All())),
		}
		for i := range u.Layers {
			l := &u.Layers[i]
			use.Layers = append(use.Layers, shownLayer{l.Digest, all.add(l.Paths.Len(), array(l.Paths.All())), l.Bytes, l.TotalFiles, l.TotalBytes})
		}
		document.Use = use
	}
	return all.print(out, document)
}
