package convert

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/stream"
)

// Limits of a [Memory]: when there are more entries than mostEntries, the oldest
// go until fewEntries are left.
const (
	mostEntries    = 8192
	fewEntries     = 4096
	maxEntryBytes  = 64 << 10
	maxRepos       = 16
	memoryDirMode  = 0o700
	memoryFileMode = 0o600
)

// Memory remembers conversions of layers in a directory, a file for each, named by
// the layer's digest and the options. Several processes may share it. It is as
// trusted as its directory: what it says of a layer is believed if the target has
// the digest that it names. What is lost, or cannot be read, is converted again.
type Memory struct{ dir string }

// remembered is an entry.
type remembered struct {
	Key       string          `json:"key"`
	Source    oci.Digest      `json:"source"`
	Layer     oci.Descriptor  `json:"layer"` // with annotations
	DiffID    oci.DiffID      `json:"diffID"`
	TOCDigest oci.Digest      `json:"tocDigest,omitempty"`
	TOC       *oci.Descriptor `json:"toc,omitempty"` // the external one
	RepoNames []string        `json:"repositories"`  // host/repository that had it, newest first
}

// OpenMemory returns the memory in dir, which is made when there is something to
// remember.
func OpenMemory(dir string) (*Memory, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("remember conversions in %q: not an absolute path", dir)
	}
	return &Memory{dir: dir}, nil
}

func (m *Memory) path(key string) string { return filepath.Join(m.dir, key+".json") }

// find returns the entry of key, nil if there is none that can be believed.
func (m *Memory) find(key string, source oci.Digest) *remembered {
	if m == nil {
		return nil
	}
	f, err := os.Open(m.path(key))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	raw, err := stream.ReadAll(f, maxEntryBytes)
	if err != nil {
		return nil
	}
	var r remembered
	if json.Unmarshal(raw, &r) != nil || r.Key != key || r.Source != source || r.Layer.Digest == "" || r.Layer.Size <= 0 || r.DiffID == "" {
		return nil
	}
	return &r
}

// remember keeps r, and repository as a place that has the layer.
func (m *Memory) remember(r remembered, repository string) error {
	if m == nil {
		return nil
	}
	if old := m.find(r.Key, r.Source); old != nil && old.Layer.Digest == r.Layer.Digest {
		r.RepoNames = old.RepoNames
	}
	if repository != "" {
		r.RepoNames = slices.DeleteFunc(r.RepoNames, func(s string) bool { return s == repository })
		r.RepoNames = slices.Insert(r.RepoNames, 0, repository)
		r.RepoNames = r.RepoNames[:min(len(r.RepoNames), maxRepos)]
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("remember conversion: %w", err)
	}
	if len(raw) > maxEntryBytes {
		return nil
	}
	if err := os.MkdirAll(m.dir, memoryDirMode); err != nil {
		return fmt.Errorf("remember conversion: %w", err)
	}
	if err := durable.WriteFile(m.path(r.Key), raw, memoryFileMode); err != nil {
		return fmt.Errorf("remember conversion: %w", err)
	}
	return m.prune()
}

// prune removes the oldest entries when there are too many.
func (m *Memory) prune() error {
	names, err := os.ReadDir(m.dir)
	if err != nil || len(names) <= mostEntries {
		return err
	}
	type entry struct {
		name string
		at   time.Time
	}
	var entries []entry
	for _, n := range names {
		info, err := n.Info()
		if err == nil && strings.HasSuffix(n.Name(), ".json") {
			entries = append(entries, entry{n.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.name, b.name)) })
	var errs []error
	for _, e := range entries[:max(0, len(entries)-fewEntries)] {
		if err := os.Remove(filepath.Join(m.dir, e.name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
