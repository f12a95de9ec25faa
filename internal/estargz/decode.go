package estargz

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"dray/internal/oci"
)

// maxPrioritized limits how many names a TOC may list for prefetching.
const maxPrioritized = 1 << 20

// document is a TOC as it was decoded.
type document struct {
	table          *table                 // nil if entries are only looked at
	add            func(*jsonEntry) error // takes each entry, in order
	digest         oci.Digest             // of its bytes
	tarSplitDigest oci.Digest
	prioritized    []string // of a lossless layer; see [Options.Lossless]
}

// decodeTOC reads a TOC to its end. payload is the size of the part of the blob
// that chunks may point to.
func decodeTOC(r io.Reader, payload int64, l Limits) (*document, error) {
	t := &table{limits: l, payload: payload}
	d := &document{table: t, add: t.add}
	if err := d.read(r, l, t.finish); err != nil {
		return nil, err
	}
	return d, nil
}

// read decodes a TOC to its end, then calls finish.
func (d *document) read(r io.Reader, l Limits, finish func() error) error {
	hash := sha256.New()
	in := &entryReader{r: io.TeeReader(r, hash), total: l.MaxTOCBytes, entryMax: l.MaxEntryBytes}
	in.reset()
	dec := json.NewDecoder(bufio.NewReader(in))
	err := d.decode(dec, in)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			err = malformed("TOC goes on after its end")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err == nil {
		err = finish()
	}
	if err != nil {
		return explainJSON(err, in)
	}
	d.digest = oci.DigestOf(oci.SHA256, hash)
	return nil
}

// explainJSON keeps the errors of the source and makes the others ours.
func explainJSON(err error, in *entryReader) error {
	switch {
	case in.err != nil && !errors.Is(in.err, io.EOF):
		return in.err
	case errors.Is(err, ErrFormat), errors.Is(err, oci.ErrDigest):
		return fmt.Errorf("read TOC: %w", err)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read TOC: %w: %w", ErrFormat, err)
}

// entryReader stops a decoder that would read without end for one value.
type entryReader struct {
	r        io.Reader
	total    int64 // bytes that may still come
	entryMax int64
	left     int64 // until reset is called again
	err      error
}

// decoderSlackBytes is what decoders read ahead of the value they are in.
const decoderSlackBytes = 64 << 10

func (e *entryReader) reset() { e.left = e.entryMax + decoderSlackBytes }

func (e *entryReader) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.left <= 0 || e.total <= 0 {
		e.err = malformed("read TOC: more than %d bytes in one entry, or too many in all", e.entryMax)
		return 0, e.err
	}
	n, err := e.r.Read(p[:min(int64(len(p)), decoderSlackBytes)])
	e.left -= int64(n)
	e.total -= int64(n)
	e.err = err
	return n, err
}

func (d *document) decode(dec *json.Decoder, in *entryReader) error {
	if err := expect(dec, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		if seen[key] && isTOCKey(key) {
			return malformed("TOC has %q twice", key)
		}
		if isTOCKey(key) {
			seen[key] = true
		}
		if err := d.decodeField(dec, in, key); err != nil {
			return err
		}
		in.reset()
	}
	if !seen["version"] || !seen["entries"] {
		return malformed("TOC has no version or no entries")
	}
	return expect(dec, '}')
}

func isTOCKey(key string) bool {
	switch key {
	case "version", "entries", "tarSplitDigest", "prioritized":
		return true
	}
	return false
}

func (d *document) decodeField(dec *json.Decoder, in *entryReader, key string) error {
	switch key {
	case "version":
		var version int
		if err := dec.Decode(&version); err != nil {
			return err
		}
		if version != 1 {
			return malformed("TOC has the unknown version %d", version)
		}
		return nil
	case "entries":
		return decodeArray(dec, in, d.add)
	case "tarSplitDigest":
		var s string
		if err := dec.Decode(&s); err != nil || s == "" {
			return err
		}
		var err error
		d.tarSplitDigest, err = oci.ParseDigest(s)
		return err
	case "prioritized":
		return decodeArray(dec, in, func(name *string) error {
			if len(d.prioritized) == maxPrioritized {
				return malformed("TOC prioritizes more than %d names", maxPrioritized)
			}
			if d.table == nil {
				return nil
			}
			clean, err := cleanName(*name)
			d.prioritized = append(d.prioritized, clean)
			return err
		})
	}
	var skipped json.RawMessage
	return dec.Decode(&skipped)
}

// decodeArray calls take for each element of an array, which may be null.
func decodeArray[T any](dec *json.Decoder, in *entryReader, take func(*T) error) error {
	token, err := dec.Token()
	if err != nil || token == nil {
		return err
	}
	if token != json.Delim('[') {
		return malformed("TOC has %v for an array", token)
	}
	for dec.More() {
		in.reset()
		var v T
		if err := dec.Decode(&v); err != nil {
			return err
		}
		if err := take(&v); err != nil {
			return err
		}
	}
	return expect(dec, ']')
}

func expect(dec *json.Decoder, want json.Delim) error {
	token, err := dec.Token()
	if err == nil && token != want {
		return malformed("TOC has %v where %q should be", token, want)
	}
	return err
}
