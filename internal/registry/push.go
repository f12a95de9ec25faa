package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"dray/internal/oci"
	"dray/internal/stream"
)

// HasBlob tells whether the origin has a blob, and its size in bytes, or -1
// where the registry does not say.
func (r *Repository) HasBlob(ctx context.Context, digest oci.Digest) (int64, bool, error) {
	if _, err := oci.ParseDigest(string(digest)); err != nil {
		return 0, false, fmt.Errorf("look for blob: %w", err)
	}
	e := r.origin()
	k := e.pull(http.MethodHead, "blobs/"+string(digest))
	sizeBytes := int64(-1)
	err := e.repeat(ctx, e.retries(), func() error {
		resp, err := e.send(ctx, k)
		if err != nil {
			return err
		}
		sizeBytes = resp.ContentLength
		return resp.Body.Close()
	})
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for blob %s in %s: %w", digest, r.name, err)
	}
	return sizeBytes, true, nil
}

// MountBlob asks the origin to take over a blob from another of its
// repositories, and tells whether it did. fromRepo has no host.
func (r *Repository) MountBlob(ctx context.Context, digest oci.Digest, fromRepo string) (bool, error) {
	if _, err := oci.ParseDigest(string(digest)); err != nil {
		return false, fmt.Errorf("mount blob: %w", err)
	}
	e := r.origin()
	k := call{
		method: http.MethodPost,
		url:    e.url("blobs/uploads/", url.Values{"mount": {string(digest)}, "from": {fromRepo}}),
		scope:  e.scope("pull,push") + " repository:" + fromRepo + ":pull",
		want:   []int{http.StatusCreated, http.StatusAccepted},
	}
	mounted := false
	err := e.repeat(ctx, e.retries(), func() error {
		resp, err := e.send(ctx, k)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // nothing is read
		if mounted = resp.StatusCode == http.StatusCreated; mounted {
			return nil
		}
		// An upload was begun instead; nobody will go on with it.
		if session, err := location(resp.Request, resp); err == nil {
			e.cancelUpload(ctx, session)
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("mount blob %s of %s in %s: %w", digest, fromRepo, r.name, err)
	}
	return mounted, nil
}

// PushBlob uploads a blob to the origin unless it is there. open returns the
// blob's bytes from an offset; it may be called again after a failure, and what
// it returns is closed. An upload that broke off goes on at the byte that the
// registry has, where it says so, else from the start.
func (r *Repository) PushBlob(ctx context.Context, d oci.Descriptor, open func(offset int64) (io.ReadCloser, error)) error {
	if _, err := oci.ParseDigest(string(d.Digest)); err != nil || d.Size < 0 {
		return fmt.Errorf("push blob %q of %d bytes: %w", d.Digest, d.Size, oci.ErrDigest)
	}
	if _, ok, err := r.HasBlob(ctx, d.Digest); err != nil || ok {
		return err
	}
	u := &upload{endpoint: r.origin(), blob: d, open: open}
	if err := u.endpoint.repeat(ctx, u.endpoint.retries(), func() error { return u.attempt(ctx) }); err != nil {
		if u.location != nil {
			u.endpoint.cancelUpload(ctx, u.location)
		}
		return fmt.Errorf("push blob %s to %s: %w", d.Digest, r.name, err)
	}
	return nil
}

// upload is one blob on its way to a registry (distribution-spec, "Pushing a
// blob").
type upload struct {
	endpoint *endpoint
	blob     oci.Descriptor
	open     func(offset int64) (io.ReadCloser, error)
	location *url.URL // of the session; nil: none
}

// attempt goes on with the session of the last attempt, or begins one.
func (u *upload) attempt(ctx context.Context) error {
	if u.location != nil {
		if offset, err := u.progress(ctx); err == nil {
			return u.resume(ctx, offset)
		}
		u.location = nil
	}
	k := u.call(http.MethodPost, u.endpoint.url("blobs/uploads/", nil), http.StatusAccepted)
	resp, err := u.endpoint.send(ctx, k)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // empty
	if u.location, err = location(resp.Request, resp); err != nil {
		return err
	}
	if u.blob.Size < resumableBytes {
		return u.finish(ctx, 0)
	}
	return u.resume(ctx, 0)
}

// resumableBytes is the size from which a blob is sent apart from the request
// that ends its upload: only so do registries that can resume keep what has come.
// For smaller ones sending again costs less than one more request for each.
const resumableBytes = 1 << 20

// storeRate is what a registry may be expected to store and hash, in bytes per
// second, after the last byte has come.
const storeRate = 16 << 20

func (u *upload) call(method string, target *url.URL, want ...int) call {
	return call{
		method: method, url: target, scope: u.endpoint.scope("pull,push"), want: want,
		slow: time.Duration(u.blob.Size/storeRate) * time.Second,
	}
}

// progress asks how many bytes of the session the registry has.
func (u *upload) progress(ctx context.Context) (int64, error) {
	resp, err := u.endpoint.send(ctx, u.call(http.MethodGet, u.location, http.StatusNoContent))
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close() // empty
	var last int64
	header := resp.Header.Get("Range")
	if _, err := fmt.Sscanf(header, "0-%d", &last); err != nil || last < 1 || last >= u.blob.Size {
		// 0-0 is what some registries say for one byte and for none.
		return 0, protocolError(resp.Request, "upload has range %q", printable(header))
	}
	if moved, err := location(resp.Request, resp); err == nil {
		u.location = moved
	}
	return last + 1, nil
}

// resume sends what is missing, then ends the session.
func (u *upload) resume(ctx context.Context, offset int64) error {
	if offset == u.blob.Size {
		return u.finish(ctx, offset)
	}
	k := u.call(http.MethodPatch, u.location, http.StatusAccepted)
	u.setBody(&k, offset)
	if offset > 0 { // the whole of it is not a chunk to registries that know no chunks
		k.header.Set("Content-Range", fmt.Sprintf("%d-%d", offset, u.blob.Size-1))
	}
	resp, err := u.endpoint.send(ctx, k)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // empty
	if u.location, err = location(resp.Request, resp); err != nil {
		return err
	}
	return u.finish(ctx, u.blob.Size)
}

// finish sends the bytes from offset with the request that ends the session.
func (u *upload) finish(ctx context.Context, offset int64) error {
	target := *u.location
	query := target.Query()
	query.Set("digest", string(u.blob.Digest))
	target.RawQuery = query.Encode()
	k := u.call(http.MethodPut, &target, http.StatusCreated, http.StatusNoContent)
	u.setBody(&k, offset)
	resp, err := u.endpoint.send(ctx, k)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // empty
	u.location = nil
	if said, err := oci.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err == nil &&
		said.Algorithm() == u.blob.Digest.Algorithm() && said != u.blob.Digest {
		return protocolError(resp.Request, "registry stored the blob as %s", said)
	}
	return nil
}

func (u *upload) setBody(k *call, offset int64) {
	k.header = http.Header{"Content-Type": {"application/octet-stream"}}
	k.size = u.blob.Size - offset
	k.body = func() (io.ReadCloser, error) {
		if k.size == 0 {
			return http.NoBody, nil
		}
		body, err := u.open(offset)
		if err != nil {
			return nil, &sourceError{err}
		}
		return &sourceBody{body, k.size}, nil
	}
}

// sourceError is a failure to read what is to be sent: repeating the request
// would not help.
type sourceError struct{ err error }

// Error implements error.
func (e *sourceError) Error() string { return "read what is to be sent: " + e.err.Error() }

// Unwrap returns the cause.
func (e *sourceError) Unwrap() error { return e.err }

// sourceBody marks the errors of its reader, of which ending early is one.
type sourceBody struct {
	io.ReadCloser

	left int64 // bytes that are owed
}

// Read implements [io.Reader].
func (b *sourceBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	switch {
	case err == nil || errors.Is(err, io.EOF) && b.left == 0:
		return n, err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, &sourceError{err}
}

// cancelUpload ends a session, as a courtesy: registries drop old ones anyway.
func (e *endpoint) cancelUpload(ctx context.Context, location *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.client.options.Timeouts.MirrorDial)
	defer cancel()
	k := call{method: http.MethodDelete, url: location, scope: e.scope("pull,push"), want: []int{http.StatusNoContent}}
	if resp, err := e.send(ctx, k); err == nil {
		_ = resp.Body.Close() // empty
	}
}

// PushManifest stores a manifest or index at the origin under tag or, when that
// is empty, under its digest only. A manifest with a subject is listed with the
// subject's referrers, by the registry or, where it does not, under the fallback
// tag (distribution-spec, "Pushing manifests with subject").
func (r *Repository) PushManifest(ctx context.Context, tag, mediaType string, raw []byte) (oci.Descriptor, error) {
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestBytes(raw), Size: int64(len(raw))}
	version := tag
	if tag == "" {
		version = string(d.Digest)
	} else if !tagPattern.MatchString(tag) {
		return oci.Descriptor{}, fmt.Errorf("push manifest to %s: %q is not a tag: %w", r.name, printable(tag), oci.ErrReference)
	}
	var document struct {
		Subject *oci.Descriptor `json:"subject"`
	}
	if err := json.Unmarshal(raw, &document); err != nil {
		return oci.Descriptor{}, fmt.Errorf("push manifest to %s: %w: %w", r.version(version), oci.ErrManifest, err)
	}
	listed, err := r.putManifest(ctx, version, d, raw)
	if err == nil && document.Subject != nil && !listed {
		err = r.addReferrer(ctx, document.Subject.Digest, d, raw)
	}
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("push manifest to %s: %w", r.version(version), err)
	}
	return d, nil
}

// putManifest stores raw and tells whether the registry listed it with its
// subject's referrers.
func (r *Repository) putManifest(ctx context.Context, version string, d oci.Descriptor, raw []byte) (listed bool, err error) {
	e := r.origin()
	k := call{
		method: http.MethodPut, url: e.url("manifests/"+version, nil), scope: e.scope("pull,push"),
		header: http.Header{"Content-Type": {d.MediaType}}, size: d.Size,
		body: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		want: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted},
	}
	err = e.repeat(ctx, e.retries(), func() error {
		resp, err := e.send(ctx, k)
		if err != nil {
			return err
		}
		_ = resp.Body.Close() // empty
		listed = strings.TrimSpace(resp.Header.Get("OCI-Subject")) != ""
		if err := checkHeader(resp, raw); err != nil {
			if mismatch, ok := errors.AsType[*stream.MismatchError](err); ok {
				return protocolError(resp.Request, "registry stored the manifest as %s", mismatch.Want)
			}
			return err
		}
		return nil
	})
	return listed, err
}
