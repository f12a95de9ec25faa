package record

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
)

// Weighted is a record and how much it counts among others; 0 is 1.
type Weighted struct {
	Entries *List
	Weight  float64
}

// maxRanges bounds the ranges of one file that are put together: what has more is
// read as a whole.
const maxRanges = 4096

// Merge returns one order of many records. Each gives a path its weight, in whole
// for the first place and next to nothing for the last; the sums decide, and where
// they are the same the names. Entries are told apart by path alone, and the first
// record that has a path tells the rest; counts are added, ranges put together.
func Merge(ctx context.Context, records []Weighted) (*List, error) {
	var byPath, byScore sorter
	defer byPath.close()
	defer byScore.close()
	var key []byte
	for n, r := range records {
		i := uint32(0)
		for line, err := range r.Entries.lines() {
			var e struct {
				Path string `json:"path"`
			}
			if err == nil {
				err = json.Unmarshal(line, &e)
			}
			if err != nil {
				return nil, err
			}
			key = append(append(key[:0], e.Path...), 0) // no path has it
			key = binary.BigEndian.AppendUint32(key, uint32(n))
			key = binary.BigEndian.AppendUint32(key, i) // its place
			if err := byPath.add(append(key, line...)); err != nil {
				return nil, err
			}
			i++
		}
	}
	m := merging{records: records, out: &byScore}
	for item, err := range byPath.sorted(ctx) {
		if err == nil {
			err = m.take(item)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := m.end(); err != nil {
		return nil, err
	}
	merged := &List{}
	for item, err := range byScore.sorted(ctx) {
		if err == nil {
			_, line := cutPath(item[scoreBytes:])
			merged.count++
			_, err = merged.text.Write(line)
		}
		if err != nil {
			merged.Close()
			return nil, err
		}
	}
	return merged, nil
}

// cutPath parts a path from what is sorted with it.
func cutPath(item []byte) (name, rest []byte) {
	end := bytes.IndexByte(item, 0)
	return item[:end], item[end+1:]
}

// merging puts the entries of one path after the other together.
type merging struct {
	records []Weighted
	out     *sorter

	path    []byte
	entry   Entry
	whole   bool // no ranges any more
	several bool // it is of more than one
	last    int  // the record that gave the score its last part; -1: none has
	score   float64
	some    bool // there is an entry
	list    List // encodes lines, and has none
}

// take takes an entry, after all of smaller paths, or of the same and earlier records.
func (m *merging) take(item []byte) error {
	path, rest := cutPath(item)
	var e Entry
	n, i, line := int(binary.BigEndian.Uint32(rest)), int(binary.BigEndian.Uint32(rest[4:])), rest[8:]
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	if !m.some || !bytes.Equal(path, m.path) {
		if err := m.end(); err != nil {
			return err
		}
		m.path = append(m.path[:0], path...)
		m.entry, m.some, m.last, m.score = e, true, -1, 0
		m.whole, m.several = len(e.Ranges) == 0, false
		m.entry.Count = 0
	} else {
		m.several = true
		m.ranges(e.Ranges)
	}
	m.entry.Count += e.Count
	if m.last != n {
		m.last = n
		count := float64(m.records[n].Entries.Len())
		m.score += cmp.Or(m.records[n].Weight, 1) * (count - float64(i)) / count
	}
	return nil
}

// ranges adds what another record says was read of the path; none is all.
func (m *merging) ranges(more []Range) {
	m.whole = m.whole || len(more) == 0
	if m.whole {
		m.entry.Ranges = nil
		return
	}
	m.entry.Ranges = append(m.entry.Ranges, more...)
	if len(m.entry.Ranges) > 2*maxRanges { // now and then: each takes the time of all
		m.unite()
	}
}

func (m *merging) unite() {
	if !m.whole {
		m.entry.Ranges = union(m.entry.Ranges)
		m.whole = len(m.entry.Ranges) > maxRanges
	}
	if m.whole {
		m.entry.Ranges = nil
	}
}

// scoreBytes is what stands before the path where entries are put in order by score.
const scoreBytes = 8

// end passes the entry on that was put together.
func (m *merging) end() error {
	if !m.some {
		return nil
	}
	if m.several {
		m.unite()
	}
	line, err := m.list.encode(&m.entry)
	if err == nil && len(line) > DefaultMaxLineBytes { // which nobody could read
		m.entry.Ranges = nil
		line, err = m.list.encode(&m.entry)
	}
	if err != nil {
		return err
	}
	// Positive numbers are in order as their bits are; the largest comes first.
	item := binary.BigEndian.AppendUint64(nil, ^math.Float64bits(m.score))
	item = append(append(item, m.path...), 0)
	return m.out.add(append(item, line...))
}

// union returns the ranges that cover the same, in order.
func union(all []Range) []Range {
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	out := all[:1]
	for _, r := range all[1:] {
		last := &out[len(out)-1]
		if r.Offset <= last.Offset+last.Size {
			last.Size = max(last.Size, r.Offset+r.Size-last.Offset)
			continue
		}
		out = append(out, r)
	}
	return out
}
