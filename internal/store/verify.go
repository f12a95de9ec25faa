package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"dray/internal/durable"
	"dray/internal/oci"
)

// VerifyOptions says how deep [Store.Verify] looks and what it does.
type VerifyOptions struct {
	// Repair moves what is wrong into quarantine, with what refers to it, so that the
	// next pull makes it anew. Nothing is deleted but what killed processes left.
	Repair bool

	// Check compares the content of a layer with what was pulled and returns what is
	// wrong with it; nil checks records only. It is called for one layer at a time,
	// with no lock held but a lease on the layer. An error ends the verification.
	Check func(ctx context.Context, layer *Layer) (problems []string, err error)

	// CheckMerged compares a merged index with its layers, bottom first, in the same
	// way; nil does not.
	CheckMerged func(ctx context.Context, merged *Merged, layers []*Layer) (problems []string, err error)
}

// Problem is one thing that is wrong.
type Problem struct {
	Path   string `json:"path"` // below the root
	Detail string `json:"detail"`
	Action string `json:"action,omitempty"` // what was done about it
}

// VerifyReport tells what [Store.Verify] looked at and found.
type VerifyReport struct {
	Layers   int       `json:"layers"`
	Images   int       `json:"images"`
	Refs     int       `json:"refs"`
	Mounts   int       `json:"mounts"`
	Problems []Problem `json:"problems"`

	SeedLayers int `json:"seed_layers,omitempty"` // of the seeds themselves, if they were looked at
}

// OK tells whether nothing was wrong.
func (r *VerifyReport) OK() bool { return len(r.Problems) == 0 }

// Verify checks the whole store: every record can be read and is in its place,
// digests match, the layers of every image and mount are there and, by o.Check,
// hold what they should, names point to images, and nothing is left in staging. It
// returns an error when it could not look, not when it found something.
func (s *Store) Verify(ctx context.Context, o VerifyOptions) (VerifyReport, error) {
	report, err := s.verify(ctx, o)
	if err != nil {
		return report, fmt.Errorf("verify store %s: %w", s.root, s.Explain(err))
	}
	return report, nil
}

func (s *Store) verify(ctx context.Context, o VerifyOptions) (VerifyReport, error) {
	if o.Repair && s.readOnly {
		return VerifyReport{}, ErrReadOnly
	}
	bad, badMerged, err := s.checkContents(ctx, &o)
	if err != nil {
		return VerifyReport{}, err
	}
	if !s.readOnly {
		mode := durable.Shared
		if o.Repair {
			mode = durable.Exclusive
		}
		lock, err := s.lock(ctx, mode) // the records fit each other while nobody changes them
		if err != nil {
			return VerifyReport{}, err
		}
		defer func() { _ = lock.Release() }()
	}
	in := inspection{store: s, badContent: bad, badMerged: badMerged, layers: map[oci.DiffID]bool{}, images: map[oci.Digest]bool{}}
	err = in.run(o.Repair)
	if err == nil && o.Repair {
		err = in.repair(ctx)
	}
	for _, c := range in.orphans {
		err = errors.Join(err, c.release())
	}
	return in.report, err
}

// checkContents checks every layer that can be looked up, and every merged index.
func (s *Store) checkContents(ctx context.Context, o *VerifyOptions) (bad map[oci.DiffID][]string, badMerged map[oci.ChainID][]string, err error) {
	if o.Check == nil {
		return nil, nil, nil
	}
	lease, err := s.Lease(ctx)
	if err != nil {
		return nil, nil, err
	}
	bad, err = s.checkLeased(ctx, lease, o.Check)
	if err == nil {
		badMerged, err = s.checkMerged(ctx, bad, o.CheckMerged)
	}
	return bad, badMerged, errors.Join(err, lease.Release())
}

func (s *Store) checkLeased(ctx context.Context, lease *Lease, check func(context.Context, *Layer) ([]string, error)) (map[oci.DiffID][]string, error) {
	ids, _, err := s.layerIDs()
	if err != nil {
		return nil, err
	}
	if err := lease.Add(ctx, ids...); err != nil {
		return nil, err
	}
	bad := map[oci.DiffID][]string{}
	for _, id := range ids {
		layer, err := s.Layer(id)
		if err != nil {
			continue // found again and told by the inspection
		}
		if err := layer.complete(); err != nil {
			continue // likewise
		}
		problems, err := check(ctx, layer)
		if err != nil {
			return nil, fmt.Errorf("check layer %s: %w", id, err)
		}
		if len(problems) > 0 {
			bad[id] = problems
		}
	}
	return bad, nil
}

