package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"dray/internal/layer"
)

// Label is the volume name of an [Image], by which blkid and mount find it.
const Label = "dray-seed"

// ImageHeadBytes is the size of what stands before the contents of an [Image].
const ImageHeadBytes = 4096

// Image is a whole EROFS file system in one file: a head of [ImageHeadBytes], the
// contents of its files, of which its maker knows where they lie, and the tree behind
// them, so that contents can be written as they come. Kernels mount it from a block
// device with sectors of 512 bytes, and from a file where they can. Not safe for
// concurrent use.
type Image struct{ x *Index }

// NewImage begins an image. It is to be closed.
func NewImage(o Options) (*Image, error) {
	x, err := newIndex(o)
	if err != nil {
		return nil, err
	}
	x.whole = true
	return &Image{x: x}, nil
}

// Add adds a file, directory or link, as if its entry came in a tar; an overlayfs
// whiteout is a device, and what makes a directory opaque is an entry in it, as in a
// layer. A file's contents are at offset of the image's file, a multiple of 512, and
// are followed by zeros up to the next one.
func (i *Image) Add(e *layer.Entry, offset int64) (err error) {
	defer onFault(&err)()
	if err := expressible(e, offset); err != nil {
		return err
	}
	return i.x.add(e, uint32(offset/blockBytes))
}

// WriteTree ends the image: w is its file from offset on, a multiple of 512, where
// the contents have ended. It returns how much it has written, and the image's head,
// to be written at the beginning. The UUID may be a digest of what is inside.
func (i *Image) WriteTree(w io.Writer, uuid [uuidBytes]byte, offset int64) (sizeBytes int64, head []byte, err error) {
	defer onFault(&err)()
	x := i.x
	x.uuid, x.origin = uuid, uint64(offset)/blockBytes
	if err := x.arrange(); err != nil {
		return 0, nil, err
	}
	head = make([]byte, ImageHeadBytes)
	copy(head[superOffset:superOffset+blockBytes], x.output(nil).head()[superOffset:])
	sizeBytes, err = x.WriteTo(w)
	return sizeBytes, head, err
}

// Close frees the image.
func (i *Image) Close() error { return i.x.Close() }

const (
	blocksFieldAt = 36                      // in the superblock
	labelFieldAt  = 64                      // there too
	locatorAt     = superBytes              // behind it, where other images have devices
	locator       = "dray-seed contents at" // and the offset, eight bytes, little-endian
)

// FindContents returns where in a file the contents of an [Image] begin, and the size
// of all of it; ok is false when the file does not begin with one. Nothing else of the
// image is looked at or believed.
func FindContents(r io.ReaderAt) (offset, sizeBytes int64, ok bool, err error) {
	var b [blockBytes]byte
	n, err := r.ReadAt(b[:], superOffset)
	if n < len(b) {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return 0, 0, false, err
	}
	at := b[locatorAt:]
	if binary.LittleEndian.Uint32(b[:]) != magic || !bytes.HasPrefix(at, []byte(locator)) {
		return 0, 0, false, nil
	}
	found := binary.LittleEndian.Uint64(at[len(locator):])
	if found < superOffset+blockBytes || found%blockBytes != 0 || found > 1<<62 {
		return 0, 0, false, fmt.Errorf("contents of image at offset %d: %w", found, layer.ErrFormat)
	}
	return int64(found), int64(binary.LittleEndian.Uint32(b[blocksFieldAt:])) * blockBytes, true, nil
}
