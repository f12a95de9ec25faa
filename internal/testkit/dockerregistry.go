package testkit

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// DockerRegistry starts Docker's own registry (the program docker-registry of
// Debian's package of that name), empty, on a free loopback port, and returns its
// "127.0.0.1:PORT". It speaks plain HTTP. It skips the test, as [Need] does, where
// the program is missing.
//
//	host := testkit.DockerRegistry(t)
//	testkit.Push(t, layoutDir, "v1", host+"/app:v1")
func DockerRegistry(tb testing.TB) string {
	tb.Helper()
	Need(tb, Tool("docker-registry"))
	dir := tb.TempDir()
	config := filepath.Join(dir, "config.yml")
	const settings = `version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: "127.0.0.1:0", secret: "testkit"}
`
	if err := os.WriteFile(config, fmt.Appendf(nil, settings, filepath.Join(dir, "data")), 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(tb.Context(), "docker-registry", "serve", config)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		tb.Fatal(err)
	}
	listening := make(chan string, 1) // for one send
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		defer func() { _ = r.Close() }()
		pattern := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if m := pattern.FindStringSubmatch(lines.Text()); m != nil {
				listening <- m[1]
			}
		}
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // killed by the signal
		<-drained
	})
	timer := time.NewTimer(5 * time.Minute) // it hangs
	defer timer.Stop()
	select {
	case host := <-listening:
		return host
	case <-drained:
		tb.Fatal("docker-registry ended before it listened")
	case <-timer.C:
		tb.Fatal("docker-registry does not listen")
	}
	return ""
}

// Push copies an image, or an index with all of its images, from a layout to a
// registry over plain HTTP, with skopeo and byte for byte. dir is the layout's
// directory, to is host/repository:tag.
func Push(tb testing.TB, dir, tag, to string) {
	tb.Helper()
	Need(tb, Tool("skopeo"))
	cmd := exec.CommandContext(tb.Context(), "skopeo", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false", "oci:"+dir+":"+tag, "docker://"+to)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("push to %s: %v\n%s", to, err, out)
	}
}
