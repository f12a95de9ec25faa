package apply

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/layer"
	"dray/internal/stream"
	"dray/internal/testkit"
)

// Overlayfs sees of two layers what their tars say, with every form of whiteouts.
// Not parallel: it mounts.
func TestOverlay(t *testing.T) {
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	lower := tarOf(t,
		reg("gone", "1"), reg("replaced", "1"), reg("kept", "1"), reg("dir/gone", "1"), reg("dir/kept", "1"),
		reg("opaque/lower", "1"), reg("recreated/lower", "1"), reg("parent/lower", "1"), reg("gonedir/x", "1"),
		reg("late/lower", "1"), reg("deep/a/b/lower", "1"), reg("file2dir/lower", "1"),
	)
	upper := tarOf(t,
		reg(".wh.gone", ""), reg(".wh.replaced", ""), reg("replaced", "2"), reg("dir/.wh.gone", ""), reg("dir/new", "2"),
		dirItem("opaque"), reg("opaque/.wh..wh..opq", ""), reg("opaque/upper", "2"),
		reg(".wh.recreated", ""), dirItem("recreated"), reg("recreated/upper", "2"),
		reg(".wh.parent", ""), reg("parent/upper", "2"), link(".wh.gonedir", "nowhere"),
		reg("late/.wh.lower", ""), reg("late/.wh..wh..opq", ""), reg("late/.wh.other", ""), reg("late/upper", "2"),
		reg("deep/a/b/.wh.lower", ""), reg("deep/a/c", "2"), reg("deep/.wh..wh..opq", ""), reg("deep/a/b/.wh.other", ""),
		reg("file2dir", "2"), dirItem("file2dir"), reg("file2dir/upper", "2"),
	)
	want := map[string]string{
		"kept": `file "1"`, "replaced": `file "2"`,
		"dir": "dir", "dir/kept": `file "1"`, "dir/new": `file "2"`,
		"opaque": "dir", "opaque/upper": `file "2"`,
		"recreated": "dir", "recreated/upper": `file "2"`,
		"parent": "dir", "parent/upper": `file "2"`,
		"late": "dir", "late/upper": `file "2"`,
		"deep": "dir", "deep/a": "dir", "deep/a/b": "dir", "deep/a/c": `file "2"`,
		"file2dir": "dir", "file2dir/upper": `file "2"`,
	}
	for _, mode := range []string{"trusted", "user", "userx"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range []string{"lower", "upper", "merged"} {
				if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			options := "userxattr,"
			if mode == "trusted" {
				options = ""
			}
			var results []Result
			for name, in := range map[string][]byte{"lower": lower, "upper": upper} {
				root, err := os.Open(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = root.Close() }()
				var journal bytes.Buffer
				a := &applier{o: Options{Journal: &journal}, tar: newTar(in), xwhiteout: mode == "userx"}
				if mode != "trusted" {
					a.o.Whiteouts = User
				}
				r, err := a.applyAll(t.Context(), root)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				results = append(results, r)
				applied{root: root, journal: journal.Bytes()}.check(t, CheckOptions{Whiteouts: a.o.Whiteouts})
			}
			merged := filepath.Join(dir, "merged")
			options += fmt.Sprintf("lowerdir=%s:%s", filepath.Join(dir, "upper"), filepath.Join(dir, "lower"))
			if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, options); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			got := shape(t, merged)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s\n%+v", diff, results)
			}
		})
	}
}

// helperEnv makes a run of this test binary a helper in a user namespace.
const helperEnv = "DRAY_APPLY_HELPER"

// helperResult is what a helper writes to descriptor 4.
type helperResult struct {
	Result Result
	Err    string
	Found  []string
}

