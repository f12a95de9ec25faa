//go:build linux

package dray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"dray/internal/layer"
	"dray/internal/metastore"
	"dray/internal/oci"
	"dray/internal/retar"
	"dray/internal/store"
	"dray/internal/stream"
)

// MetaImportOptions of [Client.ImportMetaStore].
type MetaImportOptions struct {
	// Trust takes trees over that cannot be verified, as the layers that the document
	// says they are: for work directories that were measured, as on a root file system
	// under dm-verity. The evidence of each image that uses them says so.
	Trust bool
}

// MetaImport tells what [Client.ImportMetaStore] took over.
type MetaImport struct {
	Path   string            `json:"path"`
	Images []MetaImportImage `json:"images"`
	Layers []MetaImportLayer `json:"layers"` // in the document's order
	Notes  []string          `json:"notes,omitempty"`
}

// MetaImportImage is an image of the work directory.
type MetaImportImage struct {
	Reference string `json:"reference"`         // its name in the store
	Manifest  Digest `json:"manifest_digest"`   // of the manifest that it has in the store, "" when it was refused
	Original  Digest `json:"original_manifest"` // of the one that image-rs pulled, whose bytes are not in the work directory
	Config    Digest `json:"config_digest"`     // of the configuration that image-rs pulled
	Verified  bool   `json:"config_verified"`   // its bytes have that digest; else what image-rs made of it was taken
	Refused   string `json:"refused,omitempty"` // why
}

// MetaImportLayer is a layer of the work directory.
type MetaImportLayer struct {
	DiffID  oci.DiffID `json:"diff_id"`
	Blob    Digest     `json:"digest"`
	Path    string     `json:"path"`
	Result  string     `json:"result"`            // "verified", "store" when it was there, "trusted" or "refused"
	Form    string     `json:"form,omitempty"`    // of the tar that has the diff ID
	Refused string     `json:"refused,omitempty"` // why
}

// Results of [MetaImportLayer].
const (
	importVerified = "verified"
	importStore    = "store"
	importTrusted  = "trusted"
	importRefused  = "refused"
)

// ErrRefused reports that not everything of a work directory could be verified.
var ErrRefused = errors.New("not taken over, because it is not verified")

// ImportMetaStore takes a work directory of image-rs over: the layers whose trees are
// verified against their diff IDs (see package retar), and the images that have all
// of theirs. The directory is only read. With [ErrRefused] the report is returned
// too; what it says was taken over is in the store.
func (c *Client) ImportMetaStore(ctx context.Context, workDir string, o MetaImportOptions) (done *MetaImport, err error) {
	if workDir, err = filepath.Abs(workDir); err != nil { // evidence is read elsewhere
		return nil, fmt.Errorf("import: %w", err)
	}
	w, err := metastore.Open(workDir, metastore.Options{})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	lease, err := c.store.Lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", workDir, err)
	}
	defer func() { err = errors.Join(err, lease.Release()) }()
	i := &importer{client: c, dir: w, options: o, done: &MetaImport{Path: workDir, Images: []MetaImportImage{}, Layers: []MetaImportLayer{}}}
	if err := i.run(ctx, lease); err != nil {
		return nil, fmt.Errorf("import %s: %w", workDir, err)
	}
	if i.refused > 0 {
		return i.done, fmt.Errorf("import %s: %d layers or images: %w", workDir, i.refused, ErrRefused)
	}
	return i.done, nil
}

// importer is one run of [Client.ImportMetaStore].
type importer struct {
	client  *Client
	dir     *metastore.WorkDir
	options MetaImportOptions
	done    *MetaImport
	refused int

	mu   sync.Mutex // guards have, while layers are worked on
	have map[oci.DiffID]*store.Layer
}