// complete tells whether everything that the layout needs is there.
func (l *Layer) complete() error {
	switch l.Layout {
	case LayoutDir:
		info, err := os.Lstat(l.FS())
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", l.FS())
		}
		return nil
	case LayoutEROFS:
		info, err := os.Lstat(l.Tar())
		if err != nil {
			return err
		}
		if info.Size() != l.SizeBytes {
			return fmt.Errorf("%s has %d bytes instead of %d", l.Tar(), info.Size(), l.SizeBytes)
		}
		_, err = os.Lstat(l.Index())
		return err
	case LayoutSeed: // the seed's file was looked at when the layer was looked up
		_, err := os.Lstat(l.Index())
		return err
	}
	return fmt.Errorf("layout %q is unknown", l.Layout)
}

// inspection looks at all records once. ROOT/lock is held.
type inspection struct {
	store      *Store
	badContent map[oci.DiffID][]string
	badMerged  map[oci.ChainID][]string
	layers     map[oci.DiffID]bool // good ones
	images     map[oci.Digest]bool // good ones
	report     VerifyReport
	orphans    []*scratch // claimed until they are removed
}

const (
	actionQuarantined = "moved to quarantine"
	actionRemoved     = "removed"
)

func (in *inspection) found(path, detail string) {
	in.report.Problems = append(in.report.Problems, Problem{Path: path, Detail: detail})
}

// run inspects layers, then images, then what points to them: what is wrong below
// makes what is above incomplete.
func (in *inspection) run(alone bool) error {
	for _, step := range []func() error{in.inspectLayers, in.inspectMerged, in.inspectImages, in.inspectRefs, in.inspectMounts} {
		if err := step(); err != nil {
			return err
		}
	}
	if in.store.readOnly {
		return nil
	}
	return in.inspectStaging(alone)
}

func (in *inspection) inspectLayers() error {
	ids, strangers, err := in.store.layerIDs()
	if err != nil {
		return err
	}
	for _, path := range strangers {
		in.found(path, "not the name of a layer")
	}
	for _, id := range ids {
		in.report.Layers++
		layer, err := in.store.Layer(id)
		if err == nil {
			err = layer.complete()
		}
		switch {
		case errors.Is(err, ErrVersion):
			return err
		case err != nil:
			in.found(layerDir(id), err.Error())
		case in.badContent[id] != nil:
			in.found(layerDir(id), "content differs: "+strings.Join(in.badContent[id], "; "))
		default:
			in.layers[id] = true
		}
	}
	return nil
}

func (in *inspection) inspectImages() error {
	digests, strangers, stale, err := in.store.imageDigests()
	if err != nil {
		return err
	}
	for _, path := range strangers {
		in.found(path, "not the record of an image")
	}
	for _, path := range stale {
		in.found(path, errStale.Error())
	}
	for _, digest := range digests {
		in.report.Images++
		image, err := in.store.Image(digest)
		if errors.Is(err, ErrVersion) {
			return err
		}
		if err == nil {
			err = in.missingLayer(image.DiffIDs)
		}
		if err == nil {
			in.images[digest] = true
			continue
		}
		for _, boot := range []string{"", in.store.boot} {
			if _, statErr := os.Lstat(in.store.imagePath(digest, boot)); statErr == nil {
				in.found(filepath.Join(dirImages, digest.Algorithm(), recordFile(digest.Hex(), boot)), err.Error())
			}
		}
	}
	return nil
}

func (in *inspection) missingLayer(ids []oci.DiffID) error {
	for _, id := range ids {
		if !in.layers[id] {
			return fmt.Errorf("layer %s is missing or damaged", id)
		}
	}
	return nil
}

