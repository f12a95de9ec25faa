package record

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
)

// memoryBytes is what a spool or a sorter keeps before it goes on in a file.
const memoryBytes = 4 << 20

// spool keeps bytes in memory, and from a size on in a file without a name.
// What is to be read is flushed first.
type spool struct {
	memory bytes.Buffer
	file   *os.File
	out    *bufio.Writer // to file
	size   int64

	memoryBytes int // what is kept in memory; 0 is [memoryBytes]
}

// Write takes p, to be read after the next flush.
func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.memory.Len()+len(p) > cmp.Or(s.memoryBytes, memoryBytes) {
		file, err := unnamed()
		if err != nil {
			return 0, err
		}
		s.file, s.out = file, bufio.NewWriterSize(file, blockBytes)
		if _, err := s.memory.WriteTo(s.out); err != nil {
			return 0, fmt.Errorf("write temporary file: %w", err)
		}
		s.memory = bytes.Buffer{}
	}
	s.size += int64(len(p))
	if s.file == nil {
		return s.memory.Write(p)
	}
	n, err := s.out.Write(p)
	if err != nil {
		return n, fmt.Errorf("write temporary file: %w", err)
	}
	return n, nil
}

// flush makes what was written readable.
func (s *spool) flush() error {
	if s.out == nil {
		return nil
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("write temporary file: %w", err)
	}
	return nil
}

// ReadAt reads what has been flushed.
func (s *spool) ReadAt(p []byte, at int64) (int, error) {
	if s.file != nil {
		return s.file.ReadAt(p, at)
	}
	return bytes.NewReader(s.memory.Bytes()).ReadAt(p, at)
}

func (s *spool) reader(at, size int64) *bufio.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(s, at, size), blockBytes)
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // nothing of it is wanted
	}
	s.file, s.out, s.memory, s.size = nil, nil, bytes.Buffer{}, 0
}

// blockBytes is the piece in which temporary files are read and written.
const blockBytes = 64 << 10

// unnamed makes a temporary file that is gone with the process, whatever ends that.
func unnamed() (*os.File, error) {
	file, err := os.CreateTemp("", "dray-record-*")
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	return file, nil
}
