package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"dray/internal/oci"
	"dray/internal/stream"
)

// Tags returns the repository's tags as its origin lists them.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	e := r.origin()
	k := e.pull(http.MethodGet, "tags/list")
	k.url = e.url("tags/list", url.Values{"n": {"1000"}})
	var tags []string
	err := e.pages(ctx, k, func(raw []byte, _ *http.Response) error {
		var page struct {
			Tags []string `json:"tags"`
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return fmt.Errorf("tag list is not JSON: %w", ErrProtocol)
		}
		if len(tags)+len(page.Tags) > maxListCount {
			return fmt.Errorf("more than %d tags: %w", maxListCount, stream.ErrTooLarge)
		}
		tags = append(tags, page.Tags...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tags of %s: %w", r.name, err)
	}
	return tags, nil
}

// Referrers returns the manifests whose subject is digest, of one artifact type
// or, when that is empty, of all: from the registry's list or, where it keeps
// none, from the index under the fallback tag (distribution-spec, "Listing
// Referrers"). A mirror that has none leaves the word to the next.
func (r *Repository) Referrers(ctx context.Context, digest oci.Digest, artifactType string) ([]oci.Descriptor, error) {
	if _, err := oci.ParseDigest(string(digest)); err != nil {
		return nil, fmt.Errorf("list referrers: %w", err)
	}
	var all []oci.Descriptor
	err := r.each(ctx, true, func(e *endpoint) error {
		var err error
		all, err = e.listReferrers(ctx, digest, artifactType)
		if errors.Is(err, ErrNotFound) {
			all, err = e.taggedReferrers(ctx, digest)
		}
		if err == nil && len(all) == 0 && e.mirror {
			return errNoReferrers
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list referrers of %s: %w", r.version(string(digest)), err)
	}
	if artifactType == "" {
		return all, nil
	}
	return slices.DeleteFunc(all, func(d oci.Descriptor) bool { return d.ArtifactType != artifactType }), nil
}

// errNoReferrers makes the next endpoint be asked: a mirror may have the image
// without them.
var errNoReferrers = fmt.Errorf("mirror has no referrers: %w", ErrNotFound)

func (e *endpoint) listReferrers(ctx context.Context, digest oci.Digest, artifactType string) ([]oci.Descriptor, error) {
	query := url.Values{}
	if artifactType != "" {
		query.Set("artifactType", artifactType)
	}
	k := e.pull(http.MethodGet, "referrers/"+string(digest))
	k.url = e.url("referrers/"+string(digest), query)
	k.header = http.Header{"Accept": {oci.MediaTypeIndex}}
	var all []oci.Descriptor
	err := e.pages(ctx, k, func(raw []byte, resp *http.Response) error {
		document, err := oci.DecodeDocument(raw, oci.MediaTypeIndex)
		if err != nil || document.Index == nil {
			// Servers without the list may have an answer of their own for
			// unknown paths.
			return &Error{Method: k.method, URL: bare(k.url), Status: resp.StatusCode, Err: errors.New("list of referrers is not an index"), kind: ErrNotFound}
		}
		if len(all)+len(document.Index.Manifests) > maxListCount {
			return fmt.Errorf("more than %d referrers: %w", maxListCount, stream.ErrTooLarge)
		}
		all = append(all, document.Index.Manifests...)
		return nil
	})
	return all, err
}

// pages reads a list page by page, following Link headers (RFC 8288).
func (e *endpoint) pages(ctx context.Context, k call, add func(raw []byte, resp *http.Response) error) error {
	for range maxListPages {
		var next *url.URL
		err := e.repeat(ctx, e.retries(), func() error {
			resp, err := e.send(ctx, k)
			if err != nil {
				return err
			}
			defer resp.Body.Close() //nolint:errcheck // read only
			raw, err := e.readDocument(k, resp)
			if err != nil {
				return err
			}
			if next, err = nextPage(k.url, resp); err != nil {
				return err
			}
			return add(raw, resp)
		})
		if err != nil || next == nil {
			return err
		}
		k.url = next
	}
	return &Error{Method: k.method, URL: bare(k.url), Err: errors.New("list has too many pages"), kind: ErrProtocol}
}

// nextPage returns the address of the page after resp, nil at the end. It must
// be on the same host.
func nextPage(current *url.URL, resp *http.Response) (*url.URL, error) {
	for link := range strings.SplitSeq(strings.Join(resp.Header.Values("Link"), ","), ",") {
		target, params, _ := strings.Cut(strings.TrimSpace(link), ">")
		address, ok := strings.CutPrefix(target, "<")
		if !ok || !strings.Contains(strings.ReplaceAll(params, " ", ""), `rel="next"`) && !strings.Contains(params, "rel=next") {
			continue
		}
		next, err := current.Parse(address)
		if err != nil || next.Host != current.Host || next.Scheme != current.Scheme || *next == *current {
			return nil, protocolError(resp.Request, "next page is nowhere")
		}
		return next, nil
	}
	return nil, nil
}

// fallbackTag is the tag of the index that lists the referrers of digest where
// the registry does not (distribution-spec, "Referrers Tag Schema").
func fallbackTag(digest oci.Digest) string {
	const maxAlgorithm, maxHex = 32, 64
	algorithm, hexa := digest.Algorithm(), digest.Hex()
	return algorithm[:min(len(algorithm), maxAlgorithm)] + "-" + hexa[:min(len(hexa), maxHex)]
}

// taggedReferrers reads the index under the fallback tag; there is none without
// referrers.
func (e *endpoint) taggedReferrers(ctx context.Context, digest oci.Digest) ([]oci.Descriptor, error) {
	d, raw, err := e.manifest(ctx, fallbackTag(digest), "")
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	document, err := oci.DecodeDocument(raw, d.MediaType)
	if err != nil {
		return nil, fmt.Errorf("tag %s: %w", fallbackTag(digest), err)
	}
	if document.Index == nil {
		return nil, fmt.Errorf("tag %s is not an index: %w", fallbackTag(digest), oci.ErrManifest)
	}
	return document.Index.Manifests, nil
}

// addReferrer lists d under the subject's fallback tag. Two writers at the same
// moment may lose one entry: the protocol has no way to prevent it.
func (r *Repository) addReferrer(ctx context.Context, subject oci.Digest, d oci.Descriptor, raw []byte) error {
	if _, err := oci.ParseDigest(string(subject)); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	listed, err := r.origin().taggedReferrers(ctx, subject)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(listed, func(l oci.Descriptor) bool { return l.Digest == d.Digest }) {
		return nil
	}
	var document struct {
		ArtifactType string                     `json:"artifactType"`
		Config       struct{ MediaType string } `json:"config"`
		Annotations  map[string]string          `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &document); err != nil {
		return fmt.Errorf("%w: %w", oci.ErrManifest, err)
	}
	d.ArtifactType, d.Annotations = document.ArtifactType, document.Annotations
	if d.ArtifactType == "" {
		d.ArtifactType = document.Config.MediaType
	}
	index, err := json.Marshal(oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Manifests: append(listed, d)})
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	own := oci.Descriptor{MediaType: oci.MediaTypeIndex, Digest: oci.DigestBytes(index), Size: int64(len(index))}
	_, err = r.putManifest(ctx, fallbackTag(subject), own, index)
	return err
}
