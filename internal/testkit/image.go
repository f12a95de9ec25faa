package testkit

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"io"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
)

// Layout returns an empty OCI layout in a directory of its own.
//
//	layout := testkit.Layout(t)
//	testkit.Image(t).Layer(testkit.File("a", "1")).Write(layout, "v1")
func Layout(tb testing.TB) *ocidir.Layout {
	tb.Helper()
	return LayoutAt(tb, tb.TempDir())
}

// LayoutAt returns the OCI layout in dir, made when it is missing.
func LayoutAt(tb testing.TB, dir string) *ocidir.Layout {
	tb.Helper()
	l, err := ocidir.Create(tb.Context(), dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l
}

// Builder makes one image. Its methods return it, so that they chain; those about
// a layer change the one that was added last.
type Builder struct {
	t        testing.TB
	layers   []*layer
	image    oci.Image
	config   []func(*oci.Image)
	manifest []func(*oci.Manifest)
	docker   bool
}

type layer struct {
	entries   iter.Seq[Entry]
	form      form
	mediaType string
	urls      []string
	noEnd     bool
	trailer   []byte // after the end of the tar
	rawTail   []byte // after the end of the compressed stream
	damage    func([]byte) []byte
	absent    bool
	blob      []byte // instead of all of the above
}

// form compresses a tar on its way to w.
type form struct {
	mediaType, docker string
	compress          func(w io.Writer) io.WriteCloser
}

// Built is what a Builder has written.
type Built struct {
	Manifest oci.Descriptor
	Raw      []byte // of the manifest
	Config   oci.Descriptor
	Image    oci.Image
	Layers   []oci.Descriptor
	DiffIDs  []oci.DiffID
}

// Image begins an image for this machine, without layers.
func Image(tb testing.TB) *Builder {
	tb.Helper()
	return &Builder{t: tb, image: oci.Image{Architecture: runtime.GOARCH, OS: "linux", RootFS: oci.RootFS{Type: "layers", DiffIDs: []oci.DiffID{}}}}
}

// Layer adds a layer, compressed with gzip unless another method says otherwise.
func (b *Builder) Layer(entries ...Entry) *Builder { return b.LayerOf(slices.Values(entries)) }

// LayerOf is Layer for entries that are made as they are written.
func (b *Builder) LayerOf(entries iter.Seq[Entry]) *Builder {
	b.layers = append(b.layers, &layer{entries: entries})
	return b.Gzip()
}

// Blob adds a layer of these stored bytes, whatever they are.
func (b *Builder) Blob(mediaType string, blob []byte) *Builder {
	b.layers = append(b.layers, &layer{blob: blob, mediaType: mediaType})
	return b
}

func (b *Builder) last() *layer { return b.layers[len(b.layers)-1] }

func (b *Builder) as(f form) *Builder { b.last().form = f; return b }

// Plain leaves the layer uncompressed.
func (b *Builder) Plain() *Builder {
	return b.as(form{oci.MediaTypeLayer, oci.MediaTypeDockerLayer, func(w io.Writer) io.WriteCloser { return nopCloser{w} }})
}

// Gzip compresses the layer as one gzip member.
func (b *Builder) Gzip() *Builder { return b.GzipLevel(gzip.DefaultCompression) }

// GzipLevel is Gzip with a level of compress/gzip: gzip.BestSpeed for big layers.
func (b *Builder) GzipLevel(level int) *Builder {
	return b.as(form{oci.MediaTypeLayerGz, oci.MediaTypeDockerLayerGz, func(w io.Writer) io.WriteCloser { return newGzip(w, level) }})
}

// MultiMember compresses the layer as gzip members of memberBytes of tar each.
func (b *Builder) MultiMember(memberBytes int) *Builder {
	return b.as(form{oci.MediaTypeLayerGz, oci.MediaTypeDockerLayerGz, func(w io.Writer) io.WriteCloser {
		return &pieces{w: w, size: memberBytes, open: func(w io.Writer) io.WriteCloser { return newGzip(w, gzip.DefaultCompression) }}
	}})
}

// Zstd compresses the layer as one zstd frame.
func (b *Builder) Zstd() *Builder {
	return b.as(form{oci.MediaTypeLayerZst, oci.MediaTypeDockerLayerZst, newZstd})
}

// ZstdWindow is Zstd with a window of so many bytes.
func (b *Builder) ZstdWindow(windowBytes int) *Builder {
	open := func(w io.Writer) io.WriteCloser { return zstdOf(w, windowBytes) }
	return b.as(form{oci.MediaTypeLayerZst, oci.MediaTypeDockerLayerZst, open})
}

// MultiFrame compresses the layer as zstd frames of frameBytes of tar each, with
// skippable frames between them.
func (b *Builder) MultiFrame(frameBytes int) *Builder {
	return b.as(form{oci.MediaTypeLayerZst, oci.MediaTypeDockerLayerZst, func(w io.Writer) io.WriteCloser {
		return &pieces{w: w, size: frameBytes, open: newZstd, between: skippable}
	}})
}

// skippable is a zstd frame of five bytes that decoders pass over.
const skippable = "\x50\x2a\x4d\x18\x05\x00\x00\x00skip!"

// MediaType gives the layer another media type than its form has.
func (b *Builder) MediaType(mediaType string) *Builder { b.last().mediaType = mediaType; return b }

// URLs says where else the layer lies, as foreign layers do.
func (b *Builder) URLs(urls ...string) *Builder { b.last().urls = urls; return b }

// NoEnd leaves out the two zero blocks that end a tar.
func (b *Builder) NoEnd() *Builder { b.last().noEnd = true; return b }

// TarTail adds bytes after the end of the tar; they count for the diff ID.
func (b *Builder) TarTail(tail []byte) *Builder { b.last().trailer = tail; return b }

// BlobTail adds bytes after the compressed stream; they count for the digest.
func (b *Builder) BlobTail(tail []byte) *Builder { b.last().rawTail = tail; return b }

// Damage changes the layer's stored bytes; its digest is that of the changed ones.
func (b *Builder) Damage(change func([]byte) []byte) *Builder { b.last().damage = change; return b }

// Absent leaves the layer's blob out of the layout.
func (b *Builder) Absent() *Builder { b.last().absent = true; return b }

// Docker makes a Docker schema 2 manifest instead of an OCI one.
func (b *Builder) Docker() *Builder { b.docker = true; return b }

// Platform says what the image runs on.
func (b *Builder) Platform(p oci.Platform) *Builder {
	return b.Config(func(c *oci.Image) {
		c.OS, c.Architecture, c.Variant, c.OSVersion, c.OSFeatures = p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures
	})
}

// Config changes the configuration before it is written, diff IDs included.
func (b *Builder) Config(change func(*oci.Image)) *Builder {
	b.config = append(b.config, change)
	return b
}

// Manifest changes the manifest before it is written: a wrong size, digest or
// media type is put in here.
func (b *Builder) Manifest(change func(*oci.Manifest)) *Builder {
	b.manifest = append(b.manifest, change)
	return b
}

// Write stores the image in l, named tag, or by its digest alone for "". The same
// calls give the same bytes.
func (b *Builder) Write(l *ocidir.Layout, tag string) Built {
	b.t.Helper()
	built := Built{Image: b.image}
	for _, layer := range b.layers {
		d, id := layer.write(b.t, l)
		if layer.mediaType == "" {
			d.MediaType = layer.form.mediaType
			if b.docker {
				d.MediaType = layer.form.docker
			}
		}
		built.Layers = append(built.Layers, d)
		built.DiffIDs = append(built.DiffIDs, id)
	}
	built.Image.RootFS.DiffIDs = append([]oci.DiffID{}, built.DiffIDs...)
	for _, change := range b.config {
		change(&built.Image)
	}
	built.Config = PutBlob(b.t, l, mustJSON(b.t, built.Image))
	built.Config.MediaType = oci.MediaTypeConfig
	manifest := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: built.Config, Layers: append([]oci.Descriptor{}, built.Layers...)}
	if b.docker {
		manifest.MediaType, manifest.Config.MediaType = oci.MediaTypeDockerManifest, oci.MediaTypeDockerConfig
	}
	for _, change := range b.manifest {
		change(&manifest)
	}
	built.Raw = mustJSON(b.t, manifest)
	built.Manifest = PutRaw(b.t, l, tag, manifest.MediaType, built.Raw)
	built.Manifest.Platform = &oci.Platform{OS: built.Image.OS, Architecture: built.Image.Architecture, Variant: built.Image.Variant, OSVersion: built.Image.OSVersion, OSFeatures: built.Image.OSFeatures}
	return built
}

