package pull_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"dray/internal/layer"
	"dray/internal/oci"
	"dray/internal/pull"
	"dray/internal/registry"
	"dray/internal/store"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// bench is a store, an engine and a client of registries.
type bench struct {
	store  *store.Store
	engine *pull.Engine
	client *registry.Client
}

// newBench makes an engine that hardly waits before it asks again, so that tests are
// quick.
func newBench(t *testing.T, change func(*pull.Options)) *bench {
	t.Helper()
	return newImpatientBench(t, change, 0)
}

// newImpatientBench is newBench with a registry that may make no progress for so long; 0
// is the usual time, which also a busy machine keeps.
func newImpatientBench(t *testing.T, change func(*pull.Options), progress time.Duration) *bench {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Root: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	options := pull.Options{Store: s, Sync: pull.SyncNever}
	if change != nil {
		change(&options)
	}
	engine, err := pull.New(options)
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.NewClient(registry.Options{
		PlainHTTP: true, AuthFiles: []string{},
		Retry:    registry.Retry{Count: 2, Base: time.Millisecond, Max: 5 * time.Millisecond},
		Timeouts: registry.Timeouts{Progress: progress},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(engine.Close(), client.Close()); err != nil {
			t.Error(err)
		}
		staged, err := os.ReadDir(filepath.Join(s.Root(), "staging"))
		if err != nil || len(staged) > 0 {
			t.Errorf("staging holds %v after the engine was closed (%v)", staged, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{s, engine, client}
}

type remote struct{ *registry.Repository }

func (remote) Close() error { return nil }

func (b *bench) request(t *testing.T, reference string) pull.Request {
	t.Helper()
	ref, err := oci.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	repository, err := b.client.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	return pull.Request{Reference: ref, Source: remote{repository}, Platform: oci.HostPlatform()}
}

func (b *bench) pull(t *testing.T, reference string) (*store.Image, *pull.Evidence, error) {
	t.Helper()
	return b.engine.Pull(t.Context(), b.request(t, reference))
}

// threeLayers is an image whose middle layer is the largest.
func threeLayers(t *testing.T, l string) testkit.Built {
	t.Helper()
	return testkit.Image(t).
		Layer(testkit.Dir("etc"), testkit.File("etc/hostname", "one")).Gzip().
		Layer(testkit.Random("big", 1<<20, 7)).Gzip().
		Layer(testkit.File("top", "three")).Zstd().
		Write(testkit.LayoutAt(t, l), "v1")
}

// A layer that is alone is inflated on the cores that no other needs, and the evidence
// says on how many; with one worker it never is, and small layers are not.
func TestPullInflatesOnIdleCores(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := testkit.Image(t).Layer(testkit.Text("big", 24<<20, 7)).Gzip().Write(testkit.LayoutAt(t, filepath.Join(dir, "big")), "v1")
	threeLayers(t, filepath.Join(dir, "small"))
	server := testkit.Registry(t, dir)
	for workers, want := range map[int]string{1: "on one core", 2: "on one core", 4: "on "} {
		b := newBench(t, func(o *pull.Options) { o.Workers = workers })
		_, evidence, err := b.pull(t, server.Ref("big:v1"))
		if err != nil {
			t.Fatal(err)
		}
		l := evidence.Layers[0]
		for try := 1; try < 20 && workers == 4 && l.Inflated == "on one core" && runtime.GOMAXPROCS(0) > 1; try++ { // others were on the other
			if _, evidence, err = newBench(t, func(o *pull.Options) { o.Workers = workers }).pull(t, server.Ref("big:v1")); err != nil {
				t.Fatal(err)
			}
			l = evidence.Layers[0]
		}
		if l.DiffID != built.DiffIDs[0] || !strings.HasPrefix(l.Inflated, want) || workers == 4 && l.Inflated == "on one core" && runtime.GOMAXPROCS(0) > 1 {
			t.Errorf("%d workers: %+v", workers, l)
		}
		t.Logf("%d workers: %s", workers, l.Inflated)
		_, evidence, err = b.pull(t, server.Ref("small:v1"))
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"on one core", "on one core", ""} {
			if got := evidence.Layers[i].Inflated; !strings.HasPrefix(got, want) || want == "" && got != "" {
				t.Errorf("layer %d: %q, want %q", i, got, want)
			}
		}
	}
}

// digestPart is what the URL of a blob contains.
func digestPart(d oci.Descriptor) string { return d.Digest.Hex() }

func TestPull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := threeLayers(t, dir)
	server := testkit.Registry(t, dir)
	b := newBench(t, nil)
	image, evidence, err := b.pull(t, server.Ref("a/b:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if image.Manifest.Digest != built.Manifest.Digest || evidence.Manifest != built.Manifest.Digest || evidence.Config != built.Config.Digest {
		t.Errorf("pulled %s with config %s, want %s and %s", evidence.Manifest, evidence.Config, built.Manifest.Digest, built.Config.Digest)
	}
	var stored int64
	for i, l := range evidence.Layers {
		stored += built.Layers[i].Size
		if l.DiffID != built.DiffIDs[i] || l.Digest != built.Layers[i].Digest || l.Source != "network" || l.SizeBytes == 0 {
			t.Errorf("evidence of layer %d is %+v", i, l)
		}
	}
	if want := stored + built.Manifest.Size + built.Config.Size; evidence.NetworkBytes != want {
		t.Errorf("evidence says %d bytes from the network, want %d", evidence.NetworkBytes, want)
	}
	for _, id := range built.DiffIDs {
		if _, err := b.store.Layer(id); err != nil {
			t.Errorf("layer %s: %v", id, err)
		}
	}
	if digest, err := b.store.Ref(image.Reference); err != nil || digest != built.Manifest.Digest {
		t.Errorf("the reference names %s (%v)", digest, err)
	}
}

// What is in the store is not fetched again; a pinned image asks nobody at all.
func TestPullAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := threeLayers(t, dir)
	server := testkit.Registry(t, dir)
	b := newBench(t, nil)
	if _, _, err := b.pull(t, server.Ref("a/b:v1")); err != nil {
		t.Fatal(err)
	}
	_, evidence, err := b.pull(t, server.Ref("a/b:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := server.Count("/blobs/" + string(built.Layers[1].Digest)); n != 1 {
		t.Errorf("the layer was asked for %d times, want once", n)
	}
	if evidence.Layers[0].Source != "store" || evidence.StoreBytes == 0 {
		t.Errorf("evidence says %+v", evidence.Layers[0])
	}
	server.Forget()
	if _, _, err := b.pull(t, server.Ref("a/b@"+string(built.Manifest.Digest))); err != nil {
		t.Fatal(err)
	}
	if got := server.Requests(); len(got) > 0 {
		t.Errorf("a pinned image in the store made requests: %v", got)
	}
}

func TestRepeatedLayerIsFetchedOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	same := testkit.Random("x", 1<<16, 1)
	built := testkit.Image(t).Layer(same).Layer(testkit.File("y", "b")).Layer(same).Write(testkit.LayoutAt(t, dir), "v1")
	server := testkit.Registry(t, dir)
	b := newBench(t, nil)
	image, evidence, err := b.pull(t, server.Ref("a/b:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := server.Count(digestPart(built.Layers[0])); n != 1 {
		t.Errorf("the repeated layer was asked for %d times, want once", n)
	}
	if len(image.DiffIDs) != 3 || image.DiffIDs[0] != image.DiffIDs[2] || evidence.Layers[2].DiffID != built.DiffIDs[2] {
		t.Errorf("layers are %v, want the repetition kept", image.DiffIDs)
	}
}

// Two pulls that want one layer share its flight; the one that leaves does not
// take it along.
func TestFlightOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := testkit.Image(t).Layer(testkit.Random("x", 1<<20, 1)).Plain().Write(testkit.LayoutAt(t, dir), "v1")
	left := make(chan struct{})
	server := testkit.Registry(t, dir, testkit.SlowUntil(left, digestPart(built.Layers[0]), 1<<10, 20*time.Millisecond))
	b := newBench(t, nil)
	first, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	var once sync.Once
	request := b.request(t, server.Ref("a/b:v1"))
	request.Progress = func(e pull.Event) {
		if e.FetchedBytes > 0 {
			once.Do(func() { close(begun) })
		}
	}
	firstDone := make(chan error, 1)
	go func() {
		_, _, err := b.engine.Pull(first, request)
		firstDone <- err
	}()
	<-begun
	joined := make(chan struct{})
	var joinedOnce sync.Once
	second := b.request(t, server.Ref("a/b:v1"))
	second.Progress = func(pull.Event) { joinedOnce.Do(func() { close(joined) }) }
	secondDone := make(chan error, 1)
	var evidence *pull.Evidence
	go func() {
		var err error
		_, evidence, err = b.engine.Pull(t.Context(), second)
		secondDone <- err
	}()
	<-joined
	cancel()
	if err := <-firstDone; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that left got %v, want its context's error", err)
	}
	close(left)
	if err := <-secondDone; err != nil {
		t.Fatal(err)
	}
	wantOneRequest(t, server, built.Layers[0])
	if evidence.Layers[0].Source != "shared" {
		t.Errorf("evidence says %q, want shared", evidence.Layers[0].Source)
	}
}

// A caller with a time-out that asks again finds the layer further on (kata#7389).
func TestLingeringFlightIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := testkit.Image(t).Layer(testkit.Random("x", 1<<20, 1)).Plain().Write(testkit.LayoutAt(t, dir), "v1")
	server := testkit.Registry(t, dir, testkit.Slow(digestPart(built.Layers[0]), 64<<10, 20*time.Millisecond))
	b := newBench(t, func(o *pull.Options) { o.Linger = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	request := b.request(t, server.Ref("a/b:v1"))
	request.Progress = func(e pull.Event) {
		if e.FetchedBytes > 0 {
			cancel()
		}
	}
	if _, _, err := b.engine.Pull(ctx, request); !errors.Is(err, context.Canceled) {
		t.Fatalf("pull returned %v, want its context's error", err)
	}
	if _, _, err := b.pull(t, server.Ref("a/b:v1")); err != nil {
		t.Fatal(err)
	}
	wantOneRequest(t, server, built.Layers[0])
}

// wantOneRequest checks that a layer was asked for once. The server writes a
// request down when it has ended, which may be after its last byte was read.
func wantOneRequest(t *testing.T, server *testkit.Server, d oci.Descriptor) {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	for {
		n, _ := server.Count(digestPart(d))
		if n > 1 {
			t.Errorf("the layer was asked for %d times, want once", n)
		}
		if n > 0 {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatal("the layer was never asked for")
		}
	}
}

func TestManifestIsNotJSON(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testkit.PutRaw(t, testkit.LayoutAt(t, dir), "v1", oci.MediaTypeManifest, []byte("<html>"))
	b := newBench(t, nil)
	if _, _, err := b.pull(t, testkit.Registry(t, dir).Ref("a/b:v1")); !errors.Is(err, oci.ErrManifest) {
		t.Errorf("pull returned %v, want ErrManifest", err)
	}
}

// Layers that were complete when a pull failed are not fetched again.
func TestFailedPullKeepsCompleteLayers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := threeLayers(t, dir)
	server := testkit.Registry(t, dir, testkit.Status(digestPart(built.Layers[2]), 404))
	b := newBench(t, func(o *pull.Options) { o.Workers = 1 }) // in order of size: the small top layer is last
	if _, _, err := b.pull(t, server.Ref("a/b:v1")); !errors.Is(err, registry.ErrNotFound) {
		t.Fatalf("pull returned %v, want ErrNotFound", err)
	}
	if _, err := b.store.Image(built.Manifest.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an image with a missing layer is in the store: %v", err)
	}
	server.Mend()
	if _, _, err := b.pull(t, server.Ref("a/b:v1")); err != nil {
		t.Fatal(err)
	}
	if n, _ := server.Count("/blobs/" + string(built.Layers[1].Digest)); n != 1 {
		t.Errorf("the complete layer was asked for %d times, want once", n)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := threeLayers(t, dir)
	big, config, manifest := digestPart(built.Layers[1]), digestPart(built.Config), "/manifests/"
	const stallsOnce, stallsAlways = "stalls once", "stalls always"
	progress := map[string]time.Duration{stallsOnce: 2 * time.Second, stallsAlways: 300 * time.Millisecond} // the others' is not to pass
	for name, test := range map[string]struct {
		faults []testkit.Fault
		want   error // nil: the pull gets over it
		says   string
	}{
		"cut once":                     {[]testkit.Fault{testkit.Cut(big, 100_000).Times(1)}, nil, ""},
		"cut always":                   {[]testkit.Fault{testkit.Cut(big, 10)}, registry.ErrUnreachable, "unexpected EOF"},
		stallsOnce:                     {[]testkit.Fault{testkit.Stall(big, 100_000).Times(1)}, nil, ""},
		stallsAlways:                   {[]testkit.Fault{testkit.Stall(big, 10)}, registry.ErrUnreachable, "no progress"},
		"no ranges, cut once":          {[]testkit.Fault{testkit.NoRanges(big), testkit.Cut(big, 100_000).Times(1)}, nil, ""},
		"flipped bit":                  {[]testkit.Fault{testkit.Flip(big, 1000)}, stream.ErrMismatch, "content has digest"},
		"garbage":                      {[]testkit.Fault{testkit.Garbage(big)}, stream.ErrMismatch, "content has digest"},
		"too short":                    {[]testkit.Fault{testkit.Resize(big, 1000)}, stream.ErrMismatch, "verify blob"},
		"too long":                     {[]testkit.Fault{testkit.Resize(big, 9<<20)}, stream.ErrMismatch, "more than"},
		"config flipped":               {[]testkit.Fault{testkit.Flip(config, 5)}, stream.ErrMismatch, "content has digest"},
		"manifest too large":           {[]testkit.Fault{testkit.Resize(manifest, 10<<20)}, stream.ErrTooLarge, "the limit is 4194304"},
		"manifest replaced":            {[]testkit.Fault{testkit.Replace(manifest, func([]byte) []byte { return []byte("<html>") })}, stream.ErrMismatch, "content has digest"},
		"manifest is unauthorized":     {[]testkit.Fault{testkit.Status(manifest, 401)}, registry.ErrUnauthorized, "401"},
		"manifest is forbidden":        {[]testkit.Fault{testkit.Status(manifest, 403)}, registry.ErrUnauthorized, "403"},
		"manifest is missing":          {[]testkit.Fault{testkit.Status(manifest, 404)}, registry.ErrNotFound, "404"},
		"too many requests, then well": {[]testkit.Fault{testkit.Status(manifest, 429, "Retry-After", "0").Times(1)}, nil, ""},
		"too many requests":            {[]testkit.Fault{testkit.Status(manifest, 429, "Retry-After", "0")}, registry.ErrUnreachable, "429"},
		"server errors":                {[]testkit.Fault{testkit.Status(manifest, 500)}, registry.ErrUnreachable, "500"},
		"redirects for ever":           {[]testkit.Fault{testkit.RedirectLoop(big)}, registry.ErrProtocol, "redirect"},
		"shifted ranges":               {[]testkit.Fault{testkit.Cut(big, 100_000).Times(1), testkit.ShiftRange(big, 1)}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.Registry(t, dir, test.faults...)
			b := newImpatientBench(t, nil, progress[name])
			_, _, err := b.pull(t, server.Ref("a/b:v1"))
			if !errors.Is(err, test.want) {
				t.Errorf("pull returned %v, want %v", err, test.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), test.says) {
					t.Errorf("pull returned %q, want it to say %q", err, test.says)
				}
				if _, imageErr := b.store.Image(built.Manifest.Digest); !errors.Is(imageErr, store.ErrNotFound) {
					t.Errorf("after a failed pull the image is there: %v", imageErr)
				}
			}
		})
	}
}

