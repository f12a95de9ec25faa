package apply

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

// What a [filler] holds.
const (
	batches    = 2 // one is made while the other is written
	batchBytes = 64 << 10
	batchFiles = 16 // open at once, beside as many in the other batch

	// smallFileBytes is what a file may have that is copied into a batch. Writing a larger
	// one takes longer than making it, and such layers keep all cores busy anyway.
	smallFileBytes = 32 << 10
)

// filler writes small files and sets their times in a goroutine of its own, while
// the one that reads the tar makes those that follow. Where a layer has many small files
// that one has more to do than all others together, and cores would wait for it
// (docs/bench.md).
//
// All that concerns names stays in the order of the tar: files come here open, and what
// becomes of their names meanwhile does not matter to them.
type filler struct {
	free   chan *batch    // capacity for all of them
	filled chan *batch    // closed by close
	done   sync.WaitGroup // of run
	failed error          // of run, until it is done

	// Of the goroutine that makes files.
	at   *batch // what is being filled; nil for none
	told bool   // an error was returned
}

// batch is some files that were made, and their content.
type batch struct {
	content []byte
	files   []madeFile
	err     error // why these or earlier ones could not be written
}

// madeFile is a file that is open and empty.
type madeFile struct {
	fd   int
	name string // of its entry, for errors
	end  int    // of its content in that of the batch; it begins where the last one's ends
	time fileTime
}

func newFiller() *filler {
	f := &filler{free: make(chan *batch, batches), filled: make(chan *batch)}
	for range batches {
		f.free <- &batch{content: make([]byte, 0, batchBytes), files: make([]madeFile, 0, batchFiles)}
	}
	f.done.Go(f.run)
	return f
}

// run writes what comes. After an error it only closes files.
func (f *filler) run() {
	for b := range f.filled {
		f.failed = b.write(f.failed)
		b.err = f.failed
		f.free <- b // never blocks
	}
}

// room returns a batch that takes one more file of size bytes. Its error is that of a
// file that came before.
func (f *filler) room(size int64) (*batch, error) {
	if b := f.at; b != nil && (len(b.files) == batchFiles || int64(len(b.content))+size > batchBytes) {
		f.at = nil
		f.filled <- b
	}
	if f.at == nil {
		f.at = <-f.free
		if err := f.at.err; err != nil {
			f.told = true
			return nil, err
		}
	}
	return f.at, nil
}

// close waits until all is written, and returns an error that room has not returned.
func (f *filler) close() error {
	if f.at != nil {
		f.filled <- f.at
		f.at = nil
	}
	close(f.filled)
	f.done.Wait()
	if f.told {
		return nil
	}
	return f.failed
}

// write writes the files, unless there was an error before, closes them and empties b.
func (b *batch) write(err error) error {
	from := 0
	for _, file := range b.files {
		if err == nil {
			err = file.fill(b.content[from:file.end])
		}
		// Some file systems report here what they could not write.
		if closeErr := unix.Close(file.fd); closeErr != nil && err == nil {
			err = fmt.Errorf("close %q: %w", file.name, closeErr)
		}
		from = file.end
	}
	b.content, b.files = b.content[:0], b.files[:0]
	return err
}

func (m *madeFile) fill(content []byte) error {
	if err := writeAll(m.fd, content); err != nil {
		return fmt.Errorf("write %q: %w", m.name, err)
	}
	if err := futimes(m.fd, m.time); err != nil {
		return fmt.Errorf("set times of %q: %w", m.name, err)
	}
	return nil
}

// leavesToFiller tells whether a new file in d is small and needs nothing but its
// content and its times.
func (a *applier) leavesToFiller(d *openedDir, e *layer.Entry) bool {
	return a.filler != nil && e.Size <= smallFileBytes && e.Sparse == nil && len(e.Xattrs) == 0 &&
		e.Mode&0o7000 == 0 && e.Mode&a.umask == 0 && a.owned(d, e.UID, e.GID) && a.storable(e)
}

// leaveToFiller reads a file's body and hands the file on, which is then the filler's to
// close. After an error it is not.
func (a *applier) leaveToFiller(ctx context.Context, fd int, e *layer.Entry) error {
	b, err := a.filler.room(e.Size)
	if err != nil {
		return err
	}
	a.journal.beginContent()
	for {
		part, err := a.tar.Body()
		if err == io.EOF { //nolint:errorlint // the body's own mark of its end
			break
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		a.journal.content(part)
		b.content = append(b.content, part...)
	}
	b.files = append(b.files, madeFile{fd, e.Name, len(b.content), fileTime{e.MTimeSec, e.MTimeNsec}})
	return nil
}
