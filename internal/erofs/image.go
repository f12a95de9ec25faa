package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"dray/internal/layer"
)

// Label is the volume name of an [Image], by which blkid and mount find it.
const Label = "dray-seed"

// Image is a whole EROFS file system in one file: names and attributes in front,
// and behind them the contents of its files, of which its maker knows where they
// will lie. Kernels mount it from a block device with sectors of 512 bytes, and
// from a file where they can. Not safe for concurrent use.
type Image struct {
	x       *Index
	content uint64 // blocks that follow
}

// NewImage begins an image with a UUID. It is to be closed.
func NewImage(uuid [16]byte, o Options) (*Image, error) {
	x, err := newIndex(o)
	if err != nil {
		return nil, err
	}
	x.uuid = uuid
	return &Image{x: x}, nil
}

// Add adds a file, directory or link, as if its entry came in a tar. A file's
// contents will be at offset of what follows the image, a multiple of 512, and will
// be followed by zeros up to the next one.
func (i *Image) Add(e *layer.Entry, offset int64) (err error) {
	defer onFault(&err)()
	if err := expressible(e, offset); err != nil {
		return err
	}
	return i.x.add(e, uint32(offset/blockBytes))
}

// End closes the tree, to be followed by contentBytes, a multiple of 512, and
// returns the size of what [Image.WriteTo] writes.
func (i *Image) End(contentBytes int64) (sizeBytes int64, err error) {
	defer onFault(&err)()
	if err := i.x.arrange(); err != nil {
		return 0, err
	}
	i.content = uint64(contentBytes) / blockBytes
	if i.x.layout.blocks+i.content > 1<<32-1 {
		return 0, errTooLarge
	}
	return int64(i.x.layout.blocks * blockBytes), nil
}

// WriteTo writes the image but for the contents, which are to follow at once.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	return i.x.WriteTo(&relabel{w: w, blocks: uint32(i.x.layout.blocks), content: uint32(i.content)})
}

// Close frees the image.
func (i *Image) Close() error { return i.x.Close() }

const (
	blocksFieldAt = 36 // in the superblock
	labelFieldAt  = 64
	locatorAt     = superBytes              // behind the superblock, where other images have devices
	locator       = "dray-seed contents at" // and the offset, eight bytes, little-endian
)

// relabel writes an index as an image without devices: the superblock counts the
// contents too, has the label, and behind it stands where they begin.
type relabel struct {
	w               io.Writer
	blocks, content uint32
	head            []byte // the first blocks, until there are enough of them
	done            bool
}

// Write implements [io.Writer].
func (r *relabel) Write(p []byte) (int, error) {
	if r.done {
		return r.w.Write(p)
	}
	r.head = append(r.head, p...)
	if len(r.head) < superOffset+blockBytes {
		return len(p), nil
	}
	le := binary.LittleEndian
	s := r.head[superOffset:][:blockBytes]
	le.PutUint32(s[blocksFieldAt:], r.blocks+r.content)
	copy(s[labelFieldAt:], Label)
	copy(s[locatorAt:], locator)
	le.PutUint64(s[locatorAt+len(locator):], uint64(r.blocks)*blockBytes)
	le.PutUint32(s[4:], 0)
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	r.done = true
	_, err := r.w.Write(r.head)
	return len(p), err
}

// FindContents returns where in a file the contents begin that follow an [Image];
// ok is false when the file does not begin with one. Nothing else of the image is
// looked at or believed.
func FindContents(r io.ReaderAt) (offset int64, ok bool, err error) {
	var b [blockBytes]byte
	n, err := r.ReadAt(b[:], superOffset)
	if n < len(b) {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return 0, false, err
	}
	at := b[locatorAt:]
	if binary.LittleEndian.Uint32(b[:]) != magic || !bytes.HasPrefix(at, []byte(locator)) {
		return 0, false, nil
	}
	found := binary.LittleEndian.Uint64(at[len(locator):])
	if found < superOffset+blockBytes || found%blockBytes != 0 || found > 1<<62 {
		return 0, false, fmt.Errorf("contents of image at offset %d: %w", found, layer.ErrFormat)
	}
	return int64(found), true, nil
}