func TestContentFaults(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		build func(*testkit.Builder) *testkit.Builder
		want  error
		says  string
	}{
		"not a layer": {func(b *testkit.Builder) *testkit.Builder {
			return b.Blob(oci.MediaTypeLayerGz, []byte("hello, I am text, not a layer"))
		}, layer.ErrFormat, "instead of tar, gzip or zstd"},
		"wrong diff ID": {func(b *testkit.Builder) *testkit.Builder {
			return b.Layer(testkit.File("x", "y")).Config(func(i *oci.Image) { i.RootFS.DiffIDs[0] = oci.DiffID(oci.DigestBytes([]byte("other"))) })
		}, stream.ErrMismatch, "content has digest"},
		"too few diff IDs": {func(b *testkit.Builder) *testkit.Builder {
			return b.Layer(testkit.File("x", "y")).Config(func(i *oci.Image) { i.RootFS.DiffIDs = nil })
		}, oci.ErrManifest, "0 diff_ids for 1 layers"},
		"other platform": {func(b *testkit.Builder) *testkit.Builder {
			return b.Layer(testkit.File("x", "y")).Platform(oci.Platform{OS: "linux", Architecture: "s390x"})
		}, oci.ErrPlatform, "--platform linux/s390x"},
		"encrypted": {func(b *testkit.Builder) *testkit.Builder {
			return b.Layer(testkit.File("x", "y")).MediaType(oci.MediaTypeLayerGz + "+encrypted")
		}, pull.ErrUnsupported, "encrypted"},
		"too many layers": {func(b *testkit.Builder) *testkit.Builder {
			for range 501 {
				b = b.Layer(testkit.File("x", "y"))
			}
			return b
		}, stream.ErrTooLarge, "501 layers, the limit is 500"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			test.build(testkit.Image(t)).Write(testkit.LayoutAt(t, dir), "v1")
			b := newBench(t, nil)
			_, _, err := b.pull(t, testkit.Registry(t, dir).Ref("a/b:v1"))
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("pull returned %q, want %q with %q", err, test.want, test.says)
			}
		})
	}
}

