package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dray/internal/durable"
	"dray/internal/oci"
	"dray/internal/stream"

	"golang.org/x/sys/unix"
)

// Format of the store that this package reads and writes, and the oldest dray
// that knows it. Both stand in ROOT/version.
const (
	formatVersion = 1
	formatNeeds   = "0.1"
)

const (
	dirLayers     = "layers"
	dirImages     = "images"
	dirRefs       = "refs"
	dirMounts     = "mounts"
	dirStaging    = "staging"
	dirQuarantine = "quarantine"
	dirFacts      = "facts"
	dirMerged     = "merged"
	fileVersion   = "version"
	fileLock      = "lock"
	fileBoot      = "boot"

	dirPerm  = 0o700
	filePerm = 0o600

	// maxRecordBytes bounds a record that is read: an image record holds a manifest
	// and a config, both limited by the engine.
	maxRecordBytes = 64 << 20

	// lockWait bounds how long ROOT/lock is waited for: it is held for moments, so
	// that a longer wait means a process that is stopped or stuck.
	lockWait = 30 * time.Second
)

// Options says which store to open and how.
type Options struct {
	Root     string           // its directory, made when missing
	ReadOnly bool             // write nothing, not even locks
	Log      *slog.Logger     // nil discards
	Now      func() time.Time // nil is time.Now
}

// Store is an open store. It is safe for concurrent use, by any number of
// goroutines and processes.
type Store struct {
	root     string
	readOnly bool
	log      *slog.Logger
	now      func() time.Time
	boot     string        // this boot's ID, part of file names
	lockWait time.Duration // lockWait but in tests
}

// Open opens the store at o.Root, makes it when there is none, and removes what
// killed processes left in its staging area. On a file system that cannot be
// written a complete store opens as with o.ReadOnly. Errors are [ErrVersion],
// [ErrCorrupt], [ErrNotFound] (read-only, and no store there) or the system's.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Root == "" {
		return nil, errors.New("open store: no directory given")
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{root: root, readOnly: o.ReadOnly, log: o.Log, now: o.Now, lockWait: lockWait}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.boot = s.bootID(ctx)
	if !s.readOnly && errors.Is(unix.Access(root, unix.W_OK), unix.EROFS) {
		s.readOnly = true
		s.log.LogAttrs(ctx, slog.LevelInfo, "store is on a read-only file system", slog.String("root", root))
	}
	if err := s.checkVersion(ctx); err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, s.Explain(err))
	}
	if s.readOnly {
		return s, nil
	}
	if err := errors.Join(s.sweep(ctx), s.sweepStale(ctx)); err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, s.Explain(err))
	}
	return s, nil
}

// Close ends the use of the store. Transactions and leases are ended by their own
// methods, before.
func (s *Store) Close() error { return nil }

// Root returns the store's directory.
func (s *Store) Root() string { return s.root }

// ReadOnly tells whether nothing can be written.
func (s *Store) ReadOnly() bool { return s.readOnly }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// versionRecord is ROOT/version. Dray is the oldest dray that reads the format.
type versionRecord struct {
	Version int    `json:"version"`
	Dray    string `json:"dray"`
}

func (s *Store) checkVersion(ctx context.Context) error {
	var v versionRecord
	err := readRecord(s.path(fileVersion), &v)
	switch {
	case errors.Is(err, ErrNotFound) && s.readOnly:
		return fmt.Errorf("no store here: %w", ErrNotFound)
	case errors.Is(err, ErrNotFound):
		return s.create(ctx)
	case err != nil:
		return err
	}
	if err := v.check(); err != nil || s.readOnly {
		return err
	}
	return s.makeDirs()
}

func (v *versionRecord) check() error {
	switch {
	case v.Version > formatVersion:
		return fmt.Errorf("format %d, this dray knows up to %d; use dray %.40q or newer: %w", v.Version, formatVersion, v.Dray, ErrVersion)
	case v.Version < 1:
		return fmt.Errorf("version file names format %d: %w", v.Version, ErrCorrupt)
	}
	return nil
}

