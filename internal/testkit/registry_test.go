package testkit_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"dray/internal/oci"
	"dray/internal/testkit"
)

// content is the only layer of the image that these tests ask for.
const content = "0123456789abcdefghij"

type served struct {
	*testkit.Server
	t        *testing.T
	blob     string // path
	manifest string
	client   *http.Client
}

func serve(t *testing.T, faults ...testkit.Fault) served {
	t.Helper()
	dir := t.TempDir()
	built := testkit.Image(t).Blob(oci.MediaTypeLayer, []byte(content)).Write(testkit.LayoutAt(t, dir+"/app"), "v1")
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	return served{testkit.Registry(t, dir, faults...), t, "/v2/app/blobs/" + string(built.Layers[0].Digest), "/v2/app/manifests/v1", client}
}

// reply is an answer whose body has been read.
type reply struct {
	status, major int
	header        http.Header
	url           *url.URL // after redirects
}

// get returns an answer and its body; err is what ended the body.
func (s served) get(path string, headers ...string) (answer reply, body string, err error) {
	s.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = s.URL + path
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return do(s.client, req)
}

func do(client *http.Client, req *http.Request) (answer reply, body string, err error) {
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.ProtoMajor, resp.Header, resp.Request.URL}, string(raw), err
}

func TestFaults(t *testing.T) {
	t.Parallel()
	part := []string{"Range", "bytes=5-9"}
	for _, tc := range []struct {
		name    string
		fault   testkit.Fault
		path    string // "blob" or "manifest"
		headers []string
		status  int
		body    string // "" for any
		broken  bool   // the body ends with an error
		header  string // "Name: value"
	}{
		{"none", testkit.Status("nothing", 500), "blob", nil, 200, content, false, "Accept-Ranges: bytes"},
		{"status", testkit.Status("/blobs/", 429, "Retry-After", "7"), "blob", nil, 429, "", false, "Retry-After: 7"},
		{"status elsewhere", testkit.Status("/blobs/", 429), "manifest", nil, 200, "", false, ""},
		{"by method", testkit.Status("HEAD /v2/app/blobs/", 500), "blob", nil, 200, content, false, ""},
		{"cut", testkit.Cut("/blobs/", 7), "blob", nil, 200, content[:7], true, ""},
		{"cut a range", testkit.Cut("/blobs/", 2), "blob", part, 206, content[5:7], true, ""},
		{"flip", testkit.Flip("/blobs/", 3), "blob", nil, 200, "012\x32456789abcdefghij", false, ""},
		{"longer", testkit.Resize("/blobs/", 2), "blob", nil, 200, content + "++", false, "Content-Length: 22"},
		{"shorter", testkit.Resize("/blobs/", -2), "blob", nil, 200, content[:18], false, "Content-Length: 18"},
		{"replaced", testkit.Replace("/manifests/", func([]byte) []byte { return []byte("<html>") }), "manifest", nil, 200, "<html>", false, ""},
		{"garbage", testkit.Garbage("/blobs/"), "blob", nil, 200, strings.Repeat("\xa5", 20), false, ""},
		{"slow", testkit.Slow("/blobs/", 9, time.Millisecond), "blob", nil, 200, content, false, ""},
		{"no ranges", testkit.NoRanges("/blobs/"), "blob", part, 200, content, false, "Accept-Ranges: "},
		{"several ranges", testkit.NoMultiRanges("/blobs/"), "blob", []string{"Range", "bytes=0-1,3-4"}, 400, "", false, ""},
		{"one range of several", testkit.NoMultiRanges("/blobs/"), "blob", part, 206, content[5:10], false, ""},
		{"wrong range", testkit.ContentRange("/blobs/", "bytes 0-4/20"), "blob", part, 206, content[5:10], false, "Content-Range: bytes 0-4/20"},
		{"shifted range", testkit.ShiftRange("/blobs/", 1), "blob", part, 206, content[6:11], false, "Content-Range: bytes 5-9/20"},
		{"media type", testkit.ContentType("/manifests/", "text/html"), "manifest", nil, 200, "", false, "Content-Type: text/html"},
		{"digest", testkit.ContentDigest("/manifests/", "sha256:00"), "manifest", nil, 200, "", false, "Docker-Content-Digest: sha256:00"},
		{"no length", testkit.NoLength("/blobs/"), "blob", nil, 200, content, false, "Content-Length: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tc.fault)
			path := s.blob
			if tc.path == "manifest" {
				path = s.manifest
			}
			resp, body, err := s.get(path, tc.headers...)
			if resp.status != tc.status || tc.body != "" && body != tc.body || (err != nil) != tc.broken {
				t.Errorf("got %d %q, %v", resp.status, body, err)
			}
			if name, value, ok := strings.Cut(tc.header, ": "); ok && resp.header.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, resp.header.Get(name), value)
			}
		})
	}
}

func TestTimesAfterAndMend(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.Status("/blobs/", 503).After(1).Times(2))
	var got []int
	for range 5 {
		resp, _, err := s.get(s.blob)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.status)
	}
	if fmt.Sprint(got) != "[200 503 503 200 200]" {
		t.Errorf("got %v", got)
	}
	if n, bytes := s.Count("/blobs/"); n != 5 || bytes < 60 {
		t.Errorf("counted %d requests, %d bytes", n, bytes)
	}
	s.Add(testkit.Status("", 500))
	s.Mend()
	s.Forget()
	if resp, _, err := s.get(s.blob); err != nil || resp.status != 200 || len(s.Requests()) != 1 {
		t.Errorf("after mending: %v, %v", err, s.Requests())
	}
}

