package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/ocidir"
	"dray/internal/store"
	"dray/internal/testkit"
	"dray/internal/userns"
)

// TestMain makes this test binary the program itself when it is called dray or by
// the name that users of containerd's tool know.
func TestMain(m *testing.M) {
	programs := map[string]func(){"dray": main, "ctr-remote": main, "dray-interrupted-late": interruptedLate}
	if programs[filepath.Base(os.Args[0])] == nil {
		if err := userns.Isolate(unix.MS_SHARED); err != nil { // others' tests make namespaces
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	testscript.Main(m, programs)
}

// interruptedLate is a dray that gets SIGINT when its work is done and it is about
// to end.
func interruptedLate() {
	code := run()
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		panic(err)
	}
	time.Sleep(100 * time.Millisecond) // the signal is delivered at any moment of it, and would end the program
	os.Exit(code)
}

// TestScripts runs test/script: what a user sees, through the real program.
//
// Besides the usual commands there are:
//
//	layout DIR NAME      makes an OCI layout with the image NAME, see images below
//	docker-registry VAR  starts Docker's registry, empty; $VAR is host:port
//	multi DIR NAME       makes an OCI layout with an index: two platforms, an attestation, an artifact with a signature
//	registry VAR DIR     serves DIR until the script ends; $VAR is host:port
//	faulty VAR DIR FAULT the same, with a fault, see faults below
//	code N PROGRAM ...   runs the program, which must end with exit code N
//	nothing-left         the store has no staging, the machine no mount of ours
//	tls-registry VAR DIR registry over TLS, with a certificate for 127.0.0.1; $CERTS is its --cert-dir
//	small-disk DIR SIZE  mounts a tmpfs of that size until the script ends
//	interrupt PROGRAM... runs the program, and interrupts it once a layer is staged; it must end with code 130
//	ordinary-user KIND   makes $U, the home of an ordinary user with a range of IDs or a single one
//	as N PROGRAM ...     code, as that user
//	user-left-nothing    nothing-left, for that user
func TestScripts(t *testing.T) { //nolint:paralleltest // mounts
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "test", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("DRAY_STOREPATH", filepath.Join(env.WorkDir, "store"))
			env.Setenv("DRAY_CONFIG", "")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // or each command waits for a second before it ends
			env.Setenv("DRAY_AUTHFILE", "")
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("PATH", env.Getenv("PATH")+":/usr/sbin:/sbin")
			env.Defer(func() { unmountBelow(env.WorkDir) })
			return os.Mkdir(filepath.Join(env.WorkDir, "home"), 0o700)
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"layout": makeLayout, "registry": serve, "faulty": serveFaulty, "code": exitCode, "nothing-left": nothingLeft,
			"tls-registry": serveTLS, "docker-registry": serveDocker, "multi": makeMulti, "small-disk": smallDisk, "interrupt": interrupt,
			"ordinary-user": ordinaryUser, "as": as, "user-left-nothing": userLeftNothing,
		},
	})
}

// condition knows [root], [overlay] and [tool:NAME]. In CI what is missing is a failure.
func condition(name string) (bool, error) {
	tool, isTool := strings.CutPrefix(name, "tool:")
	var have bool
	switch {
	case isTool:
		_, err := exec.LookPath(tool)
		have = err == nil
	case name == "root":
		have = os.Geteuid() == 0
	default:
		return false, fmt.Errorf("unknown condition %q", name)
	}
	if !have && os.Getenv("DRAY_REQUIRE") == "all" {
		return false, fmt.Errorf("this machine lacks %s, which DRAY_REQUIRE=all wants", name)
	}
	return have, nil
}

// tb lets the test kit, which wants a testing.TB, work for a script.
type tb struct {
	testing.TB // nil: whatever is not below is not used
	ts         *testscript.TestScript
	dir        string
}

