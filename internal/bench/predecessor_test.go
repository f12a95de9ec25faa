//go:build linux

package bench_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"dray/internal/bench"
	"dray/internal/testkit"
)

// puller stands for imagepuller or the Confidential Data Hub where the programs
// themselves cannot be had. Command line, socket, configuration, wire, requests, layout of
// the store, mounts, signals, and what is refused are theirs, checked against the sources
// of both; nothing here is dray's, so that a mistake of dray's cannot agree with itself.
type puller struct {
	socket  string
	store   string
	signals []os.Signal        // which end it in order
	layers  func(n int) string // where layer n, from 0, is unpacked
	begin   func() error       // with the first request
	mount   func(p *puller, lower, bundle string) error
	digest  bool // the answer has the manifest's
	scheme  func(host string) (string, error)
	resolve func(repository, digest string) ([]byte, error) // returns the manifest

	count  int
	pulled map[string]string // lower directories by reference
}

// Sockets of imagepuller, now and in its first versions.
const (
	pullerSocket    = "/run/guest-services/imagepull.socket"
	oldPullerSocket = "/run/confidential-containers/imagepuller.sock"
)

// imagepuller takes --storepath DIR and nothing else, and pulls by digest alone. Its
// store is a podman's, which is mounted on itself to be private.
func imagepuller(socket string) (*puller, error) {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("imagepuller version 0.0.0-dev")
		os.Exit(0)
	}
	if len(os.Args) != 3 || os.Args[1] != "--storepath" {
		return nil, fmt.Errorf("unknown flags %q", os.Args[1:])
	}
	p := &puller{socket: socket, store: os.Args[2], signals: []os.Signal{syscall.SIGTERM, syscall.SIGINT}}
	overlay := filepath.Join(p.store, "graph", "overlay")
	p.begin = func() error {
		if err := errors.Join(os.MkdirAll(overlay, 0o700), os.MkdirAll(filepath.Join(p.store, "run"), 0o700)); err != nil {
			return err
		}
		return unix.Mount(overlay, overlay, "", unix.MS_BIND, "")
	}
	p.layers = func(n int) string { return filepath.Join(overlay, strconv.Itoa(n), "diff") }
	p.scheme = func(host string) (string, error) { // HTTPS, then HTTP if the name is one of this machine's
		if answer, err := http.Get("https://" + host + "/v2/"); err == nil { //nolint:noctx // a test's server
			return "https://", answer.Body.Close()
		}
		if !strings.HasPrefix(host, "127.0.0.1:") && !strings.HasPrefix(host, "localhost:") {
			return "", errors.New("no HTTPS at " + host)
		}
		return "http://", ping("http://" + host)
	}
	p.resolve = func(repository, digest string) ([]byte, error) {
		base, _, _ := strings.Cut(repository, "/v2/")
		answer, err := http.Head(repository + "/manifests/" + digest) //nolint:noctx // a test's server
		if err != nil {
			return nil, err
		}
		if kind := answer.Header.Get("Content-Type"); kind != "application/vnd.oci.image.manifest.v1+json" {
			return nil, fmt.Errorf("unexpected media type: %q", kind)
		}
		if err := errors.Join(answer.Body.Close(), ping(base)); err != nil {
			return nil, err
		}
		return get(repository+"/manifests/"+digest, digest)
	}
	p.mount = func(p *puller, lower, bundle string) error { // in the store, and from there in the bundle
		dir := filepath.Join(overlay, fmt.Sprintf("container-%d", p.count))
		p.count++
		merged := filepath.Join(dir, "merged")
		if err := overlayMount(lower, filepath.Join(dir, "diff"), filepath.Join(dir, "work"), merged); err != nil {
			return err
		}
		rootfs := filepath.Join(bundle, "rootfs")
		if err := os.MkdirAll(rootfs, 0o755); err != nil {
			return err
		}
		return unix.Mount(merged, rootfs, "", unix.MS_BIND, "")
	}
	return p, os.MkdirAll(filepath.Dir(socket), 0o755)
}

