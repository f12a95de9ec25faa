//go:build linux

package bench

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/stream"
)

// BuildOptions of [BuildCorpus].
type BuildOptions struct {
	Dir   string
	Cache string   // of package files; "": Dir/.packages
	Only  []string // names of images; nil: all that are not heavy
	Say   func(format string, args ...any)
}

// CorpusNames returns the names of all images that can be built.
func CorpusNames() (names []string) {
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	return names
}

// BuildCorpus makes the images that dir does not have yet. An image whose
// packages have other versions now is made anew.
func BuildCorpus(ctx context.Context, o BuildOptions) (*Corpus, error) {
	for _, name := range o.Only {
		if !slices.Contains(CorpusNames(), name) {
			return nil, fmt.Errorf("build corpus: no image %q: there are %s", name, strings.Join(CorpusNames(), ", "))
		}
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil { //nolint:gosec // images for others to read
		return nil, fmt.Errorf("build corpus: %w", err)
	}
	corpus, err := openOrMake(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Cache == "" {
		o.Cache = filepath.Join(o.Dir, ".packages")
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return nil, fmt.Errorf("build corpus: %w", err)
	}
	b := &builder{corpus: corpus, debs: debCache{dir: o.Cache, say: o.Say}, say: o.Say}
	for _, r := range recipes() {
		if o.Only == nil && r.heavy || o.Only != nil && !slices.Contains(o.Only, r.name) {
			continue
		}
		if err := b.image(ctx, r); err != nil {
			return corpus, fmt.Errorf("build image %s: %w", r.name, err)
		}
	}
	return corpus, nil
}

type builder struct {
	corpus *Corpus
	debs   debCache
	say    func(format string, args ...any)
}

// image makes one image, unless it is there from the same packages.
func (b *builder) image(ctx context.Context, r recipe) (err error) {
	plan, err := b.plan(ctx, r)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.corpus.dir, r.name)
	if b.current(r, plan) {
		b.say("%s: is there", r.name)
		return nil
	}
	b.say("%s: building %d layers …", r.name, len(plan))
	made := dir + ".new" // takes the place of the old one when it is complete
	if err := os.RemoveAll(made); err != nil {
		return err
	}
	layout, err := ocidir.Create(ctx, made)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, layout.Close(), os.RemoveAll(made))
		}
	}()
	image := CorpusImage{Name: r.name, About: r.about}
	have := map[string]bool{}
	for i, packages := range plan {
		l, err := b.layer(ctx, layout, r.layers[i], packages, have, i == 0)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		image.Layers = append(image.Layers, l)
	}
	if image.Manifest, err = putImage(ctx, layout, image.Layers); err != nil {
		return err
	}
	if err := errors.Join(layout.Close(), os.RemoveAll(dir), os.Rename(made, dir)); err != nil {
		return err
	}
	b.say("%s: %.1f MB compressed, %.1f MB unpacked, %d files", r.name, float64(image.CompressedBytes())/1e6, float64(image.UncompressedBytes())/1e6, image.Files())
	return b.corpus.put(image)
}

// plan lists the packages of each layer: the closure of all roots up to it,
// without what lower layers have.
func (b *builder) plan(ctx context.Context, r recipe) ([][]debPackage, error) {
	plan := make([][]debPackage, len(r.layers))
	var roots []string
	lower := map[string]bool{}
	for i, l := range r.layers {
		if len(l.packages) == 0 {
			continue
		}
		roots = append(roots, l.packages...)
		all, err := b.debs.closure(ctx, roots)
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			name, _, _ := strings.Cut(p.name, "_")
			if lower[p.name] || l.alone && !slices.Contains(l.packages, name) {
				continue
			}
			lower[p.name] = true
			plan[i] = append(plan[i], p)
		}
	}
	return plan, nil
}

// current tells whether the corpus has the image made of these packages.
func (b *builder) current(r recipe, plan [][]debPackage) bool {
	image := b.corpus.Image(r.name)
	if image == nil || len(image.Layers) != len(plan) {
		return false
	}
	for i, l := range image.Layers {
		if !slices.Equal(l.Packages, ids(plan[i])) {
			return false
		}
	}
	_, err := os.Stat(filepath.Join(b.corpus.dir, r.name, "index.json"))
	return err == nil
}

func ids(packages []debPackage) (names []string) {
	for _, p := range packages {
		names = append(names, p.id())
	}
	return names
}

