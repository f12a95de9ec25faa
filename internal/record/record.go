// Package record reads, writes, merges and applies records: what a workload read
// of an image, in the order of the first access. A record is advice. A wrong one
// costs speed and nothing else, so what does not fit is skipped and counted; only
// what is no record at all, or too large, is an error.
//
// The form is containerd's: one JSON object a line, with path, manifestDigest and
// layerIndex. dray adds fields that others ignore. Functions here keep nothing, so all
// may be called at the same time. What grows with a record is sorted and kept in
// temporary files without names, so that a record of any size takes the same memory.
package record

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"dray/internal/oci"
)

// ErrFormat reports input that is not a record.
var ErrFormat = errors.New("malformed record")

// ErrTooLarge reports a record beyond [Limits].
var ErrTooLarge = errors.New("record too large")

// Defaults of [Limits].
const (
	DefaultMaxLines     = 10_000_000
	DefaultMaxEntries   = 1_000_000
	DefaultMaxLineBytes = 64 << 10
	DefaultMaxBytes     = 128 << 20
	DefaultMaxListBytes = 16 << 20
)

// Limits bounds what is read. Zero is the default.
type Limits struct {
	MaxLines     int // [DefaultMaxLines]
	MaxEntries   int // distinct ones: [DefaultMaxEntries]
	MaxLineBytes int // [DefaultMaxLineBytes]
	MaxBytes     int // of the lines with distinct entries: [DefaultMaxBytes]
	MaxListBytes int // of a list's lines, which are held in memory: [DefaultMaxListBytes]
}

func (l Limits) withDefaults() Limits {
	l.MaxLines = cmp.Or(l.MaxLines, DefaultMaxLines)
	l.MaxEntries = cmp.Or(l.MaxEntries, DefaultMaxEntries)
	l.MaxLineBytes = cmp.Or(l.MaxLineBytes, DefaultMaxLineBytes)
	l.MaxBytes = cmp.Or(l.MaxBytes, DefaultMaxBytes)
	l.MaxListBytes = cmp.Or(l.MaxListBytes, DefaultMaxListBytes)
	return l
}

// Entry is a file that was read. All but Path is optional.
type Entry struct {
	Path           string     `json:"path"` // without a leading slash
	ManifestDigest oci.Digest `json:"manifestDigest,omitempty"`
	LayerIndex     *int       `json:"layerIndex,omitempty"` // 0 is the bottom

	Ranges            []Range `json:"ranges,omitempty"`            // what was read of it; none is all
	FirstAccessMillis int64   `json:"firstAccessMillis,omitempty"` // after the workload's start
	Count             int64   `json:"count,omitempty"`             // of accesses
	Workload          string  `json:"workload,omitempty"`

	// ContentDigest and Size tell the file's content, so that it is found where it
	// has another name. Both or none.
	ContentDigest oci.Digest `json:"contentDigest,omitempty"`
	Size          int64      `json:"size,omitempty"` // bytes
}

// Range is a part of a file, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
}

// Record is what was read, first access first, each entry once. Who has it closes
// Entries.
type Record struct {
	Entries *List
	Lines   int // with repeated and skipped ones
	Skipped int // lines with a path or a number that nothing can have
}

// key stands for what makes two entries the same: a part of its SHA-256, so that
// who reads a million entries need not hold them.
type key [16]byte

// key returns the entry's key. It uses and returns buf.
func (e *Entry) key(buf []byte) (key, []byte) {
	layer := -1
	if e.LayerIndex != nil {
		layer = *e.LayerIndex
	}
	buf = append(append(buf[:0], e.Path...), 0) // no path has it
	buf = append(append(buf, e.ManifestDigest...), 0)
	buf = strconv.AppendInt(buf, int64(layer), 10)
	sum := sha256.Sum256(buf)
	return key(sum[:]), buf
}

// Read reads a record to its end. Errors wrap [ErrFormat] or [ErrTooLarge], or are
// those of r.
func Read(r io.Reader, l Limits) (*Record, error) {
	rec := &Record{Entries: &List{}}
	if err := rec.read(r, l); err != nil {
		rec.Entries.Close()
		return nil, err
	}
	return rec, nil
}

// read appends what r has. In memory an entry takes about 30 bytes meanwhile.
func (rec *Record) read(r io.Reader, l Limits) error {
	l = l.withDefaults()
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, min(4096, l.MaxLineBytes)), l.MaxLineBytes)
	seen := map[key]struct{}{}
	keptBytes := 0
	var buf []byte
	for lines.Scan() && lines.Err() == nil { // after an error there is a part of a line
		if len(lines.Bytes()) == 0 {
			continue
		}
		rec.Lines++
		if rec.Lines > l.MaxLines {
			return fmt.Errorf("read record: more than %d lines: %w", l.MaxLines, ErrTooLarge)
		}
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read record: line %d: %w: %w", rec.Lines, ErrFormat, err)
		}
		if !e.clean() {
			rec.Skipped++
			continue
		}
		var k key
		k, buf = e.key(buf)
		if _, again := seen[k]; !again {
			if len(seen) == l.MaxEntries {
				return fmt.Errorf("read record: more than %d entries: %w", l.MaxEntries, ErrTooLarge)
			}
			if keptBytes += len(lines.Bytes()); keptBytes > l.MaxBytes {
				return fmt.Errorf("read record: more than %d bytes: %w", l.MaxBytes, ErrTooLarge)
			}
			seen[k] = struct{}{}
			if err := rec.Entries.Add(&e); err != nil {
				return err
			}
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("read record: line %d has more than %d bytes: %w", rec.Lines+1, l.MaxLineBytes, ErrTooLarge)
	case err != nil:
		return err
	}
	return nil
}

// clean makes the path relative to the root and tells whether the entry can be of
// any image.
func (e *Entry) clean() bool {
	for _, r := range e.Ranges {
		if r.Offset < 0 || r.Size <= 0 || r.Offset > r.Offset+r.Size {
			return false
		}
	}
	var ok bool
	e.Path, ok = cleanPath(e.Path)
	return ok && e.Count >= 0 && e.FirstAccessMillis >= 0 && e.Size >= 0 && (e.LayerIndex == nil || *e.LayerIndex >= 0)
}

// cleanPath returns a path below the root.
func cleanPath(p string) (string, bool) {
	if strings.IndexByte(p, 0) >= 0 || slices.Contains(strings.Split(p, "/"), "..") {
		return "", false
	}
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	return p, p != ""
}
