package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"dray/internal/estargz"
	"dray/internal/inspect"
	"dray/internal/oci"
	"dray/internal/record"
	"dray/internal/stream"
)

// job is a layer that is brought to the target.
type job struct {
	source oci.Descriptor
	diffID oci.DiffID
	paths  record.Paths // what comes first in it
	key    string

	how       How
	target    oci.Descriptor // digest, size, and the annotations of seekable layers
	newDiffID oci.DiffID
	tocDigest oci.Digest
	toc       *oci.Descriptor // the external one
}

// descriptor returns the layer's descriptor in the new manifest.
func (j *job) descriptor(old oci.Descriptor, o *Options, docker bool) oci.Descriptor {
	d := old
	d.Data = nil
	if j.how == Kept || j.how == Reused {
		if o.OCI {
			d.MediaType = ociType(d.MediaType)
		}
		return d
	}
	d.MediaType, d.Digest, d.Size, d.URLs = o.layerType(docker), j.target.Digest, j.target.Size, nil
	d.Annotations = annotated(old.Annotations, j.target.Annotations)
	return d
}

// layer brings one layer to the target: the cheapest way first.
func (r *run) layer(ctx context.Context, j *job, m *meter) error {
	if isForeign(j.source) {
		r.keep(j)
		return nil
	}
	if ok, err := r.recall(ctx, j); ok || err != nil {
		return err
	}
	if ok, err := r.reuse(ctx, j, m); ok || err != nil {
		return err
	}
	j.how = Converted
	var err error
	if r.o.Uncompressed {
		err = r.uncompress(ctx, j, m)
	} else {
		err = r.write(ctx, j, m)
	}
	if err != nil {
		return err
	}
	return r.o.Memory.remember(remembered{
		Key: j.key, Source: j.source.Digest, Layer: j.target, DiffID: j.newDiffID, TOCDigest: j.tocDigest, TOC: j.toc,
	}, r.targetName())
}

func (r *run) keep(j *job) {
	j.how, j.target, j.newDiffID = Kept, oci.Descriptor{Digest: j.source.Digest, Size: j.source.Size}, j.diffID
}

// targetName returns what the memory calls the target, "" if it is no registry's.
func (r *run) targetName() string {
	if ref := r.target.Reference(); ref.Transport == oci.Registry {
		return ref.Name()
	}
	return ""
}

// recall takes a layer that was converted before, if the target has it, or can
// take it over from another of its repositories.
func (r *run) recall(ctx context.Context, j *job) (bool, error) {
	old := r.o.Memory.find(j.key, j.source.Digest)
	if old == nil {
		return false, nil
	}
	for _, d := range []*oci.Descriptor{&old.Layer, old.TOC} {
		if d == nil {
			continue
		}
		if there, err := r.bring(ctx, *d, old.RepoNames); err != nil || !there {
			return false, err
		}
	}
	j.how, j.target, j.newDiffID, j.tocDigest, j.toc = Remembered, old.Layer, old.DiffID, old.TOCDigest, old.TOC
	return true, r.o.Memory.remember(*old, r.targetName())
}