// write stores the layer's blob and returns its descriptor and diff ID.
func (y *layer) write(tb testing.TB, l *ocidir.Layout) (oci.Descriptor, oci.DiffID) {
	tb.Helper()
	d := oci.Descriptor{Size: stream.AnySize}
	if y.blob != nil {
		d = PutBlob(tb, l, y.blob)
		d.MediaType = y.mediaType
		return d, oci.DiffID(d.Digest)
	}
	tarHash := sha256.New()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.CloseWithError(y.encode(w, tarHash))
	}()
	defer func() { <-done }()
	defer func() { _ = r.Close() }()
	var src io.Reader = r
	if y.damage != nil {
		src = bytes.NewReader(y.damage(mustRead(tb, r)))
	}
	d, err := l.PutBlob(tb.Context(), d, src)
	if err != nil {
		tb.Fatalf("write layer: %v", err)
	}
	if y.absent {
		if err := l.DeleteBlob(tb.Context(), d.Digest); err != nil {
			tb.Fatalf("leave layer out: %v", err)
		}
	}
	d.MediaType, d.URLs = y.mediaType, y.urls
	return d, oci.DiffID(oci.DigestOf(oci.SHA256, tarHash))
}

// encode writes the tar to tarHash and, compressed, to w.
func (y *layer) encode(w io.Writer, tarHash io.Writer) error {
	c := y.form.compress(w)
	both := io.MultiWriter(tarHash, c)
	if err := writeTar(both, y.entries); err != nil {
		return err
	}
	end := y.trailer
	if !y.noEnd {
		end = append(make([]byte, 2*blockBytes), y.trailer...)
	}
	if _, err := both.Write(end); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	_, err := w.Write(y.rawTail)
	return err
}

