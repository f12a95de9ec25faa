package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"dray/internal/oci"
)

// PushStream uploads to the origin a blob that is made while it is sent, so that
// it need not be kept anywhere: its digest is told when the upload ends, as
// "docker push" does it. produce writes the blob to w and returns its descriptor.
// It is called again after a failure that may pass, and must then write the same
// bytes; calls do not overlap, and the last has returned when PushStream does.
func (r *Repository) PushStream(ctx context.Context, produce func(ctx context.Context, w io.Writer) (oci.Descriptor, error)) (oci.Descriptor, error) {
	u := &streamed{upload: upload{endpoint: r.origin(), blob: oci.Descriptor{Size: -1}}, produce: produce}
	err := u.endpoint.repeat(ctx, u.endpoint.retries(), func() error { return u.attempt(ctx) })
	if err != nil {
		if u.location != nil {
			u.endpoint.cancelUpload(ctx, u.location)
		}
		return oci.Descriptor{}, fmt.Errorf("push blob to %s: %w", r.name, err)
	}
	return u.blob, nil
}

// streamed is a blob that is made while it is sent.
type streamed struct {
	upload

	produce func(ctx context.Context, w io.Writer) (oci.Descriptor, error)
	body    *producedBody // the last one; nil before
}

// attempt sends all of the blob in a session of its own: what a registry has of
// an earlier one could be skipped, but would have to be made again all the same.
func (u *streamed) attempt(ctx context.Context) (err error) {
	defer func() {
		if u.body != nil {
			_ = u.body.Close() // waits for produce
		}
	}()
	if u.location != nil {
		u.endpoint.cancelUpload(ctx, u.location)
		u.location = nil
	}
	u.blob = oci.Descriptor{Size: -1}
	resp, err := u.endpoint.send(ctx, u.call(http.MethodPost, u.endpoint.url("blobs/uploads/", nil), http.StatusAccepted))
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // empty
	if u.location, err = location(resp.Request, resp); err != nil {
		return err
	}
	k := u.call(http.MethodPatch, u.location, http.StatusAccepted)
	k.header = http.Header{"Content-Type": {"application/octet-stream"}}
	k.size = -1 // sent in chunks, as its size is not known
	k.body = func() (io.ReadCloser, error) {
		if u.body != nil {
			_ = u.body.Close() // of the request before a redirect or a challenge
		}
		u.body = produceBody(ctx, u.produce)
		return u.body, nil
	}
	resp, err = u.endpoint.send(ctx, k)
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // empty
	if u.location, err = location(resp.Request, resp); err != nil {
		return err
	}
	_ = u.body.Close()
	if u.body.err != nil {
		return protocolError(resp.Request, "upload was accepted before its end")
	}
	u.blob = u.body.made
	return u.finish(ctx, u.blob.Size)
}

// producedBody is a request's body that another goroutine writes.
type producedBody struct {
	*io.PipeReader

	cancel context.CancelFunc
	done   chan struct{}  // closed when the goroutine has ended
	made   oci.Descriptor // set before done is closed
	err    error          // likewise
}

func produceBody(ctx context.Context, produce func(ctx context.Context, w io.Writer) (oci.Descriptor, error)) *producedBody {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	b := &producedBody{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		b.made, b.err = produce(ctx, w)
		var failed error
		if b.err != nil {
			failed = &sourceError{b.err}
			if errors.Is(b.err, io.EOF) { // which would be taken for the blob's end
				failed = &sourceError{fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, b.err)}
			}
		}
		_ = w.CloseWithError(failed) // never fails
	}()
	return b
}

// Close ends the goroutine and waits for it.
func (b *producedBody) Close() error {
	b.cancel()
	_ = b.PipeReader.Close() // never fails
	<-b.done
	return nil
}
