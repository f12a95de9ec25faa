package registryd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/registryd"
	"dray/internal/stream"
	"dray/internal/testkit"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// registry is a server over a directory, and a client of it.
type registry struct {
	t   *testing.T
	dir string
	url string
}

func start(t *testing.T, o registryd.Options) registry {
	t.Helper()
	s, err := registryd.New(o)
	must(t, err)
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.Close()
		must(t, s.Close())
	})
	return registry{t, o.Dir, server.URL}
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request; headers are pairs.
func (r registry) do(method, path, body string, headers ...string) reply {
	r.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = r.url + path
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, path, strings.NewReader(body))
	must(r.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	must(r.t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := stream.ReadAll(resp.Body, 1<<20)
	must(r.t, err)
	return reply{resp.StatusCode, resp.Header, string(raw)}
}

// want sends a request and fails unless it gets the status.
func (r registry) want(status int, method, path, body string, headers ...string) reply {
	r.t.Helper()
	got := r.do(method, path, body, headers...)
	if got.status != status {
		r.t.Fatalf("%s %s: got %d %s, want %d", method, path, got.status, got.body, status)
	}
	return got
}

func (r registry) location(got reply) string { return r.url + got.header.Get("Location") }

func (r registry) pushBlob(repository, content string) oci.Digest {
	r.t.Helper()
	digest := oci.DigestBytes([]byte(content))
	r.want(http.StatusCreated, "POST", "/v2/"+repository+"/blobs/uploads/?digest="+string(digest), content)
	return digest
}

// pushImage pushes an image of one layer; more is put into its manifest.
func (r registry) pushImage(repository, reference, content, more string) oci.Digest {
	r.t.Helper()
	layer := r.pushBlob(repository, content)
	config := r.pushBlob(repository, "{}")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]%s}`,
		oci.MediaTypeConfig, config, oci.MediaTypeLayer, layer, len(content), more)
	digest := oci.DigestBytes([]byte(manifest))
	if reference == "" {
		reference = string(digest)
	}
	got := r.want(http.StatusCreated, "PUT", "/v2/"+repository+"/manifests/"+reference, manifest, "Content-Type", oci.MediaTypeManifest)
	if got.header.Get("Docker-Content-Digest") != string(digest) {
		r.t.Errorf("pushed manifest %s is called %q", digest, got.header.Get("Docker-Content-Digest"))
	}
	return digest
}

func TestPushAndPull(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	r.want(http.StatusOK, "GET", "/v2/", "")
	digest := r.pushImage("team/app", "v1", "layer", "")
	for _, reference := range []string{"v1", string(digest)} {
		got := r.want(http.StatusOK, "GET", "/v2/team/app/manifests/"+reference, "")
		if got.header.Get("Content-Type") != oci.MediaTypeManifest || oci.DigestBytes([]byte(got.body)) != digest {
			t.Errorf("manifest %s: %v", reference, got)
		}
		head := r.want(http.StatusOK, "HEAD", "/v2/team/app/manifests/"+reference, "")
		if head.header.Get("Docker-Content-Digest") != string(digest) || head.header.Get("Content-Length") != fmt.Sprint(len(got.body)) {
			t.Errorf("head of manifest %s: %v", reference, head.header)
		}
	}
	l, err := ocidir.Open(t.Context(), r.dir+"/team/app", oci.LayoutDir)
	must(t, err)
	d, _, err := l.Resolve(t.Context(), "v1", "")
	if must(t, errors.Join(err, l.Close())); d.Digest != digest {
		t.Errorf("the layout's v1 is %s", d.Digest)
	}
	r.pushImage("other", "x", "2", "")
	if got := r.want(http.StatusOK, "GET", "/v2/_catalog", ""); got.body != `{"repositories":["other","team/app"]}` {
		t.Errorf("catalog: %s", got.body)
	}
}

func TestBlobRanges(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	path := "/v2/a/blobs/" + string(r.pushBlob("a", "0123456789"))
	for _, tc := range []struct {
		name, rng    string
		status       int
		body, wantCR string
	}{
		{"whole", "", 200, "0123456789", ""},
		{"part", "bytes=2-4", 206, "234", "bytes 2-4/10"},
		{"rest", "bytes=7-", 206, "789", "bytes 7-9/10"},
		{"end", "bytes=-2", 206, "89", "bytes 8-9/10"},
		{"past the end", "bytes=8-100", 206, "89", "bytes 8-9/10"},
		{"outside", "bytes=10-", 416, "", "bytes */10"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := r.do("GET", path, "", "Range", tc.rng)
			if got.status != tc.status || got.status < 400 && got.body != tc.body || got.header.Get("Content-Range") != tc.wantCR {
				t.Errorf("got %d %q %q", got.status, got.body, got.header.Get("Content-Range"))
			}
		})
	}
	head := r.want(http.StatusOK, "HEAD", path, "")
	if head.header.Get("Content-Length") != "10" || head.header.Get("Accept-Ranges") != "bytes" || head.body != "" {
		t.Errorf("head: %v", head)
	}
	if got := r.do("GET", path, "", "Range", "bytes=0-1,4-5"); got.status != 206 || !strings.HasPrefix(got.header.Get("Content-Type"), "multipart/byteranges") {
		t.Errorf("two ranges: %v", got)
	}
}

func TestChunkedUpload(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	digest := oci.DigestBytes([]byte("0123456789"))
	begun := r.want(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", "")
	first := r.want(http.StatusAccepted, "PATCH", r.location(begun), "01234", "Content-Range", "0-4")
	if first.header.Get("Range") != "0-4" {
		t.Errorf("range after the first chunk: %q", first.header.Get("Range"))
	}
	for _, wrong := range []string{"0-4", "4-8", "7-11"} {
		r.want(http.StatusRequestedRangeNotSatisfiable, "PATCH", r.location(first), "xxxxx", "Content-Range", wrong)
	}
	status := r.want(http.StatusNoContent, "GET", r.location(first), "")
	if status.header.Get("Range") != "0-4" {
		t.Errorf("range of the upload: %q", status.header.Get("Range"))
	}
	second := r.want(http.StatusAccepted, "PATCH", r.location(status), "567", "Content-Range", "5-7")
	r.want(http.StatusCreated, "PUT", r.location(second)+"?digest="+string(digest), "89", "Content-Range", "8-9")
	if got := r.want(http.StatusOK, "GET", "/v2/a/blobs/"+string(digest), ""); got.body != "0123456789" {
		t.Errorf("blob is %q", got.body)
	}
	r.want(http.StatusNotFound, "GET", r.location(second), "") // the upload has ended
}

func TestUploadsAreVerified(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	wrong := string(oci.DigestBytes([]byte("other")))
	r.want(http.StatusBadRequest, "POST", "/v2/a/blobs/uploads/?digest="+wrong, "content")
	begun := r.want(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", "")
	got := r.want(http.StatusBadRequest, "PUT", r.location(begun)+"?digest="+wrong, "content")
	if !strings.Contains(got.body, "DIGEST_INVALID") {
		t.Errorf("got %s", got.body)
	}
	r.want(http.StatusNotFound, "HEAD", "/v2/a/blobs/"+wrong, "")
	entries, err := os.ReadDir(r.dir + "/a")
	if must(t, err); len(entries) != 3 {
		t.Errorf("the layout holds %v", entries)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	image := r.pushImage("a", "v1", "layer", "")
	absent := string(oci.DigestBytes([]byte("absent")))
	for _, tc := range []struct {
		name, method, path, body, mediaType string
		status                              int
		code                                string
	}{
		{"unknown repository", "GET", "/v2/b/manifests/v1", "", "", 404, "NAME_UNKNOWN"},
		{"unknown tag", "GET", "/v2/a/manifests/v2", "", "", 404, "MANIFEST_UNKNOWN"},
		{"unknown manifest", "GET", "/v2/a/manifests/" + absent, "", "", 404, "MANIFEST_UNKNOWN"},
		{"layer as manifest", "GET", "/v2/a/manifests/" + string(oci.DigestBytes([]byte("layer"))), "", "", 404, "MANIFEST_UNKNOWN"},
		{"delete a layer as manifest", "DELETE", "/v2/a/manifests/" + string(oci.DigestBytes([]byte("layer"))), "", "", 404, "MANIFEST_UNKNOWN"},
		{"unknown blob", "GET", "/v2/a/blobs/" + absent, "", "", 404, "BLOB_UNKNOWN"},
		{"bad digest", "GET", "/v2/a/blobs/sha256:zz", "", "", 400, "DIGEST_INVALID"},
		{"unknown upload", "PATCH", "/v2/a/blobs/uploads/QUFB", "x", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"dots in the name", "GET", "/v2/a/%2e%2e/blobs/" + absent, "", "", 400, "NAME_INVALID"},
		{"upper case", "POST", "/v2/A/blobs/uploads/", "", "", 400, "NAME_INVALID"},
		{"name of a layout's file", "POST", "/v2/a/index.json/blobs/uploads/", "", "", 400, "NAME_INVALID"},
		{"manifest not JSON", "PUT", "/v2/a/manifests/x", "nonsense", oci.MediaTypeDockerManifest, 400, "MANIFEST_INVALID"},
		{"manifest and index", "PUT", "/v2/a/manifests/x", `{"schemaVersion":2,"layers":[],"manifests":[]}`, oci.MediaTypeManifest, 400, "MANIFEST_INVALID"},
		{"missing layer", "PUT", "/v2/a/manifests/x", fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q},"layers":[]}`, absent), oci.MediaTypeManifest, 404, "MANIFEST_BLOB_UNKNOWN"},
		{"other digest", "PUT", "/v2/a/manifests/" + absent, "{}", oci.MediaTypeManifest, 400, "DIGEST_INVALID"},
		{"huge manifest", "PUT", "/v2/a/manifests/x", strings.Repeat(" ", ocidir.MaxManifestBytes+1), oci.MediaTypeManifest, 400, "MANIFEST_INVALID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := r.do(tc.method, tc.path, tc.body, "Content-Type", tc.mediaType)
			if got.status != tc.status || !strings.Contains(got.body, tc.code) {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, tc.status, tc.code)
			}
		})
	}
	r.want(http.StatusOK, "GET", "/v2/a/manifests/"+string(image), "")
}

