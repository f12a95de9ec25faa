//go:build linux

package bench

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"dray/internal/inflate"
	"dray/internal/oci"
	"dray/internal/stream"
)

// Floor fetches every layer of the image, inflates it with dray's own inflater and
// computes both digests with crypto/sha256, one at a time, layers in parallel on all
// cores, the largest first; it stores nothing. No puller that verifies what it gets does
// less, though it may hash faster.
func Floor(ctx context.Context, reference string) error {
	manifest, blobs, err := fetchManifest(ctx, reference)
	if err != nil {
		return err
	}
	layers := slices.Clone(manifest.Layers)
	slices.SortFunc(layers, func(a, b oci.Descriptor) int { return int(b.Size - a.Size) })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, l := range layers {
		group.Go(func() error { return inflateLayer(ctx, blobs+string(l.Digest), l, io.Discard) })
	}
	return group.Wait()
}

// inflateLayers writes the tars of an image's layers to dir, in their order.
func inflateLayers(ctx context.Context, reference, dir string) error {
	manifest, blobs, err := fetchManifest(ctx, reference)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i, l := range manifest.Layers {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%04d.tar", i))) //nolint:gosec // the run's own file
		if err != nil {
			return err
		}
		if err := errors.Join(inflateLayer(ctx, blobs+string(l.Digest), l, f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// fetchManifest returns the manifest of SCHEME://HOST/NAME@DIGEST and the address below
// which its blobs are.
func fetchManifest(ctx context.Context, reference string) (*oci.Manifest, string, error) {
	scheme, rest, _ := strings.Cut(reference, "://")
	name, digest, _ := strings.Cut(rest, "@")
	host, repository, _ := strings.Cut(name, "/")
	base := scheme + "://" + host + "/v2/" + repository
	body, err := get(ctx, base+"/manifests/"+digest)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = body.Close() }()
	raw, err := stream.ReadAll(body, 4<<20)
	if err != nil {
		return nil, "", fmt.Errorf("read manifest: %w", err)
	}
	m := &oci.Manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, "", fmt.Errorf("read manifest: %w", err)
	}
	return m, base + "/blobs/", nil
}

func get(ctx context.Context, url string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	r.Header.Set("Accept", oci.MediaTypeManifest)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		_ = answer.Body.Close()
		return nil, fmt.Errorf("fetch %s: %s", url, answer.Status)
	}
	return answer.Body, nil
}

// floorBufBytes is the size of the buffers between the floor's stages, floorBufCount their number.
const (
	floorBufBytes = 256 << 10
	floorBufCount = 4
)

func inflateLayer(ctx context.Context, url string, d oci.Descriptor, w io.Writer) error {
	body, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	blob := stream.NewVerifier(body, "blob", d.Digest, d.Size)
	ahead := stream.NewAhead(ctx, inflate.NewReader(blob), floorBufCount, floorBufBytes)
	defer func() { _ = ahead.Close() }()
	diff := sha256.New()
	for {
		block, err := ahead.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, blob)
			return err
		}
		if err != nil {
			return fmt.Errorf("inflate %s: %w", d.Digest, err)
		}
		_, _ = diff.Write(block) // never fails
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
}