func (in *inspection) inspectRefs() error {
	files, err := in.store.refFiles()
	if err != nil {
		return err
	}
	for _, path := range files.strangers {
		in.found(path, "not the record of a reference")
	}
	for _, path := range files.stale {
		in.found(path, errStale.Error())
	}
	for _, file := range files.inForce {
		in.report.Refs++
		ref, err := file.read(in.store)
		switch {
		case errors.Is(err, ErrVersion):
			return err
		case err != nil:
			in.found(file.path, err.Error())
		case !in.images[ref.Digest]:
			in.found(file.path, fmt.Sprintf("%q points to image %s, which is missing or incomplete; pull it again", ref.Name, ref.Digest))
		}
	}
	return nil
}

func (in *inspection) inspectMounts() error {
	ids, err := readNames(in.store.path(dirMounts))
	if err != nil {
		return err
	}
	for _, id := range ids {
		in.report.Mounts++
		path := filepath.Join(dirMounts, id)
		m, err := in.store.Mount(id)
		switch {
		case errors.Is(err, ErrVersion):
			return err
		case err != nil:
			in.found(path, err.Error())
		case !in.store.ThisBoot(m): // gone; mount.Recover removes the record
		default:
			if err := in.missingLayer(m.Layers); err != nil {
				in.found(path, fmt.Sprintf("mounted at %s: %v", m.Target, err))
			}
		}
	}
	return nil
}

// inspectStaging looks for what has no holder. Temporary files have one unless the
// inspection is alone.
func (in *inspection) inspectStaging(alone bool) error {
	orphans, err := in.store.orphans()
	for _, c := range orphans {
		switch {
		case !c.made(): // a bare lock, perhaps of who is about to take it
			err = errors.Join(err, c.release())
		case alone:
			in.orphans = append(in.orphans, c)
			in.found(filepath.Join(dirStaging, c.name), "left by a stopped process")
		case c.lock != nil: // trash may be being emptied
			in.found(filepath.Join(dirStaging, c.name), "left by a stopped process")
			err = errors.Join(err, c.lock.Release())
		}
	}
	if !alone {
		return err
	}
	temps, tempErr := in.store.temps()
	for _, path := range temps {
		relative, relErr := filepath.Rel(in.store.root, path)
		err = errors.Join(err, relErr)
		in.found(relative, "temporary file left by a stopped process")
	}
	return errors.Join(err, tempErr)
}

// repair does something about each problem. ROOT/lock is held exclusively.
func (in *inspection) repair(ctx context.Context) error {
	s := in.store
	live := map[string]bool{} // mounts that may be in use
	mounts, _ := s.Mounts()   // those that cannot be read are problems themselves
	for _, m := range mounts {
		if s.ThisBoot(m) && m.State != MountUnmounting {
			live[filepath.Join(dirMounts, m.ID)] = true
		}
	}
	for i := range in.report.Problems {
		p := &in.report.Problems[i]
		var err error
		switch dir, _, _ := strings.Cut(p.Path, string(filepath.Separator)); {
		case dir == dirStaging, durable.IsTemp(filepath.Base(p.Path)):
			p.Action, err = actionRemoved, removeTree(s.path(p.Path))
		case live[p.Path]:
			p.Action = "left, because it may be mounted: unmount it"
		default:
			p.Action, err = actionQuarantined, s.quarantine(*p)
		}
		if err != nil {
			p.Action = ""
			return err
		}
		s.log.LogAttrs(ctx, slog.LevelWarn, "store repaired", slog.String("path", p.Path), slog.String("problem", p.Detail), slog.String("action", p.Action))
	}
	return nil
}

// quarantine moves what is wrong, with the reason beside it, out of the way:
// ROOT/quarantine/TIME-RANDOM/{why.json,NAME}.
func (s *Store) quarantine(p Problem) error {
	dir := s.path(dirQuarantine, s.now().UTC().Format("20060102T150405Z")+"-"+randomName())
	if err := os.MkdirAll(dir, dirPerm); err != nil {
		return err
	}
	p.Action = actionQuarantined
	if err := writeRecord(filepath.Join(dir, "why.json"), p, synced); err != nil {
		return err
	}
	return durable.Rename(s.path(p.Path), filepath.Join(dir, filepath.Base(p.Path)))
}
