package estargz

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
)

// spool keeps bytes in memory, and from a size on in a file without a name. It
// belongs to one goroutine.
type spool struct {
	memory int64  // bytes
	dir    string // of the file; "" is the system's
	buf    bytes.Buffer
	file   *os.File
	out    *bufio.Writer // to file
	size   int64         // written so far
}

func (s *spool) write(p []byte) error {
	s.size += int64(len(p))
	if s.file == nil && s.size <= s.memory {
		s.buf.Write(p)
		return nil
	}
	if s.file == nil {
		if err := s.spill(); err != nil {
			return fmt.Errorf("make temporary file: %w", err)
		}
	}
	if _, err := s.out.Write(p); err != nil {
		return fmt.Errorf("write temporary file: %w", err)
	}
	return nil
}

// spill goes on in a file.
func (s *spool) spill() error {
	f, err := os.CreateTemp(s.dir, "dray-layer-*")
	if err != nil {
		return err
	}
	s.file, s.out = f, bufio.NewWriterSize(f, tapBlockBytes)
	// Without its name it is gone with the process, whatever ends that.
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	_, err = s.buf.WriteTo(s.out)
	s.buf = bytes.Buffer{}
	return err
}

// read calls take with size bytes from an offset on.
func (s *spool) read(at, size int64, take func([]byte) error) error {
	if s.file == nil {
		return take(s.buf.Bytes()[at:][:size])
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("write temporary file: %w", err)
	}
	buf := make([]byte, min(size, tapBlockBytes))
	for size > 0 {
		n := min(size, int64(len(buf)))
		if _, err := io.ReadFull(io.NewSectionReader(s.file, at, n), buf[:n]); err != nil {
			return fmt.Errorf("read temporary file: %w", noEOF(err))
		}
		if err := take(buf[:n]); err != nil {
			return err
		}
		at, size = at+n, size-n
	}
	return nil
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // nothing of it is wanted
	}
}
