package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dray/internal/oci"
	"dray/internal/stream"
)

// realRegistry starts Debian's docker-registry, with users when htpasswd is not
// empty, and returns its address.
func realRegistry(t *testing.T, htpasswd string) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		if os.Getenv("DRAY_REQUIRE") == "all" {
			t.Fatal("docker-registry is needed: apt install docker-registry")
		}
		t.Skip("docker-registry is needed: apt install docker-registry")
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // finds a free port
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s/data\nhttp:\n  addr: %s\n", dir, address)
	if htpasswd != "" {
		if err := os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(htpasswd+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("auth:\n  htpasswd:\n    realm: tests\n    path: %s/htpasswd\n", dir)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "serve", filepath.Join(dir, "config.yml"))
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("docker-registry said:\n%s", output.String())
		}
	})
	for deadline := time.Now().Add(5 * time.Minute); ; {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
			return address
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not listen: %v", err)
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

func named(t *testing.T, c *Client, name string) *Repository {
	t.Helper()
	ref, err := oci.ParseReference("http://" + name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fromBytes(content []byte) func(int64) (io.ReadCloser, error) {
	return func(offset int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content[offset:])), nil }
}

func pushed(t *testing.T, r *Repository, mediaType string, content []byte) oci.Descriptor {
	t.Helper()
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestBytes(content), Size: int64(len(content))}
	if err := r.PushBlob(t.Context(), d, fromBytes(content)); err != nil {
		t.Fatal(err)
	}
	return d
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRealRegistry(t *testing.T) {
	t.Parallel()
	address := realRegistry(t, "")
	c := newClient(t, Options{Ranges: Ranges{PartBytes: 64 << 10, MinBytes: 512 << 10}})
	c.pays = always
	r := named(t, c, address+"/team/app")

	_, _, err := r.Resolve(t.Context(), "v1", "")
	wantError(t, err, ErrNotFound)
	if _, ok, err := r.HasBlob(t.Context(), oci.DigestBytes(nil)); ok || err != nil {
		t.Errorf("empty repository has a blob: %t, %v", ok, err)
	}

	content := randomBytes(3<<20 + 11)
	layer := pushed(t, r, oci.MediaTypeLayer, content)
	config := pushed(t, r, oci.MediaTypeConfig, []byte("{}"))
	pushed(t, r, oci.MediaTypeLayer, nil) // an empty blob is one, too
	if n, ok, err := r.HasBlob(t.Context(), layer.Digest); n != layer.Size || !ok || err != nil {
		t.Errorf("has blob: got %d, %t, %v", n, ok, err)
	}
	again := func(int64) (io.ReadCloser, error) { return nil, errors.New("opened though it is there") }
	if err := r.PushBlob(t.Context(), layer, again); err != nil {
		t.Error(err)
	}

	raw := encode(t, oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{layer}})
	manifest, err := r.PushManifest(t.Context(), "v1", oci.MediaTypeManifest, raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.PushManifest(t.Context(), "v2", oci.MediaTypeManifest, raw); err != nil {
		t.Fatal(err)
	}
	for _, version := range []oci.Digest{"", manifest.Digest} {
		got, gotRaw, err := r.Resolve(t.Context(), "v1", version)
		if err != nil || got.Digest != manifest.Digest || got.Size != manifest.Size || got.MediaType != oci.MediaTypeManifest || !bytes.Equal(gotRaw, raw) {
			t.Errorf("resolve: got %+v, %v", got, err)
		}
	}
	if tags, err := r.Tags(t.Context()); err != nil || !slices.Equal(tags, []string{"v1", "v2"}) {
		t.Errorf("tags: got %v, %v", tags, err)
	}
	for _, offset := range []int64{0, 12345} {
		body, err := r.Blob(t.Context(), layer, offset)
		if err != nil {
			t.Fatal(err)
		}
		want := oci.DigestBytes(content[offset:])
		if _, err := io.Copy(io.Discard, stream.NewVerifier(body, "blob", want, layer.Size-offset)); err != nil {
			t.Error(err)
		}
		_ = body.Close()
	}

	other := named(t, c, address+"/team/other")
	if ok, err := other.MountBlob(t.Context(), layer.Digest, "team/app"); !ok || err != nil {
		t.Errorf("mount: got %t, %v", ok, err)
	}
	if _, ok, err := other.HasBlob(t.Context(), layer.Digest); !ok || err != nil {
		t.Errorf("mounted blob is there: %t, %v", ok, err)
	}
	if ok, err := other.MountBlob(t.Context(), oci.DigestBytes([]byte("nowhere")), "team/app"); ok || err != nil {
		t.Errorf("mount of a blob that is not there: got %t, %v", ok, err)
	}

	// docker-registry 2 keeps no lists of referrers: the fallback tag it is.
	if got, err := r.Referrers(t.Context(), manifest.Digest, ""); err != nil || len(got) != 0 {
		t.Errorf("referrers: got %v, %v", got, err)
	}
	var want []oci.Digest
	for _, kind := range []string{"application/x.one", "application/x.two"} {
		artifact := encode(t, oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, ArtifactType: kind, Config: config, Layers: []oci.Descriptor{}, Subject: &manifest})
		for range 2 { // twice is once
			d, err := r.PushManifest(t.Context(), "", oci.MediaTypeManifest, artifact)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(want, d.Digest) {
				want = append(want, d.Digest)
			}
		}
	}
	all, err := r.Referrers(t.Context(), manifest.Digest, "")
	if err != nil || len(all) != 2 || all[0].Digest != want[0] || all[1].Digest != want[1] {
		t.Errorf("referrers: got %v, %v, want %v", all, err, want)
	}
	two, err := r.Referrers(t.Context(), manifest.Digest, "application/x.two")
	if err != nil || len(two) != 1 || two[0].Digest != want[1] {
		t.Errorf("referrers of one type: got %v, %v", two, err)
	}
}

func TestRealRegistryWithUsers(t *testing.T) {
	t.Parallel()
	// ann:secret, bcrypt
	address := realRegistry(t, "ann:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a")
	anonymous := named(t, newClient(t, Options{}), address+"/a")
	_, _, err := anonymous.Resolve(t.Context(), "v1", "")
	wantError(t, err, ErrUnauthorized)
	file := filepath.Join(t.TempDir(), "auth.json")
	for _, tt := range []struct {
		password string
		want     error
	}{{"wrong", ErrUnauthorized}, {"secret", ErrNotFound}} {
		if err := os.WriteFile(file, []byte(`{"auths":{"`+address+`":{"auth":"`+b64("ann:"+tt.password)+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		r := named(t, newClient(t, Options{AuthFiles: []string{file}}), address+"/a")
		_, _, err := r.Resolve(t.Context(), "v1", "")
		wantError(t, err, tt.want)
		if tt.want == ErrNotFound { //nolint:errorlint // identity
			pushed(t, r, oci.MediaTypeLayer, []byte("content"))
		}
	}
}