// layer writes one layer: gzip as Go's library writes it by default, which is
// what Docker does.
func (b *builder) layer(ctx context.Context, layout *ocidir.Layout, r layerRecipe, packages []debPackage, have map[string]bool, lowest bool) (CorpusLayer, error) {
	if err := b.debs.fetch(ctx, packages); err != nil {
		return CorpusLayer{}, err
	}
	reader, writer := io.Pipe()
	diff := sha256.New()
	w := &layerWriter{have: have, layer: map[string]bool{}, made: CorpusLayer{Packages: ids(packages)}}
	done := make(chan error, 1) // one value: how the writer ended
	go func() {
		gz := gzip.NewWriter(writer)
		w.tar = tar.NewWriter(io.MultiWriter(gz, diff, countWriter{&w.made.UncompressedBytes}))
		err := b.fill(ctx, w, r, packages, lowest)
		err = errors.Join(err, w.tar.Close(), gz.Close())
		_ = writer.CloseWithError(err) // never fails
		done <- err
	}()
	d, err := layout.PutBlob(ctx, oci.Descriptor{Size: stream.AnySize}, reader)
	_ = reader.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // never fails; the writer ends now
	if writeErr := <-done; writeErr != nil {
		return CorpusLayer{}, writeErr
	}
	if err != nil {
		return CorpusLayer{}, err
	}
	w.made.Digest, w.made.CompressedBytes = d.Digest, d.Size
	w.made.DiffID = oci.DiffID(oci.DigestOf(oci.SHA256, diff))
	return w.made, nil
}

func (b *builder) fill(ctx context.Context, w *layerWriter, r layerRecipe, packages []debPackage, lowest bool) error {
	if r.filler > 0 {
		return w.filler(r.filler, r.seed)
	}
	if lowest { // what Debian's installer makes
		for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
			if err := w.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "usr/" + name, Mode: 0o777}, nil); err != nil {
				return err
			}
		}
	}
	for _, p := range packages {
		if err := w.deb(ctx, filepath.Join(b.debs.dir, p.name)); err != nil {
			return fmt.Errorf("package %s: %w", p.id(), err)
		}
	}
	for _, f := range r.extra {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.content))}
		if f.link != "" {
			h = &tar.Header{Typeflag: tar.TypeLink, Name: f.name, Linkname: f.link, Mode: 0o755}
		}
		if err := w.add(h, strings.NewReader(f.content)); err != nil {
			return err
		}
	}
	return nil
}

type countWriter struct{ n *int64 }

// Write implements io.Writer.
func (c countWriter) Write(p []byte) (int, error) {
	*c.n += int64(len(p))
	return len(p), nil
}

// layerWriter merges packages into one layer, each name once.
type layerWriter struct {
	tar   *tar.Writer
	have  map[string]bool // directories of lower layers: not repeated
	layer map[string]bool // names of this layer
	made  CorpusLayer
}

// deb adds the files of a package.
func (w *layerWriter) deb(ctx context.Context, file string) (err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file) //nolint:gosec // a package of the cache
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	for {
		h, readErr := r.Next()
		if errors.Is(readErr, io.EOF) {
			_, err = io.Copy(io.Discard, out) // padding, so that dpkg-deb is not cut off
			break
		}
		if err = readErr; err != nil {
			break
		}
		if err = w.add(h, r); err != nil {
			break
		}
	}
	if err != nil {
		_ = cmd.Process.Kill() // it may be waiting for us
	}
	waitErr := cmd.Wait()
	if err == nil && waitErr != nil {
		err = said(waitErr, complaint.String())
	}
	return err
}

// add writes an entry under its place in a merged /usr, once.
func (w *layerWriter) add(h *tar.Header, body io.Reader) error {
	name := merge(h.Name)
	if name == "." || w.layer[name] || h.Typeflag == tar.TypeDir && w.have[name] {
		return nil
	}
	w.layer[name] = true
	clean := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime.Truncate(time.Second), Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	switch h.Typeflag {
	case tar.TypeDir:
		clean.Name += "/"
		w.have[name] = true
		w.made.Directories++
	case tar.TypeLink:
		clean.Linkname, clean.Size = merge(h.Linkname), 0
		w.made.Links++
	case tar.TypeSymlink:
		w.made.Links++
	default:
		w.made.Files++
	}
	if err := w.tar.WriteHeader(clean); err != nil {
		return err
	}
	if clean.Size > 0 {
		_, err := io.CopyN(w.tar, body, clean.Size)
		return err
	}
	return nil
}

// merge returns the name of an entry where /bin, /lib and /sbin are links.
func merge(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, first) && first != name {
		return "usr/" + name
	}
	if name == "" {
		return "."
	}
	return name
}

// fillerFileBytes is the size of a generated file.
const fillerFileBytes = 16 << 20

// filler writes generated files of sizeBytes together, which gzip makes about 2.5
// times smaller, as it does with programs.
func (w *layerWriter) filler(sizeBytes int64, seed uint64) error {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 'd', 'r', 'a', 'y'})
	// blocks of random bytes and of text that repeats itself, in turns
	block := make([]byte, 4096)
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog; ", 100))
	for i := 0; sizeBytes > 0; i++ {
		n := min(sizeBytes, fillerFileBytes)
		sizeBytes -= n
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/%d-%04d", seed, i), Mode: 0o644, Size: n}
		if err := w.tar.WriteHeader(h); err != nil {
			return err
		}
		w.made.Files++
		for n > 0 {
			_, _ = random.Read(block[:1500]) // never fails
			copy(block[1500:], text[n%45:])
			m := min(n, int64(len(block)))
			if _, err := w.tar.Write(block[:m]); err != nil {
				return err
			}
			n -= m
		}
	}
	return nil
}