// bring tells whether the target has d, after trying to take it over.
func (r *run) bring(ctx context.Context, d oci.Descriptor, repositories []string) (bool, error) {
	size, found, err := r.target.Has(ctx, d.Digest)
	if err != nil {
		return false, err
	}
	if found {
		return size < 0 || size == d.Size, nil
	}
	own := r.target.Reference()
	for _, name := range repositories {
		ref, err := oci.ParseReference(name)
		if err != nil || ref.Host != own.Host || ref.Repository == own.Repository {
			continue
		}
		if mounted, err := r.target.MountBlob(ctx, d, ref.Repository); err == nil && mounted {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}

// reuse passes a layer through that has the form already, is what it says, and has
// nothing to come first.
func (r *run) reuse(ctx context.Context, j *job, m *meter) (bool, error) {
	seekable, err := r.reusable(ctx, j)
	if !seekable || err != nil {
		return false, err
	}
	j.how, j.newDiffID = Reused, j.diffID
	j.target = oci.Descriptor{Digest: j.source.Digest, Size: j.source.Size}
	if hints, err := estargz.ParseHints(j.source.Annotations); err == nil {
		j.tocDigest = hints.TOCDigest
	}
	_, err = r.target.PushBlob(ctx, j.source, r.source)
	m.add(int(j.source.Size))
	return err == nil, err
}

func (r *run) reusable(ctx context.Context, j *job) (bool, error) {
	if !r.o.Reuse || j.paths.Len() > 0 || r.o.Uncompressed {
		return false, nil
	}
	image := &inspect.Image{Repository: r.source}
	var found estargz.VerifyResult
	reader, err := image.Trusted(ctx, j.source, r.o.Limits)
	if err == nil {
		if reader == nil {
			return false, nil
		}
		defer func() { _ = reader.Close() }()
		if reader.Format() != r.o.Format {
			return false, nil
		}
		found, err = reader.Verify(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		r.noteOne(ctx, "layer %s is converted again, as it cannot be reused: %v", j.source.Digest, err)
		return false, nil
	}
	if found.DiffID != j.diffID {
		return false, &stream.MismatchError{What: "layer", Want: j.diffID.Digest(), Got: found.DiffID.Digest(), WantSize: stream.AnySize, GotSize: found.Size}
	}
	return true, nil
}

// noteOne is note for goroutines.
func (r *run) noteOne(ctx context.Context, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(ctx, format, args...)
}

// uncompress writes the layer's tar, whose digest is known.
func (r *run) uncompress(ctx context.Context, j *job, m *meter) error {
	j.newDiffID = j.diffID
	digest := j.diffID.Digest()
	size, found, err := r.target.Has(ctx, digest)
	if err != nil {
		return err
	}
	if found && size >= 0 {
		j.target = oci.Descriptor{Digest: digest, Size: size}
		return nil
	}
	j.target, err = r.target.StreamBlob(ctx, func(ctx context.Context, w io.Writer) (oci.Descriptor, error) {
		m.restart()
		t, err := inspect.OpenTar(ctx, r.source, j.source, j.diffID, r.o.Limits, m.add)
		if err != nil {
			return oci.Descriptor{}, err
		}
		defer func() { _ = t.Close() }()
		n, err := io.CopyBuffer(w, t, make([]byte, copyBufBytes))
		return oci.Descriptor{Digest: digest, Size: n}, err
	})
	return err
}

// copyBufBytes is what a plain tar goes through.
const copyBufBytes = 128 << 10

// write converts the layer on its way to the target.
func (r *run) write(ctx context.Context, j *job, m *meter) error {
	var toc bytes.Buffer
	var made *estargz.Result
	paths, err := j.paths.Strings()
	if err != nil {
		return err
	}
	o := r.o.write(paths)
	o.Jobs, o.Budget, o.TempDir, o.Limits = r.o.Jobs, r.budget, r.o.TempDir, r.o.Limits
	o.SpillMemory = min(estargz.DefaultSpillMemory, r.o.MemoryBytes/spillShare)
	if o.Format == estargz.EStargzExternal {
		o.TOC = &toc
	}
	d, err := r.target.StreamBlob(ctx, func(ctx context.Context, w io.Writer) (oci.Descriptor, error) {
		toc.Reset()
		var err error
		made, err = estargz.Write(ctx, w, func(ctx context.Context) (io.ReadCloser, error) {
			m.restart()
			return inspect.OpenTar(ctx, r.source, j.source, j.diffID, r.o.Limits, m.add)
		}, o)
		if err != nil {
			return oci.Descriptor{}, err
		}
		return oci.Descriptor{Digest: made.Digest, Size: made.Size}, nil
	})
	if err != nil {
		return err
	}
	if r.o.KeepDiffID && made.DiffID != j.diffID {
		panic(fmt.Sprintf("convert: internal error: diffID of %s changed", j.source.Digest))
	}
	j.target = oci.Descriptor{Digest: d.Digest, Size: d.Size, Annotations: made.Annotations}
	j.newDiffID, j.tocDigest = made.DiffID, made.TOCDigest
	if o.TOC == nil {
		return nil
	}
	put, err := r.target.PutBlob(ctx, oci.MediaTypeLayerGz, toc.Bytes())
	j.toc = &put
	return err
}

// spillShare is the part of the memory that prioritized files may take.
const spillShare = 8

// foresee sets what would become of a layer.
func (r *run) foresee(ctx context.Context, j *job) error {
	if isForeign(j.source) {
		r.keep(j)
		return nil
	}
	j.how, j.newDiffID = Converted, ""
	if old := r.o.Memory.find(j.key, j.source.Digest); old != nil {
		j.how, j.target, j.newDiffID, j.tocDigest = Remembered, old.Layer, old.DiffID, old.TOCDigest
		return nil
	}
	seekable, err := r.reusable(ctx, j)
	if err == nil && seekable {
		j.how, j.newDiffID, j.target = Reused, j.diffID, oci.Descriptor{Digest: j.source.Digest, Size: j.source.Size}
	}
	return err
}

// putTOCs writes the image of the external TOCs, where containerd's snapshotter
// looks for it: under the target's tag with a suffix.
func (r *run) putTOCs(ctx context.Context) error {
	var layers []oci.Descriptor
	for _, j := range r.jobs {
		if j.toc == nil {
			continue
		}
		d := *j.toc
		d.MediaType = oci.MediaTypeLayerGz
		d.Annotations = map[string]string{estargz.AnnotationLayerDigest: string(j.target.Digest)}
		layers = append(layers, d)
	}
	if len(layers) == 0 {
		return nil
	}
	slices.SortFunc(layers, func(a, b oci.Descriptor) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	config, err := r.target.PutBlob(ctx, oci.MediaTypeConfig, []byte("{}"))
	if err != nil {
		return err
	}
	raw, err := marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: layers})
	if err != nil {
		return err
	}
	d, err := r.target.PutManifest(ctx, oci.MediaTypeManifest, raw)
	if err != nil {
		return err
	}
	r.result.ExternalTOC, r.result.TOCTag = &d, r.target.TargetTag()+tocSuffix
	return r.target.TagAs(ctx, d, r.result.TOCTag)
}

// tocSuffix makes the tag of the external TOCs of the image's.
const tocSuffix = "-esgztoc"

// meter tells how far a job is.
type meter struct {
	run *run

	mu    sync.Mutex // guards the fields below
	event Event
	last  time.Time
}

// reportEvery bounds how often a job reports bytes.
const reportEvery = 100 * time.Millisecond

// restart says that the source is read from its start.
func (m *meter) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.event.Bytes = 0
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.event.Bytes += int64(n)
	if now := time.Now(); now.Sub(m.last) >= reportEvery {
		m.last = now
		m.run.tell(m.event)
	}
}

func (m *meter) end(err error, present bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.event.Done, m.event.Failed, m.event.Present = err == nil, err != nil, present
	m.run.tell(m.event)
}

func (r *run) tell(e Event) {
	if r.o.Progress == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.o.Progress(e)
}