// A pull that is cancelled returns at once, whatever the registry does.
func TestCancelStopsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := threeLayers(t, dir)
	server := testkit.Registry(t, dir, testkit.Stall(digestPart(built.Layers[1]), 1000))
	b := newBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	request := b.request(t, server.Ref("a/b:v1"))
	request.Progress = func(e pull.Event) {
		if e.State == pull.Fetching && e.Layer == 1 {
			cancel()
		}
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := b.engine.Pull(ctx, request)
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("pull returned %v, want its context's error", err)
		}
	case <-time.After(5 * time.Minute):
		t.Fatal("the pull did not stop")
	}
}

// The source is closed when the pull and its flights are done, and only then.
func TestSourceIsClosedOnce(t *testing.T) {
	t.Parallel()
	layout := testkit.Layout(t)
	testkit.Image(t).Layer(testkit.Random("x", 1<<16, 1)).Write(layout, "v1")
	b := newBench(t, nil)
	source := &closing{Source: layout}
	ref := oci.Reference{Transport: oci.LayoutDir, Path: "/x", Tag: "v1"}
	_, evidence, err := b.engine.Pull(t.Context(), pull.Request{Reference: ref, Source: source, Local: true, Platform: oci.HostPlatform()})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.engine.Close(); err != nil {
		t.Fatal(err)
	}
	if source.closed != 1 {
		t.Errorf("the source was closed %d times, want once", source.closed)
	}
	if evidence.NetworkBytes != 0 || evidence.Layers[0].Source != "local" {
		t.Errorf("a layout counts as network: %+v", evidence)
	}
}

type closing struct {
	pull.Source
	closed int
}

func (c *closing) Close() error {
	c.closed++
	return nil
}

var _ io.Closer = (*closing)(nil)

// Evidence that cannot be read is a damaged record, not a reason to invent some.
func TestPullWithDamagedEvidence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	built := threeLayers(t, dir)
	b := newBench(t, nil)
	pinned := testkit.Registry(t, dir).Ref("a/b@" + string(built.Manifest.Digest))
	image, _, err := b.pull(t, pinned)
	if err != nil {
		t.Fatal(err)
	}
	image.Evidence = []byte(`{"layers":"none"}`)
	if err := b.store.PutImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	image, evidence, err := b.pull(t, pinned)
	if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), "dray store rm "+string(built.Manifest.Digest)) {
		t.Errorf("got %v, want ErrCorrupt and what to do", err)
	}
	if image != nil || evidence != nil {
		t.Errorf("got %v and %v beside the error", image, evidence)
	}
	if _, err := b.store.Remove(t.Context(), string(built.Manifest.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, evidence, err = b.pull(t, pinned); err != nil || evidence.Manifest != built.Manifest.Digest {
		t.Errorf("got %+v, %v after what the error said was done", evidence, err)
	}
}
