package main

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dray"
	"dray/internal/testkit"
)

// gate passes requests on to a registry, and holds the one with that number until
// its client has gone.
type gate struct {
	*httptest.Server

	hold    int
	reached chan struct{} // closed when the request is there
	gone    chan struct{} // closed by the test when the client has gone

	mu   sync.Mutex // guards seen
	seen int
}

func newGate(t *testing.T, registry string, hold int) *gate {
	t.Helper()
	to, err := url.Parse(registry)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{hold: hold, reached: make(chan struct{}), gone: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(to)
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.seen++
		seen := g.seen
		g.mu.Unlock()
		if seen == g.hold {
			close(g.reached)
			<-g.gone
			panic(http.ErrAbortHandler)
		}
		r.Host = to.Host
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gate) host() string { return strings.TrimPrefix(g.URL, "http://") }

// interrupted runs dray until it is held at the gate, and interrupts it there. It
// returns false if it ended before, and the code that it ended with.
func interrupted(t *testing.T, g *gate, dir string, args ...string) (reached bool, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Args[0] = "dray" // the test binary is the program under that name
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"), "DRAY_CONFIG=", "XDG_CONFIG_HOME="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer close(g.gone)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return false, 0
	case <-g.reached:
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := <-ended
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q, interrupted at request %d: %v", args, g.hold, err)
	}
	return true, cmd.ProcessState.ExitCode()
}

// filesIn returns the names of what is below dir.
func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A record that is interrupted at any of its requests has no name and no referrer,
// and what it was written to is what it was, without temporary files.
func TestInterruptedRecords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		args func(host string) []string
	}{
		{"push", func(host string) []string {
			return []string{"record", "push", "rec.json", "http://" + host + "/a/b:record"}
		}},
		{"attach", func(host string) []string {
			return []string{"record", "push", "--attach", "rec.json", "http://" + host + "/a/b:image"}
		}},
		{"copy", func(host string) []string {
			return []string{"record", "copy", "rec.json", "http://" + host + "/a/b:image"}
		}},
		{"pull", func(host string) []string {
			return []string{"record", "pull", "http://" + host + "/a/b:there", "-o", "out.json"}
		}},
		{"merge", func(host string) []string {
			return []string{"record", "merge", "rec.json", "http://" + host + "/a/b:there", "-o", "out.json"}
		}},
		{"to a layout", func(host string) []string {
			return []string{"record", "push", "http://" + host + "/a/b:there", "local://layout:record"}
		}},
		{"to an archive", func(host string) []string {
			return []string{"record", "push", "http://" + host + "/a/b:there", "oci-archive:out.tar:record"}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const most = 40 // requests of one command
			for hold := 1; ; hold++ {
				if hold == most {
					t.Fatalf("never ended before request %d", hold)
				}
				if !interruptOnce(t, hold, test.args) {
					if hold == 1 {
						t.Error("no request was made")
					}
					return
				}
			}
		})
	}
}