// PutBlob stores bytes in a layout.
func PutBlob(tb testing.TB, l *ocidir.Layout, raw []byte) oci.Descriptor {
	tb.Helper()
	d, err := l.PutBlob(tb.Context(), oci.Descriptor{Size: stream.AnySize}, bytes.NewReader(raw))
	if err != nil {
		tb.Fatalf("put blob: %v", err)
	}
	return d
}

// PutRaw stores a manifest, an index or what only claims to be one, unchecked.
func PutRaw(tb testing.TB, l *ocidir.Layout, tag, mediaType string, raw []byte) oci.Descriptor {
	tb.Helper()
	d := PutBlob(tb, l, raw)
	d.MediaType = mediaType
	if err := l.Tag(tb.Context(), d, tag); err != nil {
		tb.Fatalf("put manifest: %v", err)
	}
	return d
}

// Index stores an index over manifests, whose platforms are those of the images
// that [Builder.Write] made, or what the caller set. An index may be among them.
//
//	amd64 := testkit.Image(t).Platform(oci.Platform{OS: "linux", Architecture: "amd64"}).Layer(…).Write(layout, "")
//	testkit.Index(t, layout, "multi", amd64.Manifest, arm64.Manifest)
func Index(tb testing.TB, l *ocidir.Layout, tag string, manifests ...oci.Descriptor) oci.Descriptor {
	tb.Helper()
	return index(tb, l, tag, oci.MediaTypeIndex, manifests)
}

