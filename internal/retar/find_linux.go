package retar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"dray/internal/oci"
)

// ErrUnknown reports a tree of which no known form gives the layer.
var ErrUnknown = errors.New("no tar made of this tree has the digest")

// Find returns the form in which the tree below root is the layer id, and the size
// of that tar. The error is [ErrUnknown] when there is none, [ErrTree], the system's
// or the cause of ctx. The tree is read once for each form tried.
func Find(ctx context.Context, root *os.File, id oci.DiffID, o Options) (Form, int64, error) {
	var tried []string
	forms := Forms()
	for len(forms) > 0 {
		f := forms[0]
		forms = forms[1:]
		sum := id.Digest().Hash()
		counted := &counter{Writer: sum}
		implicit, err := f.write(ctx, root, counted, o)
		if err != nil {
			return Form{}, 0, err
		}
		if oci.DigestOf(id.Digest().Algorithm(), sum) == id.Digest() {
			return f, counted.bytes, nil
		}
		tried = append(tried, f.String())
		if implicit && !f.lean {
			f.lean = true
			forms = append(forms, f)
		}
	}
	return Form{}, 0, fmt.Errorf("tree %s, layer %s: %w (tried: %s)", root.Name(), id, ErrUnknown, strings.Join(tried, "; "))
}

type counter struct {
	io.Writer

	bytes int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += int64(len(p))
	return c.Writer.Write(p)
}

// Open returns the tree below root as a tar. It is written by a goroutine, which
// Close ends and waits for; root may be closed after that.
func Open(ctx context.Context, root *os.File, f Form, o Options) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	reader, writer := io.Pipe()
	t := &stream{PipeReader: reader, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		_, err := f.write(ctx, root, writer, o)
		_ = writer.CloseWithError(err) // never fails
	}()
	return t
}

type stream struct {
	*io.PipeReader

	cancel context.CancelFunc
	done   chan struct{} // closed by the goroutine
}

// Close implements [io.Closer].
func (s *stream) Close() error {
	s.cancel()
	err := s.PipeReader.Close()
	<-s.done
	return err
}
