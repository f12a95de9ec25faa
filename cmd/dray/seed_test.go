package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dray"
	"dray/internal/testkit"
)

// A guest is a mount and a network namespace of which the only content is a root file
// system, and all that is in that is dray-guest and a seed. The network has not even
// a loopback interface that is up.
const guestScript = `set -e
mount --bind "$ROOT" "$ROOT"
mount -t proc none "$ROOT/proc"
mount -t tmpfs none "$ROOT/run"
cd "$ROOT"
pivot_root . old
"/old$BUSYBOX" umount -l /old
exec /usr/bin/dray-guest --log-level info serve --listen /run/dray.sock "$@"`

// newGuest makes the root file system, but for the seed.
func newGuest(t *testing.T, program string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"usr/bin", "proc", "run", "old", "bundle"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := testkit.WriteProgram(filepath.Join(root, "usr/bin/dray-guest"), raw); err != nil {
		t.Fatal(err)
	}
	return root
}

// Document 004's wish: layers embedded in the guest's root file system, so that pods
// start without a download. It is the first example of docs/seeding.md.
func TestSeededGuest(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Tool("unshare"), testkit.Tool("pivot_root"), testkit.Tool("busybox"))
	have := build(t)
	images := t.TempDir()
	built := shellImage(t, images)
	pinned := "registry.invalid/team/shell@" + string(built.Manifest.Digest)
	for use, flags := range map[string][]string{ //nolint:paralleltest // mounts
		"copied":  nil,
		"trusted": {"--trust-seed", "/usr/share/dray/seed"},
	} {
		t.Run(use, func(t *testing.T) {
			root := newGuest(t, have.guest)
			client, err := dray.New(t.Context(), dray.Options{Store: filepath.Join(t.TempDir(), "store")})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.WriteSeed(t.Context(), []string{"local://" + images + ":shell"}, root, dray.SeedOptions{Prefix: "/usr/share/dray/seed"}); err != nil {
				t.Fatal(err)
			}
			if err := client.Close(); err != nil {
				t.Fatal(err)
			}
			guest := startGuest(t, root, flags...)
			if got := ask(t, have.hub, guest.path("run/dray.sock"), pinned, "/bundle"); got != string(built.Manifest.Digest) {
				t.Fatalf("the answer is %q: %s", got, guest.stderr)
			}
			pull := exec.CommandContext(t.Context(), "/usr/bin/dray-guest", append([]string{"--json", "--storepath", "/run/another", "pull", pinned}, flags...)...)
			pull.SysProcAttr = &syscall.SysProcAttr{Chroot: guest.path("")}
			pull.Dir = "/"
			said, err := pull.Output()
			if err != nil {
				t.Fatal(err)
			}
			wantSeeded(t, said, "/usr/share/dray/seed", use)
			run := exec.CommandContext(t.Context(), "/bin/echo", "hello from the seed")
			run.SysProcAttr = &syscall.SysProcAttr{Chroot: guest.path("bundle/rootfs")}
			run.Dir = "/"
			out, err := run.Output()
			if err != nil || string(out) != "hello from the seed\n" {
				t.Errorf("%q, %v", out, err)
			}
			guest.stop(t)
			if said := guest.stderr.String(); !strings.Contains(said, "network_bytes=0 ") {
				t.Errorf("the service says %s", said)
			}
		})
	}
}

// wantSeeded compares the evidence with what docs/seeding.md says of it.
func wantSeeded(t *testing.T, said []byte, seed, use string) {
	t.Helper()
	var e dray.Evidence
	if err := json.Unmarshal(said, &e); err != nil {
		t.Fatal(err)
	}
	if e.NetworkBytes != 0 || e.SeedBytes == 0 || e.ResolvedBy != "seed "+seed || len(e.Fallbacks) > 0 || len(e.Layers) == 0 {
		t.Errorf("got %s", said)
	}
	for _, l := range e.Layers {
		if l.Source != "seed" || l.SeedUse != use {
			t.Errorf("got %+v, want one %s", l, use)
		}
	}
}

// shellImage writes the image that guests run.
func shellImage(t *testing.T, dir string) testkit.Built {
	t.Helper()
	return images()["shell"](t).Write(testkit.LayoutAt(t, dir), "shell")
}

