package record

import (
	"encoding/binary"
	"errors"
	"io"
	"iter"

	"dray/internal/oci"
)

// namesMemoryBytes is what [Names] keep in memory: an image may have hundreds of layers.
const namesMemoryBytes = 64 << 10

// Names are a layer's names, kept as a [List] is. The zero value is empty. They belong
// to one goroutine at a time.
type Names struct {
	text spool
	item []byte // flags, size, digest, zero byte, path
}

// Add appends a name.
func (n *Names) Add(name *Name) error {
	n.text.memoryBytes = namesMemoryBytes
	n.item = append(n.item[:0], 0)
	if name.IsDir {
		n.item[0] = 1
	}
	n.item = binary.BigEndian.AppendUint64(n.item, uint64(name.Size))
	n.item = append(append(append(n.item, name.Digest...), 0), name.Path...)
	var length [binary.MaxVarintLen64]byte
	_, err := n.text.Write(binary.AppendUvarint(length[:0], uint64(len(n.item))))
	if err == nil {
		_, err = n.text.Write(n.item)
	}
	return err
}

// Flush lets go of what is only needed to add more.
func (n *Names) Flush() error {
	n.item = nil
	if err := n.text.flush(); err != nil {
		return err
	}
	n.text.out = nil
	return nil
}

// All returns the names in their order, after [Names.Flush].
func (n *Names) All() iter.Seq2[Name, error] {
	return func(yield func(Name, error) bool) {
		if n.text.size == 0 {
			return
		}
		r := run{in: n.text.reader(0, n.text.size)}
		for {
			err := r.next()
			if errors.Is(err, io.EOF) {
				return
			}
			var name Name
			if err == nil {
				digest, path := cutPath(r.head[9:])
				name = Name{Path: string(path), IsDir: r.head[0] == 1, Size: int64(binary.BigEndian.Uint64(r.head[1:])), Digest: oci.Digest(digest)}
			}
			if !yield(name, err) || err != nil {
				return
			}
		}
	}
}

// Close lets go of the names.
func (n *Names) Close() { n.text.close() }