// hub takes -c FILE and nothing else; HTTP needs a rule that says so. It ends in order by
// SIGINT, and just so by SIGTERM.
func hub() (*puller, error) {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("ttrpc-cdh v0.17.0-8246e5e")
		os.Exit(0)
	}
	if len(os.Args) != 3 || os.Args[1] != "-c" {
		return nil, fmt.Errorf("unknown flags %q", os.Args[1:])
	}
	var config struct {
		Socket string
		AA     struct {
			Socket string `toml:"aa_socket"`
		} `toml:"aa"`
		KBC   *struct{ Name, URL string }
		Image *struct {
			WorkDir  string `toml:"work_dir"`
			Registry struct {
				Rules []struct {
					Prefix, Location string
					Insecure         bool
				} `toml:"registry"`
			} `toml:"registry_config"`
		}
	}
	if _, err := toml.DecodeFile(os.Args[2], &config); err != nil {
		return nil, err
	}
	socket, ok := strings.CutPrefix(config.Socket, "unix://")
	if !ok || config.KBC == nil || config.Image == nil || config.KBC.Name != "cc_kbc" && config.KBC.Name != "offline_fs_kbc" {
		return nil, fmt.Errorf("socket %q, kbc %v, image %v", config.Socket, config.KBC, config.Image)
	}
	if os.Getenv("OCICRYPT_KEYPROVIDER_CONFIG") == "" {
		return nil, errors.New("it would write /run/confidential-containers/cdh/ocicrypt_config.json")
	}
	if agent := strings.TrimPrefix(config.AA.Socket, "unix://"); agent == "" || filepath.Dir(agent) != filepath.Dir(socket) {
		return nil, errors.New("it would ask the attestation agent of this machine to measure its pulls")
	}
	p := &puller{socket: socket, store: config.Image.WorkDir, digest: true, signals: []os.Signal{syscall.SIGINT, syscall.SIGHUP}}
	p.begin = func() error { return nil }
	p.layers = func(n int) string { return filepath.Join(p.store, "layers", strconv.Itoa(n)) }
	p.scheme = func(host string) (string, error) {
		for _, r := range config.Image.Registry.Rules {
			if r.Insecure && r.Location == host && r.Prefix == host {
				return "http://", ping("http://" + host)
			}
		}
		return "https://", nil
	}
	p.resolve = func(repository, digest string) ([]byte, error) {
		raw, err := get(repository+"/manifests/"+digest, digest)
		if err != nil {
			return nil, err
		}
		var m struct{ Config struct{ Digest string } }
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, err
		}
		_, err = get(repository+"/blobs/"+m.Config.Digest, m.Config.Digest)
		return raw, err
	}
	p.mount = func(p *puller, lower, bundle string) error {
		scratch := filepath.Join(p.store, "overlay", fmt.Sprintf("%x", sha256.Sum256([]byte(lower+bundle))))
		if err := overlayMount(lower, filepath.Join(scratch, "upperdir"), filepath.Join(scratch, "workdir"), filepath.Join(bundle, "rootfs")); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(bundle, "config.json"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("OCI config file already exists: %w", err)
		}
		return errors.Join(f.Close(), os.WriteFile(filepath.Join(p.store, "meta_store.json"), []byte("{}"), 0o600))
	}
	return p, os.MkdirAll(filepath.Dir(socket), 0o755)
}

func overlayMount(lower, upper, work, target string) error {
	for _, dir := range []string{upper, work, target} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("overlay", target, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
}

// predecessor serves until it is told to end.
func predecessor(p *puller, err error) error {
	if err != nil {
		return err
	}
	if err := os.Remove(p.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", p.socket) //nolint:noctx // a test's server
	if err != nil {
		return err
	}
	p.pulled = map[string]string{}
	stop := make(chan os.Signal, 1) // the one that ends it
	signal.Notify(stop, p.signals...)
	go func() {
		<-stop
		_ = l.Close()
	}()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		err = p.serve(conn)
		_ = conn.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

// serve answers ttrpc's requests, byte by byte as its protocol says: a header of size,
// stream, kind and flags, then a message.
func (p *puller) serve(conn net.Conn) error {
	const headerBytes, request, response = 10, 1, 2
	for {
		header := make([]byte, headerBytes)
		if _, err := io.ReadFull(conn, header); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint32(header))
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		call := fields(body)
		if header[8] != request || header[9] != 0 || binary.BigEndian.Uint32(header[4:])%2 != 1 || call[1] != "api.ImagePullService" || call[2] != "PullImage" {
			return fmt.Errorf("not a request for an image: % x %q %q", header, call[1], call[2])
		}
		asked := fields([]byte(call[3]))
		manifest, err := p.pull(asked[1], asked[2])
		var answer []byte
		if err != nil { // status: code 13, message
			status := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 13)
			status = protowire.AppendString(protowire.AppendTag(status, 2, protowire.BytesType), "[CDH] [ERROR]: Image Pull error: "+err.Error())
			answer = message(string(status))
		} else if p.digest {
			answer = message("", string(message(manifest)))
		}
		reply := append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), header[4:8]...)
		if _, err := conn.Write(append(append(reply, response, 0), answer...)); err != nil {
			return err
		}
	}
}