func TestSlowUntil(t *testing.T) {
	t.Parallel()
	enough := make(chan struct{})
	close(enough)
	s := serve(t, testkit.SlowUntil(enough, "/blobs/", 1, time.Hour))
	if _, body, err := s.get(s.blob); err != nil || body != content {
		t.Errorf("got %q, %v", body, err)
	}
}

func TestStallAndHang(t *testing.T) {
	t.Parallel()
	for _, fault := range []testkit.Fault{testkit.Stall("/blobs/", 3), testkit.Hang("/blobs/")} {
		s := serve(t, fault)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+s.blob, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, body, err := do(s.client, req)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || len(body) != 0 && body != content[:3] {
			t.Errorf("got %q, %v", body, err)
		}
	}
}

func TestBearer(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.Bearer(testkit.Auth{User: "u", Password: "p", IdentityToken: "id", TokenUses: 1}))
	resp, _, err := s.get(s.blob)
	if err != nil || resp.status != http.StatusUnauthorized {
		t.Fatalf("without a token: %v, %v", resp, err)
	}
	challenge := resp.header.Get("WWW-Authenticate")
	if want := fmt.Sprintf(`Bearer realm="%s/token",service="testkit",scope="repository:app:pull"`, s.URL); challenge != want {
		t.Fatalf("challenge is %s, want %s", challenge, want)
	}
	query := "?service=testkit&scope=repository:app:pull"
	if resp, _, err := s.get("/token" + query); err != nil || resp.status != http.StatusUnauthorized {
		t.Errorf("a token for nobody: %v", err)
	}
	_, body, err := s.get("http://u:p@" + s.Host + "/token" + query)
	if err != nil {
		t.Fatal(err)
	}
	check := func(body, field string) {
		t.Helper()
		var answer map[string]string
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		for _, want := range []int{http.StatusOK, http.StatusUnauthorized} { // good for one request
			if resp, _, err := s.get(s.blob, "Authorization", "Bearer "+answer[field]); err != nil || resp.status != want {
				t.Errorf("with a token: %v, %v, want %d", resp.status, err, want)
			}
		}
	}
	check(body, "token")
	form := url.Values{"service": {"testkit"}, "scope": {"repository:app:pull"}, "grant_type": {"refresh_token"}, "refresh_token": {"id"}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	_, body, err = do(s.client, req)
	if err != nil {
		t.Fatal(err)
	}
	check(body, "access_token")
}

func TestBasic(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.Basic("u", "p"))
	if resp, _, err := s.get(s.blob); err != nil || resp.status != http.StatusUnauthorized {
		t.Errorf("without credentials: %v", err)
	}
	if _, body, err := s.get("http://u:p@" + s.Host + s.blob); err != nil || body != content {
		t.Errorf("with credentials: %q, %v", body, err)
	}
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.Redirect("/blobs/", 1))
	resp, body, err := s.get(s.blob)
	if err != nil || body != content {
		t.Fatalf("got %q, %v", body, err)
	}
	if resp.url.Host != s.StorageHost {
		t.Errorf("it came from %s", resp.url.Host)
	}
	if resp, _, err := s.get(resp.url.String()); err != nil || resp.status != http.StatusForbidden {
		t.Errorf("an expired URL: %v", err)
	}
	s.Mend()
	s.Add(testkit.Redirect("/blobs/", 0), testkit.Cut("STORAGE /v2/", 4))
	if _, body, err := s.get(s.blob); err == nil || body != content[:4] {
		t.Errorf("cut storage: %q, %v", body, err)
	}
	s.Mend()
	s.Add(testkit.RedirectLoop("/blobs/"))
	if _, _, err := s.get(s.blob); err == nil || !strings.Contains(err.Error(), "10 redirects") {
		t.Errorf("a loop: %v", err)
	}
}

func TestHugeHeaders(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.HugeHeaders("/manifests/", 20<<20))
	if _, _, err := s.get(s.manifest); err == nil {
		t.Error("20 MiB of headers are taken")
	}
}

func TestTLSRegistry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testkit.Image(t).Layer().Write(testkit.LayoutAt(t, dir+"/app"), "v1")
	s := testkit.TLSRegistry(t, dir)
	raw, err := os.ReadFile(s.CertDir(t) + "/" + s.Host + "/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	t.Cleanup(client.CloseIdleConnections)
	get := func(base string) (reply, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/v2/app/manifests/v1", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, _, err := do(client, req)
		return answer, err
	}
	if resp, err := get(s.URL); err != nil || resp.status != 200 || resp.major != 2 {
		t.Errorf("got %v, %v", resp, err)
	}
	_, port, err := net.SplitHostPort(s.Host)
	if err != nil {
		t.Fatal(err)
	}
	var mismatch x509.HostnameError
	if _, err := get("https://localhost:" + port); !errors.As(err, &mismatch) {
		t.Errorf("by another name: %v", err)
	}
}

func TestDockerRegistry(t *testing.T) {
	testkit.NoLeaks(t)
	host := testkit.DockerRegistry(t)
	dir := t.TempDir()
	testkit.Image(t).Layer(testkit.File("a", "x")).Write(testkit.LayoutAt(t, dir), "v1")
	testkit.Push(t, dir, "v1", host+"/app:v1")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/app/manifests/v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", oci.MediaTypeManifest)
	if answer, _, err := do(http.DefaultClient, req); err != nil || answer.status != http.StatusOK {
		t.Errorf("got %d, %v", answer.status, err)
	}
}