func TestMount(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	digest := string(r.pushBlob("from", "content"))
	absent := string(oci.DigestBytes([]byte("absent")))
	r.want(http.StatusCreated, "POST", "/v2/to/blobs/uploads/?mount="+digest+"&from=from", "")
	if got := r.want(http.StatusOK, "GET", "/v2/to/blobs/"+digest, ""); got.body != "content" {
		t.Errorf("blob is %q", got.body)
	}
	for name, query := range map[string]string{
		"no such blob": "?mount=" + absent + "&from=from", "no such repository": "?mount=" + digest + "&from=nowhere", "no repository": "?mount=" + digest,
	} {
		got := r.do("POST", "/v2/to/blobs/uploads/"+query, "")
		if got.status != http.StatusAccepted || got.header.Get("Location") == "" {
			t.Errorf("%s: got %d, want an upload", name, got.status)
		}
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	image := r.pushImage("a", "v1", "layer", "")
	subject := fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":1},"artifactType":`, oci.MediaTypeManifest, image)
	one := r.pushImage("a", "", "one", subject+`"test/one","annotations":{"k":"v"}`)
	two := r.pushImage("a", "", "two", subject+`"test/two"`)
	list := func(query string) (digests []oci.Digest, raw string) {
		got := r.want(http.StatusOK, "GET", "/v2/a/referrers/"+query, "")
		var index oci.Index
		must(t, json.Unmarshal([]byte(got.body), &index))
		for _, d := range index.Manifests {
			digests = append(digests, d.Digest)
		}
		return digests, got.body
	}
	if got, _ := list(string(image)); !cmp.Equal(got, []oci.Digest{one, two}) {
		t.Errorf("referrers: %v", got)
	}
	if got, raw := list(string(image) + "?artifactType=test/one"); !cmp.Equal(got, []oci.Digest{one}) || !strings.Contains(raw, `"k":"v"`) {
		t.Errorf("referrers of a type: %s", raw)
	}
	if _, raw := list(string(one)); !strings.Contains(raw, `"manifests":[]`) {
		t.Errorf("no referrers: %s", raw)
	}
}

func TestTagsAndDeletes(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	var image oci.Digest
	for _, tag := range []string{"c", "a", "b"} {
		image = r.pushImage("x", tag, "layer", "")
	}
	if got := r.want(http.StatusOK, "GET", "/v2/x/tags/list", ""); got.body != `{"name":"x","tags":["a","b","c"]}` {
		t.Errorf("tags: %s", got.body)
	}
	page := r.want(http.StatusOK, "GET", "/v2/x/tags/list?n=2", "")
	if page.body != `{"name":"x","tags":["a","b"]}` || !strings.Contains(page.header.Get("Link"), "last=b") {
		t.Errorf("first page: %s %s", page.body, page.header.Get("Link"))
	}
	if got := r.want(http.StatusOK, "GET", "/v2/x/tags/list?n=2&last=b", ""); got.body != `{"name":"x","tags":["c"]}` {
		t.Errorf("last page: %s", got.body)
	}
	r.want(http.StatusAccepted, "DELETE", "/v2/x/manifests/a", "")
	r.want(http.StatusNotFound, "GET", "/v2/x/manifests/a", "")
	r.want(http.StatusOK, "GET", "/v2/x/manifests/"+string(image), "")
	r.want(http.StatusAccepted, "DELETE", "/v2/x/manifests/"+string(image), "")
	r.want(http.StatusNotFound, "GET", "/v2/x/manifests/b", "")
	r.want(http.StatusNotFound, "GET", "/v2/x/manifests/"+string(image), "")
	blob := "/v2/x/blobs/" + string(oci.DigestBytes([]byte("layer")))
	r.want(http.StatusAccepted, "DELETE", blob, "")
	r.want(http.StatusNotFound, "HEAD", blob, "")
	r.want(http.StatusNotFound, "DELETE", blob, "")
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := start(t, registryd.Options{Dir: dir}).pushImage("a", "v1", "layer", "")
	r := start(t, registryd.Options{Dir: dir, ReadOnly: true})
	r.want(http.StatusOK, "GET", "/v2/a/manifests/v1", "")
	r.want(http.StatusForbidden, "POST", "/v2/a/blobs/uploads/", "")
	r.want(http.StatusForbidden, "DELETE", "/v2/a/manifests/"+string(image), "")
	if _, err := registryd.New(registryd.Options{Dir: dir + "/missing", ReadOnly: true}); err == nil {
		t.Error("a read-only registry over nothing starts")
	}
}

func TestOneLayoutIsEveryRepository(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := ocidir.Create(t.Context(), dir)
	must(t, err)
	defer func() { _ = l.Close() }()
	put := func(tag, note string) oci.Digest {
		d, err := l.PutManifest(t.Context(), tag, oci.MediaTypeIndex, fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[],"annotations":{"n":%q}}`, note))
		must(t, err)
		return d.Digest
	}
	bare, full := put("v1", "bare"), put("docker.io/library/busybox:1.36", "full")
	r := start(t, registryd.Options{Dir: dir})
	for path, want := range map[string]oci.Digest{
		"any/name/manifests/v1":            bare,
		"library/busybox/manifests/1.36":   full,
		"busybox/manifests/1.36":           full, // the only image of that tag
		"any/manifests/" + string(bare):    bare,
		"library/busybox/manifests/v1":     bare,
		"docker/library/manifests/v1":      bare,
		"other/busybox/manifests/1.36":     full,
		"library/busybox/tags/list":        "",
		"library/busybox/manifests/latest": "-",
	} {
		got := r.do("GET", "/v2/"+path, "")
		switch want {
		case "":
			if !strings.Contains(got.body, `["1.36","v1"]`) {
				t.Errorf("%s: %s", path, got.body)
			}
		case "-":
			if got.status != http.StatusNotFound {
				t.Errorf("%s: %d", path, got.status)
			}
		default:
			if got.header.Get("Docker-Content-Digest") != string(want) {
				t.Errorf("%s: got %s %s, want %s", path, got.header.Get("Docker-Content-Digest"), got.body, want)
			}
		}
	}
	r.pushImage("new/repo", "v9", "layer", "")
	if _, _, err := l.Resolve(t.Context(), "v9", ""); err != nil {
		t.Errorf("the layout has no v9: %v", err)
	}
}

// TestOtherTools: what skopeo and buildah push they pull again, and skopeo sees the
// same images in the registry's directory.
func TestOtherTools(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Tool("skopeo"))
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	source := t.TempDir()
	l := testkit.LayoutAt(t, source)
	image := testkit.Image(t).Layer(testkit.Dir("d"), testkit.Random("d/big", 8<<20, 1)).Layer(testkit.File("f", "x")).Write(l, "")
	index := testkit.Index(t, l, "v1", image.Manifest)
	r := start(t, registryd.Options{Dir: t.TempDir()})
	host := strings.TrimPrefix(r.url, "http://")
	testkit.Push(t, source, "v1", host+"/team/app:v1")
	if got := r.want(http.StatusOK, "HEAD", "/v2/team/app/manifests/v1", "").header.Get("Docker-Content-Digest"); got != string(index.Digest) {
		t.Errorf("pushed %s, got %s", index.Digest, got)
	}
	run("skopeo", "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+host+"/team/app:v1", "docker://"+host+"/other:v2")
	run("skopeo", "copy", "oci:"+r.dir+"/other:v2", "oci:"+t.TempDir()+"/copy:v2")
	if out := run("skopeo", "list-tags", "--tls-verify=false", "docker://"+host+"/other"); !strings.Contains(out, `"v2"`) {
		t.Errorf("tags: %s", out)
	}
	run("skopeo", "delete", "--tls-verify=false", "docker://"+host+"/other:v2")
	r.want(http.StatusNotFound, "GET", "/v2/other/manifests/v2", "")

	testkit.Need(t, testkit.Root(), testkit.Tool("buildah"))
	scratch := t.TempDir()
	store := []string{"--root", scratch + "/root", "--runroot", scratch + "/run", "--storage-driver", "vfs"}
	run("buildah", append(store, "pull", "--tls-verify=false", host+"/team/app:v1")...)
	run("buildah", append(store, "push", "--tls-verify=false", host+"/team/app:v1", "docker://"+host+"/from/buildah:v3")...)
	r.want(http.StatusOK, "GET", "/v2/from/buildah/manifests/v3", "")
}

func TestServeStops(t *testing.T) {
	t.Parallel()
	s, err := registryd.New(registryd.Options{Dir: t.TempDir()})
	must(t, err)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- registryd.Serve(ctx, s, listener) }()
	r := registry{t, "", "http://" + listener.Addr().String()}
	r.want(http.StatusOK, "GET", "/v2/", "")
	cancel()
	must(t, <-done)
	must(t, s.Close())
	if _, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

// TestInterruptedUploadResumes: what came before the client was cut off is kept.
func TestInterruptedUploadResumes(t *testing.T) {
	t.Parallel()
	r := start(t, registryd.Options{Dir: t.TempDir()})
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	begun := r.want(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", "")
	broken, w := io.Pipe()
	go func() {
		_, _ = w.Write(content[:600_000])
		_ = w.CloseWithError(errors.New("client is gone"))
	}()
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", r.location(begun), broken)
	must(t, err)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Fatalf("a broken chunk is accepted: %d", resp.StatusCode)
	}
	var last int
	deadline := time.After(5 * time.Minute)
	for tick := time.Tick(5 * time.Millisecond); last == 0; { // the server notices in its own time
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("nothing of the broken chunk was kept")
		}
		if got := r.do("GET", r.location(begun), ""); got.status == http.StatusNoContent {
			_, err := fmt.Sscanf(got.header.Get("Range"), "0-%d", &last)
			must(t, err)
		}
	}
	rest := string(content[last+1:])
	r.want(http.StatusCreated, "PUT", r.location(begun)+"?digest="+string(oci.DigestBytes(content)), rest,
		"Content-Range", fmt.Sprintf("%d-%d", last+1, len(content)-1))
}

func BenchmarkBlob(b *testing.B) {
	const size = 64 << 20
	dir := b.TempDir()
	l, err := ocidir.Create(b.Context(), dir+"/a")
	if err != nil {
		b.Fatal(err)
	}
	d, err := l.PutBlob(b.Context(), oci.Descriptor{Size: stream.AnySize}, io.LimitReader(zeros{}, size))
	if err := errors.Join(err, l.Close()); err != nil {
		b.Fatal(err)
	}
	s, err := registryd.New(registryd.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(s)
	defer server.Close()
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, server.URL+"/v2/a/blobs/"+string(d.Digest), nil)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || n != size {
			b.Fatal(n, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
