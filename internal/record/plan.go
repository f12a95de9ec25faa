package record

import (
	"encoding/binary"
	"iter"

	"dray/internal/oci"
)

// Plan says what of a record is in an image. Who has it closes it.
type Plan struct {
	Layers  []LayerPlan // bottom first
	Matched int
	Missing Paths // that the image does not show, in the record's order

	moved Paths // from, to, from, to
	kept  Paths // place, layer and name of what is put first, in the record's order
	found *spool
}

// Move is a file that was found by its content.
type Move struct {
	From string `json:"from"` // in the record
	To   string `json:"to"`   // in the image
}

// LayerPlan is a layer's part.
type LayerPlan struct {
	Paths      Paths // to prioritize, in the record's order
	Bytes      int64 // of them
	TotalFiles int
	TotalBytes int64
}

// Share returns the part of the image's bytes that is prioritized, 0 to 1.
func (p *Plan) Share() float64 {
	var some, all int64
	for _, l := range p.Layers {
		some, all = some+l.Bytes, all+l.TotalBytes
	}
	if all == 0 {
		return 0
	}
	return float64(some) / float64(all)
}

// MovedCount returns how many of those matched have another name in the image.
func (p *Plan) MovedCount() int { return p.moved.count / 2 }

// Moved returns those of the matched that have another name in the image, in the
// record's order.
func (p *Plan) Moved() iter.Seq2[Move, error] {
	return func(yield func(Move, error) bool) {
		var m Move
		second := false
		for name, err := range p.moved.All() {
			if err == nil && !second {
				m.From, second = name, true
				continue
			}
			m.To, second = name, false
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Rewrite returns those of the entries that are in the image, each file once and
// under the name that it has there, as entries of the image. entries are those that
// were applied.
func (p *Plan) Rewrite(entries *List, image oci.Digest) (*List, error) {
	next, stop := iter.Pull2(p.kept.items())
	defer stop()
	kept := &List{}
	item, err, ok := next()
	i := uint32(0)
	for e, failed := range entries.All() {
		if err == nil {
			err = failed
		}
		if err != nil || !ok {
			break
		}
		if binary.BigEndian.Uint32(item) == i {
			layer := int(binary.BigEndian.Uint32(item[4:]))
			e.Path, e.ManifestDigest, e.LayerIndex = string(item[8:]), image, &layer
			if err = kept.Add(&e); err == nil {
				item, err, ok = next()
			}
		}
		i++
	}
	if err != nil {
		kept.Close()
		return nil, err
	}
	return kept, nil
}

// Close lets go of the paths.
func (p *Plan) Close() {
	if p != nil && p.found != nil {
		p.found.close()
	}
}

// Paths are names, kept as the record is.
type Paths struct {
	in       *spool
	at, size int64
	count    int
}

// Len returns how many there are.
func (p *Paths) Len() int { return p.count }

// All returns them in their order.
func (p *Paths) All() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for item, err := range p.items() {
			if !yield(string(item), err) || err != nil {
				return
			}
		}
	}
}

// Strings returns them at once.
func (p *Paths) Strings() ([]string, error) {
	var all []string
	for name, err := range p.All() {
		if err != nil {
			return nil, err
		}
		all = append(all, name)
	}
	return all, nil
}

func (p *Paths) items() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if p.count == 0 {
			return
		}
		r := run{in: p.in.reader(p.at, p.size)}
		for range p.count {
			err := r.next()
			if !yield(r.head, err) || err != nil {
				return
			}
		}
	}
}

// add appends an item; those of one list are added one after the other.
func (p *Paths) add(to *spool, item []byte) error {
	if p.in == nil {
		p.in, p.at = to, to.size
	}
	var length [binary.MaxVarintLen64]byte
	_, err := to.Write(binary.AppendUvarint(length[:0], uint64(len(item))))
	if err == nil {
		_, err = to.Write(item)
	}
	p.size = to.size - p.at
	p.count++
	return err
}
