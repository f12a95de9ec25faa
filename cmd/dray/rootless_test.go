package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"dray/internal/testkit"
)

// ordinaryID is the user and group of rootless scripts: nobody, whom every machine
// has. newuidmap wants one that is in the password file.
const ordinaryID = 65534

// asUser puts the user's ranges where newuidmap looks for them, in a mount
// namespace of its own, and gives up root.
const asUser = `mount --bind "$1" /etc/subuid && mount --bind "$1" /etc/subgid && cd "$2" && shift 2 &&
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"`

// ordinaryUser makes $U, the home of an ordinary user with the program in it.
func ordinaryUser(ts *testscript.TestScript, neg bool, args []string) {
	ranges := map[string]string{"range": strconv.Itoa(ordinaryID) + ":200000:65536\n", "single": ""}
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ordinary-user range|single")
	}
	home := ts.MkAbs("user-" + args[0])
	for dir := ts.MkAbs("."); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		ts.Check(os.Chmod(dir, 0o755))
	}
	for _, dir := range []string{home, filepath.Join(home, "run"), filepath.Join(home, "tmp")} {
		ts.Check(os.Mkdir(dir, 0o700))
		ts.Check(os.Chown(dir, ordinaryID, ordinaryID))
	}
	ts.Check(os.WriteFile(home+".ranges", []byte(ranges[args[0]]), 0o644))
	ts.Check(os.Mkdir(home+".bin", 0o755))
	program, err := os.ReadFile("/proc/self/exe")
	ts.Check(err)
	ts.Check(testkit.WriteProgram(filepath.Join(home+".bin", "dray"), program))
	ts.Setenv("U", home)
	ts.Defer(func() { stopHolder(filepath.Join(home, "run", "dray")) })
}

// stopHolder ends the process that holds the namespaces, after a failure.
func stopHolder(runtimeDir string) {
	var holder struct{ PID int }
	raw, err := os.ReadFile(filepath.Join(runtimeDir, "ns"))
	if err == nil && json.Unmarshal(raw, &holder) == nil && holder.PID > 1 {
		_ = syscall.Kill(holder.PID, syscall.SIGKILL) // gone already, perhaps
	}
}

// as is code for the user of ordinary-user, in its home.
func as(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: as N PROGRAM [ARG...]")
	}
	home := ts.Getenv("U")
	exitCode(ts, false, append([]string{
		args[0], "unshare", "--mount", "--propagation", "slave", "sh", "-c", asUser, "sh", home + ".ranges", home,
		"env", "HOME=" + home, "XDG_RUNTIME_DIR=" + home + "/run", "XDG_DATA_HOME=", "TMPDIR=" + home + "/tmp",
		"DRAY_STOREPATH=" + home + "/store", "PATH=" + home + ".bin:" + ts.Getenv("PATH"),
	}, args[1:]...))
}

// userLeftNothing looks for what rootless commands must not leave: mounts, staged
// layers, and the process that holds the namespaces.
func userLeftNothing(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: user-left-nothing")
	}
	home := ts.Getenv("U")
	for _, pattern := range []string{"store/staging/*", "store/mounts/*", "run/dray/ns", "run/dray/run/*", "tmp/*"} {
		left, err := filepath.Glob(filepath.Join(home, pattern))
		ts.Check(err)
		if len(left) > 0 {
			ts.Fatalf("left behind: %v", left)
		}
	}
}
