package estargz

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"

	"github.com/klauspost/compress/zstd"
)

// tarSplit is what containers/storage rebuilds a tar from: all bytes of it but
// the files', as lines of JSON.
type tarSplit struct {
	table    *crc64.Table
	out      bytes.Buffer  // compressed
	zstd     *zstd.Encoder // to out
	size     int64         // of the lines
	err      error         // the first
	pending  []byte        // of the segment that has not ended
	crc      uint64
	position int
}

// tarSplitLine is a line. Type 1 is a file, of which the payload is the sum, type
// 2 is bytes of the tar.
type tarSplitLine struct {
	Type     int    `json:"type"`
	Name     string `json:"name,omitempty"`
	Size     int64  `json:"size,omitempty"`
	Payload  []byte `json:"payload"`
	Position int    `json:"position"`
}

func newTarSplit(o *Options) (*tarSplit, error) {
	t := &tarSplit{table: crc64.MakeTable(crc64.ISO)}
	var err error
	t.zstd, err = zstd.NewWriter(&t.out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(o.Level)))
	return t, err
}

// segment takes bytes of the tar that are no file's.
func (t *tarSplit) segment(p []byte) {
	if t.pending = append(t.pending, p...); len(t.pending) > unitBytes {
		t.endSegment()
	}
}

func (t *tarSplit) body(p []byte) { t.crc = crc64.Update(t.crc, t.table, p) }

// file ends an entry, which any entry of the tar is.
func (t *tarSplit) file(name string, size int64) {
	t.endSegment()
	line := tarSplitLine{Type: 1, Name: name, Size: size}
	if size > 0 {
		line.Payload = binary.BigEndian.AppendUint64(nil, t.crc)
	}
	t.crc = 0
	t.line(line)
}

func (t *tarSplit) endSegment() {
	if len(t.pending) > 0 {
		t.line(tarSplitLine{Type: 2, Payload: t.pending})
		t.pending = t.pending[:0]
	}
}

func (t *tarSplit) line(l tarSplitLine) {
	l.Position = t.position
	t.position++
	text, err := json.Marshal(l)
	if err != nil {
		panic("estargz: internal error: " + err.Error())
	}
	text = append(text, '\n')
	t.size += int64(len(text))
	if t.err == nil {
		_, t.err = t.zstd.Write(text)
	}
}

// finish returns the lines, compressed.
func (t *tarSplit) finish() ([]byte, error) {
	t.endSegment()
	if err := errors.Join(t.err, t.zstd.Close()); err != nil {
		return nil, fmt.Errorf("compress tar-split: %w", err)
	}
	return t.out.Bytes(), nil
}