// DockerList is Index as a Docker manifest list.
func DockerList(tb testing.TB, l *ocidir.Layout, tag string, manifests ...oci.Descriptor) oci.Descriptor {
	tb.Helper()
	return index(tb, l, tag, oci.MediaTypeDockerList, manifests)
}

func index(tb testing.TB, l *ocidir.Layout, tag, mediaType string, manifests []oci.Descriptor) oci.Descriptor {
	tb.Helper()
	raw := mustJSON(tb, oci.Index{SchemaVersion: 2, MediaType: mediaType, Manifests: manifests})
	d, err := l.PutManifest(tb.Context(), tag, mediaType, raw)
	if err != nil {
		tb.Fatalf("put index: %v", err)
	}
	return d
}

// Attestation returns a descriptor of what BuildKit puts beside an image in its
// index: a manifest for no platform, that no puller may choose.
func Attestation(tb testing.TB, l *ocidir.Layout, of oci.Descriptor) oci.Descriptor {
	tb.Helper()
	built := Image(tb).Blob("application/vnd.in-toto+json", []byte(`{"predicateType":"test"}`)).
		Platform(oci.Platform{OS: "unknown", Architecture: "unknown"}).Write(l, "")
	d := built.Manifest
	d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": string(of.Digest)}
	return d
}

// Artifact stores a manifest that is no image, about subject if that is not nil.
func Artifact(tb testing.TB, l *ocidir.Layout, tag, artifactType string, subject *oci.Descriptor, content string) oci.Descriptor {
	tb.Helper()
	config := PutBlob(tb, l, []byte("{}"))
	config.MediaType = oci.MediaTypeEmpty
	blob := PutBlob(tb, l, []byte(content))
	blob.MediaType = "text/plain"
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, ArtifactType: artifactType, Config: config, Layers: []oci.Descriptor{blob}, Subject: subject}
	return PutRaw(tb, l, tag, oci.MediaTypeManifest, mustJSON(tb, m))
}

func mustJSON(tb testing.TB, v any) []byte {
	tb.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// mustRead returns all of r, which is of this package's own making.
func mustRead(tb testing.TB, r io.Reader) []byte {
	tb.Helper()
	const limit = 1 << 30
	raw, err := stream.ReadAll(r, limit)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func newGzip(w io.Writer, level int) io.WriteCloser {
	z, err := gzip.NewWriterLevel(w, level)
	if err != nil {
		panic("testkit: " + err.Error())
	}
	return z
}

func newZstd(w io.Writer) io.WriteCloser { return zstdOf(w, 1<<20) }

func zstdOf(w io.Writer, windowBytes int) io.WriteCloser {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(windowBytes))
	if err != nil {
		panic("testkit: " + err.Error())
	}
	return z
}

// pieces compresses each size bytes on their own.
type pieces struct {
	w       io.Writer
	size    int
	open    func(io.Writer) io.WriteCloser
	between string
	now     io.WriteCloser
	left    int
}

func (p *pieces) Write(data []byte) (int, error) {
	total := len(data)
	for len(data) > 0 {
		if p.left == 0 {
			if err := p.next(); err != nil {
				return 0, err
			}
		}
		n := min(len(data), p.left)
		if _, err := p.now.Write(data[:n]); err != nil {
			return 0, err
		}
		data, p.left = data[n:], p.left-n
	}
	return total, nil
}

func (p *pieces) next() error {
	if p.now != nil {
		if err := p.Close(); err != nil {
			return err
		}
	}
	if _, err := io.Copy(p.w, strings.NewReader(p.between)); err != nil {
		return err
	}
	p.now, p.left = p.open(p.w), p.size
	return nil
}

func (p *pieces) Close() error {
	if p.now == nil {
		p.now = p.open(p.w)
	}
	return p.now.Close()
}
