package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dray/internal/oci"

	"github.com/google/go-cmp/cmp"
)

func open(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// newStore makes a store in memory, where a busy disk does not matter.
func newStore(t *testing.T) *Store {
	t.Helper()
	return open(t, filepath.Join(memoryDir(t), "store"))
}

func diffID(name string) oci.DiffID { return oci.DiffID(oci.DigestBytes([]byte(name))) }

// fill writes what a small layer has.
func fill(t *testing.T, txn *Txn, name string) {
	t.Helper()
	if err := fillLayer(txn.Path(), name); err != nil {
		t.Fatal(err)
	}
}

func fillLayer(dir, name string) error {
	if err := os.MkdirAll(filepath.Join(dir, FSName, "etc"), 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, FSName, "etc", "name"), []byte(name), 0o644),
		os.WriteFile(filepath.Join(dir, JournalName), []byte(name), 0o600),
	)
}

// put puts a layer into the store, if it is not there.
func put(t *testing.T, s *Store, name string) *Layer {
	t.Helper()
	txn, layer, err := s.Begin(t.Context(), diffID(name))
	if err != nil {
		t.Fatal(err)
	}
	if layer != nil {
		return layer
	}
	fill(t, txn, name)
	layer, err = txn.Commit(t.Context(), LayerRecord{Layout: LayoutDir, Whiteouts: WhiteoutsTrusted, SizeBytes: 10240, DiskBytes: 8192, Entries: 2})
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// image returns the record of an image with the named layers.
func image(reference string, layers ...string) *Image {
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers"},"author":%q}`, reference)
	manifest := fmt.Sprintf("{\n \"schemaVersion\": 2, \"config\": {\"digest\": %q}}\n", oci.DigestBytes([]byte(config)))
	i := &Image{
		Manifest:    oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: oci.DigestBytes([]byte(manifest)), Size: int64(len(manifest))},
		Config:      oci.Descriptor{MediaType: oci.MediaTypeConfig, Digest: oci.DigestBytes([]byte(config)), Size: int64(len(config))},
		RawManifest: Raw(manifest),
		RawConfig:   Raw(config),
		Platform:    oci.Platform{OS: "linux", Architecture: "amd64"},
		Reference:   reference,
		Evidence:    json.RawMessage(`{"a":1}`),
	}
	for _, name := range layers {
		i.DiffIDs = append(i.DiffIDs, diffID(name))
	}
	return i
}

// putImage puts an image with its layers and a reference into the store.
func putImage(t *testing.T, s *Store, reference string, layers ...string) *Image {
	t.Helper()
	for _, name := range layers {
		put(t, s, name)
	}
	i := image(reference, layers...)
	if err := s.Sync(t.Context(), i.DiffIDs); err != nil {
		t.Fatal(err)
	}
	if err := s.PutImage(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	if err := s.SetRef(t.Context(), reference, i.Manifest.Digest); err != nil {
		t.Fatal(err)
	}
	return i
}

// wantClean fails the test unless the store is in order and staging is empty.
func wantClean(t *testing.T, s *Store) {
	t.Helper()
	report, err := s.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Fatalf("Verify found %+v", report.Problems)
	}
	wantEmpty(t, s.path(dirStaging))
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	names, err := readNames(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 0 {
		t.Fatalf("%s has %q", dir, names)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func TestImageLivesThroughReopening(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store")) // on the disk
	want := putImage(t, s, "docker.io/library/a:latest", "bottom", "top", "bottom")
	s = open(t, s.Root())
	digest, err := s.Ref("docker.io/library/a:latest")
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Image(digest)
	if err != nil {
		t.Fatal(err)
	}
	got.Evidence, want.Evidence = nil, nil // the same JSON, indented
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("image (-got +want):\n%s", diff)
	}
	if got.UnsyncedBoot != "" {
		t.Errorf("image of synced layers has the mark of boot %s", got.UnsyncedBoot)
	}
	layer, err := s.Layer(diffID("top"))
	if err != nil {
		t.Fatal(err)
	}
	if layer.UnsyncedBoot != "" || layer.SizeBytes != 10240 || layer.Created.IsZero() {
		t.Errorf("layer is %+v", layer)
	}
	if content, err := os.ReadFile(filepath.Join(layer.FS(), "etc", "name")); err != nil || string(content) != "top" {
		t.Errorf("layer holds %q, %v", content, err)
	}
	wantClean(t, s)
}

func TestRawIsByteExact(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]Raw{
		"json":       Raw("{\n\t\"a\": \"<&>\u2028\"}\r\n"),
		"not UTF-8":  Raw("{\xff\x00}"),
		"empty":      Raw(""),
		"like ours":  Raw(`{"base64":"AAAA"}`),
		"escapes":    Raw(`"\u0000\ud800"`),
		"just a NUL": Raw("\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			encoded, err := encodeRecord(struct{ R Raw }{raw})
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ R Raw }
			if err := json.Unmarshal(encoded, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.R, raw) {
				t.Errorf("got %q, want %q, by way of %s", got.R, raw, encoded)
			}
		})
	}
}