// TestHelper applies the tar on standard input to descriptor 3.
func TestHelper(t *testing.T) {
	options := os.Getenv(helperEnv)
	if options == "" {
		t.Skip("not a helper")
	}
	o := Options{Whiteouts: User, UserNS: true, IgnoreChownErrors: strings.Contains(options, "ignore")}
	root, out := os.NewFile(3, "root"), os.NewFile(4, "result")
	in, err := stream.ReadAll(os.Stdin, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	var journal bytes.Buffer
	o.Journal = &journal
	var result helperResult
	result.Result, err = Apply(t.Context(), root, layer.NewTar(stream.NewSlicer(bytes.NewReader(in), 1<<16), layer.Limits{}), o)
	if err != nil {
		result.Err = err.Error()
	} else {
		found, err := Check(t.Context(), root, &journal, CheckOptions{Whiteouts: User})
		for _, d := range found {
			result.Found = append(result.Found, d.String())
		}
		if err != nil {
			result.Found = append(result.Found, err.Error())
		}
	}
	if err := json.NewEncoder(out).Encode(result); err != nil {
		t.Fatal(err)
	}
}

const firstSubID = 100_000

// inUserNS runs [TestHelper] as root of a namespace with 65,536 ids.
func inUserNS(t *testing.T, in []byte, options string) (applied, helperResult) {
	t.Helper()
	root := newRoot(t)
	if err := os.Chown(root.Name(), firstSubID, firstSubID); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "result"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstSubID, Size: 65_536}}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestHelper$")
	cmd.Env = append(os.Environ(), helperEnv+"="+options)
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(in)
	cmd.ExtraFiles = []*os.File{root, out}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	data, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	var result helperResult
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatalf("%v: %q", err, data)
	}
	return applied{dir: root.Name(), root: root}, result
}

func TestUserNamespace(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.UserNS())
	in := tarOf(t,
		dirItem("./"),
		dirItem("closed").mode(0), reg("closed/file", "x").mode(0).owner(7, 8),
		dirItem("readonly").mode(0o555).owner(1, 1), reg("readonly/file", "x"),
		reg("caps", "x").mode(0o4755).owner(3, 3).xattr("security.capability", fileCap),
		reg("trusted", "x").xattr("trusted.a", "b"),
		reg("null", "").typed('3').dev(1, 3).mode(0o666),
		reg("was", "x"), reg("was", "").typed('4').dev(8, 0),
		reg("pipe", "").typed('6'),
		reg(".wh.gone", ""), reg("d/.wh..wh..opq", ""),
	)
	a, got := inUserNS(t, in, "strict")
	if got.Err != "" || len(got.Found) > 0 {
		t.Fatalf("%s %v", got.Err, got.Found)
	}
	const at = "1000000000.123456789"
	// Version 3 of a file capability names the namespace's root.
	cap3 := "\x01\x00\x00\x03" + fileCap[4:] + "\xa0\x86\x01\x00"
	want := map[string]string{
		".":             "dir 0755 100000:100000 " + at,
		"closed":        "dir 0000 100000:100000 " + at,
		"closed/file":   "file 0000 100007:100008 " + at + ` "x"`,
		"readonly":      "dir 0555 100001:100001 " + at,
		"readonly/file": "file 0644 100000:100000 " + at + ` "x"`,
		"caps":          "file 4755 100003:100003 " + at + ` "x" security.capability=` + quoted(cap3),
		"trusted":       "file 0644 100000:100000 " + at + ` "x"`,
		"pipe":          "fifo 0644 100000:100000 " + at,
		"gone":          "char 0000 100000:100000 " + at + " 0,0",
		"d":             `dir 0755 100000:100000 0.000000000 user.overlay.opaque="y"`,
	}
	if diff := cmp.Diff(want, tree(t, a.dir)); diff != "" {
		t.Error(diff)
	}
	if got.Result.Exact() || got.Result.DevicesOmitted != 2 || got.Result.XattrsDenied != 1 {
		t.Errorf("%+v", got.Result)
	}
}

func TestOwnersBeyondTheUserNamespace(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Root(), testkit.UserNS())
	in := tarOf(t, reg("a", "x").owner(70_000, 0), symlink("l", "a").owner(0, 70_000), dirItem("d").owner(70_000, 70_000))
	if _, got := inUserNS(t, in, "strict"); !strings.Contains(got.Err, "70000") {
		t.Errorf("error %q", got.Err)
	}
	a, got := inUserNS(t, in, "ignore")
	if got.Err != "" || len(got.Found) > 0 || got.Result.OwnersIgnored != 3 {
		t.Errorf("%+v", got)
	}
	if line := tree(t, a.dir)["a"]; !strings.Contains(line, " 100000:100000 ") {
		t.Error(line)
	}
}
