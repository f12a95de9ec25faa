package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"dray/internal/oci"
)

func TestParseVolume(t *testing.T) {
	t.Parallel()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	ro := []string{"rbind", "rprivate", "ro"}
	if canMountSetattr() {
		ro = append(ro, "rro")
	}
	for name, test := range map[string]struct {
		in      string
		want    Mount
		wantErr string
	}{
		"plain":           {in: "/a:/b", want: Mount{"/a", "/b", []string{"rbind", "rprivate"}}},
		"unclean":         {in: "/a//x/../:/b/./c/", want: Mount{"/a", "/b/c", []string{"rbind", "rprivate"}}},
		"read-write":      {in: "/a:/b:rw", want: Mount{"/a", "/b", []string{"rbind", "rprivate"}}},
		"read-only":       {in: "/a:/b:ro", want: Mount{"/a", "/b", ro}},
		"several":         {in: "/a:/b:bind,nosuid,nodev,noexec,rslave", want: Mount{"/a", "/b", []string{"bind", "rslave", "nosuid", "nodev", "noexec"}}},
		"empty options":   {in: "/a:/b:", want: Mount{"/a", "/b", []string{"rbind", "rprivate"}}},
		"relative":        {in: "./a:/b", want: Mount{here + "/a", "/b", []string{"rbind", "rprivate"}}},
		"here":            {in: ".:/b", want: Mount{here, "/b", []string{"rbind", "rprivate"}}},
		"no source":       {in: "/data", want: Mount{"", "/data", tmpfsDefaults()}},
		"empty":           {in: "", wantErr: "not an absolute path"},
		"empty source":    {in: ":/b", wantErr: "no source"},
		"empty target":    {in: "/a:", wantErr: "not an absolute path"},
		"named":           {in: "data:/b", wantErr: "write ./data"},
		"relative target": {in: "/a:b", wantErr: "not an absolute path"},
		"root":            {in: "/a:/", wantErr: "root of the container"},
		"root, climbing":  {in: "/a:/x/../..", wantErr: "root of the container"},
		"too many":        {in: "/a:/b:ro:rw", wantErr: "want SRC:DST"},
		"unknown option":  {in: "/a:/b:fast", wantErr: `unknown option "fast"; want ro`},
		"SELinux":         {in: "/a:/b:z", wantErr: "SELinux"},
		"contradiction":   {in: "/a:/b:ro,rw", wantErr: "contradict"},
		"zero in source":  {in: "/a\x00:/b", wantErr: "zero byte"},
		"zero in target":  {in: "/a:/b\x00", wantErr: "zero byte"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkParsed(t, ParseVolume, test.in, test.want, test.wantErr)
		})
	}
}

func TestParseTmpfs(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		in      string
		want    Mount
		wantErr string
	}{
		"plain":       {in: "/a", want: Mount{"", "/a", tmpfsDefaults()}},
		"options":     {in: "/a:size=64m,mode=1777,uid=5,gid=6,nr_inodes=1k,exec,ro", want: Mount{"", "/a", append(tmpfsDefaults(), "size=64m", "mode=1777", "uid=5", "gid=6", "nr_inodes=1k", "exec", "ro")}},
		"percent":     {in: "/a:size=10%", want: Mount{"", "/a", append(tmpfsDefaults(), "size=10%")}},
		"bad size":    {in: "/a:size=10kk", wantErr: "unknown option"},
		"no size":     {in: "/a:size=", wantErr: "unknown option"},
		"bad mode":    {in: "/a:mode=9", wantErr: "unknown option"},
		"big mode":    {in: "/a:mode=17777", wantErr: "unknown option"},
		"valued flag": {in: "/a:ro=1", wantErr: "unknown option"},
		"unknown":     {in: "/a:huge=always", wantErr: "unknown option"},
		"relative":    {in: "a", wantErr: "not an absolute path"},
		"ro and rw":   {in: "/a:ro,rw", wantErr: "contradict"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkParsed(t, ParseTmpfs, test.in, test.want, test.wantErr)
		})
	}
}

func checkParsed(t *testing.T, parse func(string) (Mount, error), in string, want Mount, wantErr string) {
	t.Helper()
	got, err := parse(in)
	if wantErr != "" {
		if !errors.Is(err, ErrMount) || !strings.Contains(err.Error(), wantErr) {
			t.Fatalf("error is %v, want ErrMount with %q", err, wantErr)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}

// FuzzParseVolume asserts that what is parsed is a mount that a container takes.
func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/a:/b", "/a:/b:ro,rbind", "./x:/y", "data:/b", "/d", ":::", "/a:/b:ro,rw", "/a:/..:ro"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Mount, error){ParseVolume, ParseTmpfs} {
			m, err := parse(s)
			if err != nil {
				if !errors.Is(err, ErrMount) {
					t.Errorf("%q: error is %v, want ErrMount", s, err)
				}
				continue
			}
			if !filepath.IsAbs(m.Target) || m.Target == "/" || filepath.Clean(m.Target) != m.Target || strings.ContainsRune(m.Target+m.Source, 0) ||
				m.Source != "" && !filepath.IsAbs(m.Source) {
				t.Errorf("%q: got %+v", s, m)
			}
		}
	})
}

