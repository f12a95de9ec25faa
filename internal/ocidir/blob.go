package ocidir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/stream"
)

// copyBufBytes is the piece in which blobs are copied into the layout.
const copyBufBytes = 256 << 10

// stagedPrefix marks blobs on their way, beside the layout's own files.
const stagedPrefix = ".blob-"

// Blob returns the bytes of d from offset on, not yet verified. d.Size may be
// [stream.AnySize]; otherwise a blob of another size is a [*stream.MismatchError].
// The caller closes the reader; when ctx ends, its next Read returns the cause.
func (l *Layout) Blob(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	f, size, err := l.OpenBlob(d.Digest)
	if err != nil {
		return nil, err
	}
	if d.Size != stream.AnySize && d.Size != size {
		_ = f.Close()
		return nil, &stream.MismatchError{What: "blob", Want: d.Digest, WantSize: d.Size, GotSize: size}
	}
	if offset < 0 || offset > size {
		_ = f.Close()
		return nil, fmt.Errorf("read blob %s: offset %d is outside of its %d bytes", d.Digest, offset, size)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("read blob %s: %w", d.Digest, err)
	}
	return &blobReader{Closer: f, read: func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return f.Read(p)
	}}, nil
}

type blobReader struct {
	io.Closer
	read func([]byte) (int, error)
}

// Read implements [io.Reader].
func (r *blobReader) Read(p []byte) (int, error) { return r.read(p) }

