package apply

import (
	"fmt"
	"io"
	"strings"

	"dray/internal/layer"
)

// Journal is the journal of a tree that something else than [Apply] makes, for [Check].
type Journal struct{ j *journal }

// NewJournal begins a journal, with checksums as in [Options.ContentHash].
func NewJournal(w io.Writer, checksum string) (*Journal, error) {
	j, err := newJournal(w, checksum)
	return &Journal{j}, err
}

// Add writes an entry down, parents before children and the root first, which is "".
// Names are those of the tree, links in full from the root. A character device 0:0 is
// a whiteout, and attributes of overlayfs are left out but for that of opaque
// directories. content is a file's, read to its end.
func (w *Journal) Add(e *layer.Entry, content io.Reader) error {
	j := w.j
	dir, base := "", e.Name
	if i := strings.LastIndexByte(e.Name, '/'); i >= 0 {
		dir, base = e.Name[:i], e.Name[i+1:]
	}
	kept, opaque := *e, false
	kept.Xattrs = nil
	for _, x := range e.Xattrs {
		if !strings.HasPrefix(x.Name, trustedOverlay) {
			kept.Xattrs = append(kept.Xattrs, x)
		} else if x.Name == "trusted."+overlayOpaque {
			opaque = true
		}
	}
	switch e.Type {
	case layer.Dir:
		if err := j.dirEntry(e.Name, &kept); err != nil || !opaque {
			return err
		}
		return j.opaque(e.Name)
	case layer.Symlink:
		return j.symlink(dir, base, &kept)
	case layer.HardLink:
		return j.hardLink(dir, base, "", e.Linkname)
	case layer.Char, layer.Block, layer.FIFO:
		if e.Type == layer.Char && e.Major == 0 && e.Minor == 0 {
			return j.whiteout(dir, base)
		}
		return j.node(dir, base, &kept)
	case layer.Reg:
	}
	j.beginContent()
	if _, err := io.Copy(j.sum, content); err != nil {
		return fmt.Errorf("write journal: %q: %w", e.Name, err)
	}
	return j.file(dir, base, &kept)
}

// Close writes the end. It does not close what the journal is written to.
func (w *Journal) Close() error { return w.j.close() }