func destinations(t *testing.T, c oci.ImageConfig, rootfs *os.File, o Options) []string {
	t.Helper()
	c.Cmd = []string{"c"}
	spec, err := Spec(newImage(c), rootfs, o)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range spec.Mounts {
		all = append(all, m.Destination+"="+m.Type)
	}
	return all
}

func TestMountOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bind := func(target string) Mount { return Mount{Source: dir, Target: target, Options: []string{"rbind"}} }
	defaults := []string{"/proc=proc", "/dev=tmpfs", "/dev/pts=devpts", "/dev/shm=tmpfs", "/dev/mqueue=mqueue", "/sys=sysfs", "/sys/fs/cgroup=cgroup"}
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(defaults), func(s string) bool { return slices.Contains(names, s) })
	}
	for name, test := range map[string]struct {
		mounts  []Mount
		volumes map[string]struct{}
		want    []string
	}{
		"defaults":                    {want: defaults},
		"parents first":               {mounts: []Mount{bind("/a/b/c"), bind("/z"), bind("/a/b"), bind("/a")}, want: append(without(), "/z=bind", "/a=bind", "/a/b=bind", "/a/b/c=bind")},
		"default replaced":            {mounts: []Mount{bind("/dev/shm")}, want: append(without("/dev/shm=tmpfs"), "/dev/shm=bind")},
		"defaults below hidden":       {mounts: []Mount{bind("/sys")}, want: append(without("/sys=sysfs", "/sys/fs/cgroup=cgroup"), "/sys=bind")},
		"volume without a directory":  {volumes: map[string]struct{}{"/v": {}}, want: append(without(), "/v=tmpfs")},
		"volume with a directory":     {volumes: map[string]struct{}{"/there": {}}, want: defaults},
		"volume that the user mounts": {mounts: []Mount{bind("/v")}, volumes: map[string]struct{}{"/v/": {}}, want: append(without(), "/v=bind")},
		"volumes of the runtime's":    {volumes: map[string]struct{}{"/": {}, "": {}, "/proc": {}, "proc/self": {}, "/x/../sys": {}, "/dev/shm": {}, "../../dev": {}, "/file": {}}, want: defaults},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rootfs := newRootfs(t, map[string]string{"there/": "", "file": ""})
			got := destinations(t, oci.ImageConfig{Volumes: test.volumes}, rootfs, Options{Net: NetNone, Mounts: test.mounts})
			if diff := cmp.Diff(got, test.want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVolumeOfReadonlyRoot(t *testing.T) {
	t.Parallel()
	rootfs := newRootfs(t, map[string]string{"v/": ""})
	if err := os.Chmod(filepath.Join(rootfs.Name(), "v"), 0o770|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	image := newImage(oci.ImageConfig{Cmd: []string{"c"}, Volumes: map[string]struct{}{"/v": {}}})
	spec, err := Spec(image, rootfs, Options{ReadonlyRootfs: true, Net: NetNone})
	if err != nil {
		t.Fatal(err)
	}
	want := specs.Mount{Destination: "/v", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1770", fmt.Sprintf("uid=%d", os.Getuid()), fmt.Sprintf("gid=%d", os.Getgid()), "tmpcopyup"}}
	if diff := cmp.Diff(spec.Mounts[len(spec.Mounts)-1], want); diff != "" {
		t.Error(diff)
	}
}

func TestBadMounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mounts := range map[string][]Mount{
		"missing source":  {{Source: filepath.Join(dir, "no"), Target: "/a"}},
		"twice":           {{Source: dir, Target: "/a"}, {Target: "/a"}},
		"unclean target":  {{Source: dir, Target: "/a/../b"}},
		"root":            {{Source: dir, Target: "/"}},
		"relative target": {{Source: dir, Target: "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}}), newRootfs(t, nil), Options{Mounts: mounts})
			if !errors.Is(err, ErrMount) {
				t.Errorf("error is %v, want ErrMount", err)
			}
		})
	}
}

func TestRootlessMounts(t *testing.T) {
	t.Parallel()
	one := []IDRange{{Count: 1}}
	rootfs := newRootfs(t, nil)
	spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}}), rootfs, Options{Rootless: true, UIDs: one, GIDs: one, CgroupsPath: "/x"})
	if err != nil {
		t.Fatal(err)
	}
	if spec.Linux.CgroupsPath != "" || spec.Linux.Resources != nil {
		t.Errorf("rootless has cgroups %q and resources %v", spec.Linux.CgroupsPath, spec.Linux.Resources)
	}
	for _, m := range spec.Mounts {
		if m.Type == "cgroup" || m.Type == "sysfs" || slices.Contains(m.Options, "gid=5") {
			t.Errorf("rootless has mount %+v", m)
		}
	}
}
