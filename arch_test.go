package dray_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers is the architecture: a package may import those in the lists below its
// own, never one beside or above it, but for the pairs in beside.
var layers = [][]string{
	{"cmd/dray", "cmd/dray-guest"},
	{"cmd/internal/cli", "internal/demo", "internal/bench"},
	{"."},
	{"internal/guest"},
	{"internal/pull", "internal/mount", "internal/bundle", "internal/convert"},
	{"internal/records"},
	{"internal/inspect"},
	{"internal/seed"},
	{"internal/store", "internal/registryd", "internal/repo"},
	{"internal/apply", "internal/erofs", "internal/registry", "internal/ocidir", "internal/estargz", "internal/record", "internal/metastore", "internal/retar"},
	{"internal/layer"},
	{"internal/stream", "internal/inflate", "internal/userns", "internal/progress"},
	{"internal/oci", "internal/durable", "internal/loopdev", "internal/multibuf"},
}

// testOnly may be imported by tests of every package, and by no program.
var testOnly = []string{"internal/testkit", "test"}

// homes says where each third-party module may be imported. Everything else is
// refused: a dependency needs a reason in docs/decisions.md and a line here.
var homes = map[string][]string{
	"cuelabs.dev/go/oci/ociregistry":         {"internal/registryd"},
	"github.com/BurntSushi/toml":             {"cmd", "internal/guest"},
	"github.com/VictoriaMetrics/metrics":     {"internal/guest"},
	"github.com/moby/profiles/seccomp":       {"internal/bundle"},
	"github.com/containerd/ttrpc":            {"internal/guest", "internal/demo", "internal/bench"},
	"github.com/coreos/go-systemd/v22":       {"internal/guest"},
	"github.com/klauspost/compress":          {"internal/layer", "internal/apply", "internal/inflate", "internal/estargz"},
	"github.com/moby/sys/user":               {"internal/bundle", "internal/userns"},
	"github.com/opencontainers/go-digest":    {"internal/registryd"},
	"github.com/opencontainers/runtime-spec": {"internal/bundle", "."},
	"github.com/spf13/cobra":                 {"cmd"},
	"github.com/spf13/pflag":                 {"cmd"},
	"github.com/vbauerster/mpb/v8":           {"cmd/dray"},
	"golang.org/x/sync":                      {"*"},
	"golang.org/x/sys":                       {"*"},
	"golang.org/x/term":                      {"cmd/dray", "internal/bundle"},
	"google.golang.org/grpc":                 {"internal/guest", "."},
	"google.golang.org/protobuf":             {"internal/guest"},
}

type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Module     *struct{ Path string }
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	rank := map[string]int{}
	for i, row := range layers {
		for _, name := range row {
			rank[name] = len(layers) - i
		}
	}
	for _, p := range ours(t) {
		from := relative(p.ImportPath)
		if slices.ContainsFunc(testOnly, func(s string) bool { return within(from, s) }) {
			continue
		}
		fromRank := rankOf(rank, from)
		if fromRank == 0 {
			t.Errorf("%s has no place in the architecture: add it to arch_test.go and docs/design.md", from)
		}
		for _, imported := range p.Imports {
			if imported != "dray" && !strings.HasPrefix(imported, "dray/") {
				continue
			}
			to := relative(imported)
			if slices.Contains(testOnly, to) {
				t.Errorf("%s imports %s, which is for tests only", from, to)
			}
			if !within(to, from) && rankOf(rank, to) >= fromRank {
				t.Errorf("%s imports %s, which is not below it", from, to)
			}
		}
	}
}

func TestModulesStayAtHome(t *testing.T) {
	t.Parallel()
	module := map[string]string{}
	for _, p := range list(t, "-deps", "./...") {
		if p.Module != nil {
			module[p.ImportPath] = p.Module.Path
		}
	}
	for _, p := range ours(t) {
		from := relative(p.ImportPath)
		if slices.ContainsFunc(testOnly, func(s string) bool { return within(from, s) }) {
			continue
		}
		for _, imported := range p.Imports {
			third := module[imported]
			if third == "" || third == "dray" {
				continue
			}
			home, known := homes[third]
			allowed := slices.ContainsFunc(home, func(h string) bool { return h == "*" || within(from, h) })
			if !known || !allowed {
				t.Errorf("%s imports %s of module %s, which may only be imported by %v", from, imported, third, home)
			}
		}
	}
}

func rankOf(rank map[string]int, name string) int {
	for ; name != ""; name = name[:max(0, strings.LastIndexByte(name, '/'))] {
		if r := rank[name]; r > 0 {
			return r
		}
	}
	return 0
}

// within tells whether name is dir or below it.
func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func relative(importPath string) string {
	if importPath == "dray" {
		return "."
	}
	return strings.TrimPrefix(importPath, "dray/")
}

func ours(t *testing.T) []goPackage {
	t.Helper()
	return list(t, "./...")
}

func list(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Standard,Imports,Module"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}
