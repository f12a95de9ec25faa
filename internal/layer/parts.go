package layer

import (
	"cmp"
	"fmt"
	"io"

	"dray/internal/inflate"
)

// Continue makes d read src, another row of whole members or frames of the same
// layer, with the memory and the limits that it has. What d read before must have
// ended well; without [Options.Cores] only.
func (d *Decompressor) Continue(src io.Reader) error {
	if d.err != io.EOF { //nolint:errorlint // its own
		return fmt.Errorf("decompress %s: what was read before has not ended (%w)", d.compression, cmp.Or(d.err, io.ErrNoProgress))
	}
	d.src.r, d.src.err = src, nil
	d.in.Reset(d.src)
	var err error
	switch codec := d.codec.(type) {
	case *zstdReader:
		err = codec.z.Reset(d.in)
	case *gzipReader:
		z, ok := codec.z.(*inflate.Reader)
		if !ok {
			panic("layer: internal error: inflated on several cores")
		}
		z.Reset(d.in)
	}
	d.err = d.explain(err)
	return d.err
}
