//go:build linux

package dray

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"dray/internal/erofs"
	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/stream"
	"dray/internal/userns"
)

// LayoutReport says which layouts are possible with a store.
type LayoutReport struct {
	Default Layout `json:"default"` // of new layers
	Reason  string `json:"reason"`
	EROFS   bool   `json:"erofs"`             // whether the kernel mounts and stacks it
	Backing string `json:"backing,omitempty"` // through what it reads such layers

	// Verity tells whether the file system holds such layers to what it measured when
	// they were stored (fs-verity), which each mount compares; NoVerity says why not.
	Verity   bool   `json:"verity"`
	NoVerity string `json:"no_verity,omitempty"`
}

// layouts remembers what the kernel can do.
type layouts struct {
	once    sync.Once
	support erofs.Support
	err     error
}

// Layouts returns which layouts are possible with this store, and which is taken
// for new layers.
func (c *Client) Layouts(ctx context.Context) (LayoutReport, error) {
	support, err := c.support(ctx)
	if err != nil {
		return LayoutReport{}, err
	}
	layout, reason := choose(c.options.Layout, support)
	return LayoutReport{
		Default: layout, Reason: reason, EROFS: support.Mounts, Backing: support.Backing, Verity: support.Verity, NoVerity: support.NoVerity,
	}, nil
}

// chooseLayout is what the engine asks.
func (c *Client) chooseLayout(ctx context.Context) (layout, reason string, err error) {
	if c.options.Layout == LayoutDir {
		return store.LayoutDir, askedFor, nil
	}
	support, err := c.support(ctx)
	if err != nil {
		return "", "", err
	}
	chosen, reason := choose(c.options.Layout, support)
	if c.options.Layout == LayoutEROFS && !support.Mounts {
		return "", "", fmt.Errorf("%w: %s: %s", ErrLayout, LayoutEROFS, support.Reason)
	}
	return string(chosen), reason, nil
}

const askedFor = "asked for"

func choose(asked Layout, support erofs.Support) (Layout, string) {
	switch {
	case asked == LayoutDir, asked == LayoutEROFS:
		return asked, askedFor
	case !support.Mounts:
		return LayoutDir, "EROFS is not possible: " + support.Reason
	case support.Through() == erofs.Loop:
		// Two devices for each layer of each mount.
		return LayoutDir, "EROFS needs loop devices here: " + support.Reason
	}
	reason := "the kernel mounts EROFS from files in this store"
	if !support.Verity {
		reason += ", without fs-verity"
	}
	return LayoutEROFS, reason
}

// support asks the kernel, once for each store in each boot.
func (c *Client) support(ctx context.Context) (erofs.Support, error) {
	c.layouts.once.Do(func() { c.layouts.support, c.layouts.err = c.findSupport(ctx) })
	return c.layouts.support, c.layouts.err
}

func (c *Client) findSupport(ctx context.Context) (support erofs.Support, err error) {
	const fact = "erofs-2" // with fs-verity
	if userns.Inside() {
		return erofs.Support{Reason: "the kernel does not mount it in a user namespace"}, nil
	}
	if c.store.Recall(fact, &support) {
		return support, nil
	}
	if c.store.ReadOnly() {
		return erofs.Support{Reason: "the store is read-only, which leaves nowhere to try"}, nil
	}
	err = c.store.InScratch(ctx, "probe", func(dir string) error {
		support, err = erofs.Probe(ctx, dir)
		return err
	})
	if err != nil {
		return support, err
	}
	if support.Passing {
		err = errors.New(support.Reason)
	} else {
		err = c.store.Remember(ctx, fact, support)
	}
	if err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "what the kernel can do is asked again next time", slog.Any("error", err))
	}
	return support, nil
}

// checkIndexed holds a tar against its diff ID, and its index against the tar.
func (c *Client) checkIndexed(ctx context.Context, l *store.Layer) (problems []string, err error) {
	tar, offset, err := l.OpenTar()
	if err != nil {
		return []string{err.Error()}, nil
	}
	defer func() { _ = tar.Close() }()
	index, err := os.Open(l.Index())
	if err != nil {
		return []string{err.Error()}, nil
	}
	defer func() { _ = index.Close() }()
	o := erofs.Options{DeviceOffset: offset}
	if !c.store.ReadOnly() {
		o.Dir = c.store.Root() // on a disk, which the system's directory for such files may not be
	}
	x, err := erofs.Copy(ctx, l.DiffID, storedTar(l, tar, offset), nil, layer.Limits{}, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return []string{err.Error()}, nil
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	difference, err := x.Compare(bufio.NewReader(index))
	if difference != "" {
		problems = []string{store.IndexName + " " + difference}
	}
	return problems, err
}

// storedTar reads a layer's tar, which begins at offset, and verifies it.
func storedTar(l *store.Layer, tar *os.File, offset int64) stream.Blocks {
	const blockBytes = 128 << 10
	size := l.SizeBytes
	if l.Seed == nil {
		size = 1 << 62 // what is too much is wrong too
	}
	return stream.NewBlockVerifier(stream.NewSlicer(io.NewSectionReader(tar, offset, size), blockBytes), "layer", l.DiffID.Digest(), l.SizeBytes)
}

// distinctIn returns the layers that are in another layout, each once.
func distinctIn(layers []*store.Layer, layout Layout) []*store.Layer {
	var found []*store.Layer
	seen := map[oci.DiffID]bool{}
	for _, l := range layers {
		if !seen[l.DiffID] && l.Layout != string(layout) {
			found = append(found, l)
		}
		seen[l.DiffID] = true
	}
	return found
}
