package layer

import (
	"bytes"
	"math"
)

func sparseLimit(l Limits) error {
	return &LimitError{What: "sparse extents", Limit: int64(l.MaxSparseExtents), Got: int64(l.MaxSparseExtents) + 1}
}

// sparse reads the map of a sparse file, if the entry is one. b is its header.
func (t *Tar) sparse(b *block, flag byte, f format) error {
	e := &t.entry
	p := &t.local
	t.extents = t.extents[:0]
	var err error
	switch {
	case flag == 'S':
		if f != formatGNU {
			return malformed("%q is sparse in a form other than GNU's", e.Name)
		}
		err = t.sparseGNU(b)
	case p.has&(paxSparseMajor|paxSparseMinor|paxSparseMap|paxSparsePart) == 0:
		return nil
	default:
		if p.has&paxSparseName != 0 {
			e.Name = string(p.sparseName)
		}
		if p.has&paxSparseSize != 0 {
			e.Size = p.sparseSize
		}
		err = t.sparsePAX(p)
	}
	if err != nil {
		return err
	}
	return t.checkSparse()
}

// sparsePAX reads a map of version 0.0, 0.1 or 1.0.
func (t *Tar) sparsePAX(p *pax) error {
	const version = paxSparseMajor | paxSparseMinor
	switch v := p.has & version; {
	case v == version && p.sparseMajor == 1 && p.sparseMinor == 0:
		return t.sparse10()
	case v != 0 && (v != version || p.sparseMajor != 0 || p.sparseMinor < 0 || p.sparseMinor > 1):
		return malformed("%q has a sparse map of an unknown version", t.entry.Name)
	case p.has&paxSparsePart != 0:
		if p.halfPart {
			return malformed("%q has half an extent in its sparse map", t.entry.Name)
		}
		for _, x := range p.sparseParts {
			if err := t.addExtent(x.Offset, x.Size); err != nil {
				return err
			}
		}
		return nil
	}
	return t.sparse01(p.sparseMap)
}

// sparse01 reads "offset,size,offset,size".
func (t *Tar) sparse01(text []byte) error {
	for len(text) > 0 {
		var fields [2]int64
		for i := range fields {
			var field []byte
			field, text, _ = bytes.Cut(text, []byte(","))
			n, ok := parseDecimal(field)
			if !ok {
				return malformed("%q has an invalid sparse map", t.entry.Name)
			}
			fields[i] = n
		}
		if err := t.addExtent(fields[0], fields[1]); err != nil {
			return err
		}
	}
	return nil
}

// sparse10 reads the map at the start of the body: lines with the number of
// extents and then offset and size of each, filled up to a whole block.
func (t *Tar) sparse10() error {
	start := t.pos
	count, err := t.readLine(start)
	if err != nil {
		return err
	}
	if count > int64(t.limits.MaxSparseExtents) {
		return sparseLimit(t.limits)
	}
	for range count {
		offset, err := t.readLine(start)
		if err != nil {
			return err
		}
		size, err := t.readLine(start)
		if err != nil {
			return err
		}
		if err := t.addExtent(offset, size); err != nil {
			return err
		}
	}
	for fill := padding(t.pos - start); fill > 0; {
		n, err := t.bodyPart(fill)
		if err != nil {
			return err
		}
		fill -= int64(n)
	}
	t.entry.StoredSize = t.body
	return nil
}

// bodyPart skips up to limit bytes of the body.
func (t *Tar) bodyPart(limit int64) (int, error) {
	if t.body == 0 {
		return 0, malformed("%q has a sparse map larger than its body", t.entry.Name)
	}
	if err := t.fill(); err != nil {
		return 0, noEOF(err)
	}
	n := int(min(int64(len(t.block)), t.body, limit))
	t.body -= int64(n)
	t.advance(n)
	return n, nil
}

// readLine reads a decimal number and a newline from the body, at start of which
// the map began.
func (t *Tar) readLine(start int64) (int64, error) {
	const maxDigits = 19
	var digits [maxDigits]byte
	for n := 0; ; n++ {
		if t.pos-start >= int64(t.limits.MaxHeaderBytes) {
			return 0, &LimitError{What: "sparse map bytes", Limit: int64(t.limits.MaxHeaderBytes), Got: t.pos - start + 1}
		}
		if err := t.fill(); err != nil {
			return 0, noEOF(err)
		}
		c := t.block[0]
		if _, err := t.bodyPart(1); err != nil {
			return 0, err
		}
		if c == '\n' {
			v, ok := parseDecimal(digits[:n])
			if !ok {
				return 0, malformed("%q has an invalid sparse map", t.entry.Name)
			}
			return v, nil
		}
		if n == maxDigits {
			return 0, malformed("%q has an invalid sparse map", t.entry.Name)
		}
		digits[n] = c
	}
}

// sparseGNU reads the map in header b and the blocks that continue it.
func (t *Tar) sparseGNU(b *block) error {
	const (
		fieldBytes = 12
		continued  = 504 // offset of the flag in a block that continues the map
	)
	size, ok := parseNumber(b.gnuRealSize())
	if !ok {
		return malformed("%q has an invalid size", t.entry.Name)
	}
	t.entry.Size = size
	// The blocks of the map stand between header and body and count for neither.
	part, more := b.gnuSparse(), b.gnuExtended()
	for {
		for ; len(part) >= 2*fieldBytes && part[0] != 0; part = part[2*fieldBytes:] {
			offset, ok1 := parseNumber(part[:fieldBytes])
			size, ok2 := parseNumber(part[fieldBytes : 2*fieldBytes])
			if !ok1 || !ok2 {
				return malformed("%q has an invalid sparse map", t.entry.Name)
			}
			if err := t.addExtent(offset, size); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		next, err := t.readBlock()
		if err != nil {
			return noEOF(err)
		}
		part, more = next[:continued], next[continued] != 0
	}
}

// addExtent checks that an extent lies behind the ones before it.
func (t *Tar) addExtent(offset, size int64) error {
	end := int64(0)
	if n := len(t.extents); n > 0 {
		end = t.extents[n-1].Offset + t.extents[n-1].Size
	}
	if offset < end || size < 0 || offset > math.MaxInt64-size || offset+size > t.entry.Size {
		return malformed("%q has an invalid extent in its sparse map: %d bytes at %d", t.entry.Name, size, offset)
	}
	if size == 0 { // GNU's way to say where a file with a hole at its end ends
		return nil
	}
	if len(t.extents) == t.limits.MaxSparseExtents {
		return sparseLimit(t.limits)
	}
	t.extents = append(t.extents, Extent{Offset: offset, Size: size})
	return nil
}

// checkSparse compares the map with what is stored.
func (t *Tar) checkSparse() error {
	e := &t.entry
	if len(e.Name) > t.limits.MaxNameBytes {
		return &LimitError{What: "name bytes", Limit: int64(t.limits.MaxNameBytes), Got: int64(len(e.Name))}
	}
	stored := int64(0)
	for _, x := range t.extents {
		stored += x.Size
	}
	if e.Size < 0 || stored != e.StoredSize {
		return malformed("%q stores %d bytes, its sparse map has %d", e.Name, e.StoredSize, stored)
	}
	if t.extents == nil {
		t.extents = []Extent{}
	}
	e.Sparse = t.extents
	return nil
}

func parseDecimal(b []byte) (int64, bool) {
	const maxDigits = 18 // cannot overflow
	if len(b) == 0 || len(b) > maxDigits {
		return 0, false
	}
	var v int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, true
}