// create makes a new store. Its version comes last, so that a store with a
// version has everything; one without must not have layers.
func (s *Store) create(ctx context.Context) error {
	if entries, err := os.ReadDir(s.path(dirLayers, oci.SHA256)); err == nil && len(entries) > 0 {
		return fmt.Errorf("layers without a version file; restore %s or move the layers away: %w", s.path(fileVersion), ErrCorrupt)
	}
	if err := s.makeDirs(); err != nil {
		return err
	}
	lock, err := s.lock(ctx, durable.Shared)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release() }()
	return writeRecord(s.path(fileVersion), versionRecord{Version: formatVersion, Dray: formatNeeds}, synced)
}

func (s *Store) makeDirs() error {
	for _, dir := range []string{
		filepath.Join(dirLayers, oci.SHA256), filepath.Join(dirImages, oci.SHA256), dirRefs, dirMounts, dirStaging, dirQuarantine, dirFacts, dirMerged,
	} {
		if err := os.MkdirAll(s.path(dir), dirPerm); err != nil {
			return err
		}
	}
	return nil
}

// bootID returns the ID of this boot, in a form that file names can hold.
func (s *Store) bootID(ctx context.Context) string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	id := strings.TrimSpace(string(raw))
	if err == nil && validBoot(id) {
		return id
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "this boot has no readable ID: unsynced layers are not told from synced ones after power loss", slog.Any("error", err))
	return "00000000-0000-0000-0000-000000000000"
}

func validBoot(id string) bool {
	return len(id) == 36 && strings.Trim(id, "0123456789abcdef-") == ""
}

// lock takes ROOT/lock. Whoever holds it shared puts something in place, whoever
// holds it exclusively takes something away (see the package comment).
func (s *Store) lock(ctx context.Context, mode durable.Mode) (*durable.Lock, error) {
	if s.readOnly {
		return nil, fmt.Errorf("store %s: %w", s.root, ErrReadOnly)
	}
	limited, cancel := context.WithTimeout(ctx, s.lockWait)
	defer cancel()
	lock, err := durable.Acquire(limited, s.path(fileLock), mode)
	if err != nil {
		return nil, s.Explain(waitError(err))
	}
	return lock, nil
}

// readRecord decodes the JSON file at path. The error is [ErrNotFound] or
// [ErrCorrupt] for what the file is, the system's otherwise.
func readRecord(path string, into any) error {
	f, err := os.Open(path) //nolint:gosec // in the store
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	raw, err := stream.ReadAll(f, maxRecordBytes)
	if errors.Is(err, stream.ErrTooLarge) {
		return fmt.Errorf("read %s: %w: %w", path, ErrCorrupt, err)
	}
	if err != nil {
		return err
	}
	return decodeRecord(path, raw, into)
}

func decodeRecord(path string, raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("read %s: %w: %w", path, ErrCorrupt, err)
	}
	return nil
}

// Whether a record must survive the loss of power.
const (
	synced   = true
	unsynced = false
)

// writeRecord replaces the file at path by v as JSON. The caller holds ROOT/lock
// shared: temporary files are swept by who holds it alone.
func writeRecord(path string, v any, durably bool) error {
	raw, err := encodeRecord(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if durably {
		return durable.WriteFile(path, raw, filePerm)
	}
	temp := filepath.Join(filepath.Dir(path), ".tmp-"+randomName()) // durable.IsTemp
	err = os.WriteFile(temp, raw, filePerm)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(temp)))
	}
	return nil
}

// encodeRecord returns v as JSON that people can read.
func encodeRecord(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(v)
	return b.Bytes(), err
}

// randomName returns a name that nobody else has: 16 letters and digits.
func randomName() string { return strings.ToLower(rand.Text()[:16]) }

// checkFormat judges the version that a record carries.
func checkFormat(path string, version int) error {
	switch {
	case version > formatVersion:
		return fmt.Errorf("read %s: record has format %d, this dray knows up to %d: %w", path, version, formatVersion, ErrVersion)
	case version < 1:
		return fmt.Errorf("read %s: record has format %d: %w", path, version, ErrCorrupt)
	}
	return nil
}