// startGuest starts the service in a guest. Paths of the server are those of the
// guest, seen from outside.
func startGuest(t *testing.T, root string, flags ...string) *server {
	t.Helper()
	s := &server{stderr: &lockedBuffer{}}
	s.cmd = exec.CommandContext(t.Context(), "unshare", append([]string{"--mount", "--propagation", "slave", "--net", "sh", "-c", guestScript, "sh"}, flags...)...)
	busybox, err := exec.LookPath("busybox") // static: nothing else would run in there
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Env = []string{"BUSYBOX=" + busybox, "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "ROOT=" + root}
	s.cmd.Stderr = s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.dir = filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "root") // it becomes each program in turn
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // in case the test failed before it stopped it
		_ = s.cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer func() {
		if t.Failed() {
			t.Log(s.stderr)
		}
	}()
	eventually(t, "the guest listens", func() bool {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", s.path("run/dray.sock"))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	if left, err := os.ReadDir(s.path("old")); err != nil || len(left) > 0 {
		t.Fatalf("the guest sees what is outside: %v, %v", left, err)
	}
	return s
}

// Many guests share one seed on a device of the host's: they read it as it is, without
// mounting it, and copy what they have verified. It is the second example of
// docs/seeding.md.
func TestSharedSeed(t *testing.T) { //nolint:paralleltest // makes a device
	testkit.Need(t, testkit.Root(), testkit.Overlay(), testkit.Tool("losetup"))
	have := build(t)
	dir, images := t.TempDir(), t.TempDir()
	built := shellImage(t, images)
	client, err := dray.New(t.Context(), dray.Options{Store: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "seed.erofs")
	if _, err := client.WriteSeed(t.Context(), []string{"local://" + images + ":shell"}, file, dray.SeedOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	before := readFile(t, file)
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", "--read-only", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", device).Run(); err != nil { //nolint:noctx // after the test
			t.Error(err)
		}
	})
	for _, guest := range []string{"one", "two"} {
		cmd := exec.CommandContext(t.Context(), have.guest, "--json", "--storepath", filepath.Join(dir, guest), "--seed", device,
			"pull", "--offline", "registry.invalid/team/shell@"+string(built.Manifest.Digest))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		wantSeeded(t, out, device, "copied")
	}
	if !bytes.Equal(before, readFile(t, file)) {
		t.Error("the seed was written to")
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A seed that goes away under a running service, and comes back: what is mounted stays,
// what only the seed has is refused with a reason and leaves nothing, and all else is
// served as before.
func TestServeSeedVanishes(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	have := build(t)
	registry, small := imagesFor(t)
	pinned := func(host string) string { return host + "@" + string(small.Manifest.Digest) }
	nowhere := pinned("http://127.0.0.1:1/x")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"seed", "seed.erofs"} { //nolint:paralleltest // mounts
		t.Run(form, func(t *testing.T) {
			dir := t.TempDir()
			dray, seed := filepath.Join(dir, "dray"), filepath.Join(dir, form)
			if err := os.Symlink(self, dray); err != nil { // the test binary is the program under that name
				t.Fatal(err)
			}
			made := exec.CommandContext(t.Context(), dray, "store", "seed", "--storepath", filepath.Join(dir, "made"), registry.Ref("small:v1"), "-o", seed)
			if out, err := made.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			s := serveWith(t, dir, dray, "serve", "--listen", filepath.Join(dir, "socket"), "--seed", seed)
			pull := func(image, bundle, want string) {
				t.Helper()
				if got := ask(t, have.hub, s.path("socket"), image, s.bundle(t, bundle)); !strings.Contains(got, want) {
					t.Errorf("%s: got %q, want %q", image, got, want)
				}
			}
			pull(nowhere, "first", string(small.Manifest.Digest))
			if err := os.Rename(seed, seed+".away"); err != nil {
				t.Fatal(err)
			}
			pull(nowhere, "second", "Unavailable: ")
			pull(nowhere, "second", seed)
			s.wantOnly(t, "first")
			wantHostname(t, s.path("first"), "small\n") // it holds its files
			pull(registry.Ref("other:v1"), "other", "sha256:")
			pull(pinned(registry.Ref("small")), "second", string(small.Manifest.Digest))
			wantHostname(t, s.path("second"), "small\n")
			s.wantOnly(t, "first", "other", "second")
			if err := os.Rename(seed+".away", seed); err != nil {
				t.Fatal(err)
			}
			pull(nowhere, "third", string(small.Manifest.Digest))
			s.stop(t)
		})
	}
}

// wantOnly looks for what requests must not leave beside their bundles.
func (s *server) wantOnly(t *testing.T, bundles ...string) {
	t.Helper()
	staged, _ := filepath.Glob(s.path("store/staging/*"))
	mounts, _ := filepath.Glob(s.path("store/mounts/*"))
	if below := mountsBelow(s.dir); len(staged) > 0 || len(mounts) != len(bundles) || len(below) != len(bundles) {
		t.Errorf("staged %v, mounts %v, mounted %v, want %v", staged, mounts, below, bundles)
	}
}