// OpenBlob returns a blob as a file to read at any place, an [*os.File] in a
// directory, and its size in bytes. Errors wrap [ErrNotFound].
func (l *Layout) OpenBlob(digest oci.Digest) (io.ReadSeekCloser, int64, error) {
	if digest == "" {
		return nil, 0, fmt.Errorf("open blob of %s: no digest: %w", l.path, ErrNotFound)
	}
	f, size, err := l.files.open(blobName(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("open blob %s of %s: %w", digest, l.path, ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob %s of %s: %w", digest, l.path, err)
	}
	return f, size, nil
}

// HasBlob tells whether the layout has a blob, and its size in bytes.
func (l *Layout) HasBlob(_ context.Context, digest oci.Digest) (sizeBytes int64, found bool, err error) {
	f, size, err := l.OpenBlob(digest)
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return size, true, f.Close()
}

// PutBlob stores what r gives and returns its digest and size in a copy of d.
// d.Digest may be "" and d.Size [stream.AnySize] for whatever comes; content that
// differs is a [*stream.MismatchError], and nothing is kept. r is not read when
// the layout has the blob already.
func (l *Layout) PutBlob(ctx context.Context, d oci.Descriptor, r io.Reader) (oci.Descriptor, error) {
	if d.Digest != "" {
		size, found, err := l.HasBlob(ctx, d.Digest)
		if err != nil {
			return oci.Descriptor{}, err
		}
		if found && (d.Size == stream.AnySize || d.Size == size) {
			d.Size = size
			return d, nil
		}
	}
	staged, err := l.stage(d.Digest.Algorithm())
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer staged.Abort()
	if d.Size != stream.AnySize {
		r = io.LimitReader(r, d.Size+1) // one more, to see that it is too long
	}
	buf := make([]byte, copyBufBytes)
	for {
		if ctx.Err() != nil {
			return oci.Descriptor{}, fmt.Errorf("write blob: %w", context.Cause(ctx))
		}
		n, err := r.Read(buf)
		if _, werr := staged.Write(buf[:n]); werr != nil {
			return oci.Descriptor{}, werr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return oci.Descriptor{}, fmt.Errorf("write blob: %w", err)
		}
	}
	done, err := staged.Commit(d.Digest, d.Size)
	if err != nil {
		return oci.Descriptor{}, err
	}
	d.Digest, d.Size = done.Digest, done.Size
	return d, nil
}

// LinkBlob takes a blob over from another layout as it is there, unread: as a hard
// link where one file system holds both directories, otherwise as a copy.
func (l *Layout) LinkBlob(ctx context.Context, from *Layout, digest oci.Digest) (oci.Descriptor, error) {
	dir, err := l.writable()
	if err != nil {
		return oci.Descriptor{}, err
	}
	f, size, err := from.OpenBlob(digest)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer func() { _ = f.Close() }()
	d := oci.Descriptor{Digest: digest, Size: size}
	if _, found, err := l.HasBlob(ctx, digest); err != nil || found {
		return d, err
	}
	parent := blobsName + "/" + digest.Algorithm()
	if err := dir.root.MkdirAll(parent, 0o755); err != nil {
		return oci.Descriptor{}, fmt.Errorf("link blob %s: %w", digest, err)
	}
	err = os.Link(filepath.Join(from.dir, blobName(digest)), filepath.Join(l.dir, blobName(digest)))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return l.PutBlob(ctx, d, f)
	}
	return d, nil
}

// DeleteBlob removes a blob; [ErrNotFound] when there is none. That no manifest
// needs it is the caller's affair.
func (l *Layout) DeleteBlob(_ context.Context, digest oci.Digest) error {
	dir, err := l.writable()
	if err != nil {
		return err
	}
	if digest == "" {
		return fmt.Errorf("delete blob of %s: no digest: %w", l.path, ErrNotFound)
	}
	if err := dir.root.Remove(blobName(digest)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s of %s: %w", digest, l.path, ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("delete blob %s of %s: %w", digest, l.path, err)
	}
	return durable.SyncDir(filepath.Join(l.dir, blobsName, digest.Algorithm()))
}

func (l *Layout) writable() (directory, error) {
	dir, ok := l.files.(directory)
	if !ok {
		return directory{}, fmt.Errorf("write image layout %s: %w", l.path, ErrReadOnly)
	}
	return dir, nil
}

// Staged is a blob on its way into the layout. It ends with [Staged.Commit] or
// [Staged.Abort]. Not safe for concurrent use.
type Staged struct {
	layout    *Layout
	lock      *durable.Lock // of the file, so that no sweep takes it away; nil when ended
	name      string
	algorithm string
	hash      hash.Hash // of what was written, by algorithm
	size      int64
}

// Stage begins a blob whose digest is not known yet.
func (l *Layout) Stage() (*Staged, error) { return l.stage(oci.SHA256) }

func (l *Layout) stage(algorithm string) (*Staged, error) {
	if _, err := l.writable(); err != nil {
		return nil, err
	}
	if algorithm == "" {
		algorithm = oci.SHA256
	}
	name := stagedPrefix + rand.Text()
	lock, err := durable.TryAcquire(filepath.Join(l.dir, name), durable.Exclusive)
	if err != nil {
		return nil, fmt.Errorf("stage blob: %w", err)
	}
	return &Staged{layout: l, lock: lock, name: name, algorithm: algorithm, hash: hashOf(algorithm)}, nil
}

func hashOf(algorithm string) hash.Hash { return oci.Digest(algorithm + ":").Hash() }

// Size returns how many bytes were written.
func (s *Staged) Size() int64 { return s.size }

// Write implements [io.Writer].
func (s *Staged) Write(p []byte) (int, error) {
	if s.lock == nil {
		return 0, fmt.Errorf("stage blob: %w", fs.ErrClosed)
	}
	n, err := s.lock.File().Write(p)
	s.size += int64(n)
	_, _ = s.hash.Write(p[:n]) // hash.Hash never fails
	if err != nil {
		return n, fmt.Errorf("stage blob: %w", err)
	}
	return n, nil
}

// Abort removes what was staged; after Commit it does nothing.
func (s *Staged) Abort() {
	if s.lock == nil {
		return
	}
	_ = os.Remove(filepath.Join(s.layout.dir, s.name)) // what stays is swept by Create
	_ = s.lock.Release()
	s.lock = nil
}

// Commit makes the blob visible under its digest, if it is want and the size is
// sizeBytes; "" and [stream.AnySize] take what came. It ends the Staged, whatever
// it returns.
func (s *Staged) Commit(want oci.Digest, sizeBytes int64) (oci.Descriptor, error) {
	if s.lock == nil {
		return oci.Descriptor{}, fmt.Errorf("stage blob: %w", fs.ErrClosed)
	}
	defer s.Abort()
	got, err := s.digest(want.Algorithm())
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	if want == "" {
		want = got
	}
	if got != want || sizeBytes != stream.AnySize && sizeBytes != s.size {
		return oci.Descriptor{}, &stream.MismatchError{What: "blob", Want: want, Got: got, WantSize: sizeBytes, GotSize: s.size}
	}
	if err := s.publish(got); err != nil {
		return oci.Descriptor{}, fmt.Errorf("write blob %s: %w", got, err)
	}
	return oci.Descriptor{Digest: got, Size: s.size}, nil
}

// digest returns the digest of what was written. If it was hashed with another
// algorithm, it is read again.
func (s *Staged) digest(algorithm string) (oci.Digest, error) {
	if algorithm == "" || algorithm == s.algorithm {
		return oci.DigestOf(s.algorithm, s.hash), nil
	}
	h := hashOf(algorithm)
	if _, err := io.Copy(h, io.NewSectionReader(s.lock.File(), 0, s.size)); err != nil {
		return "", err
	}
	return oci.DigestOf(algorithm, h), nil
}

// publish brings the content to the disk and then gives it its name. That the name
// is there too matters when index.json leads to it: see [Layout.update].
func (s *Staged) publish(digest oci.Digest) error {
	dir, err := s.layout.writable()
	if err != nil {
		return err
	}
	f := s.lock.File()
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return err
	}
	parent := blobsName + "/" + digest.Algorithm()
	if err := dir.root.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	if err := dir.root.Rename(s.name, blobName(digest)); err != nil {
		return err
	}
	err = s.lock.Release()
	s.lock = nil
	return err
}
