package bundle

import (
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"dray/internal/oci"
)

var update = flag.Bool("update", false, "rewrite golden files")

// newRootfs makes a root file system of files, name to content; names that end
// in a slash are directories.
func newRootfs(t *testing.T, files map[string]string) *os.File {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return openDir(t, dir)
}

func openDir(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func newImage(c oci.ImageConfig) *oci.Image {
	return &oci.Image{OS: "linux", Architecture: "amd64", Config: c}
}

// logged returns a logger and what it was told.
func logged() (*slog.Logger, *strings.Builder) {
	var b strings.Builder
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

var users = map[string]string{
	"etc/passwd": "# comment\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nnohome:x:1002:1002:::\nbad:x:many:1:::\n",
	"etc/group":  "root:x:0:root\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:app\n",
}

func TestArguments(t *testing.T) {
	t.Parallel()
	none, blank, other := []string{}, []string{""}, []string{"/other", "-x"}
	for name, test := range map[string]struct {
		entrypoint, cmd, args []string
		override              *[]string
		want                  []string
	}{
		"cmd":                           {cmd: []string{"c"}, want: []string{"c"}},
		"entrypoint":                    {entrypoint: []string{"e"}, want: []string{"e"}},
		"both":                          {entrypoint: []string{"e", "1"}, cmd: []string{"c"}, want: []string{"e", "1", "c"}},
		"args replace cmd":              {entrypoint: []string{"e"}, cmd: []string{"c"}, args: []string{"a", "b"}, want: []string{"e", "a", "b"}},
		"args alone":                    {args: []string{"a"}, want: []string{"a"}},
		"override drops cmd":            {entrypoint: []string{"e"}, cmd: []string{"c"}, override: &other, want: []string{"/other", "-x"}},
		"override and args":             {entrypoint: []string{"e"}, cmd: []string{"c"}, override: &other, args: []string{"a"}, want: []string{"/other", "-x", "a"}},
		"override by nothing":           {entrypoint: []string{"e"}, cmd: []string{"c"}, override: &none, args: []string{"a"}, want: []string{"a"}},
		"override by a blank":           {entrypoint: []string{"e"}, cmd: []string{"c"}, override: &blank, args: []string{"a"}, want: []string{"a"}},
		"nothing":                       {},
		"override leaves nothing":       {entrypoint: []string{"e"}, cmd: []string{"c"}, override: &none},
		"blank entrypoint of the image": {entrypoint: []string{""}, cmd: []string{"c"}, want: []string{"c"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := newImage(oci.ImageConfig{Entrypoint: test.entrypoint, Cmd: test.cmd})
			spec, err := Spec(image, newRootfs(t, nil), Options{Args: test.args, Entrypoint: test.override})
			if test.want == nil {
				if !errors.Is(err, ErrNoCommand) {
					t.Fatalf("error is %v, want ErrNoCommand", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(spec.Process.Args, test.want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("BUNDLE_TEST_SET", "from=caller")
	const path, home = "PATH=" + defaultPath, "HOME=/"
	for name, test := range map[string]struct {
		image   []string
		o       Options
		want    []string
		wantErr bool
	}{
		"defaults":            {want: []string{path, home}},
		"image's":             {image: []string{"PATH=/bin", "A=1", "E="}, want: []string{"PATH=/bin", "A=1", "E=", home}},
		"image's home":        {image: []string{"HOME=/h"}, want: []string{"HOME=/h", path}},
		"last of image's":     {image: []string{"A=1", "B=2", "A=3"}, want: []string{"A=3", "B=2", path, home}},
		"replaced in place":   {image: []string{"A=1", "B=2"}, o: Options{Env: []string{"A=x=y", "C=3"}}, want: []string{"A=x=y", "B=2", "C=3", path, home}},
		"emptied":             {image: []string{"A=1"}, o: Options{Env: []string{"A="}}, want: []string{"A=", path, home}},
		"caller's":            {o: Options{Env: []string{"BUNDLE_TEST_SET"}}, want: []string{"BUNDLE_TEST_SET=from=caller", path, home}},
		"caller has none":     {image: []string{"BUNDLE_TEST_UNSET=1"}, o: Options{Env: []string{"BUNDLE_TEST_UNSET", "NEITHER_HAS"}}, want: []string{path, home}},
		"terminal":            {o: Options{Terminal: true}, want: []string{path, "TERM=xterm", home}},
		"terminal of image":   {image: []string{"TERM=vt100"}, o: Options{Terminal: true}, want: []string{"TERM=vt100", path, home}},
		"host name":           {o: Options{Hostname: "box"}, want: []string{path, "HOSTNAME=box", home}},
		"malformed of image":  {image: []string{"nokey", "=x", "A=\x00", "B=1"}, want: []string{"B=1", path, home}},
		"no key":              {o: Options{Env: []string{"=x"}}, wantErr: true},
		"empty":               {o: Options{Env: []string{""}}, wantErr: true},
		"zero byte of user's": {o: Options{Env: []string{"A=\x00"}}, wantErr: true},
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}, Env: test.image}), newRootfs(t, nil), test.o)
			if test.wantErr {
				if !errors.Is(err, ErrOption) {
					t.Fatalf("error is %v, want ErrOption", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(spec.Process.Env, test.want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWorkingDir(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ image, user, want string }{
		"none":           {want: "/"},
		"image's":        {image: "/a/b", want: "/a/b"},
		"relative":       {image: "a", want: "/a"},
		"climbing":       {image: "../../a/../b", want: "/b"},
		"user's":         {image: "/a", user: "/u/", want: "/u"},
		"relative user":  {user: "u"},
		"zero byte":      {image: "/a\x00"},
		"user zero byte": {user: "/a\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}, WorkingDir: test.image}), newRootfs(t, nil), Options{WorkingDir: test.user})
			if test.want == "" {
				if !errors.Is(err, ErrOption) {
					t.Fatalf("error is %v, want ErrOption", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if spec.Process.Cwd != test.want {
				t.Errorf("got %q, want %q", spec.Process.Cwd, test.want)
			}
		})
	}
}

func TestAnnotations(t *testing.T) {
	t.Parallel()
	created := time.Date(2024, 2, 3, 4, 5, 6, 789, time.UTC)
	image := &oci.Image{
		OS: "linux", OSVersion: "6.1", OSFeatures: []string{"a", "b"}, Architecture: "arm64", Variant: "v8",
		Author: "An Author", Created: &created,
		Config: oci.ImageConfig{
			StopSignal:   "SIGQUIT",
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
			Labels: map[string]string{
				"org.opencontainers.image.author": "the label",
				"a.label":                         "",
				"replaced":                        "image",
				"run.oci.hooks.stdout":            "/etc/cron.d/x",
				"io.katacontainers.config.hypervisor.path": "/x",
				"": "no key",
			},
		},
	}
	log, told := logged()
	got := annotations(image, &Options{Log: log, Annotations: map[string]string{"replaced": "user", "run.oci.handler": "krun"}})
	want := map[string]string{
		"org.opencontainers.image.os":           "linux",
		"org.opencontainers.image.os.version":   "6.1",
		"org.opencontainers.image.os.features":  "a,b",
		"org.opencontainers.image.architecture": "arm64",
		"org.opencontainers.image.variant":      "v8",
		"org.opencontainers.image.author":       "the label",
		"org.opencontainers.image.created":      "2024-02-03T04:05:06.000000789Z",
		"org.opencontainers.image.stopSignal":   "SIGQUIT",
		"org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
		"a.label":                               "",
		"replaced":                              "user",
		"run.oci.handler":                       "krun",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	for _, label := range []string{"run.oci.hooks.stdout", "io.katacontainers.config.hypervisor.path"} {
		if !strings.Contains(told.String(), label) {
			t.Errorf("the log does not tell that %s was left out: %s", label, told)
		}
	}
}

func TestOtherSystemIsRefused(t *testing.T) {
	t.Parallel()
	image := &oci.Image{OS: "windows", Config: oci.ImageConfig{Cmd: []string{"c"}}}
	if _, err := Spec(image, newRootfs(t, nil), Options{}); !errors.Is(err, ErrPlatform) {
		t.Errorf("error is %v, want ErrPlatform", err)
	}
}

func TestNetMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []NetMode{NetHost, NetNone} {
		if got, err := ParseNetMode(mode.String()); got != mode || err != nil {
			t.Errorf("parsing %s: got %v, %v", mode, got, err)
		}
	}
	if _, err := ParseNetMode("bridge"); !errors.Is(err, ErrOption) {
		t.Errorf("error is %v, want ErrOption", err)
	}
	for mode, want := range map[NetMode]bool{NetHost: false, NetNone: true} {
		spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}}), newRootfs(t, nil), Options{Net: mode})
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		if got != want {
			t.Errorf("network %s: own namespace is %t, want %t", mode, got, want)
		}
	}
}

func TestCapabilitiesOfOthersAreNotEffective(t *testing.T) {
	t.Parallel()
	spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}, User: "1000"}), newRootfs(t, nil), Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.LinuxCapabilities{Bounding: capabilities()}
	if diff := cmp.Diff(spec.Process.Capabilities, want); diff != "" {
		t.Error(diff)
	}
}

func TestSeccompFilter(t *testing.T) {
	t.Parallel()
	spec, err := Spec(newImage(oci.ImageConfig{Cmd: []string{"c"}}), newRootfs(t, nil), Options{})
	if err != nil {
		t.Fatal(err)
	}
	action := func(name string) specs.LinuxSeccompAction {
		for _, call := range spec.Linux.Seccomp.Syscalls {
			if slices.Contains(call.Names, name) && len(call.Args) == 0 {
				return call.Action
			}
		}
		return spec.Linux.Seccomp.DefaultAction
	}
	for name, want := range map[string]specs.LinuxSeccompAction{
		"openat": specs.ActAllow, "chroot": specs.ActAllow, "mount": specs.ActErrno, "kexec_load": specs.ActErrno,
	} {
		if got := action(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

// TestGolden pins the whole configuration of an ordinary image. What depends on
// the machine (seccomp filter, thermal files, resolv.conf) is left out.
func TestGolden(t *testing.T) {
	t.Parallel()
	image := newImage(oci.ImageConfig{
		User: "app", Env: []string{"PATH=/app/bin:/bin", "LANG=C.UTF-8"},
		Entrypoint: []string{"/app/bin/serve"}, Cmd: []string{"--port", "80"},
		WorkingDir: "/app", StopSignal: "SIGINT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		Volumes:      map[string]struct{}{"/data": {}, "/var/lib/app": {}},
		Labels:       map[string]string{"org.example.label": "value"},
	})
	files := maps.Clone(users)
	files["data/"] = ""
	for name, o := range map[string]Options{
		"root": {Net: NetNone, Hostname: "box", CgroupsPath: "/dray-box", Mounts: []Mount{{Source: "/etc", Target: "/host/etc", Options: []string{"rbind", "rprivate"}}}},
		"rootless": {
			Net: NetNone, Rootless: true, Terminal: true,
			UIDs: []IDRange{{Count: 1}, {First: 1000, Count: 1}}, GIDs: []IDRange{{Count: 1}, {First: 1001, Count: 1}, {First: 29, Count: 1}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec, err := Spec(image, newRootfs(t, files), o)
			if err != nil {
				t.Fatal(err)
			}
			spec.Linux.Seccomp = nil
			spec.Linux.MaskedPaths = slices.DeleteFunc(spec.Linux.MaskedPaths, func(s string) bool { return strings.HasSuffix(s, "thermal_throttle") })
			got, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(got)+"\n", string(want)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