func (t tb) Helper()                           {}
func (t tb) Fatal(args ...any)                 { t.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (t tb) Fatalf(format string, args ...any) { t.ts.Fatalf(format, args...) }
func (t tb) Error(args ...any)                 { t.ts.Logf("%s", fmt.Sprint(args...)) }
func (t tb) Errorf(format string, args ...any) { t.ts.Logf(format, args...) }
func (t tb) Logf(format string, args ...any)   { t.ts.Logf(format, args...) }
func (t tb) Cleanup(f func())                  { t.ts.Defer(f) }
func (t tb) Context() context.Context          { return context.Background() }
func (t tb) TempDir() string                   { return t.dir }
func (t tb) Name() string                      { return t.ts.Name() }

func kit(ts *testscript.TestScript) tb {
	dir, err := os.MkdirTemp(ts.MkAbs("."), "kit-")
	ts.Check(err)
	return tb{ts: ts, dir: dir}
}

// images are what layout can make.
func images() map[string]func(testing.TB) *testkit.Builder {
	busybox := func(tb testing.TB) testkit.Entry {
		tb.Helper()
		raw, err := os.ReadFile("/usr/bin/busybox")
		if err != nil {
			raw, err = os.ReadFile("/bin/busybox")
		}
		if err != nil {
			tb.Fatalf("busybox-static is not installed: %v", err)
		}
		return testkit.File("bin/busybox", string(raw)).Chmod(0o755)
	}
	shell := func(tb testing.TB) *testkit.Builder {
		tb.Helper()
		entries := []testkit.Entry{testkit.Dir("bin"), busybox(tb)}
		for _, name := range []string{"sh", "cat", "ls", "id", "pwd", "env", "sleep", "true", "false", "echo", "kill", "touch", "stat", "tty"} {
			entries = append(entries, testkit.Hardlink("bin/"+name, "bin/busybox"))
		}
		return testkit.Image(tb).
			Layer(entries...).
			Layer(testkit.Dir("etc"),
				testkit.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
				testkit.File("etc/group", "root:x:0:\nusers:x:1000:\nextra:x:2000:user\n")).
			Layer(testkit.Dir("tmp").Chmod(0o1777), testkit.Dir("home"), testkit.Dir("home/user").Chown(1000, 1000)).
			Config(func(i *oci.Image) {
				i.Config.Cmd, i.Config.Env = []string{"echo", "hello from the image"}, []string{"PATH=/bin", "FROM=image"}
			})
	}
	return map[string]func(testing.TB) *testkit.Builder{
		"shell": shell,
		"small": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.Dir("etc"), testkit.File("etc/hostname", "small\n"))
		},
		"other": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.Dir("etc"), testkit.File("etc/hostname", "other\n"))
		},
		"owned": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).
				Layer(testkit.File("file", "x").Chown(33, 44).Chmod(0o4755), testkit.File("gone", "y")).
				Layer(testkit.Whiteout("gone"))
		},
		"ghost": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.Dir("d"), testkit.File("d/file", "x"), testkit.Whiteout("d/ghost"))
		},
		"big": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.File("first", "1")).Layer(testkit.Random("blob", 8<<20, 1)).Layer(testkit.File("last", "3")).
				Config(func(i *oci.Image) { i.Config.Cmd = []string{"run"} })
		},
		"foreign-platform": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.File("a", "b")).Platform(oci.Platform{OS: "linux", Architecture: "s390x"})
		},
		"garbage": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Blob(oci.MediaTypeLayerGz, []byte("this is no layer at all, but text"))
		},
		"wrong-diffid": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.File("a", "b")).Config(func(i *oci.Image) {
				i.RootFS.DiffIDs[0] = oci.DiffID(oci.DigestBytes([]byte("something else")))
			})
		},
		"gzip-bomb": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.Zeros("zeros", 256<<20))
		},
		"tar-bomb": func(tb testing.TB) *testkit.Builder {
			tb.Helper()
			return testkit.Image(tb).Layer(testkit.Files("many", 2000)...)
		},
	}
}

func makeLayout(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: layout DIR NAME")
	}
	build := images()[args[1]]
	if build == nil {
		ts.Fatalf("no image %q", args[1])
	}
	t := kit(ts)
	layout, err := ocidir.Create(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	built := build(t).Write(layout, args[1])
	ts.Setenv("DIGEST", string(built.Manifest.Digest))
	if len(built.Layers) > 0 {
		ts.Setenv("LAYER", string(built.Layers[len(built.Layers)/2].Digest))
	}
	ts.Check(layout.Close())
}

func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: registry VAR DIR")
	}
	startRegistry(ts, args[0], args[1])
}

func startRegistry(ts *testscript.TestScript, variable, dir string, faults ...testkit.Fault) {
	server := testkit.Registry(kit(ts), ts.MkAbs(dir), faults...)
	ts.Setenv(variable, strings.TrimSuffix(strings.TrimPrefix(server.Ref("x"), "http://"), "/x"))
}

func serveTLS(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tls-registry VAR DIR")
	}
	server := testkit.TLSRegistry(kit(ts), ts.MkAbs(args[1]))
	ts.Setenv(args[0], server.Host)
	ts.Setenv("CERTS", server.CertDir(kit(ts)))
}

func serveDocker(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: docker-registry VAR")
	}
	ts.Setenv(args[0], testkit.DockerRegistry(kit(ts)))
}

// makeMulti sets $AMD64 and $ARM64 to the digests of the index's images.
func makeMulti(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: multi DIR NAME")
	}
	t := kit(ts)
	layout, err := ocidir.Create(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	var images []oci.Descriptor
	for _, arch := range []string{"amd64", "arm64"} {
		d := testkit.Image(t).Platform(oci.Platform{OS: "linux", Architecture: arch}).
			Layer(testkit.File("etc/common", "common\n")).Layer(testkit.File("bin/"+arch, strings.Repeat(arch, 10_000))).Write(layout, "").Manifest
		ts.Setenv(strings.ToUpper(arch), string(d.Digest))
		images = append(images, d)
	}
	artifact := testkit.Artifact(t, layout, "", "application/x-sbom", nil, "sbom")
	testkit.Artifact(t, layout, "", "application/x-signature", &artifact, "signature")
	testkit.Index(t, layout, args[1], images[0], images[1], testkit.Attestation(t, layout, images[0]), artifact)
	ts.Check(layout.Close())
}

func smallDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: small-disk DIR SIZE")
	}
	ts.Check(os.MkdirAll(ts.MkAbs(args[0]), 0o700))
	ts.Check(ts.Exec("mount", "-t", "tmpfs", "-o", "size="+args[1], "tmpfs", ts.MkAbs(args[0])))
}

// interrupt looks for the staged layer in the store of DRAY_STOREPATH, or for what
// $STAGED names.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: interrupt PROGRAM [ARG...]")
	}
	staging := filepath.Join(ts.Getenv("DRAY_STOREPATH"), "staging", "*")
	if named := ts.Getenv("STAGED"); named != "" {
		staging = ts.MkAbs(named)
	}
	const wait = `"$@" & pid=$!; n=0
while [ $n -lt 12000 ]; do for f in $STAGING; do if [ -e "$f" ]; then kill -INT $pid; n=12000; break; fi; done; n=$((n+1)); sleep 0.01; done
wait $pid`
	// sh has background programs ignore SIGINT; env takes that back
	exitCode(ts, false, append([]string{"130", "env", "STAGING=" + staging, "sh", "-c", wait, "sh", "env", "--default-signal=INT"}, args...))
}

// serveFaulty knows the faults that a command line has to report.
func serveFaulty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: faulty VAR DIR FAULT")
	}
	blob := "/blobs/" + ts.Getenv("LAYER")
	faults := map[string][]testkit.Fault{
		"cut":          {testkit.Cut(blob, 1000)},
		"cut-once":     {testkit.Cut(blob, 1000).Times(1)},
		"stall":        {testkit.Stall(blob, 1000)},
		"stall-late":   {testkit.Stall(blob, 4<<20)},
		"flip":         {testkit.Flip(blob, 500)},
		"too-long":     {testkit.Resize(blob, 9<<20)},
		"too-short":    {testkit.Resize(blob, 100)},
		"loop":         {testkit.RedirectLoop(blob)},
		"401":          {testkit.Status("/manifests/", http.StatusUnauthorized)},
		"403":          {testkit.Status("/manifests/", http.StatusForbidden)},
		"500":          {testkit.Status("/manifests/", http.StatusInternalServerError)},
		"429-once":     {testkit.Status("/manifests/", http.StatusTooManyRequests, "Retry-After", "0").Times(1)},
		"busy":         {testkit.Status("/manifests/", http.StatusTooManyRequests, "Retry-After", "0")},
		"not-json":     {testkit.Replace("/manifests/", func([]byte) []byte { return []byte("<html>") })},
		"big-manifest": {testkit.Resize("/manifests/", 10<<20)},
		"slow":         {testkit.Slow(blob, 256<<10, 50*time.Millisecond)},
		"no-ranges":    {testkit.NoRanges("/blobs/")},
		"basic":        {testkit.Basic("user", "secret")},
	}[args[2]]
	if faults == nil {
		ts.Fatalf("no fault %q", args[2])
	}
	startRegistry(ts, args[0], args[1], faults...)
}

// exitCode runs a program and compares its exit code; its output is kept for
// stdout and stderr as with exec.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); err != nil {
		if !asExit(err, &exit) {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

func asExit(err error, target **exec.ExitError) bool {
	exit, ok := err.(*exec.ExitError) //nolint:errorlint // testscript returns it as it is
	*target = exit
	return ok
}

// nothingLeft looks for what a failed command must not leave. A mount that was
// copied into another mount namespace, as tests beside this one make them, is
// cleaned up by the first command after that has gone.
func nothingLeft(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: nothing-left")
	}
	deadline := time.Now().Add(patience)
	for {
		left := leftovers(ts)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("left behind: %v", left)
		}
		<-time.After(200 * time.Millisecond)
		ts.Check(ts.Exec("dray", "store", "ls"))
	}
}

func leftovers(ts *testscript.TestScript) []string {
	root := ts.Getenv("DRAY_STOREPATH")
	left := mountsBelow(ts.MkAbs("."))
	for _, dir := range []string{"staging", "mounts"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !os.IsNotExist(err) {
			ts.Check(err)
		}
		for _, e := range entries {
			if !heldElsewhere(filepath.Join(root, dir, e.Name())) {
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	return left
}

// heldElsewhere tells whether dir is of a mount that is gone here, but that another
// mount namespace has a copy of: tests beside this one make such namespaces.
func heldElsewhere(dir string) bool {
	state, err := os.ReadFile(filepath.Join(dir, "state.json"))
	return err == nil && strings.Contains(string(state), string(store.MountUnmounting))
}

func mountsBelow(dir string) []string {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var below []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	return below
}

// unmountBelow takes away what a failed script has left mounted.
func unmountBelow(dir string) {
	for _, target := range mountsBelow(dir) {
		_ = exec.CommandContext(context.Background(), "umount", "-l", target).Run() // best effort, after a failure
	}
}