func (p *puller) pull(reference, bundle string) (manifest string, err error) {
	host, rest, _ := strings.Cut(reference, "/")
	name, digest, pinned := strings.Cut(rest, "@")
	if !pinned || strings.Contains(host, "//") || !strings.HasPrefix(digest, "sha256:") {
		return "", fmt.Errorf("parsing image digest: %q", reference)
	}
	if len(p.pulled) == 0 {
		if err := p.begin(); err != nil {
			return "", err
		}
	}
	lower, known := p.pulled[reference]
	if !known {
		scheme, err := p.scheme(host)
		if err != nil {
			return "", err
		}
		if lower, err = p.unpack(scheme+host+"/v2/"+name, digest); err != nil {
			return "", err
		}
		p.pulled[reference] = lower
	}
	return digest, p.mount(p, lower, bundle)
}

func (p *puller) unpack(repository, digest string) (lower string, err error) {
	raw, err := p.resolve(repository, digest)
	if err != nil {
		return "", err
	}
	var m struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", err
	}
	for _, l := range m.Layers { // one after another
		blob, err := get(repository+"/blobs/"+l.Digest, l.Digest)
		if err != nil {
			return "", err
		}
		dir := p.layers(p.count)
		p.count++
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		tar := exec.Command("tar", "-xzf", "-", "-C", dir) //nolint:noctx // short
		tar.Stdin = strings.NewReader(string(blob))
		if out, err := tar.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		lower = strings.TrimSuffix(dir+":"+lower, ":")
	}
	return lower, nil
}

// ping asks a registry whether it is one.
func ping(base string) error {
	answer, err := http.Get(base + "/v2/") //nolint:noctx // a test's server
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return errors.Join(err, answer.Body.Close())
}

func get(url, digest string) ([]byte, error) {
	r, err := http.NewRequest(http.MethodGet, url, nil) //nolint:noctx // a test's server
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	raw, err := io.ReadAll(answer.Body)
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(raw)); err == nil && got != digest {
		err = fmt.Errorf("%s has digest %s (%s)", url, got, answer.Status)
	}
	return raw, err
}

// predecessors are rivals of that name, with no flag but the path.
func predecessors(t *testing.T, names ...string) (rivals []*bench.Rival) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.Symlink(self(t), path); err != nil {
			t.Fatal(err)
		}
		rivals = append(rivals, rival(t, path))
	}
	return rivals
}

// Both predecessors' command lines, sockets, configurations, wires and mounts, with no
// flag but the path.
func TestPredecessorsAreRecognised(t *testing.T) {
	testkit.Need(t, testkit.Root())
	rivals := predecessors(t, "imagepuller", "imagepuller-2025", "ttrpc-cdh")
	c := corpus(t)
	report := measure(t, bench.Options{Corpus: c, Rivals: rivals})
	if len(report.Runs) != 6 {
		t.Fatalf("%d runs", len(report.Runs))
	}
	size := c.Image("generated").UncompressedBytes()
	requests := map[string]int64{"imagepuller": 6, "imagepuller-2025": 6, "ttrpc-cdh": 5} // beside two layers
	for _, r := range report.Runs {
		if r.Error != "" || r.Cleanup != "" || r.PeakRSS == 0 || r.StartSeconds == 0 || r.NetworkBytes < c.Image("generated").CompressedBytes() || r.NetworkRequests != requests[r.Rival] {
			t.Errorf("%s %s: error %q, cleanup %q, %+v", r.Rival, r.Mode, r.Error, r.Cleanup, r)
		}
		if r.Storage.Blocks < size-64<<10 || r.Storage.Blocks > size+256<<10 { // what is mounted in the store does not count again
			t.Errorf("%s %s: stored %d, the layers have %d", r.Rival, r.Mode, r.Storage.Blocks, size)
		}
		if r.Mode == bench.Individual && (r.FirstByteSeconds < r.Seconds || r.MountSeconds == 0) {
			t.Errorf("%s: first byte %f s, mount %f s, answered after %f s", r.Rival, r.FirstByteSeconds, r.MountSeconds, r.Seconds)
		}
	}
	if len(report.Notes) > 0 {
		t.Errorf("notes %v", report.Notes)
	}
	for i, want := range []string{"imagepuller", "imagepuller", "image-rs"} {
		if rivals[i].Kind != want {
			t.Errorf("%s is of kind %s", rivals[i].Name, rivals[i].Kind)
		}
		if version, _, _ := strings.Cut(rivals[i].Version, " v"); version != "imagepuller" && version != "ttrpc-cdh" {
			t.Errorf("%s is of version %q", rivals[i].Name, rivals[i].Version)
		}
	}
}
