package erofs

import "bytes"

// sort orders the entries of a directory by name: a merge sort of the list, from the
// bottom up, which needs no memory. Most tars have them in order, so that the list,
// which begins with the last, is to be reversed. Where it is not so, and the index
// is on disk, what belongs together is brought together before.
func (x *Index) sort(dir uint32) error {
	head := x.inodes.at(dir).data
	var err error
	if x.descending(head) {
		head = x.reversed(head)
	} else {
		head, err = x.mergeSort(head)
	}
	x.inodes.at(dir).data = head
	return err
}

func (x *Index) mergeSort(head uint32) (uint32, error) {
	const runLen = 1 << 16 // so long a run may be in disorder without many faults
	for width := 1; ; width *= 2 {
		if width == 1 || width == runLen {
			var err error
			if head, err = x.settle(head); err != nil {
				return none, err
			}
		}
		merged := chain{x: x, first: none, last: none}
		merges := 0
		for rest := head; rest != none; merges++ {
			rest = merged.merge(rest, width)
		}
		if merged.last != none {
			x.dirents.at(merged.last).next = none
		}
		if head = merged.first; merges > 1 {
			continue
		}
		if width > runLen {
			return x.settle(head)
		}
		return head, nil
	}
}

// settle copies the entries of a list, with their names and inodes, so that they
// follow each other in the file, if the index is in one.
func (x *Index) settle(list uint32) (uint32, error) {
	if x.memory.file == nil {
		return list, nil
	}
	copied := chain{x: x, first: none, last: none}
	for list != none {
		x.memory.step()
		d := *x.dirents.at(list)
		if list = d.next; d.ino == none {
			continue
		}
		name, b, err := x.texts.add(int(d.length))
		if err != nil {
			return none, err
		}
		copy(b, x.name(&d))
		d.name = name
		n := *x.inodes.at(d.ino)
		if !n.isDir() && !n.linked {
			if d.ino, err = x.inodes.add(n); err != nil {
				return none, err
			}
		}
		id, err := x.dirents.add(d)
		if err != nil {
			return none, err
		}
		if n.isDir() {
			x.inodes.at(d.ino).parent = id
		}
		copied.take(id)
	}
	if copied.last != none {
		x.dirents.at(copied.last).next = none
	}
	return copied.first, nil
}

// descending tells whether a list is in the opposite of its order.
func (x *Index) descending(list uint32) bool {
	for list != none {
		x.memory.step()
		next := x.dirents.at(list).next
		if next != none && x.less(list, next) {
			return false
		}
		list = next
	}
	return true
}

func (x *Index) reversed(list uint32) uint32 {
	head := uint32(none)
	for list != none {
		x.memory.step()
		d := x.dirents.at(list)
		list, d.next, head = d.next, head, list
	}
	return head
}

// chain is a list of entries that grows at its end.
type chain struct {
	x           *Index
	first, last uint32 // or none
}

// take appends the first entry of a list, and returns the rest of the list.
func (c *chain) take(list uint32) (rest uint32) {
	if c.last == none {
		c.first = list
	} else {
		c.x.dirents.at(c.last).next = list
	}
	c.last = list
	return c.x.dirents.at(list).next
}

// merge appends the first two runs of a list, of width entries each, as one, and
// returns what is behind them.
func (c *chain) merge(a uint32, width int) (rest uint32) {
	b, left := a, 0
	for ; left < width && b != none; left++ {
		c.x.memory.step()
		b = c.x.dirents.at(b).next
	}
	right := width
	for left > 0 || right > 0 && b != none {
		c.x.memory.step()
		if left > 0 && (right == 0 || b == none || c.x.less(a, b)) {
			a, left = c.take(a), left-1
		} else {
			b, right = c.take(b), right-1
		}
	}
	return b
}

func (x *Index) less(a, b uint32) bool {
	return bytes.Compare(x.name(x.dirents.at(a)), x.name(x.dirents.at(b))) < 0
}