// interruptOnce interrupts a command at a request, in a registry and a directory of
// its own, and looks at what is left.
func interruptOnce(t *testing.T, hold int, args func(string) []string) bool {
	t.Helper()
	layouts, dir := t.TempDir(), t.TempDir()
	testkit.Image(t).Layer(testkit.File("bin/sh", "#!")).Write(testkit.LayoutAt(t, filepath.Join(layouts, "a", "b")), "image")
	server := testkit.Registry(t, layouts)
	for name, content := range map[string]string{"rec.json": `{"path":"bin/sh"}` + "\n", "out.json": "old\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	images, err := dray.NewImages(dray.Options{AuthFiles: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = images.Close() }()
	list, err := dray.NewRecordList(dray.RecordEntry{Path: "bin/sh"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.PushRecord(t.Context(), list, server.Ref("a/b")+":there"); err != nil {
		t.Fatal(err)
	}
	g := newGate(t, server.URL, hold)
	reached, code := interrupted(t, g, dir, args(g.host())...)
	if !reached {
		return false
	}
	if code != int(dray.KindInterrupted) {
		t.Errorf("%q, interrupted at request %d: exit code %d", args(g.host()), hold, code)
	}
	if _, err := images.Record(t.Context(), server.Ref("a/b")+":record", dray.RecordAny); dray.KindOf(err) != dray.KindNotFound {
		t.Errorf("at request %d: the record has a name: %v", hold, err)
	}
	if _, err := images.Record(t.Context(), server.Ref("a/b")+":image", dray.RecordAttached); !errors.Is(err, dray.ErrNoRecord) {
		t.Errorf("at request %d: a record is attached: %v", hold, err)
	}
	if old, err := os.ReadFile(filepath.Join(dir, "out.json")); err != nil || string(old) != "old\n" {
		t.Errorf("at request %d: the output is %q, %v", hold, old, err)
	}
	for _, name := range filesIn(t, dir) {
		if name != "out.json" && name != "rec.json" {
			t.Errorf("at request %d: %s is left", hold, name)
		}
	}
	return true
}

// A conversion or copy that is interrupted at any of its requests but a last one, when
// all is done, has not tagged its target, and leaves no temporary files.
func TestInterruptedImages(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, args string // HOST is the registry
	}{
		{"convert", "image convert --estargz --conversions none http://HOST/a/b:image http://HOST/c/d:new"},
		{"convert with a list", "image convert --zstdchunked --conversions none --prefetch-list list --tmpdir tmp http://HOST/a/b:image http://HOST/c/d:new"},
		{"convert with TOCs beside", "image convert --estargz --estargz-external-toc --conversions memory http://HOST/a/b:image http://HOST/c/d:new"},
		{"convert to a layout", "image convert --estargz --conversions none http://HOST/a/b:image local://layout:new"},
		{"convert to an archive", "image convert --estargz --conversions none http://HOST/a/b:image oci-archive:out.tar:new"},
		{"copy", "image cp http://HOST/a/b:image http://HOST/c/d:new"},
		{"copy to a layout", "image cp http://HOST/a/b:image local://layout:new"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const most = 60 // requests of one command
			late := 0
			for hold := 1; interruptImage(t, hold, test.args, &late); hold++ {
				if hold == most {
					t.Fatalf("never ended before request %d", hold)
				}
			}
			if late > 1 {
				t.Errorf("at %d requests it was too late", late)
			}
		})
	}
}

// interruptImage interrupts a command at a request, in a registry and a directory of
// its own, and looks at what is left. It returns false if the command ended before,
// and counts in late if it was done.
func interruptImage(t *testing.T, hold int, args string, late *int) bool {
	t.Helper()
	layouts, dir := t.TempDir(), t.TempDir()
	testkit.Image(t).Layer(testkit.File("bin/sh", "#!")).Layer(testkit.File("data", "data")).Write(testkit.LayoutAt(t, filepath.Join(layouts, "a", "b")), "image")
	server := testkit.Registry(t, layouts)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "list"), []byte("bin/*\n"), 0o600), os.Mkdir(filepath.Join(dir, "tmp"), 0o700)); err != nil {
		t.Fatal(err)
	}
	g := newGate(t, server.URL, hold)
	reached, code := interrupted(t, g, dir, strings.Fields(strings.ReplaceAll(args, "HOST", g.host()))...)
	if !reached {
		if hold == 1 {
			t.Error("no request was made")
		}
		return false
	}
	// What asks, when all is done, whether the source's tag has moved, came too late.
	done := code == 0
	if !done && code != int(dray.KindInterrupted) {
		t.Errorf("at request %d: exit code %d", hold, code)
	}
	if done {
		*late++
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v2/c/d/manifests/new", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if remote := strings.HasSuffix(args, "/c/d:new"); (answer.StatusCode == http.StatusOK) != (done && remote) {
		t.Errorf("at request %d: the target's tag answers %s", hold, answer.Status)
	}
	for _, name := range filesIn(t, dir) {
		switch first, base := strings.Split(name, "/")[0], filepath.Base(name); {
		case name == "layout/index.json":
			if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || strings.Contains(string(raw), "new") != done {
				t.Errorf("at request %d: the layout's index is %s, %v", hold, raw, err)
			}
		case name == "out.tar" && done:
		case name == "list", first == "memory", name == "layout/oci-layout", strings.HasPrefix(name, "layout/blobs/sha256/") && !strings.HasPrefix(base, "."):
		default:
			t.Errorf("at request %d: %s is left", hold, name)
		}
	}
	return true
}

// A record that never comes through a pipe can be interrupted.
func TestInterruptedStandardInput(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"record", "show", "-"},
		{"record", "merge", "-", "-o", "out.json"},
	} {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
		cmd.Args[0], cmd.Dir, cmd.Stderr = "dray", dir, os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// More than a pipe holds: when it is written, the program reads.
		if _, err := in.Write([]byte(strings.Repeat(`{"path":"a"}`+"\n", 20_000))); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err = <-ended:
		case <-time.After(patience):
			t.Fatalf("%q goes on", args)
		}
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != int(dray.KindInterrupted) {
			t.Errorf("%q: %v", args, err)
		}
		if left := filesIn(t, dir); len(left) > 0 {
			t.Errorf("%q: left are %q", args, left)
		}
	}
}
