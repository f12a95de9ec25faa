package estargz

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"

	oracle "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
	"dray/internal/stream"
)

func TestReadsWhatContainerdWrites(t *testing.T) {
	t.Parallel()
	files := tree()
	src := makeTar(t, files)
	z := newOracleZstd()
	for _, test := range []struct {
		name   string
		opts   []oracle.Option
		format Format
	}{
		{"defaults", nil, EStargz},
		{"small chunks", []oracle.Option{oracle.WithChunkSize(1000)}, EStargz},
		{"min chunks", []oracle.Option{oracle.WithMinChunkSize(5000), oracle.WithChunkSize(7000)}, EStargz},
		{"prioritized", []oracle.Option{oracle.WithPrioritizedFiles([]string{"many/100", "a/hard"})}, EStargz},
		{"zstd", []oracle.Option{oracle.WithCompression(z), oracle.WithChunkSize(1000)}, ZstdChunkedContainerd},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			blob, digest := oracleBuild(t, src, test.opts...)
			r := mustOpen(t, blob, OpenOptions{Hints: Hints{TOCDigest: digest}})
			if r.Format() != test.format {
				t.Errorf("format is %v, want %v", r.Format(), test.format)
			}
			if _, err := r.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			checkFiles(t, r, files)
			if test.name == "prioritized" {
				want := []string{"many/100", "a/small", "a/hard"}
				if diff := cmp.Diff(r.Prioritized(), want); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// checkFiles reads all files, in whole and in parts.
func checkFiles(t *testing.T, r *Reader, files []file) {
	t.Helper()
	last := map[string]file{}
	for _, f := range files {
		last[f.name] = f
	}
	for _, f := range last {
		e, ok := r.Lookup(f.name)
		if !ok {
			t.Errorf("%q is not there", f.name)
			continue
		}
		if f.typ == tar.TypeLink {
			f.body = last[f.link].body
		}
		got := make([]byte, len(f.body)+1)
		if n, err := r.ReadFileAt(e, got, 0); n != len(f.body) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], f.body) {
			t.Errorf("read of %q: %d bytes, %v", f.name, n, err)
		}
		if len(f.body) > 5000 {
			part := make([]byte, 2500)
			if _, err := r.ReadFileAt(e, part, 1234); err != nil || !bytes.Equal(part, f.body[1234:][:2500]) {
				t.Errorf("read of a part of %q: %v", f.name, err)
			}
		}
	}
}

func TestRefusesOtherTOC(t *testing.T) {
	t.Parallel()
	blob, _ := oracleBuild(t, makeTar(t, tree()))
	_, err := Open(bytes.NewReader(blob), int64(len(blob)), OpenOptions{Hints: Hints{TOCDigest: oci.DigestBytes(nil)}})
	if !errors.Is(err, stream.ErrMismatch) {
		t.Errorf("got %v", err)
	}
}

func TestRefusesOrdinaryLayers(t *testing.T) {
	t.Parallel()
	for _, blob := range [][]byte{nil, {1}, makeTar(t, tree())} {
		if _, err := Open(bytes.NewReader(blob), int64(len(blob)), OpenOptions{}); !errors.Is(err, ErrNoTOC) {
			t.Errorf("%d bytes: got %v", len(blob), err)
		}
	}
}
