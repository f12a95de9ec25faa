package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strings"

	"dray/internal/oci"
	"dray/internal/stream"
)

var tagPattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// Resolve returns the manifest or index with the given digest or, without one,
// the one that tag names now: its descriptor and its bytes. The bytes match the
// digest; the descriptor's digest and size are computed from them, its media type
// is the server's or, where that says nothing, the document's own. It is at most
// [Options].ManifestBytes long, else the error wraps [stream.ErrTooLarge].
func (r *Repository) Resolve(ctx context.Context, tag string, digest oci.Digest) (oci.Descriptor, []byte, error) {
	version := string(digest)
	if digest == "" {
		if !tagPattern.MatchString(tag) {
			return oci.Descriptor{}, nil, fmt.Errorf("resolve %s: %q is not a tag: %w", r.name, printable(tag), oci.ErrReference)
		}
		version = tag
	} else if _, err := oci.ParseDigest(version); err != nil {
		return oci.Descriptor{}, nil, fmt.Errorf("resolve %s: %w", r.name, err)
	}
	var d oci.Descriptor
	var raw []byte
	err := r.each(ctx, digest != "", func(e *endpoint) error {
		var err error
		d, raw, err = e.manifest(ctx, version, digest)
		return err
	})
	if err != nil {
		return oci.Descriptor{}, nil, fmt.Errorf("resolve %s: %w", r.version(version), err)
	}
	return d, raw, nil
}

// version returns the repository's name with a tag or digest, as people write it.
func (r *Repository) version(version string) string {
	if strings.Contains(version, ":") {
		return r.name + "@" + version
	}
	return r.name + ":" + version
}

// manifest reads a manifest, repeating what is worth it.
func (e *endpoint) manifest(ctx context.Context, version string, digest oci.Digest) (d oci.Descriptor, raw []byte, err error) {
	err = e.repeat(ctx, e.retries(), func() error {
		d, raw, err = e.readManifest(ctx, version, digest)
		return err
	})
	return d, raw, err
}

func (e *endpoint) readManifest(ctx context.Context, version string, digest oci.Digest) (oci.Descriptor, []byte, error) {
	k := e.pull(http.MethodGet, "manifests/"+version)
	k.header = http.Header{"Accept": oci.ManifestMediaTypes()}
	resp, err := e.send(ctx, k)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	raw, err := e.readDocument(k, resp)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	d := oci.Descriptor{MediaType: documentType(resp, raw), Digest: digest, Size: int64(len(raw))}
	if digest == "" {
		d.Digest = oci.DigestBytes(raw)
	} else if err := check(raw, digest); err != nil {
		return oci.Descriptor{}, nil, &Error{Method: k.method, URL: bare(k.url), Err: err}
	}
	if err := checkHeader(resp, raw); err != nil {
		return oci.Descriptor{}, nil, &Error{Method: k.method, URL: bare(k.url), Err: fmt.Errorf("header Docker-Content-Digest: %w", err)}
	}
	return d, raw, nil
}

// pull returns a call for reading.
func (e *endpoint) pull(method, path string) call {
	return call{method: method, url: e.url(path, nil), scope: e.scope("pull"), want: []int{http.StatusOK}}
}

func (e *endpoint) scope(actions string) string { return "repository:" + e.repository + ":" + actions }

// readDocument reads a body of at most ManifestBytes.
func (e *endpoint) readDocument(k call, resp *http.Response) ([]byte, error) {
	limit := e.client.options.ManifestBytes
	fail := func(err error) *Error { return &Error{Method: k.method, URL: bare(k.url), Err: err} }
	if resp.ContentLength > limit {
		return nil, fail(fmt.Errorf("answer has %d bytes, the limit is %d: %w", resp.ContentLength, limit, stream.ErrTooLarge))
	}
	raw, err := stream.ReadAll(resp.Body, limit)
	if err != nil {
		broken := fail(err)
		if !errors.Is(err, stream.ErrTooLarge) {
			broken.kind = ErrUnreachable
		}
		return nil, broken
	}
	return raw, nil
}

// check compares raw with its digest.
func check(raw []byte, want oci.Digest) error {
	h := want.Hash()
	_, _ = h.Write(raw) // never fails
	if got := oci.DigestOf(want.Algorithm(), h); got != want {
		return &stream.MismatchError{What: "manifest", Want: want, Got: got, WantSize: stream.AnySize, GotSize: int64(len(raw))}
	}
	return nil
}

// checkHeader refuses an answer whose header names other bytes than came. A
// header in a form that we do not know says nothing.
func checkHeader(resp *http.Response, raw []byte) error {
	said, err := oci.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	return check(raw, said)
}

// documentType returns the media type of a manifest: the header's where it is
// one of ours, else the document's.
func documentType(resp *http.Response, raw []byte) string {
	said, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		said = ""
	}
	if oci.IsIndex(said) || oci.IsManifest(said) {
		return said
	}
	var own struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(raw, &own) == nil && own.MediaType != "" {
		return own.MediaType
	}
	return said
}