func TestTransactions(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	txn, layer, err := s.Begin(t.Context(), diffID("a"))
	if err != nil || layer != nil {
		t.Fatal(layer, err)
	}
	fill(t, txn, "a")
	_, err = s.Layer(diffID("a"))
	wantErr(t, err, ErrNotFound)
	if err := txn.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := txn.Abort(); err != nil {
		t.Fatalf("second Abort: %v", err)
	}
	_, err = txn.Commit(t.Context(), LayerRecord{})
	wantErr(t, err, fs.ErrClosed)
	wantEmpty(t, s.path(dirStaging))

	txn, _, err = s.Begin(t.Context(), diffID("a"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := txn.Dir()
	if err != nil {
		t.Fatal(err)
	}
	info, err := dir.Stat()
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("directory of the transaction: %v, %v", info, err)
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	fill(t, txn, "a")
	got, err := txn.Commit(t.Context(), LayerRecord{Layout: LayoutDir})
	if err != nil {
		t.Fatal(err)
	}
	if err := txn.Abort(); err != nil {
		t.Fatalf("Abort after Commit: %v", err)
	}
	txn, want, err := s.Begin(t.Context(), diffID("a"))
	if err != nil || txn != nil {
		t.Fatal(txn, err)
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("layer as committed and as found:\n%s", diff)
	}
	wantClean(t, s)
}

func TestNothingPointsToWhatIsMissing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	put(t, s, "a")
	wantErr(t, s.PutImage(t.Context(), image("x", "a", "b")), ErrNotFound)
	wantErr(t, s.SetRef(t.Context(), "x", image("x").Manifest.Digest), ErrNotFound)
	_, err := s.NewMount(t.Context(), Mount{Layers: []oci.DiffID{diffID("b")}})
	wantErr(t, err, ErrNotFound)
	wrong := image("x", "a")
	wrong.RawConfig = append(wrong.RawConfig, ' ')
	if err := s.PutImage(t.Context(), wrong); err == nil {
		t.Error("PutImage took a config that is not what its digest names")
	}
	for _, path := range []string{"../../x", "sha256:../../../../etc", "", "sha256:" + strings.Repeat("A", 64)} {
		if _, err := s.Layer(oci.DiffID(path)); !errors.Is(err, oci.ErrDigest) {
			t.Errorf("Layer(%q): %v", path, err)
		}
		if _, _, err := s.Begin(t.Context(), oci.DiffID(path)); !errors.Is(err, oci.ErrDigest) {
			t.Errorf("Begin(%q): %v", path, err)
		}
		if _, err := s.NewMount(t.Context(), Mount{Layers: []oci.DiffID{oci.DiffID(path)}}); !errors.Is(err, oci.ErrDigest) {
			t.Errorf("NewMount(%q): %v", path, err)
		}
		if _, err := s.Image(oci.Digest(path)); !errors.Is(err, oci.ErrDigest) {
			t.Errorf("Image(%q): %v", path, err)
		}
		if _, err := s.Mount(path); !errors.Is(err, ErrNotFound) {
			t.Errorf("Mount(%q): %v", path, err)
		}
	}
	wantClean(t, s)
}

func TestReferences(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a, b := putImage(t, s, "a", "1"), putImage(t, s, "b", "1", "2")
	long := strings.Repeat("n", maxNameBytes)
	for name, digest := range map[string]oci.Digest{
		long:              a.Manifest.Digest,
		"../../etc/x":     b.Manifest.Digest,
		"with\nnewline/é": b.Manifest.Digest,
		"a":               b.Manifest.Digest, // moves
	} {
		if err := s.SetRef(t.Context(), name, digest); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Ref(name); err != nil || got != digest {
			t.Errorf("Ref(%q) is %s, %v, want %s", name, got, err, digest)
		}
	}
	for _, name := range []string{"", long + "n", "\xff"} {
		if err := s.SetRef(t.Context(), name, a.Manifest.Digest); err == nil {
			t.Errorf("SetRef took the name %.10q… of %d bytes", name, len(name))
		}
	}
	refs, err := s.Refs()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, ref := range refs {
		names = append(names, ref.Name)
	}
	if diff := cmp.Diff(names, []string{"../../etc/x", "a", "b", long, "with\nnewline/é"}); diff != "" {
		t.Errorf("names:\n%s", diff)
	}
	if err := s.RemoveRef(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.RemoveRef(t.Context(), "a"), ErrNotFound)
	_, err = s.Ref("a")
	wantErr(t, err, ErrNotFound)
	wantClean(t, s)
}

func TestMounts(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	i := putImage(t, s, "a", "1", "2")
	m, err := s.NewMount(t.Context(), Mount{Image: i.Manifest.Digest, Layers: i.DiffIDs, Target: "/t"})
	if err != nil {
		t.Fatal(err)
	}
	if m.State != MountPreparing || m.PID != os.Getpid() || m.MountNS == 0 || !s.ThisBoot(m) {
		t.Errorf("new mount is %+v", m)
	}
	for _, dir := range []string{m.Upper(), m.Work()} {
		if info, err := os.Stat(dir); err != nil || info.Mode() != fs.ModeDir|0o755 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	m.State = MountMounted
	if err := s.UpdateMount(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	readOnly, err := s.NewMount(t.Context(), Mount{Layers: i.DiffIDs, Target: "/u", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := readNames(readOnly.Path); err != nil || len(names) != 1 {
		t.Errorf("a read-only mount has %q, %v", names, err)
	}
	mounts, err := open(t, s.Root()).Mounts()
	if err != nil || len(mounts) != 2 {
		t.Fatal(mounts, err)
	}
	got := mounts[0]
	if got.ID != m.ID {
		got = mounts[1]
	}
	if diff := cmp.Diff(got, m); diff != "" {
		t.Errorf("mount (-got +want):\n%s", diff)
	}
	wantClean(t, s)
	for _, id := range []string{m.ID, readOnly.ID} {
		if err := s.RemoveMount(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		wantErr(t, s.RemoveMount(t.Context(), id), ErrNotFound)
	}
	wantErr(t, s.UpdateMount(t.Context(), m), ErrNotFound)
	wantErr(t, s.RemoveMount(t.Context(), "../layers"), ErrNotFound)
	wantEmpty(t, s.path(dirMounts))
	wantClean(t, s)
}

// A machine that lost power shows what was not synced to no one.
func TestUnsyncedOfAnotherBoot(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store")) // on the disk
	durableImage := putImage(t, s, "a", "synced")
	put(t, s, "lost")
	lost := image("lost", "synced", "lost")
	if err := s.PutImage(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} { // a was durable, and is again after the loss
		if err := s.SetRef(t.Context(), name, lost.Manifest.Digest); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Ref(name); err != nil || got != lost.Manifest.Digest {
			t.Fatalf("before the loss %s is %s, %v", name, got, err)
		}
	}
	if lost.UnsyncedBoot != s.boot {
		t.Errorf("image of an unsynced layer has the mark %q", lost.UnsyncedBoot)
	}
	m, err := s.NewMount(t.Context(), Mount{Image: durableImage.Manifest.Digest, Layers: durableImage.DiffIDs, Target: "/t"})
	if err != nil {
		t.Fatal(err)
	}
	wantClean(t, s)

	const next = "11111111-2222-3333-4444-555555555555"
	// Contents may be gone where names are not.
	for _, path := range []string{filepath.Join(s.layerPath(diffID("lost")), recordName), s.imagePath(lost.Manifest.Digest, s.boot), filepath.Join(m.Path, stateName)} {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	after := *s
	after.boot, after.log = next, slog.New(slog.NewTextHandler(&log, nil))
	_, err = after.Layer(diffID("lost"))
	wantErr(t, err, ErrNotFound)
	_, err = after.Image(lost.Manifest.Digest)
	wantErr(t, err, ErrNotFound)
	if got, err := after.Ref("a"); err != nil || got != durableImage.Manifest.Digest {
		t.Errorf("after the loss a is %s, %v, want the durable %s", got, err, durableImage.Manifest.Digest)
	}
	_, err = after.Ref("b")
	wantErr(t, err, ErrNotFound)
	if got, err := after.Mount(m.ID); err != nil || after.ThisBoot(got) || got.Path != m.Path {
		t.Errorf("mount of the other boot is %+v, %v", got, err)
	}
	if err := after.sweepStale(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.layerPath(diffID("lost"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the layer is still there: %v", err)
	}
	if got := strings.Count(log.String(), "not synced before the machine stopped"); got != 4 {
		t.Errorf("%d warnings, want 4: layer, image, two references:\n%s", got, log.String())
	}
	wantClean(t, &after)

	// Begin removes one that appeared since: another boot's store was moved here.
	put(t, s, "lost")
	txn, layer, err := after.Begin(t.Context(), diffID("lost"))
	if err != nil || layer != nil {
		t.Fatal(layer, err)
	}
	if err := txn.Abort(); err != nil {
		t.Fatal(err)
	}
	wantClean(t, &after)
}

func TestSyncClearsTheMark(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store")) // on the disk
	a := put(t, s, "a")
	if a.UnsyncedBoot != s.boot {
		t.Errorf("a committed layer has the mark %q, want %q", a.UnsyncedBoot, s.boot)
	}
	i := image("x", "a")
	if err := s.PutImage(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	if err := s.SetRef(t.Context(), "x", i.Manifest.Digest); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Sync(t.Context(), []oci.DiffID{a.DiffID, diffID("absent")}), ErrNotFound)
	for range 2 {
		if err := s.Sync(t.Context(), []oci.DiffID{a.DiffID, a.DiffID}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Layer(a.DiffID)
	if err != nil || got.UnsyncedBoot != "" {
		t.Fatal(got, err)
	}
	// The image and its name become durable when they are written again.
	for range 2 {
		if err := s.PutImage(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		if err := s.SetRef(t.Context(), "x", i.Manifest.Digest); err != nil {
			t.Fatal(err)
		}
	}
	wantDurable(t, s)
}

// wantDurable fails the test if a record has the mark of a boot.
func wantDurable(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{s.path(dirImages, oci.SHA256), s.path(dirRefs)} {
		names, err := readNames(dir)
		if err != nil || len(names) != 1 || strings.Contains(names[0], s.boot) {
			t.Errorf("%s has %q, %v", dir, names, err)
		}
	}
	wantClean(t, s)
}

func TestSettle(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	pull := func(reference string, layers ...string) *Image {
		i := image(reference+strings.Join(layers, ""), layers...)
		for _, name := range layers {
			put(t, s, name)
		}
		if err := errors.Join(s.PutImage(t.Context(), i), s.SetRef(t.Context(), reference, i.Manifest.Digest)); err != nil {
			t.Fatal(err)
		}
		return i
	}
	old, removed := pull("moves", "1"), pull("removed", "2")
	now := pull("moves", "1", "3")
	if _, err := s.Remove(t.Context(), "removed"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Settle(t.Context(), removed.Manifest.Digest), ErrNotFound)
	for range 2 {
		if err := errors.Join(s.Settle(t.Context(), now.Manifest.Digest), s.Settle(t.Context(), old.Manifest.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Ref("moves"); err != nil || got != now.Manifest.Digest {
		t.Errorf("the name points to %s, %v, want the newer %s", got, err, now.Manifest.Digest)
	}
	if images := must(s.Images())(t); len(images) != 2 {
		t.Errorf("%d images, want 2", len(images))
	}
	gc(t, s, GCOptions{})
	wantDurable(t, s)
}

func TestAgeIsAskedOfTheClock(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s, err := Open(t.Context(), Options{Root: t.TempDir(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a")
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 0}, {59 * time.Minute, 0}, {time.Minute, 1}} {
		now = now.Add(step.after)
		report, err := s.GC(t.Context(), GCOptions{KeepUnreferenced: time.Hour})
		if err != nil || len(report.Layers) != step.want {
			t.Errorf("after %v GC takes %d layers, %v, want %d", step.after, len(report.Layers), err, step.want)
		}
	}
}