func (i *importer) run(ctx context.Context, lease *store.Lease) error {
	i.have = map[oci.DiffID]*store.Layer{}
	ids := make([]oci.DiffID, len(i.dir.Layers))
	for n, l := range i.dir.Layers {
		ids[n] = l.DiffID
	}
	if err := lease.Add(ctx, ids...); err != nil {
		return err
	}
	if err := i.layers(ctx); err != nil {
		return err
	}
	for n := range i.dir.Images {
		if err := i.image(ctx, &i.dir.Images[n]); err != nil {
			return err
		}
	}
	for n := range i.done.Layers {
		switch l := &i.done.Layers[n]; {
		case l.Result == importRefused && i.have[l.DiffID] != nil: // it lay elsewhere too
			l.Result = importStore
		case l.Result == importRefused:
			i.refused++
		}
	}
	if count := len(i.dir.Snapshots); count > 0 {
		i.note("snapshot_db has %d entries, which are mounts of a running image-rs: not taken over", count)
	}
	if i.client.options.Sync == SyncNever {
		return nil
	}
	return i.client.store.Sync(ctx, i.kept())
}

func (i *importer) note(format string, args ...any) {
	i.done.Notes = append(i.done.Notes, fmt.Sprintf(format, args...))
}

func (i *importer) kept() []oci.DiffID {
	ids := make([]oci.DiffID, 0, len(i.have))
	for id := range i.have {
		ids = append(ids, id)
	}
	return ids
}

// layers takes over what can be, several at once.
func (i *importer) layers(ctx context.Context) error {
	i.done.Layers = make([]MetaImportLayer, len(i.dir.Layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(i.client.workers())
	for n := range i.dir.Layers {
		l, report := &i.dir.Layers[n], &i.done.Layers[n]
		*report = MetaImportLayer{DiffID: l.DiffID, Blob: l.Blob, Path: i.dir.LayerPath(l)}
		group.Go(func() error {
			kept, err := i.layer(ctx, l, report)
			if err != nil && (ctx.Err() != nil || !isRefusal(err)) {
				return fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			if err != nil {
				report.Result, report.Refused = importRefused, err.Error()
				return nil
			}
			i.mu.Lock()
			defer i.mu.Unlock()
			i.have[l.DiffID] = kept
			return nil
		})
	}
	return group.Wait()
}

// isRefusal tells whether an error is the work directory's, and not ours.
func isRefusal(err error) bool {
	return slices.ContainsFunc([]error{retar.ErrUnknown, retar.ErrTree, metastore.ErrFormat, metastore.ErrNotFound, layer.ErrFormat, stream.ErrMismatch},
		func(kind error) bool { return errors.Is(err, kind) })
}

func (i *importer) layer(ctx context.Context, l *metastore.Layer, report *MetaImportLayer) (*store.Layer, error) {
	if kept, err := i.client.store.Layer(l.DiffID); !errors.Is(err, store.ErrNotFound) {
		report.Result = importStore
		return kept, err
	}
	root, err := i.dir.OpenLayer(l)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	limits := retar.Options{MaxEntries: i.client.options.MaxEntries, MaxBytes: i.client.options.MaxLayerBytes}
	form, _, err := retar.Find(ctx, root, l.DiffID, limits)
	if errors.Is(err, retar.ErrUnknown) && i.options.Trust {
		report.Result = importTrusted
		return i.trusted(ctx, l, root, limits)
	}
	if err != nil {
		return nil, err
	}
	report.Result, report.Form = importVerified, form.String()
	tar := retar.Open(ctx, root, form, limits)
	kept, err := i.client.engine.Keep(ctx, l.DiffID, tar)
	return kept, errors.Join(err, tar.Close())
}

func (i *importer) trusted(ctx context.Context, l *metastore.Layer, root *os.File, limits retar.Options) (*store.Layer, error) {
	tar := retar.Open(ctx, root, retar.Exact(), limits)
	note := fmt.Sprintf("layer %s was taken over from %s as it was there: it could not be verified, and --trust was given", l.DiffID, i.dir.LayerPath(l))
	kept, err := i.client.engine.KeepTrusted(ctx, l.DiffID, tar, note)
	return kept, errors.Join(err, tar.Close())
}
