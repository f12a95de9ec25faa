package seed

import (
	"io"
	"os"

	"dray/internal/stream"
)

// files is how a seed's files are reached: in a directory or in an archive. All
// names are below the seed's directory. Errors match [fs.ErrNotExist] where there
// is nothing, [ErrRefused] where something else is than should be.
type files interface {
	// open opens a file. The caller closes it.
	open(name string) (*part, error)
	// names lists a directory in order; a missing one is empty.
	names(dir string) ([]string, error)
	// tree opens a directory to be used where it is.
	tree(name string) (*os.File, error)
}

var (
	_ files = directory("")
	_ files = (*archive)(nil)
)

// maxNames bounds the names in one directory, and in an archive.
const maxNames = 1 << 20

// part is an opened file of a seed: all of File, or a part of it.
type part struct {
	*os.File
	offset, size int64
	alone        bool // it is all of File
}

// reader reads the part.
func (p *part) reader() *io.SectionReader { return io.NewSectionReader(p.File, p.offset, p.size) }

// readFile returns all of a file of at most limit bytes.
func readFile(from files, name string, limit int64) ([]byte, error) {
	p, err := from.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	if p.size > limit {
		return nil, problem("%s: %d bytes, the limit is %d", p.Name(), p.size, limit)
	}
	raw, err := stream.ReadAll(p.reader(), limit)
	if err != nil {
		return nil, problem("read %s: %w", p.Name(), err)
	}
	return raw, nil
}
